"""Bring Python packages into a bundle; the documentation is in library/bundle_wheels.py."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from r1_bundle import packages, wheels


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "folder": {"type": "path", "required": True},
                "locks": {"type": "list", "elements": "str", "required": True},
                "controller_locks": {"type": "list", "elements": "str", "required": True},
                "controller_pythons": {"type": "list", "elements": "str", "required": True},
                "system": {"type": "dict", "required": True},
            }
        )
        if self._task.check_mode:
            return result | {"changed": True, "files": [], "locks": []}
        system = args["system"]
        locks = [(text, system["python"]) for text in args["locks"]]
        locks += [(text, python) for text in args["controller_locks"]
                  for python in args["controller_pythons"]]  # fmt: skip
        try:
            names, changed, keys = wheels.gather(Path(args["folder"]), locks, system)
        except packages.Refused as error:
            raise AnsibleActionFail(f"Wheels for the bundle: {error}") from error
        folder = Path(args["folder"]).name
        files = [f"{folder}/{name}" for name in names]
        return result | {"changed": changed, "files": files, "locks": keys}
