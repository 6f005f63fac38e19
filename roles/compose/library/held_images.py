#!/usr/bin/python
"""Have container images at the digests that were recorded when they were first pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: held_images
short_description: Have container images at the digests recorded when they were first pulled
description:
  - Pulls each image by its tag once, and records the digest in O(lock). From then on that digest
    is used, also to pull the image again, whatever the tag means by then.
  - An image that Docker has already, by tag or digest, is not pulled.
options:
  images:
    description: Names of images with their tags, each by the setting that names it.
    type: dict
    required: true
  lock:
    description: File with the digests, as {NAME:TAG DIGEST} in JSON.
    type: path
    required: true
  pulled:
    description: File that lists what this module pulled, a name a line.
    type: path
    required: true
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Pull the images
  held_images:
    images:
      redis_image: docker.io/library/redis:7.2.11-bookworm
    lock: /var/lib/example/images.json
    pulled: /etc/example/pulled
  register: pull
"""

RETURN = r"""
images:
  description: The images as NAME@DIGEST, by the names that were asked for. In check mode one that
    was never pulled stays as it was.
  type: dict
  returned: always
"""

FIX = "set images to build, or name in {} a mirror that the host reaches"


class Refused(Exception):
    """A condition that ends the module with this message."""


def docker(*arguments):
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def parts(reference):
    """(name, digest or "") of NAME[:TAG][@DIGEST]."""
    name, _, digest = reference.partition("@")
    path, slash, last = name.rpartition("/")
    return path + slash + last.partition(":")[0], digest


def short(name):
    """A name as Docker shows it."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def digest_here(reference):
    """The digest of an image that Docker has, None where it has none."""
    done = docker("image", "inspect", "--format", "{{json .RepoDigests}}", reference)
    for known in json.loads(done.stdout) or [] if done.returncode == 0 else []:
        name, digest = parts(known)
        if name == short(parts(reference)[0]):
            return digest
    return None


def pull(setting, reference):
    done = docker("pull", "--quiet", reference)
    said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    digest = digest_here(reference) if done.returncode == 0 else None
    if not digest:
        raise Refused(
            f"{setting}: value {reference} cannot be pulled ({said}); fix: {FIX.format(setting)}"
        )
    return digest


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(temporary).replace(path)


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class Images:
    """What the host has, and what is recorded of it."""

    def __init__(self, lock, pulled):
        self.lock, self.pulled = Path(lock), Path(pulled)
        try:
            self.known = json.loads(read(self.lock) or "{}")
        except ValueError as error:
            raise Refused(f"{lock} is no JSON ({error}). Fix: repair or remove it.") from error

    def find(self, wanted):
        """(NAME@DIGEST, whether it is here); as it is wanted while no digest is known."""
        name, digest = parts(wanted)
        digest = digest or self.known.get(wanted)
        if digest:
            return f"{name}@{digest}", digest_here(f"{name}@{digest}") is not None
        found = digest_here(wanted)
        return (f"{name}@{found}", True) if found else (wanted, False)

    def fetch(self, setting, reference):
        digest = pull(setting, reference)
        write(self.pulled, f"{read(self.pulled)}{reference}\n")
        return f"{parts(reference)[0]}@{digest}"

    def hold(self, wanted, image):
        """Record the digest; return whether it was new."""
        if self.known.get(wanted) == parts(image)[1]:
            return False
        self.known[wanted] = parts(image)[1]
        write(self.lock, json.dumps(self.known, indent=1, sort_keys=True) + "\n")
        return True


def main():
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "dict", "required": True},
            "lock": {"type": "path", "required": True},
            "pulled": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given, check = module.params, module.check_mode
    found, changes = {}, []
    try:
        images = Images(given["lock"], given["pulled"])
        for setting, wanted in given["images"].items():
            if not shutil.which("docker"):
                image, here = wanted, False
            else:
                image, here = images.find(wanted)
            if not here:
                changes.append(image)
            if not check:
                image = image if here else images.fetch(setting, image)
                if images.hold(wanted, image) and here:
                    changes.append(image)
            found[wanted] = image
    except (Refused, OSError) as error:
        module.fail_json(msg=str(error))
    diff = {"before": "", "after": "".join(f"{name}\n" for name in changes)}
    module.exit_json(changed=bool(changes), images=found, diff=diff)


if __name__ == "__main__":
    main()
