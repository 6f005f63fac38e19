#!/usr/bin/python
"""List, verify and prune the models of this host."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: model_store
short_description: List, verify and prune the models of this host
description:
  - Knows what M(model_files) left under O(root). A model is in use when the last deploy took it,
    or when a configuration or a running process names its folder; such a one is never pruned.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  root:
    description: Folder that holds all models.
    type: path
    required: true
  action:
    description: >
      C(list) looks at names, sizes and times; C(verify) reads all files and compares their
      SHA-256; C(prune) removes what is neither in use nor to be kept, and what fetches that do
      not run have left unfinished.
    type: str
    choices: [list, verify, prune]
    default: list
  keep:
    description: Patterns of MODEL/PRECISION that C(prune) leaves.
    type: list
    elements: str
    default: []
  configuration:
    description: Folders and files, as patterns, whose text shows models in use.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Remove the models that are not in use
  model_store:
    root: /var/lib/deepseek-r1/models
    action: prune
    configuration: [/etc/deepseek-r1]
"""

RETURN = r"""
models:
  description: One line for a person about each model and each unfinished fetch.
  type: list
  elements: str
  returned: always
damaged:
  description: What is wrong with which file.
  type: list
  elements: str
  returned: always
removed:
  description: Names and unfinished fetches that were, or in check mode would be, removed.
  type: list
  elements: str
  returned: always
"""

CHUNK = 1 << 20


def gigabytes(count):
    return f"{count / 1e9:,.1f} GB"


def text_of(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Store:
    def __init__(self, root, configuration):
        self.root, self.configuration = root, configuration
        self.marks = {path.parent: self.mark(path) for path in sorted(root.glob("*/*/.complete"))}
        self.partial = sorted([*root.glob("*/.*.partial"), *root.glob("*/.*.old")])

    @staticmethod
    def mark(path):
        try:
            return json.loads(text_of(path))
        except ValueError:
            return {}

    def name(self, folder):
        return str(folder.relative_to(self.root))

    def in_use(self):
        """The folders in use, by all that tells of it."""
        deployed = text_of(self.root / ".deployed").decode("utf-8", "replace").strip()
        said = b"\n".join(self.told())
        return {
            folder
            for folder in self.marks
            if self.name(folder) == deployed or self.told_of(folder, said)
        }

    @staticmethod
    def told_of(folder, said):
        """Whether the path occurs and is not just the beginning of a longer name."""
        parts = said.split(os.fsencode(folder))[1:]
        return any(not rest[:1].isalnum() and rest[:1] not in (b"-", b"_", b".") for rest in parts)

    def told(self):
        for pattern in self.configuration:
            for top in Path("/").glob(pattern.lstrip("/")):
                for path in [top, *top.rglob("*")] if top.is_dir() else [top]:
                    if path.is_file():
                        yield text_of(path)
        for process in Path("/proc").glob("[0-9]*"):
            if process.name != str(os.getpid()):
                yield text_of(process / "cmdline")
                yield text_of(process / "maps")

    def faults(self, folder, thorough):
        mark = self.marks[folder]
        if not mark.get("files"):
            return [f"{folder}/.complete cannot be read"]
        found = (self.fault(folder / file["path"], file, thorough) for file in mark["files"])
        return [fault for fault in found if fault]

    @staticmethod
    def fault(path, file, thorough):
        try:
            size = path.stat().st_size
            if size != file["bytes"]:
                return f"{path} has {size} bytes instead of {file['bytes']}"
            if not thorough:
                return None
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                for block in iter(lambda: stream.read(CHUNK), b""):
                    digest.update(block)
        except OSError as error:
            return f"{path}: {error.strerror}"
        if digest.hexdigest() != file["sha256"]:
            return f"{path} has SHA-256 {digest.hexdigest()} instead of {file['sha256']}"
        return None

    def line(self, folder, used, faults):
        mark = self.marks[folder]
        source = " ".join(str(mark[key]) for key in ("source", "repository") if mark.get(key))
        size = gigabytes(sum(file["bytes"] for file in mark.get("files", [])))
        state = "damaged" if faults else "whole"
        use = "in use" if folder in used else "not in use"
        return f"{self.name(folder)}: {size}, {state}, {use}, from {source or 'unknown'}"

    def left(self, folder):
        return f"{self.name(folder)}: {gigabytes(size_of(folder))}, unfinished"

    @staticmethod
    def free(home):
        """A lock on the folder, or nothing while a fetch holds it."""
        handle = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        return handle

    def remove(self, folder, dry):
        """Take a folder away under no name that is ever read; whether it could be done."""
        lock = self.free(folder.parent)
        if lock is None:
            return False
        try:
            if not dry:
                gone = folder.with_name(f".{folder.name.strip('.')}.old")
                if gone != folder:
                    shutil.rmtree(gone, ignore_errors=True)
                    folder.rename(gone)
                shutil.rmtree(gone)
                # .pins.json stays: what was once fetched under a name is held to.
        finally:
            os.close(lock)
        return True


def prune(module, store, used):
    kept = {
        folder
        for folder in store.marks
        if any(fnmatch.fnmatch(store.name(folder), pattern) for pattern in module.params["keep"])
    }
    due = [folder for folder in store.marks if folder not in used | kept]
    if due and not used and not kept:
        module.fail_json(
            msg="model_store: prune would remove every model of this host, because nothing here "
            f"says which one is deployed ({store.root}/.deployed is missing). Run deploy.yml "
            "first, or name what is to stay in model_keep (MODEL/PRECISION), or take all away "
            "with playbooks/teardown.yml -e host_remove_data=true."
        )
    return [
        store.name(folder)
        for folder in [*due, *store.partial]
        if folder.exists() and store.remove(folder, module.check_mode)
    ]


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "action": {"default": "list", "choices": ["list", "verify", "prune"]},
            "keep": {"type": "list", "elements": "str", "default": []},
            "configuration": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    action = module.params["action"]
    store = Store(Path(module.params["root"]), module.params["configuration"])
    used = store.in_use()
    faults = {folder: store.faults(folder, action == "verify") for folder in store.marks}
    before = [store.line(folder, used, faults[folder]) for folder in store.marks]
    before += [store.left(folder) for folder in store.partial]
    removed = prune(module, store, used) if action == "prune" else []
    after = [line for line in before if line.split(":")[0] not in removed]
    damaged = [fault for found in faults.values() for fault in found]
    answer = {"changed": bool(removed), "models": after, "damaged": damaged, "removed": removed}
    texts = {"before": "\n".join([*before, ""]), "after": "\n".join([*after, ""])}
    header = {"before_header": str(store.root), "after_header": str(store.root)}
    if damaged and action == "verify":
        module.fail_json(
            msg=f"{'; '.join(damaged)}. Run deploy.yml -e model_verify=true: it fetches what is "
            "damaged anew.",
            **answer,
        )
    module.exit_json(**answer, diff={**header, **texts})


if __name__ == "__main__":
    main()
