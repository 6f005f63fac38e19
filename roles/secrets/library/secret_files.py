#!/usr/bin/python
"""Make random secrets once, as files only their owner can read."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: secret_files
short_description: Make random secrets once, one file each
description:
  - Makes each missing file with a random secret and leaves existing ones as they are.
  - The folder is mode 0700, the files are mode 0600 and hold one line.
  - In check mode nothing is written; a missing secret is returned as a random value.
options:
  path:
    description: Folder of the files, made when missing.
    type: path
    required: true
  names:
    description: File names.
    type: list
    elements: str
    required: true
  prefix:
    description: Text put before each random part, so that a leaked key is easy to recognise.
    type: str
    default: sk-
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Make the secrets of this host
  secret_files:
    path: "{{ playbook_dir }}/secrets/{{ inventory_hostname }}"
    names: [api_key, engine_key]
  delegate_to: localhost
  no_log: true
"""

RETURN = r"""
values:
  description: The secret of each name.
  type: dict
  returned: always
"""


def read(path):
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def write(path, value):
    """Put the secret in place in one step, so that a killed run leaves no half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(value + "\n")
    Path(temporary).replace(path)


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "prefix": {"type": "str", "default": "sk-", "no_log": False},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    if not module.check_mode:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    values, made = {}, []
    for name in module.params["names"]:
        path = folder / name
        values[name] = read(path)
        if not values[name]:
            values[name] = module.params["prefix"] + secrets.token_urlsafe(32)
            made.append(str(path))
            if not module.check_mode:
                write(path, values[name])
    module.exit_json(changed=bool(made), values=values, made=made)


if __name__ == "__main__":
    main()
