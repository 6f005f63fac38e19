"""Run the checks on the controller or the host, add the memory check, write the report."""

import json
import os
import time
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ansible.plugins.action import ActionBase


def load_checks():
    path = Path(__file__).parents[1] / "library/verify_endpoint.py"
    spec = spec_from_file_location("verify_endpoint_checks", path)
    checks = module_from_spec(spec)
    spec.loader.exec_module(checks)
    return checks


MIB = 1024**2
# A plan is right when what the engine reports is as near as this, by either measure.
FAR_SHARE, FAR_BYTES = 0.03, 500 * MIB


def gib(size):
    return f"{size / 1024**3:.2f} GiB"


def judge_memory(measured, memory):
    """Compare what engine_memory measured with the plan; return (passed, detail)."""
    plan, logs = memory["planned_bytes"], "`deepseek-r1 logs engine`"
    if measured.get("failed"):
        return False, f"engine_memory failed on the host: {measured.get('msg')}"
    if not measured["processes"]:
        who = f"user {memory['user']}" if "user" in memory else f"port {memory['port']}"
        return False, (
            f"no process of {who} runs on the host. Likely cause: the engine "
            f"stopped. Next: `deepseek-r1 status`, then {logs}"
        )
    used, where = measured["bytes"], "main memory"
    if memory.get("gpu"):
        used, where = measured["gpu_bytes"], "the fullest GPU"
    if used is None:
        return False, (
            "nvidia-smi shows no memory of the engine. Likely cause: it silently runs on the CPU. "
            f"Next: `nvidia-smi` on the host, then {logs}"
        )
    told = f"the engine holds {gib(used)} of {where}, the plan allows {gib(plan)}"
    if used <= plan:
        return True, told
    return False, (
        f"{told}. Likely cause: the plan is too low for this version of the engine, or flags were "
        f"changed by hand. Next: deploy again; if it stays so, lower max_model_len; {logs}"
    )


def judge_plan(state, plan):
    """Compare what engine_state read with the plan; return (passed, detail)."""
    if state.get("failed"):
        return False, f"engine_state failed on the host: {state.get('msg')}"
    told, far = [], []
    tokens = state["kv_tokens"], plan["kv_cache_tokens"]
    weights = state["weights_bytes"], plan["weights_bytes"]
    for what, (found, planned), unit, far_off in (
        ("tokens of KV cache", tokens, 1, FAR_BYTES / plan["kv_per_token"]),
        ("MiB of weights", weights, MIB, FAR_BYTES),
    ):
        if found is None:
            told.append(f"the engine does not tell its {what}")
            continue
        told.append(
            f"{found / unit:,.0f} {what}, planned {planned / unit:,.0f} "
            f"({found / planned - 1:+.2%})"
        )
        if abs(found - planned) > max(FAR_SHARE * planned, far_off):
            far.append(what)
    if not far:
        return True, "; ".join(told)
    return False, (
        f"{'; '.join(told)}. Likely cause: the plan does not know this version of the engine or "
        "flags were changed by hand. Next: compare reports/HOST/deployed.json with "
        "`deepseek-r1 logs engine`"
    )


def write_report(path, report):
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draft.replace(target)


class ActionModule(ActionBase):
    _requires_connection = True

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        checks = load_checks()
        _, params = self.validate_argument_spec(argument_spec=checks.ARGUMENTS)
        if params["where"] == "controller":
            made = checks.run_checks(params)
        else:
            result = self._execute_module("verify_endpoint", params, task_vars=task_vars)
            if result.get("failed"):
                return result
            made = result["checks"]
        if params["memory"]:
            made.append(self.check_memory(params, task_vars))
        if params["plan"]:
            made.append(self.check_plan(params, task_vars))
        passed = all(check["passed"] for check in made)
        report = {
            "host": task_vars["inventory_hostname"],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "endpoint": params["url"],
            "passed": passed,
            "checks": made,
        }
        if params["report"] and not self._task.check_mode:
            write_report(params["report"], report)
        return {"changed": False, **report}

    def check_plan(self, params, task_vars):
        start, plan = time.monotonic(), params["plan"]
        asked = {key: plan[key] for key in ("url", "user", "log")}
        state = self._execute_module("engine_state", asked, task_vars=task_vars)
        passed, detail = judge_plan(state, plan)
        seconds = round(time.monotonic() - start, 3)
        return {"name": "plan", "passed": passed, "detail": detail, "seconds": seconds}

    def check_memory(self, params, task_vars):
        """Measured last, when the engine has answered."""
        start, memory = time.monotonic(), params["memory"]
        arguments = {
            key: memory[key] for key in ("user", "port", "program", "gpu") if key in memory
        }
        measured = self._execute_module("engine_memory", arguments, task_vars=task_vars)
        passed, detail = judge_memory(measured, memory)
        seconds = round(time.monotonic() - start, 3)
        return {"name": "memory", "passed": passed, "detail": detail, "seconds": seconds}
