"""vllm_args against the flags of the pinned vLLM."""

from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[2] / "roles/vllm"
KNOWN = (ROLE / "files/flags.txt").read_text().splitlines()


@pytest.fixture
def problems(load_plugin):
    return load_plugin("roles/vllm/filter_plugins/vllm.py").vllm_flag_problems


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("max-num-seq", "is no flag of the pinned vLLM; fix: did you mean max-num-seqs?"),
        ("max_num_seqs", "is no flag of the pinned vLLM; fix: did you mean max-num-seqs?"),
        ("--max-num-seqs", "is no flag of the pinned vLLM; fix: did you mean max-num-seqs?"),
        ("xyzzy", "is no flag of the pinned vLLM; fix: see `vllm serve --help=all`"),
        ("api-key", "is not yours to set; fix: the gateway shows the key that the deploy made"),
        ("port", "is not yours to set; fix: set engine_port instead"),
    ],
)
def test_a_flag_that_cannot_be_given(problems, name, told):
    assert problems({name: 1}) == [f"vllm_args: value {name} {told}"]


def test_flags_that_can(problems):
    assert problems({"max-num-seqs": 3, "no-enable-prefix-caching": True, "seed": None}) == []


def test_the_plan_uses_known_flags(problems):
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    flags = set(variables["__vllm_flags_always"])
    flags |= {"kv-cache-memory-bytes", "gpu-memory-utilization", "enforce-eager"}
    assert flags <= set(KNOWN)
