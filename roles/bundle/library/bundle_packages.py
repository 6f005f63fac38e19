"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_packages
short_description: Bring packages of a Debian or Ubuntu with all they need into a bundle
description:
  - Runs on the controller, as whoever runs Ansible, with the apt of the controller; what is
    installed there plays no part. apt checks signatures as ever.
  - Leaves a flat repository, the packages with C(Packages) and C(Release), and nothing else in the
    folder. What is there is not fetched again.
options:
  folder:
    description: Folder of the packages.
    type: path
    required: true
  packages:
    description: Names of packages; patterns of apt such as C(?essential) are allowed.
    type: list
    elements: str
    required: true
  system:
    description: C(codename) and C(arch) of the system they are for.
    type: dict
    required: true
  sources:
    description: Lines of sources.list; empty takes the controller's own mirrors, with the name of
      the release replaced.
    type: str
    default: ""
attributes:
  check_mode: {support: partial, details: Does not look, and says that it would change.}
"""

EXAMPLES = r"""
- name: Packages of Debian 13
  bundle_packages:
    folder: /srv/bundle/packages
    packages: [nginx]
    system: {codename: trixie, arch: x86_64}
"""

RETURN = r"""
files:
  description: Paths in the bundle.
  type: list
  elements: str
  returned: always
"""
