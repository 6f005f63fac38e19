"""vllm_args against the flags of the pinned vLLM; documented in vllm_flag_problems.yml."""

from __future__ import annotations

import difflib
from pathlib import Path

# What other settings decide, and others rely on.
OWNED = {
    "api-key": "the gateway shows the key that the deploy made",
    "config": "the deploy writes that file",
    "host": "the engine is for the gateway alone",
    "model": "set model instead",
    "port": "set engine_port instead",
    "served-model-name": "set model instead",
}


FLAGS = Path(__file__).parents[1] / "files/flags.txt"


def vllm_flag_problems(args) -> list[str]:
    known, found = FLAGS.read_text().splitlines(), []
    for name in args:
        flag = str(name).lstrip("-").replace("_", "-")
        if flag in OWNED:
            found.append(f"vllm_args: value {name} is not yours to set; fix: {OWNED[flag]}")
        elif flag != name or flag.removeprefix("no-") not in known:
            near = [flag] if flag in known else difflib.get_close_matches(flag, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see `vllm serve --help=all`"
            found.append(f"vllm_args: value {name} is no flag of the pinned vLLM; fix: {hint}")
    return found


class FilterModule:
    def filters(self):
        return {"vllm_flag_problems": vllm_flag_problems}
