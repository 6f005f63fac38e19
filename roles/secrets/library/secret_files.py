"""Documentation of the action of the same name, which does the work on the controller."""

DOCUMENTATION = r"""
module: secret_files
short_description: Make random secrets once, as files on the controller
description:
  - Makes each missing file with a random secret and leaves existing ones as they are. The folder
    is mode 0700, the files are mode 0600 and hold one line.
  - A file may be encrypted with ansible-vault.
  - With O(copies) a controller that lost all of them takes them from the host instead. It lost
    all when the last one of O(names) is missing; a single other one that is missing is made anew,
    so that removing a file renews the secret.
  - In check mode nothing is written; a missing secret is returned as a random value.
options:
  path:
    description: Folder of the files on the controller, made when missing.
    type: path
    required: true
  names:
    description: File names.
    type: list
    elements: str
    required: true
  renew:
    description: Those of O(names) that are made anew, whatever is there.
    type: list
    elements: str
    default: []
  make:
    description: Whether a file that is nowhere is made; else it is passed over.
    type: bool
    default: true
  prefix:
    description: Text put before each random part, so that a leaked key is easy to recognise.
    type: str
    default: sk-
  copies:
    description: Folder of copies on the host.
    type: path
    required: true
  keep:
    description: Whether to keep copies on the host, as they are on the controller.
    type: bool
    default: false
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Make the secrets of this host
  secret_files:
    path: "{{ playbook_dir }}/secrets/{{ inventory_hostname }}"
    names: [api_key, engine_key]
    copies: /var/lib/example/secrets
  no_log: true
"""

RETURN = r"""
values:
  description: The secret of each name, decrypted.
  type: dict
  returned: always
encrypted:
  description: Names of those that are encrypted.
  type: list
  elements: str
  returned: always
made:
  description: Paths of the files made.
  type: list
  elements: str
  returned: always
"""
