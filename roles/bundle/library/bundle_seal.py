"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_seal
short_description: Put the project into a bundle, and write down what the bundle holds
description:
  - Copies what git knows or would add of the project, writes C(manifest.json) with size and
    SHA-256 of every file, signs it where a key is given, and removes what belongs to no bundle.
  - On demand makes C(FOLDER.update) with what an older bundle lacks, and C(FOLDER.parts).
options:
  folder:
    description: Folder of the bundle.
    type: path
    required: true
  project:
    description: Root folder of the project.
    type: path
    required: true
  files:
    description: Paths in the bundle that belong to it, besides the project.
    type: list
    elements: str
    required: true
  about:
    description: What else the manifest says.
    type: dict
    required: true
  key:
    description: Private SSH key to sign with; empty for no signature.
    type: path
    default: ""
  since:
    description: An older bundle's folder or its C(manifest.json); empty for no update.
    type: path
    default: ""
  part_mib:
    description: Size of parts in MiB; 0 for none.
    type: int
    default: 0
attributes:
  check_mode: {support: partial, details: Does not look, and says that it would change.}
"""

EXAMPLES = r"""
- name: Seal
  bundle_seal:
    folder: /srv/bundle
    project: /srv/deepseek-r1
    files: [packages/Packages]
    about: {for: {system: debian13}}
"""

RETURN = r"""
id:
  description: Name of this bundle by its content.
  type: str
  returned: when not in check mode
files:
  description: Number of files to carry in.
  type: int
  returned: when not in check mode
bytes:
  description: Size of the whole bundle.
  type: int
  returned: when not in check mode
parts:
  description: Number of parts.
  type: int
  returned: when parts were asked for
carry:
  description: Folder to carry in.
  type: str
  returned: always
"""
