"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_check
short_description: Compare a bundle with its manifest
description:
  - Runs on the controller and changes nothing. Reads every file once; a file that has kept the size
    and the time it had then is not read again.
options:
  folder:
    description: Folder of the bundle.
    type: path
    required: true
  signer:
    description: Public SSH key that has to have signed it; empty takes any bundle.
    type: str
    default: ""
  records:
    description: Folder on the controller for what was read.
    type: path
    required: true
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Compare
  bundle_check:
    folder: /media/bundle
    records: .cache/bundles
  register: held
"""

RETURN = r"""
problems:
  description: What is wrong, a sentence for each; empty when all is right.
  type: list
  elements: str
  returned: always
  sample:
    - "bundle: value /media/b is not whole: packages/nginx.deb is missing (No such file ...); fix:
      carry the bundle in again, or make a new one (playbooks/bundle.yml)"
manifest:
  description: What the bundle says of itself, without its files; empty when it is not right.
  type: dict
  returned: always
models:
  description: Files of each C(MODEL/PRECISION) that it holds, with path, bytes and sha256.
  type: dict
  returned: always
"""
