"""Plan one host on the controller; the documentation is in library/plan.py."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from r1_planner import lock
from r1_planner.planner import make_plan, refused
from r1_planner.summary import summary
from r1_planner.units import PlanError

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write_if_new(path: Path, text: str):
    """Replace the file in one step, and only when its content differs."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(fresh).chmod(0o644)
    Path(fresh).replace(path)


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "settings": {"type": "dict", "required": True},
                "inspection": {"type": "dict", "default": {}},
                "catalogue": {"type": "path", "required": True},
                "lock": {"type": "path"},
                "report": {"type": "path"},
                "for_deploy": {"type": "bool", "default": False},
            }
        )
        host = task_vars["inventory_hostname"]
        # plain types: the planner knows nothing of Ansible's tagged ones
        given = json.loads(json.dumps({key: args[key] for key in ("settings", "inspection")}))
        content = yaml.load(Path(args["catalogue"]).read_text(encoding="utf-8"), Loader)
        (catalogue,) = content.values()
        if args["lock"]:
            catalogue = lock.apply(catalogue, json.loads(Path(args["lock"]).read_text("utf-8")))
        try:
            plan = make_plan(host, given["settings"], catalogue, given["inspection"],
                             args["for_deploy"])  # fmt: skip
        except PlanError as error:
            if not args["for_deploy"]:
                raise AnsibleActionFail(
                    "There is no plan for these settings:\n"
                    + "\n".join(f"{n}. {text}" for n, text in enumerate(error.problems, 1))
                ) from error
            plan = refused(host, error.problems)
        if args["report"]:
            report, text = Path(args["report"]), json.dumps(plan, indent=2, ensure_ascii=False)
            write_if_new(report, text + "\n")
            if args["for_deploy"] and plan["fits"] and not self._task.check_mode:
                write_if_new(report.with_name("deployed.json"), text + "\n")
        return result | plan | {"changed": False, "summary": summary(plan)}
