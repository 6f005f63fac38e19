#!/usr/bin/env python3
"""What vLLM takes of a real GPU, and how fast it is there: the measurements behind the planner.

  python tests/bench/vllm_memory.py CASES.yml RESULTS.jsonl [--seconds N] [--only NAME,...]

Runs on a machine with a GPU and vLLM, by itself: the weights are made up (`load_format=dummy`),
so no model and no network is needed. Each case is a mapping:

  name, model (of roles/plan/vars/catalogue.yml), precision (bf16, fp8, awq, gptq),
  args    what vLLM's LLM() is given besides, such as max_model_len
  users   optional: batch sizes to time, tokens per second of each goes into the result; without
          it the case ends when its CUDA graphs are captured
  card_mib  optional: let torch have no more than a card of this size would leave it
  trace   optional: also record which tensors are alive at the peak of the profiling run
  env     optional: environment variables
  long    optional: tokens of a long prompt, after which one user is timed too
  sampling  optional: other sampling parameters than R1's temperature 0.6 and top_p 0.95
  kernels optional: also record what the GPU does for one user, in microseconds a token
  calls   optional: the same of the CPU, Python function by function

A case has a process of its own. The next one is imported while one runs, and waits for the GPU.
Two of these programs use two GPUs side by side, each with its own CUDA_VISIBLE_DEVICES and TMPDIR.
With a tensor_parallel_size a result holds what each rank measured, under `ranks`.
A result is one line of JSON: the case, bytes as vLLM itself accounts for them, seconds, speed.
"""

import argparse
import cProfile
import fcntl
import json
import os
import pstats
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LOCK = Path(tempfile.gettempdir()) / "vllm_memory.lock"
WAITING = 2  # processes: one has the GPU, the others are importing

# How the checkpoints on the hubs say what they hold.
QUANTIZATION = {
    "bf16": None,
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
            "version": "gemm"},
    "gptq": {"quant_method": "compressed-tensors", "format": "pack-quantized",
             "quantization_status": "compressed", "ignore": ["lm_head"],
             "config_groups": {"group_0": {
                 "targets": ["Linear"], "input_activations": None,
                 "weights": {"num_bits": 4, "type": "int", "symmetric": True,
                             "strategy": "group", "group_size": 128}}}},
    "fp8": {"quant_method": "compressed-tensors", "format": "float-quantized",
            "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "symmetric": True,
                            "strategy": "channel", "dynamic": False},
                "input_activations": {"num_bits": 8, "type": "float", "symmetric": True,
                                      "strategy": "token", "dynamic": True}}}},
}  # fmt: skip


