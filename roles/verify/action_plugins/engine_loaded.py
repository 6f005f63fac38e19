"""Wait until the engine has loaded, show how far it is, and say why where it cannot."""

import time

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

PAUSE = 2  # seconds between two looks
UNSEEN = 15  # seconds that the engine may have no process before it counts as ended


class ActionModule(ActionBase):
    _requires_connection = True

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        _, params = self.validate_argument_spec(
            {
                "url": {"type": "str", "required": True},
                "user": {"type": "str", "required": True},
                "log": {"type": "list", "elements": "str", "required": True},
                "seconds": {"type": "int", "required": True},
            }
        )
        seconds = params.pop("seconds")
        begin, first, seen, shown = time.monotonic(), None, time.monotonic(), ""
        reason = None  # kept: a new start has a log without it
        while True:
            state = self._execute_module("engine_state", params, task_vars=task_vars)
            waited = time.monotonic() - begin
            if state.get("failed"):
                return state
            if state["ready"]:
                return {"changed": False, "seconds": round(waited, 1), "state": state}
            reason = state["reason"] or reason
            if state["started"] is not None:
                first, seen = first or state["started"], time.monotonic()
            if state["started"] not in (None, first) or time.monotonic() - seen > UNSEEN:
                stopped = {**state, "reason": reason}
                return self.failure("The engine stopped while it loaded", stopped)
            if waited > seconds:
                return self.failure(f"The engine is not ready after {seconds} s", state)
            if state["progress"] != shown:
                shown = state["progress"]
                Display().display(f"[{waited:6.0f} s] the engine {shown}")
            time.sleep(PAUSE)

    def failure(self, what, state):
        why = state["reason"] or {"said": "its log names no error", "fix": ""}
        last = f" (the last step it told of: it {state['progress']})" if state["progress"] else ""
        fix = why["fix"] or "`deepseek-r1 logs engine` on the host tells more"
        return {"failed": True, "msg": f"{what}{last}: {why['said']}. Fix: {fix}.", "state": state}
