#!/usr/bin/python
"""Have files of a bundle on a host while something is installed from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.r1_bundle import sealed

DOCUMENTATION = r"""
module: bundle_carry
short_description: Have files of a bundle on a host while something is installed from them
description:
  - The action plugin of this name sends the files in archives of bearable size, and this module
    unpacks them and compares their SHA-256. On the machine that runs Ansible nothing is copied.
  - For packages it makes an apt that knows the bundle alone.
  - Whoever uses it removes O(dest) when it is done.
options:
  folder:
    description: The bundle, on the controller.
    type: path
    required: true
  kind:
    description: What to have here.
    type: str
    required: true
    choices: [packages, wheels]
  lock:
    description: Text of a hashed lock file; only what it names is brought. Empty brings all.
    type: str
    default: ""
  dest:
    description: Folder on the host.
    type: path
    required: true
  archive:
    description: Archive on the host, which is removed after it was unpacked. The action plugin
      fills it in.
    type: path
  files:
    description: SHA-256 of what the archive holds, by path. The action plugin fills it in.
    type: dict
    default: {}
  source:
    description: Folder that is here already. The action plugin fills it in.
    type: path
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Bring the bundle's packages
  bundle_carry:
    folder: /media/bundle
    kind: packages
    dest: /opt/example/bundle
  register: brought
"""

RETURN = r"""
path:
  description: Folder with the files.
  type: str
  returned: always
environment:
  description: Environment in which apt knows the bundle's packages alone.
  type: dict
  returned: for packages
"""


def unpack(archive, dest, files):
    """Each file is compared before it stands under its name."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name not in files or not member.isreg():
                raise OSError(f"{member.name} was not expected in what was carried here")
            place = dest / member.name
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            part = place.with_name(f".{place.name}.part")
            with tar.extractfile(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if sealed.sha256_of(part) != files[member.name]:
                raise OSError(f"{member.name} was damaged on its way to the host; run again")
            part.chmod(0o644)
            part.replace(place)
    Path(archive).unlink()


def main():
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "required": True, "choices": ["packages", "wheels"]},
            "dest": {"type": "path", "required": True},
            "archive": {"type": "path"},
            "files": {"type": "dict", "default": {}},
            "source": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    dest = Path(given["dest"])
    try:
        dest.mkdir(mode=0o755, parents=True, exist_ok=True)
        if given["archive"]:
            unpack(given["archive"], dest, given["files"])
            module.exit_json(changed=True)
        path = Path(given["source"] or dest / given["kind"])
        answer = {"changed": True, "path": str(path)}
        if given["kind"] == "packages":
            answer["environment"] = sealed.write_apt_config(path, dest / "apt")
            done = subprocess.run(
                ["apt-get", "-qq", "update"], capture_output=True, text=True, check=False,
                env={**os.environ, **answer["environment"]},
            )  # fmt: skip
            if done.returncode:
                raise OSError(f"apt cannot read {path}: {done.stderr.strip()[-600:]}")
    except OSError as error:
        module.fail_json(msg=f"The bundle's files cannot be had on the host: {error}")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
