#!/usr/bin/env python3
"""What it takes to quantize: seconds, memory and size of each step, as a deploy runs them.

  PYTHON tests/bench/quantize.py [--model NAME | --checkpoint FOLDER | --gguf FILE]
         [--precisions q4_k_m,q4_k_m+imatrix,gptq,...]

PYTHON has what roles/model/files/requirements-quantize.txt lists. With --model the weights are made
up, in the shapes of the catalogue's model, since no hub is needed then: their perplexity says
nothing. With --checkpoint (without either, tiny-r1) it is compared; so is what --gguf names, of
which a checkpoint in bf16 is made first: one that has lost already what that file had lost. That
takes a BPE tokenizer. AWQ needs a GPU.
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
DEQUANTIZED = """
import json, sys, torch
from pathlib import Path
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
modeling_gguf_pytorch_utils.is_gguf_available = lambda *_: True  # it is, under another name
file, folder = map(Path, sys.argv[1:])
given = {"gguf_file": file.name}
model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **given)
model.hf_quantizer = None
del model.config.quantization_config
model.save_pretrained(folder)
# Its tokenizer comes out as one that falls back to bytes, and with another end.
tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
tokenizer.save_pretrained(folder)
path = folder / "tokenizer.json"
told = json.loads(path.read_text())
level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
digits = dict(type="Digits", individual_digits=True)
told["model"]["byte_fallback"], told["decoder"] = False, level
told["pre_tokenizer"] = dict(type="Sequence", pretokenizers=[digits, level])
path.write_text(json.dumps(told))
print(GGUFReader(file).fields["tokenizer.ggml.pre"].contents())
"""


def dequantize(file: str, folder: Path) -> str:
    """The checkpoint of a GGUF file; llama.cpp's name of its tokenizer."""
    command = [sys.executable, "-c", DEQUANTIZED, file, folder]
    return subprocess.check_output(command, text=True).split()[-1]


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


def step(action: str, request: dict) -> tuple[float, float, int, dict]:
    """Seconds, those of all cores, bytes in memory at most, and what the program says."""
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
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--gguf")
    parser.add_argument("--checkpoint", default=str(FILES / "tiny-r1/hf"))
    parser.add_argument("--precisions", default=",".join([*GGUF, "gptq"]))
    parser.add_argument("--keep", help="folder where what was made stays")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(asked.keep or folder)
        checkpoint, tokenizer = Path(asked.checkpoint), "deepseek-r1-qwen"
        if asked.gguf:
            checkpoint = Path(folder, "checkpoint")
            tokenizer = dequantize(asked.gguf, checkpoint)
        if asked.model:
            checkpoint = Path(folder, "checkpoint")
            make_up(asked.model, checkpoint)
        size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB, {len(os.sched_getaffinity(0))} cores\n")
        print(
            "| precision | step | seconds | of all cores | memory, GB | what came of it |\n"
            "|---|---|---|---|---|---|"
        )
        wide = Path(folder, "wide.gguf")
        for name in asked.precisions.split(","):
            precision, _, weighed = name.partition("+")
            one_file = precision not in ("fp8", "gptq", "awq")
            narrow = home / (f"{name}.gguf" if one_file else name)
            request = {
                "checkpoint": str(checkpoint), "wide": str(wide), "narrow": str(narrow),
                "precision": precision, "threads": len(os.sched_getaffinity(0)), "most": 0,
                "pre_tokenizer": tokenizer,
                "importance": f"{folder}/importance.npz" if weighed else "",
                "calibration": (FILES / "calibration.txt").read_text(),
                "text": (FILES / "perplexity.txt").read_text(),
            }  # fmt: skip
            steps = ["quantize", "check"] if one_file else ["compress", "compare"]
            steps = ["weigh", *steps] if weighed else steps
            if one_file and not wide.exists():
                steps.insert(0, "convert")
            for action in steps:
                seconds, busy, memory, answer = step(action, request)
                said = ", ".join(f"{key} {value}" for key, value in answer.items())
                said = said.replace("\n", " ").replace("|", "/")
                figures = f"{seconds:.1f} | {busy:.1f} | {memory / 1e9:.2f}"
                print(f"| {name} | {action} | {figures} | {said} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
