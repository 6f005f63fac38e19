"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_wheels
short_description: Bring the Python packages of hashed lock files into a bundle
description:
  - Runs on the controller with its pip, for the Python of another system. pip compares hashes.
  - Leaves nothing else in the folder. A lock whose files are there is not asked for again; which
    files are whose stands beside the folder, in C(.wheels-locks.json).
options:
  folder:
    description: Folder of the wheels.
    type: path
    required: true
  locks:
    description: Texts of the lock files of the host's environments.
    type: list
    elements: str
    required: true
  controller_locks:
    description: Texts of the lock files of Ansible's own environment.
    type: list
    elements: str
    required: true
  controller_pythons:
    description: Versions of Python that the closed network's controller may have.
    type: list
    elements: str
    required: true
  system:
    description: C(python), C(glibc) and C(arch) of the host.
    type: dict
    required: true
attributes:
  check_mode: {support: partial, details: Does not look, and says that it would change.}
"""

EXAMPLES = r"""
- name: Wheels
  bundle_wheels:
    folder: /srv/bundle/wheels
    locks: ["{{ lookup('ansible.builtin.file', 'requirements.txt') }}"]
    controller_locks: []
    controller_pythons: []
    system: {python: 3.13.5, glibc: "2.41", arch: x86_64}
"""

RETURN = r"""
files:
  description: Paths in the bundle.
  type: list
  elements: str
  returned: always
locks:
  description: What the bundle serves, as C(VERSION_OF_PYTHON SHA256_OF_LOCK).
  type: list
  elements: str
  returned: always
"""
