"""Bring packages into a bundle; the documentation is in library/bundle_packages.py."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from r1_bundle import packages


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "folder": {"type": "path", "required": True},
                "packages": {"type": "list", "elements": "str", "required": True},
                "system": {"type": "dict", "required": True},
                "sources": {"type": "str", "default": ""},
            }
        )
        if self._task.check_mode:
            return result | {"changed": True, "files": []}
        try:
            names, changed = packages.gather(
                Path(args["folder"]), args["packages"], args["system"]["codename"],
                args["system"]["arch"], args["sources"].splitlines(),
            )  # fmt: skip
        except packages.Refused as error:
            raise AnsibleActionFail(f"Packages for the bundle: {error}") from error
        folder = Path(args["folder"]).name
        return result | {"changed": changed, "files": [f"{folder}/{name}" for name in names]}