def config_of(shape: dict, precision: str) -> dict:
    """A config.json of this shape."""
    kind = "Qwen2" if shape.get("qkv_bias") else "Qwen3" if shape.get("qk_norm") else "Llama"
    config = {
        "architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(),
        "hidden_size": shape["hidden"], "intermediate_size": shape["ffn"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape.get("head_dim", 128),
        "vocab_size": shape["vocab"], "max_position_embeddings": 131072,
        "tie_word_embeddings": shape.get("tied", False), "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02,
    }  # fmt: skip
    if QUANTIZATION[precision]:
        config["quantization_config"] = QUANTIZATION[precision]
    return config


class Done(Exception):
    """All that was asked for is known."""


def watch(result: dict, trace: bool, timed: bool) -> None:
    """Have vLLM's worker write what it measured into the result, which it tells when asked.

    A worker in a process of its own is forked from this one, with a result of its own.
    """
    import torch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    capture = GPUModelRunner.capture_model
    determine, warm_up = Worker.determine_available_memory, Worker.compile_or_warm_up_model

    def determine_available_memory(self):
        result["torch_before_profile"] = torch.cuda.memory_allocated()
        if trace:
            torch.cuda.memory._record_memory_history(max_entries=400000, stacks="python")
        try:
            available = determine(self)
        finally:
            if trace:
                result["peak"] = at_peak(torch.cuda.memory._snapshot()["device_traces"][0])
                torch.cuda.memory._record_memory_history(enabled=None)
        result.update(
            total=self.init_snapshot.total_memory,
            free_at_start=self.init_snapshot.free_memory,
            requested=int(self.requested_memory),
            weights=self.model_runner.model_memory_usage,
            activation=getattr(self, "peak_activation_memory", None),
            non_torch=getattr(self, "non_torch_memory", None),
            kv_available=int(available),
            runner=type(self.model_runner).__module__,
        )
        return available

    def compile_or_warm_up_model(self):
        cache = self.cache_config
        result["kv_tokens"] = cache.num_gpu_blocks * cache.block_size
        if self.model_config.enforce_eager and not timed:
            raise Done
        before = torch.cuda.mem_get_info()[0]
        done = warm_up(self)
        torch.cuda.synchronize()
        result["free_before_capture"] = before
        result["free_when_ready"] = torch.cuda.mem_get_info()[0]
        result["torch_when_ready"] = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return done

    def capture_model(self):
        result["graphs"] = capture(self)
        if not timed:
            raise Done
        return result["graphs"]

    Worker.measured = lambda self: {k: v for k, v in result.items() if k != "case"}
    Worker.determine_available_memory = determine_available_memory
    Worker.compile_or_warm_up_model = compile_or_warm_up_model
    GPUModelRunner.capture_model = capture_model


def limit(card_mib: int) -> None:
    """Give torch what a card of that size would leave it: without CUDA's context, the driver's
    own share and what else vLLM takes outside torch, 1,270 MiB on an H100."""
    import torch

    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((card_mib - 1270) * 2**20 / total)


def at_peak(events: list[dict], most: int = 14) -> list[dict]:
    """The largest tensors made since the record began that are alive at its peak."""
    live, now, highest, kept = {}, 0, 0, {}
    for event in events:
        if event["action"] == "alloc":
            live[event["addr"]] = event
            now += event["size"]
            if now > highest:
                highest, kept = now, dict(live)
        elif event["action"] == "free_completed" and event["addr"] in live:
            now -= live.pop(event["addr"])["size"]
    largest = sorted(kept.values(), key=lambda event: -event["size"])[:most]
    return [
        {
            "mib": round(event["size"] / 2**20, 1),
            "made": [
                f"{Path(frame['filename']).name}:{frame['line']} {frame['name']}"
                for frame in event.get("frames", [])[:6]
            ],
        }
        for event in largest
    ]


def ask(llm, users: int, seed: int, tokens: int, sampling: dict, length: int = 0) -> float:
    """Seconds that so many users at once wait for so many tokens, each with its own prompt."""
    from vllm import SamplingParams

    words = random.Random(seed)
    length = length or (128 if users == 1 else 512)
    prompts = [
        {"prompt_token_ids": [words.randrange(1000, 100000) for _ in range(length)]}
        for _ in range(users)
    ]
    how = {"temperature": 0.6, "top_p": 0.95, "ignore_eos": True, "detokenize": False} | sampling
    begin = time.monotonic()
    llm.generate(prompts, SamplingParams(max_tokens=tokens, **how), use_tqdm=False)
    return time.monotonic() - begin


def speed(llm, users: int, sampling: dict) -> float:
    """Tokens per second of so many users at once, warmed up first."""
    ask(llm, users, users, 24, sampling)
    return round(users * 256 / ask(llm, users, users + 1, 256, sampling), 1)


def speed_after(llm, length: int, sampling: dict) -> float:
    """Tokens per second of one user once a prompt of so many tokens is read."""
    ask(llm, 1, 11, 24, sampling, length)
    reading = ask(llm, 1, 12, 1, sampling, length)
    return round(256 / (ask(llm, 1, 13, 257, sampling, length) - reading), 1)


def counters(llm, prefix: str) -> dict:
    """vLLM's own counters by that name, since it started."""
    found = ((metric.name, getattr(metric, "value", None)) for metric in llm.get_metrics())
    return {name: value for name, value in found if name.startswith(prefix) and value is not None}


def kernels(llm, sampling: dict, tokens: int = 64, most: int = 25) -> dict:
    """Microseconds of the GPU for each token of one user, kernel by kernel."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        seconds = ask(llm, 1, 7, tokens, sampling)
    times = {event.key[:120]: event.self_device_time_total for event in record.key_averages()}
    largest = sorted(times, key=times.get, reverse=True)[:most]
    said = {name: round(times[name] / tokens, 1) for name in largest}
    said["all of the GPU"] = round(sum(times.values()) / tokens)
    return said | {"a token": round(1e6 * seconds / tokens)}


def calls(llm, sampling: dict, tokens: int = 256, most: int = 40) -> dict:
    """Microseconds of Python for each token of one user, function by function."""
    record = cProfile.Profile()
    record.enable()
    seconds = ask(llm, 1, 9, tokens, sampling)
    record.disable()
    found = {
        f"{Path(file).name}:{line} {name}": own
        for (file, line, name), (_cc, _nc, own, _all, _callers) in pstats.Stats(
            record
        ).stats.items()
    }
    largest = sorted(found, key=found.get, reverse=True)[:most]
    said = {name: round(1e6 * found[name] / tokens, 1) for name in largest}
    return said | {"a token": round(1e6 * seconds / tokens)}


def one(case: dict) -> dict:
    """Run one case in this process."""
    begin = time.monotonic()
    import torch
    import yaml
    from vllm import LLM

    models = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text())
    shape = models["__plan_catalogue"][case["model"]]["shape"]
    result = {"case": case, "imported_s": round(time.monotonic() - begin, 1)}
    with LOCK.open("w") as gpu, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(gpu, fcntl.LOCK_EX)
        begin = time.monotonic()
        Path(folder, "config.json").write_text(json.dumps(config_of(shape, case["precision"])))
        os.environ.update(case.get("env", {}))
        ranks = case["args"].get("tensor_parallel_size", 1)
        watch(result, case.get("trace", False), bool(case.get("users")) or ranks > 1)
        if "card_mib" in case:
            limit(case["card_mib"])
        try:
            llm = LLM(model=folder, load_format="dummy", skip_tokenizer_init=True,
                      dtype="bfloat16", **case["args"])  # fmt: skip
            result["started_s"] = round(time.monotonic() - begin, 1)
            sampling = case.get("sampling", {})
            result["tokens_per_second"] = {
                str(users): speed(llm, users, sampling) for users in case.get("users", [])
            }
            if "long" in case:
                result["tokens_per_second"]["long"] = speed_after(llm, case["long"], sampling)
            if ranks > 1:
                result["ranks"] = llm.collective_rpc("measured")
            if case["args"].get("speculative_config"):
                result["speculation"] = counters(llm, "vllm:spec_decode_num_")
            if "torch_when_ready" in result:  # not where vLLM has a process of its own
                running = torch.cuda.max_memory_allocated() - result["torch_when_ready"]
                reserved = torch.cuda.max_memory_reserved()
                result.update(running=running, torch_reserved_at_most=reserved)
            if case.get("kernels"):
                result["kernels"] = kernels(llm, sampling)
            if case.get("calls"):
                result["calls"] = calls(llm, sampling)
            llm.llm_engine.engine_core.shutdown()  # a process of its own would live on
        except Done:
            pass
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"[:600]
        result["seconds"] = round(time.monotonic() - begin, 1)
        print("RESULT " + json.dumps(result), flush=True)
        os._exit(0)  # the GPU is free only when the process is gone


def all_of(cases: list[dict], out: Path, seconds: float) -> None:
    begin, running = time.monotonic(), []
    logs = out.with_suffix("")
    logs.mkdir(exist_ok=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    def collect(process, log, name):
        process.wait()
        text = log.read_text(errors="replace")
        found = [line[7:] for line in text.splitlines() if line.startswith("RESULT ")]
        line = found[-1] if found else json.dumps({"case": {"name": name}, "error": text[-600:]})
        with out.open("a") as file:
            file.write(line + "\n")
        result = json.loads(line)
        said = {k: v for k, v in result.items() if k not in ("case", "peak")}
        print(f"{time.monotonic() - begin:6.0f} s {name}: {json.dumps(said)}", flush=True)

    for case in cases:
        if len(running) == WAITING:
            collect(*running.pop(0))
        if time.monotonic() - begin > seconds:
            print(f"no time left for {case['name']}", flush=True)
            continue
        log = logs / f"{case['name']}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, __file__, "--one", json.dumps(case)], stdout=file, stderr=file
            )
        running.append((process, log, case["name"]))
        time.sleep(1)  # so that the first to start is the first to get the GPU
    for waiting in running:
        collect(*waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="?", type=Path)
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--one")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=3600)
    asked = parser.parse_args()
    if asked.one:
        one(json.loads(asked.one))
    import yaml

    cases = yaml.safe_load(asked.cases.read_text())
    if asked.only:
        cases = [case for case in cases if case["name"] in asked.only.split(",")]
    all_of(cases, asked.results, asked.seconds)


if __name__ == "__main__":
    main()
