"""Compare a bundle with its manifest; the documentation is in library/bundle_check.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from r1_bundle import sealed

SLOW = 2 << 30  # bytes that take more than a moment to read


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "folder": {"type": "path", "required": True},
                "signer": {"type": "str", "default": ""},
                "records": {"type": "path", "required": True},
            }
        )
        folder = Path(args["folder"])
        problems, manifest = [], {}
        try:
            manifest = self._whole(folder, args["signer"], Path(args["records"]))
        except sealed.Broken as error:
            fix = "carry the bundle in again, or make a new one (playbooks/bundle.yml)"
            problems = [f"bundle: value {folder} {error}; fix: {fix}"]
        about = {key: value for key, value in manifest.items() if key != "files"}
        models = {}
        for path, file in manifest.get("files", {}).items():
            if path.startswith("models/"):
                _, model, precision, name = path.split("/", 3)
                files = models.setdefault(f"{model}/{precision}", [])
                files.append({"path": name, "bytes": file["bytes"], "sha256": file["sha256"]})
        return result | {
            "changed": False, "problems": problems, "manifest": about, "models": models,
        }  # fmt: skip

    @staticmethod
    def _whole(folder, signer, records):
        """The manifest of a bundle whose files are all right."""
        if not folder.is_dir():
            raise sealed.Broken("is no folder on the machine that runs Ansible")
        manifest = sealed.read(folder, signer)
        if manifest["kind"] == "parts":
            raise sealed.Broken(
                f"is one in parts; put it together first: python3 {folder}/unpack.py NEW_FOLDER"
            )
        record = records / f"{manifest['id']}.json"
        try:
            seen = json.loads(record.read_text(encoding="utf-8")).get(str(folder), {})
        except (OSError, ValueError):
            seen = {}
        size = sum(file["bytes"] for file in manifest["files"].values())
        if size > SLOW and not seen:
            Display().display(f"  reading {size / 1e9:,.1f} GB to compare them with the manifest")
        wrong, right = sealed.faults(folder, manifest, seen)
        if wrong:
            raise sealed.Broken(f"is not whole: {sealed.told(wrong, manifest)}")
        if right != seen:
            records.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = record.with_name(
                f"{record.name}.{os.getpid()}"
            )  # hosts are looked at side by side
            new.write_text(json.dumps({str(folder): right}), encoding="utf-8")
            new.replace(record)
        return manifest
