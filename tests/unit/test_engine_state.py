"""What vLLM's log and pages say, from recorded logs (data/vllm-log-*.txt, vLLM 0.26.0)."""

from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture
def state(load_plugin):
    return load_plugin("roles/verify/library/engine_state.py")


def test_how_far_it_is(state):
    """Each step, in the order of a start on an H100."""
    log = (DATA / "vllm-log-h100.txt").read_text()
    steps, lines = [], log.splitlines()
    for count in range(len(lines)):
        step = state.progress("\n".join(lines[: count + 1]))
        if step and step not in steps and not step.startswith("captures CUDA graphs"):
            steps.append(step)
    assert state.progress("\n".join(lines[:44])) == "captures CUDA graphs, 35/35"
    assert steps == [
        "loads the weights",
        "has the weights, 5.4 GiB",
        "compiles",
        "has compiled, 22.39 s",
        "has a KV cache of 1,237,584 tokens",
        "has captured its CUDA graphs",
        "is about to open its door",
    ]
    assert state.weights_bytes(log) == pytest.approx(5.4 * 2**30, abs=1)
    assert state.reason(log) is None


@pytest.mark.parametrize(
    ("name", "said", "fix"),
    [
        ("usage", "argument --max-num-seqs: invalid int value: 'abc'", ""),
        ("long", "User-specified max_model_len (99999999) is greater than the derived", ""),
        ("missing", "Repo id must be in the form 'repo_name' or 'namespace/repo_name'", ""),
        (
            "kv",
            "To serve at least one request with the model's max seq len (4096)",
            "lower max_model_len",
        ),
        (
            "free",
            "Free memory on device cuda:0 (58.77/139.8 GiB) on startup is less than desired GPU",
            "other programs hold memory of this GPU",
        ),
        (
            "oom",
            "CUDA out of memory. Tried to allocate 93.13 GiB. GPU 0 has a total capacity of 139.80",
            "other programs took memory of this GPU meanwhile",
        ),
        (
            "backend",
            "Selected backend AttentionBackendEnum.FLASHMLA is not valid for this configuration. "
            "Reason: ['head_size not supported', 'non-MLA not supported']",
            "",
        ),
        ("awq", "Cannot find the config file for awq", ""),
    ],
)
def test_why_it_did_not_start(state, name, said, fix):
    found = state.reason((DATA / f"vllm-log-{name}.txt").read_text())
    assert found["said"].startswith(said)
    assert found["fix"].startswith(fix)


def test_only_the_last_start_counts(state):
    before = (DATA / "vllm-log-kv.txt").read_text()
    log = (DATA / "vllm-log-h100.txt").read_text()
    assert state.reason(before)
    assert state.reason(state.last_start(before + log)) is None
    assert state.last_start("no start yet") == "no start yet"


def test_a_log_without_an_error(state):
    assert state.reason("INFO all is well\n") is None
    assert state.weights_bytes("") is None


def test_the_size_of_the_kv_cache(state):
    page = 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0\n'
    assert state.kv_tokens("# HELP x\n" + page) == 16000
    assert state.kv_tokens(page.replace("1000", "None")) is None
    assert state.kv_tokens("") is None
