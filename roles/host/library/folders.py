#!/usr/bin/python
"""Make many folders in one call."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: folders
short_description: Make many folders in one call
description:
  - Does for a list of folders what ansible.builtin.file does for one, at the cost of one task.
  - Folders are made in the order given; a missing parent that is not listed is an error.
options:
  folders:
    description: The folders.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: Absolute path.}
      owner: {type: str, default: root, description: User.}
      group: {type: str, default: root, description: Group.}
      mode: {type: str, default: '0750', description: Mode in octal.}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Make the folders
  folders:
    folders:
      - {path: /etc/example, mode: "0755"}
      - {path: /etc/example/keys, group: www-data}
"""

RETURN = r"""
changes:
  description: Paths that were made or whose owner, group or mode was set.
  type: list
  returned: always
"""


def ensure(module, folder):
    """Make one folder and set its attributes; return whether anything changed."""
    made = not Path(folder["path"]).is_dir()
    if made and module.check_mode:
        return True
    if made:
        try:
            Path(folder["path"]).mkdir(mode=0o700)
        except OSError as error:
            module.fail_json(msg=f"cannot make the folder {folder['path']}: {error}")
    wanted = dict(folder, selevel=None, serole=None, setype=None, seuser=None, attributes=None)
    attributes = module.load_file_common_arguments(wanted)
    return module.set_fs_attributes_if_different(attributes, made)


def main():
    item = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0750"},
    }
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "dict", "required": True, "options": item}
        },
        supports_check_mode=True,
    )
    changes = [folder["path"] for folder in module.params["folders"] if ensure(module, folder)]
    diff = {"before": "", "after": "".join(path + "\n" for path in changes)}
    module.exit_json(changed=bool(changes), changes=changes, diff=diff)


if __name__ == "__main__":
    main()
