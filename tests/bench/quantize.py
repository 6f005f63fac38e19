#!/usr/bin/env python3
"""What it takes to quantize: seconds, memory and size of each step, as a deploy runs them.

  PYTHON tests/bench/quantize.py [--model NAME | --checkpoint FOLDER] [--precisions q4_k_m,gptq,...]

PYTHON has what roles/model/files/requirements-quantize.txt lists. With --model the weights are made
up, in the shapes of the catalogue's model, since no hub is needed then: their perplexity says
nothing. With --checkpoint (without either, tiny-r1) it is compared. AWQ needs a GPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FILES = REPO / "roles/model/files"
PROGRAM = FILES / "quantize.py"
GGUF = ("q4_k_m", "q5_k_m", "q8_0")
MADE_UP = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
config = AutoConfig.for_model(**json.load(sys.stdin))
with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1])
"""


def make_up(name: str, folder: Path) -> None:
    import yaml
    from vllm_memory import config_of

    (catalogue,) = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text()).values()
    config = config_of(catalogue[name]["shape"], "bf16")
    own = json.loads((FILES / "tiny-r1/hf/config.json").read_text())
    config |= {key: own[key] for key in ("bos_token_id", "eos_token_id")}
    subprocess.run(
        [sys.executable, "-c", MADE_UP, folder], input=json.dumps(config), text=True, check=True
    )
    for part in ("tokenizer", "tokenizer_config"):
        shutil.copy(FILES / f"tiny-r1/hf/{part}.json", folder)


def step(action: str, request: dict) -> tuple[float, int, dict]:
    """Seconds, bytes in memory at most, and what the program says."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as said:
        given.write(json.dumps(request))
        given.seek(0)
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, PROGRAM, action], stdin=given, stdout=said, stderr=subprocess.STDOUT
        )
        _pid, _status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        said.seek(0)
        text = said.read()
    try:
        answer = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"error": text.strip()[-400:]}
    return seconds, used.ru_maxrss * 1024, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--checkpoint", default=str(FILES / "tiny-r1/hf"))
    parser.add_argument("--precisions", default=",".join([*GGUF, "gptq"]))
    parser.add_argument("--keep", help="folder where what was made stays")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(asked.keep or folder)
        checkpoint = Path(asked.checkpoint)
        if asked.model:
            checkpoint = Path(folder, "checkpoint")
            make_up(asked.model, checkpoint)
        size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB, {len(os.sched_getaffinity(0))} cores\n")
        print(
            "| precision | step | seconds | memory, GB | what came of it |\n|---|---|---|---|---|"
        )
        wide = Path(folder, "wide.gguf")
        for precision in asked.precisions.split(","):
            one_file = precision not in ("fp8", "gptq", "awq")
            narrow = home / (f"{precision}.gguf" if one_file else precision)
            request = {
                "checkpoint": str(checkpoint), "wide": str(wide), "narrow": str(narrow),
                "precision": precision, "threads": len(os.sched_getaffinity(0)), "most": 0,
                "pre_tokenizer": "deepseek-r1-qwen",
                "calibration": (FILES / "calibration.txt").read_text(),
                "text": (FILES / "perplexity.txt").read_text(),
            }  # fmt: skip
            steps = ["quantize", "check"] if one_file else ["compress", "compare"]
            if one_file and not wide.exists():
                steps.insert(0, "convert")
            for action in steps:
                seconds, memory, answer = step(action, request)
                said = ", ".join(f"{key} {value}" for key, value in answer.items())
                said = said.replace("\n", " ").replace("|", "/")
                print(f"| {precision} | {action} | {seconds:.1f} | {memory / 1e9:.2f} | {said} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
