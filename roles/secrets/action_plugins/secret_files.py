"""Make random secrets once; the documentation is in library/secret_files.py."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "names": {"type": "list", "elements": "str", "required": True},
    "renew": {"type": "list", "elements": "str", "default": []},
    "make": {"type": "bool", "default": True},
    "prefix": {"type": "str", "default": "sk-", "no_log": False},
    "copies": {"type": "path", "required": True},
    "keep": {"type": "bool", "default": False},
}
VAULT = "$ANSIBLE_VAULT"


def read(path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def write(path, text) -> None:
    """Put the secret in place in one step, so that a killed run leaves no half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
    Path(temporary).replace(path)


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(ARGUMENTS)
        folder, names = Path(given["path"]), given["names"]
        copies = {"path": given["copies"]}
        texts = {name: read(folder / name) for name in names}
        missing = [name for name in names if not texts[name]]
        if names[-1] in missing:
            texts.update(self.on_host(copies | {"names": missing}, task_vars)["texts"])
        missing += [name for name in given["renew"] if name not in missing]
        texts.update(dict.fromkeys(given["renew"], ""))
        if given["make"]:
            made = {name: given["prefix"] + secrets.token_urlsafe(32) for name in missing}
            texts = {name: text or made[name] for name, text in texts.items()}
        texts = {name: text for name, text in texts.items() if text}
        missing = [name for name in missing if name in texts]
        if not self._task.check_mode:
            for name in missing:
                write(folder / name, texts[name])
        changed = bool(missing)
        if given["keep"]:
            changed |= self.on_host(copies | {"texts": texts}, task_vars)["changed"]
        encrypted = [name for name, text in texts.items() if text.startswith(VAULT)]
        return {
            "changed": changed,
            "made": [str(folder / name) for name in missing],
            "encrypted": encrypted,
            "values": texts | {name: self.decrypted(folder / name) for name in encrypted},
        }

    def on_host(self, arguments, task_vars) -> dict:
        result = self._execute_module("secret_copies", arguments, task_vars=task_vars)
        if result.get("failed"):
            raise AnsibleActionFail(f"{arguments['path']}: {result.get('msg')}")
        return result

    def decrypted(self, path) -> str:
        if not path.is_file():  # a copy that check mode does not take
            return secrets.token_urlsafe(32)
        try:
            return self._loader.get_text_file_contents(str(path)).strip()
        except AnsibleError as error:
            raise AnsibleActionFail(
                f"{path} cannot be decrypted; fix: give its password with --ask-vault-pass or"
                " --vault-password-file"
            ) from error
