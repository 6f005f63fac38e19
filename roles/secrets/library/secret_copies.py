#!/usr/bin/python
"""Copies of the controller's secrets on the host, for the day the controller loses them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: secret_copies
short_description: Read or keep copies of secrets on a host
description:
  - Reads the files O(names), or makes files hold O(texts). The folder is mode 0700, the files are
    mode 0600, both are the user's who runs this.
options:
  path:
    description: Folder of the files.
    type: path
    required: true
  names:
    description: Names of the files to read; a missing one is passed over.
    type: list
    elements: str
    default: []
  texts:
    description: What the files are to hold, by name.
    type: dict
    default: {}
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Read a copy
  secret_copies:
    path: /var/lib/example/secrets
    names: [api_key]
  register: copies
  no_log: true
"""

RETURN = r"""
texts:
  description: What the files of O(names) hold.
  type: dict
  returned: always
"""


def read(path):
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def right(path, mode):
    state = path.stat()
    return state.st_mode & 0o777 == mode and state.st_uid == os.geteuid()


def write(path, text):
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
    Path(temporary).replace(path)


def keep(folder, texts, check_mode):
    """Make the files hold these texts; return whether anything changed."""
    stale = [
        name
        for name, text in texts.items()
        if read(folder / name) != text or not right(folder / name, 0o600)
    ]
    open_folder = folder.is_dir() and not right(folder, 0o700)
    if not check_mode and (stale or open_folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(folder, os.geteuid(), os.getegid())
        folder.chmod(0o700)
        for name in stale:
            (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
            write(folder / name, texts[name])
    return bool(stale or open_folder)


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "texts": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    found = {name: read(folder / name) for name in module.params["names"]}
    changed = keep(folder, module.params["texts"], module.check_mode)
    texts = {name: text for name, text in found.items() if text}
    module.exit_json(changed=changed, texts=texts)


if __name__ == "__main__":
    main()
