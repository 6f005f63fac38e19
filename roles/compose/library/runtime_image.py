#!/usr/bin/python
"""Build a container image from packages of the host's own distribution."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: runtime_image
short_description: Build a container image from packages of the host's own distribution
description:
  - Makes a small system of the host's own release with mmdebstrap, from the host's own apt
    sources, and imports it into Docker. Needs no image registry.
  - An image of that name is never changed. Another recipe belongs into another name.
  - The image is there whole or not at all, and what a killed run left is removed by the next.
options:
  name:
    description: Name of the image, with a tag that stands for the recipe.
    type: str
    required: true
  packages:
    description: Packages to install, beside the essential ones.
    type: list
    elements: str
    required: true
  folder:
    description: Folder for what is there only while the image is built.
    type: path
    required: true
  repository:
    description: Folder on the host with the packages, a flat repository of apt, to make it from
      alone. Empty takes the host's own sources.
    type: path
  release:
    description: Codename of the release that O(repository) is of.
    type: str
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Build the image
  runtime_image:
    name: example/runtime:1
    packages: [nginx, ca-certificates]
    folder: /opt/example/image
"""

RETURN = r"""
name:
  description: Name of the image.
  type: str
  returned: always
"""

# What others offer beside the distribution does not belong into the image.
ORIGINS = ("Debian", "Ubuntu")
# Settings of the host's apt that say how it reaches its mirror.
WAY = re.compile(r"^Acquire::(Check-|https?::|ForceIPv)\S* \"[^\"]")
# Read by nobody in a container.
DEAD_WEIGHT = ("doc/*", "info/*", "locale/*", "man/*")


class Refused(Exception):
    """A condition that ends the module with this message."""


def run(*argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise Refused(f"{argv[0]} failed:\n{said}")
    return done.stdout


def exists(name):
    if not shutil.which("docker"):
        return False
    argv = ["docker", "image", "inspect", name]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def sources():
    """(release, lines for sources.list) of what the host itself installs from."""
    form = "$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)|$(SIGNED_BY)"
    argv = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    for _ in range(2):
        lines, codename = [], None
        for line in run(*argv).splitlines():
            origin, code, release, uri, component, signed_by = line.split("|", 5)
            if origin not in ORIGINS:
                continue
            if "-" not in release:
                codename = code
            option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            lines.append(f"deb {option}{uri} {release} {component}")
        if codename:
            return codename, "\n".join(dict.fromkeys(lines)) + "\n"
        run("apt-get", "update")
    raise Refused(
        "The host's apt sources name no mirror of Debian or Ubuntu. Fix: add one in "
        "/etc/apt/sources.list, or set images to pull."
    )


def build(name, packages, folder, repository, release):
    if repository:
        lines = f"deb [trusted=yes] copy:{repository} ./\n"
    else:
        release, lines = sources()
    options = [f"--dpkgopt=path-exclude=/usr/share/{one}" for one in DEAD_WEIGHT]
    options += [
        f"--aptopt={line.rstrip(';')}"
        for line in run("apt-config", "dump").splitlines()
        if WAY.match(line)
    ]
    archive = folder / "image.tar"
    folder.chmod(0o755)  # apt downloads as a user of its own
    run(
        "mmdebstrap", "--quiet", "--variant=essential", "--mode=root", "--format=tar", *options,
        "--include=" + ",".join(packages),
        '--customize-hook=rm -rf "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/var/cache/apt/*',
        release, str(archive), "-",
        input=lines, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    run("docker", "import", str(archive), name)


def remove(folder):
    """What a killed build has mounted there stays whole."""
    run("rm", "-rf", "--one-file-system", str(folder))


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
            "folder": {"type": "path", "required": True},
            "repository": {"type": "path"},
            "release": {"type": "str"},
        },
        supports_check_mode=True,
    )
    name, folder = module.params["name"], Path(module.params["folder"])
    there = exists(name)
    if there or module.check_mode:
        module.exit_json(changed=not there, name=name)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    # A run whose connection was cut may still be building.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = exists(name)
        for leftover in folder.glob("build-*"):
            remove(leftover)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
        try:
            if not there:
                given = module.params
                build(name, given["packages"], work, given["repository"], given["release"])
        except Refused as error:
            module.fail_json(msg=f"The image {name} cannot be built: {error}")
        finally:
            remove(work)
    module.exit_json(changed=not there, name=name)


if __name__ == "__main__":
    main()
