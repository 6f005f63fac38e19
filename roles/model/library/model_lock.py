"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_lock
short_description: Write what the hubs hold of the catalogue's models into the lock file
description:
  - Asks the hubs, from the host, for revision, files, sizes and SHA-256 of each source that the
    catalogue does not pin itself. A source that does not answer keeps what the file said of it,
    or is marked C(resolved=false).
  - The options of M(model_files) that name the hubs and their clients are handed on to it.
options:
  path:
    description: The lock file, on the controller.
    type: path
    required: true
  catalogue:
    description: YAML file of the known models, on the controller.
    type: path
    required: true
  models:
    description: Names of the models to look at; empty means all.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Renew the lock file
  model_lock:
    path: roles/plan/files/lock.json
    catalogue: roles/plan/vars/catalogue.yml
"""

RETURN = r"""
unresolved:
  description: Sources that did not answer, and why.
  type: list
  elements: str
  returned: always
"""
