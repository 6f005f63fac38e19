"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check_settings
short_description: Check the settings of every role at once
description:
  - Checks every documented setting of every role of the project by its argument spec and by what
    it means, finds names that no role knows and values that contradict each other, weak or
    readable secrets, and a checkout that anyone may write to.
  - Runs on the controller without touching the host, and changes nothing.
options:
  project:
    description: Root folder of the project.
    type: path
    required: true
  refuse:
    description:
      - Whether to fail when there are problems.
      - A setting that cannot be computed, such as one that refers to an unknown variable, is
        always a failure, because the tasks that follow could not use it.
    type: bool
    default: false
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Check the settings of all roles
  check_settings:
    project: "{{ playbook_dir }}"
  register: settings_check
"""

RETURN = r"""
problems:
  description: One sentence for each problem, naming the setting, its value and the fix.
  type: list
  elements: str
  returned: always
  sample:
    - "gateway_port: value 70000 is not a TCP port; fix: give a number from 1 to 65535"
"""
