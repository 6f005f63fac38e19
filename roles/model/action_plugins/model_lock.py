"""Look at every model of the catalogue on its hubs and write the lock file."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plan/module_utils"))

from r1_planner import lock as locks

FILES = Path(__file__).resolve().parents[1] / "files"


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        path = Path(args.pop("path"))
        (catalogue,) = yaml.safe_load(Path(args.pop("catalogue")).read_text("utf-8")).values()
        wanted = set(args.pop("models", None) or catalogue)
        unknown = sorted(wanted - set(catalogue))
        if unknown:
            raise AnsibleActionFail(
                f"model_lock_models: {', '.join(unknown)} is not in the catalogue. Known: "
                f"{', '.join(catalogue)}."
            )
        before = path.read_text("utf-8") if path.exists() else "{}\n"
        old = json.loads(before)
        chosen = {name: entry for name, entry in catalogue.items() if name in wanted}
        renewed, problems = locks.renew(chosen, old, self._looker(args, task_vars))
        kept = {name: entry for name, entry in old.items() if name in set(catalogue) - wanted}
        after = json.dumps({**kept, **renewed}, indent=1, sort_keys=True) + "\n"
        if after != before and not self._task.check_mode:
            path.parent.mkdir(exist_ok=True)
            path.write_text(after, encoding="utf-8")
        for problem in problems:
            Display().warning(f"Not resolved, held as before: {problem}")
        header = {"before_header": str(path), "after_header": str(path)}
        return result | {
            "changed": after != before,
            "unresolved": problems,
            "diff": {**header, "before": before, "after": after},
            "msg": self._summary(before, after, problems),
        }

    @staticmethod
    def _summary(before, after, problems):
        lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0))[2:]
        changed = sum(line[0] in "+-" for line in lines)
        return f"{changed} lines changed, {len(problems)} sources not resolved"

    def _looker(self, args, task_vars):
        requirements = {
            name: (FILES / f"requirements-{name}.txt").read_text(encoding="utf-8")
            for name in ("huggingface", "modelscope")
        }

        def look(source):
            answer = self._execute_module(
                module_name="model_files",
                module_args={
                    **args,
                    "root": "/unused",
                    "model": "listed",
                    "precision": "listed",
                    "list_only": True,
                    "client": (FILES / "fetch.py").read_text(encoding="utf-8"),
                    "requirements": requirements,
                    "download": source,
                },
                task_vars=task_vars,
            )
            if answer.get("failed"):
                return None, answer.get("msg", "no answer").splitlines()[0]
            return {key: answer[key] for key in ("revision", "files")}, None

        return look
