"""Seal a bundle; the documentation is in library/bundle_seal.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from r1_bundle import packages, seal, sealed


def beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "folder": {"type": "path", "required": True},
                "project": {"type": "path", "required": True},
                "files": {"type": "list", "elements": "str", "required": True},
                "about": {"type": "dict", "required": True},
                "key": {"type": "path", "default": ""},
                "since": {"type": "path", "default": ""},
                "part_mib": {"type": "int", "default": 0},
            }
        )
        folder = Path(args["folder"]).resolve()
        if self._task.check_mode:
            return result | {"changed": True, "carry": str(folder)}
        about = json.loads(json.dumps(args["about"]))  # plain types
        try:
            manifest, changed = seal.seal(
                folder, args["project"], args["files"], about, args["key"]
            )
            told = {"id": manifest["id"], "files": len(manifest["files"])}
            told["bytes"] = sum(file["bytes"] for file in manifest["files"].values())
            carry = folder
            if args["since"]:
                carry = beside(folder, "update")
                told["files"], new = seal.update(
                    folder, manifest, args["since"], carry, args["key"]
                )
                changed |= new
            if args["part_mib"]:
                whole, carry = carry, beside(carry, "parts")
                told["parts"], new = seal.split(whole, carry, args["part_mib"] << 20, args["key"])
                changed |= new
        except sealed.Broken as error:
            raise AnsibleActionFail(
                f"bundle_since: value {args['since']} {error}; fix: name an older bundle's folder "
                "or its manifest.json"
            ) from error
        except packages.Refused as error:
            raise AnsibleActionFail(str(error)) from error
        return result | told | {"changed": changed, "carry": str(carry)}
