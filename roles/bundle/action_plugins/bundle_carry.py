"""Bring files of a bundle to the host; the documentation is in library/bundle_carry.py."""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path

from ansible.plugins.action import ActionBase

AT_ONCE = 256 << 20  # bytes that go over in one archive


def loads(files: dict) -> list[list[str]]:
    """The files' paths in archives of a bearable size; what is larger goes alone."""
    found, size = [[]], 0
    for path, file in sorted(files.items()):
        if found[-1] and size + file["bytes"] > AT_ONCE:
            found.append([])
            size = 0
        found[-1].append(path)
        size += file["bytes"]
    return [paths for paths in found if paths]


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "folder": {"type": "path", "required": True},
                "kind": {"type": "str", "required": True, "choices": ["packages", "wheels"]},
                "lock": {"type": "str", "default": ""},
                "dest": {"type": "path", "required": True},
            }
        )
        if self._task.check_mode:
            return result | {"changed": False, "path": args["dest"], "environment": {}}
        bundle = Path(args["folder"]).resolve()
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        files = {
            path: file
            for path, file in manifest["files"].items()
            if path.startswith(args["kind"] + "/") and (file["sha256"] in args["lock"]
                                                        or not args["lock"])
        }  # fmt: skip
        module = {"dest": args["dest"], "kind": args["kind"]}
        if self._connection.transport == "local":
            module["source"] = str(bundle / args["kind"])
        else:
            for paths in loads(files):
                answer = self._send(bundle, paths, {path: files[path] for path in paths},
                                    module, task_vars)  # fmt: skip
                if answer.get("failed"):
                    return answer
        answer = self._execute_module(
            module_name="bundle_carry", module_args=module, task_vars=task_vars
        )
        return result | answer

    def _send(self, bundle, paths, files, module, task_vars):
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        there = self._connection._shell.join_path(folder, "bundle.tar")
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                for path in paths:
                    tar.add(bundle / path, arcname=path)
            archive.flush()
            self._transfer_file(archive.name, there)
        self._fixup_perms2((folder, there))
        hashes = {path: file["sha256"] for path, file in files.items()}
        return self._execute_module(
            module_name="bundle_carry",
            module_args={**module, "archive": there, "files": hashes},
            task_vars=task_vars,
        )
