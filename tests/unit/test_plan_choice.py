"""What the planner chooses, refuses, and says about it."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner.planner import make_plan
from r1_planner.units import PlanError

PLAN = Path(__file__).resolve().parents[2] / "roles/plan"
CATALOGUE = yaml.safe_load((PLAN / "vars/catalogue.yml").read_text())["__plan_catalogue"]
PLAIN = {"ram_mib": 24000, "cpus": 2}
H100 = "NVIDIA H100 80GB HBM3"


def cards(count, name, **more):
    return {"gpus": [{"name": name}] * count, "ram_mib": 500000, "cpus": 32, **more}


def plan(hardware, for_deploy=False, **settings):
    return make_plan("box", {"plan_hardware": hardware, **settings}, CATALOGUE, None, for_deploy)


def reasons(found):
    return "\n".join(found["reasons"])


def test_without_a_gpu_it_is_1_5b_with_llama_cpp_and_every_other_model_has_a_reason():
    found = plan(PLAIN)
    assert (found["engine"], found["model"], found["precision"]) == (
        "llamacpp", "deepseek-r1-1.5b", "q4_k_m",
    )  # fmt: skip
    assert found["fits"]
    assert not found["problems"]
    assert found["max_model_len"] == 16384
    assert "7b q4_k_m fits but would decode about 2.5 tokens per second" in reasons(found)
    assert "70b q4_k_m needs" in reasons(found)
    for name in CATALOGUE:
        assert f"{name} " in reasons(found) or f"{name}:" in reasons(found)


def test_a_rejection_has_figures():
    found = plan({"ram_mib": 8192, "cpus": 2}, model="deepseek-r1-14b", precision="q4_k_m")
    assert not found["fits"]
    text = found["problems"][0]
    assert "deepseek-r1-14b q4_k_m needs 1" in text
    assert "the host's 8.0 GiB RAM" in text
    assert "Instead: the most able that would fit is deepseek-r1-1.5b q4_k_m" in text
    assert found["largest_that_fits"]["model"] == "deepseek-r1-1.5b"


def test_a_model_too_slow_for_auto_is_taken_when_named():
    found = plan(PLAIN, model="deepseek-r1-7b")
    assert found["fits"]
    assert found["model"] == "deepseek-r1-7b"
    assert found["estimate"]["decode_tokens_per_second_1"] < 8


def test_when_nothing_is_fast_enough_the_fastest_is_taken_and_said_so():
    found = plan({"ram_mib": 24000, "cpus": 1})
    assert found["model"] == "deepseek-r1-1.5b"
    assert "none decodes 8 tokens per second here" in reasons(found)


def test_nothing_fits():
    found = plan({"ram_mib": 1100, "cpus": 2})
    assert not found["fits"]
    assert found["model"] is None
    assert "nothing fits 2 CPU cores, 1.1 GiB RAM" in found["problems"][0]


def test_32b_bf16_at_32768_does_not_start_on_one_80_gb_card():
    found = plan(
        cards(1, H100), engine="vllm", model="deepseek-r1-32b", precision="bf16",
        max_model_len=32768, gpu_memory_utilization=0.9, max_num_seqs=256, kv_cache_dtype="bf16",
        max_num_batched_tokens=16384,
    )  # fmt: skip
    assert not found["fits"]
    assert found["memory_per_gpu"]["kv_cache_tokens"] == pytest.approx(28_176, rel=0.03)
    assert "needs" in found["problems"][0]
    assert "max_model_len of at most 28," in found["problems"][0]


def test_32b_on_one_80_gb_card_gets_32k_in_fp8():
    found = plan(cards(1, H100))
    assert (found["model"], found["precision"]) == ("deepseek-r1-32b", "fp8")
    assert found["max_model_len"] >= 32768
    assert found["estimate"]["decode_tokens_per_second_1"] == pytest.approx(69, rel=0.03)
    assert "rejected: deepseek-r1-70b" in reasons(found)
    assert "with precision awq one user would get about 79 tokens per second" in reasons(found)


def test_4_bits_give_one_user_of_7b_no_more_than_fp8():
    found = plan(cards(1, H100), engine="vllm", model="deepseek-r1-7b")
    assert found["precision"] == "fp8"
    assert "with precision awq" not in reasons(found)


@pytest.mark.parametrize("for_deploy", [False, True])
@pytest.mark.parametrize(
    "card", ["NVIDIA A10", "NVIDIA L4", "NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090"]
)
def test_32b_in_4_bits_runs_on_24_gb_with_16k(card, for_deploy):
    found = plan(cards(1, card), for_deploy, model="deepseek-r1-32b")
    assert found["fits"]
    assert found["precision"] in ("awq", "q4_k_m")
    assert found["max_model_len"] >= 16384
    assert found["memory_per_gpu"]["total_bytes"] <= found["memory_per_gpu"]["budget_bytes"]


def test_32b_in_4_bits_with_vllm_on_24_gb():
    """Settings like these ran on an H100 whose torch was limited to what such a card leaves it."""
    found = plan(cards(1, "NVIDIA L4"), engine="vllm", model="deepseek-r1-32b")
    assert (found["precision"], found["kv_cache_dtype"]) == ("awq", "fp8")
    assert found["max_model_len"] >= 16384
    tokens = found["memory_per_gpu"]["kv_cache_tokens"]
    assert found["kv_cache_memory_bytes"] == tokens * 128 * 1024
    assert tokens % 16 == 0


def test_a_share_of_the_card_that_leaves_too_little():
    settings = {"engine": "vllm", "model": "deepseek-r1-7b", "max_num_seqs": 1024}
    found = plan(cards(1, H100), gpu_memory_utilization=0.98, **settings)
    assert "gpu_memory_utilization 0.98 leaves 1.6 GiB of the" in found["problems"][0]
    assert "at most 0.97" in found["problems"][0]
    fits = plan(cards(1, H100), gpu_memory_utilization=0.97, **settings)
    assert fits["fits"] and fits["kv_cache_memory_bytes"] is None


@pytest.mark.parametrize("for_deploy", [False, True])
def test_70b_does_not_fit_24_gb(for_deploy):
    found = plan(cards(1, "NVIDIA GeForce RTX 4090"), for_deploy, model="deepseek-r1-70b")
    assert not found["fits"]
    assert "deepseek-r1-70b" in found["problems"][0]
    assert "the most able that would fit is deepseek-r1-32b" in found["problems"][0]


def test_671b_in_fp8_needs_two_hosts_of_eight_80_gb_cards():
    one = plan(cards(8, H100), model="deepseek-r1-671b", precision="fp8")
    assert not one["fits"]
    two = plan(cards(8, H100, nodes=2), model="deepseek-r1-671b", precision="fp8")
    assert two["fits"]
    assert (two["tensor_parallel_size"], two["pipeline_parallel_size"]) == (8, 2)
    refused = plan(cards(8, H100, nodes=2), True, model="deepseek-r1-671b")
    assert "plan_nodes: this version can plan for 2 but not deploy it" in refused["problems"][0]


def test_an_engine_that_cannot_be_deployed_yet_is_planned_and_refused():
    wish = {"engine": "sglang", "model": "deepseek-r1-7b"}
    assert plan(cards(1, H100), **wish)["problems"] == []
    found = plan(cards(1, H100), True, **wish)
    assert found["fits"]
    assert "can plan for SGLang but not deploy it" in found["problems"][0]
    assert plan(cards(1, H100), True, **wish | {"engine": "vllm"})["problems"] == []


def test_auto_takes_vllm_on_a_gpu_whose_driver_runs_it():
    found = plan(cards(1, H100), True)
    assert (found["engine"], found["model"], found["precision"]) == (
        "vllm", "deepseek-r1-32b", "fp8",
    )  # fmt: skip
    assert "vLLM is tried first" in reasons(found)
    older = "is CUDA 13 and needs driver 580 or newer, but the host has 550.54.14"
    found = plan(cards(1, H100), True, engines_refused={"vllm": older})
    assert (found["engine"], found["precision"]) == ("ollama", "q4_k_m")
    assert f"engine: not vLLM, which {older}." in found["reasons"]


@pytest.mark.parametrize(
    ("asked", "init", "told"),
    [
        ("auto", "", "native, auto takes it, since it needs neither Docker nor images; systemd runs"
         " the services where the host has it, else a supervisor."),
        ("native", "systemd", "native, as set; systemd runs the services."),
        ("native", "none", "a supervisor runs the services, for the host has no systemd."),
        ("compose", "systemd", "compose, as set; Docker runs each service in a container."),
    ],
)  # fmt: skip
def test_the_runtime_has_a_reason(asked, init, told):
    seen = {"ram_mib": 24000, "ram_available_mib": 20000, "cpu": {"count": 2, "flags": []},
            "gpus": [], "disk": {"path": "/", "free_mib": 500000}}  # fmt: skip
    inspection = seen | {"init": init} if init else None
    settings = {"runtime": asked} | ({} if init else {"plan_hardware": PLAIN})
    found = make_plan("box", settings, CATALOGUE, inspection, True)
    assert found["runtime"] == ("compose" if asked == "compose" else "native")
    assert not [text for text in found["problems"] if text.startswith("runtime")]
    assert told in reasons(found)


def test_tensor_parallel_must_divide_the_heads():
    found = plan(cards(8, H100), engine="vllm", model="deepseek-r1-7b", tensor_parallel_size=8)
    assert (
        "8 does not divide the model's 28 attention heads; use one of 1, 2, 4"
        in (found["problems"][0])
    )
    assert plan(cards(8, H100), engine="vllm", model="deepseek-r1-7b")["tensor_parallel_size"] == 4


def test_different_cards_only_the_equal_ones_are_used():
    mixed = cards(2, "NVIDIA A40")
    mixed["gpus"] = [*mixed["gpus"], {"name": "NVIDIA L4"}]
    found = plan(mixed)
    assert found["tensor_parallel_size"] == 2
    assert "only the 2 x NVIDIA A40 are used and 1 x NVIDIA L4 stays idle" in reasons(found)


def test_a_gpu_too_small_for_any_model_is_left_alone():
    small = {"name": "NVIDIA T400", "memory_mib": 2048, "compute_capability": 7.5}
    found = plan({"gpus": [small], "ram_mib": 16000, "cpus": 4})
    assert (found["engine"], found["model"]) == ("llamacpp", "deepseek-r1-1.5b")
    assert found["engine_args"]["gpu_layers"] == 0
    assert "hardware: the GPU is not used: deepseek-r1-1.5b" in reasons(found)


@pytest.mark.parametrize(
    ("card", "settings", "message"),
    [
        ("Tesla T4", {"precision": "bf16"}, "bf16 needs compute capability 8.0"),
        ("NVIDIA A10", {"precision": "fp8"}, "fp8 needs compute capability 8.9"),
        ("NVIDIA A10", {"precision": "awq", "kv_cache_dtype": "fp8"}, "needs compute capability"),
        ("Tesla V100-SXM2-32GB", {"precision": "awq"}, "vLLM needs compute capability 7.5"),
    ],
)
def test_what_a_card_cannot_do(card, settings, message):
    found = plan(cards(1, card), engine="vllm", model="deepseek-r1-7b", **settings)
    assert not found["fits"]
    assert message in found["problems"][0]


def test_gguf_engines_and_checkpoints_do_not_mix():
    found = plan(PLAIN, engine="llamacpp", model="deepseek-r1-7b", precision="awq")
    assert "awq is not for llama.cpp, which loads GGUF files" in found["problems"][0]
    found = plan(PLAIN, engine="sglang", model="deepseek-r1-7b")
    assert "SGLang needs an NVIDIA GPU and the host has none" in found["problems"][0]


def test_vllm_on_a_cpu():
    found = plan(PLAIN, engine="vllm", model="tiny-r1", max_num_seqs=2)
    assert (found["precision"], found["enforce_eager"]) == ("bf16", True)
    assert found["kv_cache_memory_bytes"] == 2 * 4096 * 3 * 2 * 2 * 64 * 2  # slots, tokens, K and V
    assert found["memory"]["total_bytes"] > 3e9  # its processes
    for settings, told in (
        ({"precision": "awq", "model": "deepseek-r1-7b"}, "without a GPU vLLM is given bf16"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: fp8 needs a GPU with vLLM"),
        ({"tensor_parallel_size": 2}, "without a GPU vLLM is one process"),
        ({"model": "deepseek-r1-32b"}, "RAM less 1.0 GiB for the system leave"),
    ):
        found = plan(PLAIN, **{"engine": "vllm", "model": "tiny-r1"} | settings)
        assert told in found["problems"][0]


def test_what_you_set_wins():
    found = plan(PLAIN, engine="ollama", model="deepseek-r1-1.5b", precision="q8_0",
                 max_model_len="4096", max_num_seqs=3, kv_cache_dtype="q8_0")  # fmt: skip
    assert (found["engine"], found["precision"], found["max_model_len"]) == ("ollama", "q8_0", 4096)
    assert (found["max_num_seqs"], found["kv_cache_dtype"]) == (3, "q8_0")
    assert found["memory"]["kv_cache_tokens"] == 3 * 4096


@pytest.mark.parametrize("goal", ["balanced", "latency", "throughput", "context"])
def test_goals(goal):
    found = plan(PLAIN, goal=goal)
    expected = {"balanced": (16384, 2), "latency": (16384, 1), "throughput": (8192, 4),
                "context": (131072, 1)}  # fmt: skip
    assert (found["max_model_len"], found["max_num_seqs"]) == expected[goal]


def test_a_context_beyond_the_model():
    found = plan(PLAIN, model="tiny-r1", max_model_len=8192)
    assert "was made for at most 4,096 tokens; max_model_len asks for 8,192" in found["problems"][0]


def test_disk():
    found = plan({**PLAIN, "disk_free_mib": 1000}, model="deepseek-r1-1.5b")
    assert not found["fits"]
    assert "needs 1.6 GiB of disk under data_path" in found["problems"][0]
    assert "1.0 GiB is free" in found["problems"][0]


def test_alternatives_say_what_they_give():
    best = plan(PLAIN)["alternatives"][0]
    assert best["model"] == "deepseek-r1-32b"
    assert set(best) == {
        "model", "precision", "engine", "max_model_len", "max_num_seqs", "memory_bytes",
        "aime_2024", "decode_tokens_per_second_1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "deepseek-r1-7"}, "Did you mean 'deepseek-r1-7b'?"),
        ({"engine": "lamacpp"}, "Did you mean 'llamacpp'?"),
        ({"precision": "q4km"}, "Did you mean 'q4_k_m'?"),
        ({"max_model_len": "many"}, "max_model_len: 'many' is not 'auto' or a whole number"),
        ({"gpu_memory_utilization": 90}, "a share from 0.05 to 0.99"),
        ({"model_sources": ["hugginface"]}, "Did you mean 'huggingface'?"),
        ({"plan_hardware": {"ram": 1}}, "plan_hardware.ram: unknown key"),
        ({"plan_hardware": {"cpus": 2}}, "plan_hardware.ram_mib: None is not a whole number"),
        ({"plan_hardware": {"ram_mib": 8000, "gpus": ["L4"]}}, "'L4' is not a card; write"),
        ({"plan_hardware": {"ram_mib": 8000, "gpus": [{"name": "X9", "memory_mib": 1000}]}},
         "plan_hardware.gpus[0].compute_capability: None is not a number"),
    ],
)  # fmt: skip
def test_wrong_input(settings, message):
    with pytest.raises(PlanError) as caught:
        make_plan("box", {"plan_hardware": PLAIN, **settings}, CATALOGUE)
    assert message in str(caught.value)


def test_all_wrong_input_is_reported_at_once():
    with pytest.raises(PlanError) as caught:
        plan({"cpus": 0}, engine="x", goal="y")
    assert len(caught.value.problems) == 4


def test_same_input_same_plan():
    assert plan(cards(1, "NVIDIA L4")) == plan(cards(1, "NVIDIA L4"))
