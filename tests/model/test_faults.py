"""What a source may do to us: a seeded sample of tests/bench/fetch_faults.py, and single faults."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

WEIGHTS = os.urandom(3_000_000)


@pytest.mark.parametrize("seed", [2, 3, 4, 8, 9])
def test_sample_of_the_seeded_faults(seed, load_plugin, tmp_path):
    outcome = load_plugin("tests/bench/fetch_faults.py").run_case(seed, tmp_path)
    assert not outcome.problems, str(outcome)


def wanted(source: str, file: dict) -> dict:
    library = source == "ollama"
    return {
        "source": source,
        "repository": "n" if library else "o/n",
        "revision": "tag" if library else None,
        "files": [file],
    }


@pytest.fixture
def library(start_hub, entry):
    hub = start_hub({"m.gguf": WEIGHTS})
    return hub, wanted("ollama", entry("m.gguf", WEIGHTS)), {"ollama_registry": hub.url}


def test_a_source_that_only_drips_is_left(library, model_files):
    hub, download, endpoint = library
    hub.drip_after = [1000] * 9
    answer = model_files(download, stall_seconds=1, **endpoint)
    assert answer["failed"]
    for text in ("ollama n@tag", "it brought nothing for 1 s", "ollama_registry", hub.url):
        assert text in answer["msg"]


def test_a_long_pause_that_a_source_asks_for_is_cut_short(library, model_files, tmp_path):
    hub, download, endpoint = library
    hub.refuse, hub.retry_after = [503], 86400
    assert model_files(download, stall_seconds=2, **endpoint).get("changed")
    assert (tmp_path / "models/m/q4_k_m/m.gguf").read_bytes() == WEIGHTS


def test_a_refusal_names_the_file(library, model_files):
    hub, download, endpoint = library
    hub.refuse = [503] * 9
    answer = model_files(download, stall_seconds=1, **endpoint)
    assert "m.gguf: HTTPError: HTTP Error 503" in answer["msg"]
    assert f"Check the network and ollama_registry ({hub.url})" in answer["msg"]


@pytest.mark.parametrize("order", [("huggingface", "modelscope"), ("modelscope", "huggingface")])
def test_files_without_pins_go_on_at_the_other_hub(order, start_hub, entry, model_files, tmp_path):
    files = {"config.json": b"{}" * 9000, "m.safetensors": WEIGHTS}
    dying, alive = start_hub(files), start_hub(files)
    dying.dead_after = 2_000_000
    first, second = [
        {**wanted(kind, {}), "files": [entry(name, body, False) for name, body in files.items()]}
        for kind in order
    ]
    endpoints = {f"{order[0]}_endpoint": dying.url, f"{order[1]}_endpoint": alive.url}
    answer = model_files({**first, "alternatives": [second]}, **endpoints)
    assert answer.get("changed"), answer
    assert answer["source"] == order[1]
    assert (tmp_path / "models/m/q4_k_m/m.safetensors").read_bytes() == WEIGHTS
    assert dying.sent + alive.sent <= 1.05 * sum(map(len, files.values()))


def shown_by_processes(text: bytes) -> tuple[set[str], set[str]]:
    """Processes whose arguments or environment hold the text, and all that were looked at."""
    found, seen = set(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
            held = arguments + (folder / "environ").read_bytes()
        except OSError:
            continue
        seen.add(arguments.decode(errors="replace"))
        if text in held:
            found.add(folder.name)
    return found, seen


def test_no_process_shows_the_token(start_hub, entry, module_input):
    hub = start_hub({"m.gguf": WEIGHTS})
    hub.token, hub.rate = "hf_" + os.urandom(8).hex(), 1_500_000
    command, given = module_input(
        wanted("huggingface", entry("m.gguf", WEIGHTS)),
        huggingface_endpoint=hub.url,
        huggingface_token=hub.token,
    )
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    run.stdin.write(given.encode())
    run.stdin.close()
    deadline = time.monotonic() + 90
    while not hub.sent:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    found, seen = shown_by_processes(hub.token.encode())
    assert any("hf_hub_url" in arguments for arguments in seen), "the client was not looked at"
    out = run.stdout.read().decode()
    run.wait()
    assert json.loads(out).get("changed"), out
    assert not found
    assert hub.token not in out


def test_the_sample_sees_what_it_looks_for(load_plugin, tmp_path):
    bench = load_plugin("tests/bench/fetch_faults.py")
    case = bench.Case(1, tmp_path)
    try:
        home = tmp_path / "m/q"
        home.mkdir(parents=True)
        for name, body in case.files.items():
            (home / name).write_bytes(body)
        assert bench.left_behind(case) == ["no mark of completion"]
        (home / ".complete").write_text("{}")
        assert bench.left_behind(case) == []
        (home / name).write_bytes(body[:-1])
        assert bench.left_behind(case) == [f"bad or missing ['{name}']"]
        assert bench.silent(case, {"failed": True, "msg": "It failed."}, "")
        case.first.count(int(1.06 * case.total))
        assert bench.fetched(case)[2]
    finally:
        case.stop()
