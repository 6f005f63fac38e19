"""Where the plan gets its files: hub order, hubs that do not answer, files already there."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner import making
from r1_planner.hardware import Hardware
from r1_planner.planner import make_plan
from r1_planner.summary import summary
from r1_planner.units import PlanError
from r1_planner.wishes import Wishes

PLAN = Path(__file__).resolve().parents[2] / "roles/plan"
CATALOGUE = yaml.safe_load((PLAN / "vars/catalogue.yml").read_text())["__plan_catalogue"]
UP = {"url": "https://hub.example", "answers": True, "error": None}
DOWN = {"url": "https://hub.example", "answers": False, "error": "timed out"}


def plan(sources, present=(), disk=100_000, for_deploy=True, gpus=(), **settings):
    found = {
        "cpu": {"count": 2, "flags": ["avx2"]},
        "ram_mib": 64000 if gpus else 24000,
        "ram_available_mib": 23000,
        "disk": {"path": "/var", "free_mib": disk},
        "gpus": list(gpus),
        "sources": sources,
        "models_present": list(present),
    }
    return make_plan("local", settings, CATALOGUE, found, for_deploy)


def test_hubs_in_the_order_of_the_setting():
    found = plan({"modelscope": UP, "huggingface": UP})["download"]
    assert found["source"] == "modelscope"
    assert found["repository"] == "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF"
    assert found["files"][0]["path"] == "DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf"
    assert found["bytes"] == 1_117_320_512
    assert [other["source"] for other in found["alternatives"]] == ["huggingface"]
    turned = plan(
        {"modelscope": UP, "huggingface": UP}, model_sources=["huggingface", "modelscope"]
    )
    assert turned["download"]["source"] == "huggingface"


def test_the_next_hub_when_one_does_not_answer():
    found = plan({"modelscope": DOWN, "huggingface": UP})
    assert found["download"]["source"] == "huggingface"
    assert "ModelScope at https://hub.example does not answer: timed out" in str(found["reasons"])


def test_ollama_asks_its_own_library_first_by_tag_and_hash():
    found = plan({"modelscope": UP, "huggingface": UP, "ollama": UP}, engine="ollama")["download"]
    assert (found["source"], found["repository"], found["revision"]) == (
        "ollama", "deepseek-r1", "1.5b",
    )  # fmt: skip
    assert found["files"][0]["sha256"].startswith("aabd4deb")
    assert [other["source"] for other in found["alternatives"]] == ["modelscope", "huggingface"]


def test_no_hub_answers_and_the_fallback_is_allowed():
    found = plan({"modelscope": DOWN, "huggingface": DOWN}, model_fallback="tiny-r1")
    assert found["fits"]
    assert found["fallback"]
    assert not found["problems"]
    assert (found["model"], found["max_model_len"]) == ("tiny-r1", 4096)
    assert found["download"]["source"] == "bundled"
    assert found["download"]["files"][0]["path"] == "tiny-r1-q4_k_m.gguf"
    loud = found["reasons"][0]
    assert loud.startswith("NO MODEL SOURCE ANSWERS: deepseek-r1-1.5b q4_k_m would be")
    assert loud.count("https://hub.example does not answer: timed out") == 2


@pytest.mark.parametrize(
    "settings", [{}, {"model_fallback": "tiny-r1", "model": "deepseek-r1-1.5b"}]
)
def test_no_hub_answers_and_no_fallback_or_a_model_was_named(settings):
    found = plan({"modelscope": DOWN, "huggingface": DOWN}, **settings)
    assert not found["fallback"]
    text = found["problems"][0]
    assert "no source has deepseek-r1-1.5b q4_k_m: ModelScope at https://hub.example" in text
    assert "Hugging Face at https://hub.example does not answer: timed out" in text
    assert "Fix: set modelscope_endpoint, huggingface_endpoint or ollama_registry" in text
    assert "path: /FOLDER/FILE.gguf" in text


def test_files_already_there_need_no_hub_and_no_disk():
    there = ["deepseek-r1-1.5b/q4_k_m"]
    found = plan({"modelscope": DOWN, "huggingface": DOWN}, there, model_fallback="tiny-r1")
    assert found["model"] == "deepseek-r1-1.5b"
    assert not found["fallback"]
    assert plan({"modelscope": UP}, there, disk=10, model="deepseek-r1-1.5b")["fits"]


def test_too_little_disk():
    found = plan({"modelscope": UP}, disk=10, model="deepseek-r1-1.5b")
    assert not found["fits"]
    assert "deepseek-r1-1.5b q4_k_m needs 1.6 GiB of disk" in found["problems"][0]


def test_the_plan_of_a_deployed_host_is_the_same():
    """What differs between two runs: the model is there, the disk is fuller, memory is in use."""
    hubs = {"modelscope": UP, "huggingface": UP}
    assert plan(hubs) == plan(hubs, ["deepseek-r1-1.5b/q4_k_m"], disk=98_000)


def test_hubs_are_taken_to_answer_when_nothing_was_looked_at():
    hardware = {"ram_mib": 8000, "cpus": 2}
    found = make_plan("box", {"plan_hardware": hardware}, CATALOGUE)
    assert found["download"]["source"] == "modelscope"
    assert not found["problems"]


OWN = {"path": "/models/mine-q5_k_m.gguf", "precision": "q5_k_m", "bytes": 1_285_000_000}


def test_an_own_model_by_path_and_size():
    found = plan({}, models={"mine": OWN}, model="mine")
    assert found["fits"]
    assert found["download"]["source"] == "file"
    assert found["download"]["repository"] == "/models/mine-q5_k_m.gguf"
    assert found["download"]["files"][0]["path"] == "mine-q5_k_m.gguf"
    assert found["precision"] == "q5_k_m"


def test_an_own_source_for_a_known_model():
    local = {"q4_k_m": {"sources": [{"source": "file", "path": "/models/r1.gguf"}]}}
    found = plan({"modelscope": DOWN}, models={"deepseek-r1-1.5b": {"precisions": local}})
    assert found["model"] == "deepseek-r1-1.5b"
    assert found["download"]["repository"] == "/models/r1.gguf"
    assert found["download"]["bytes"] == pytest.approx(1_117_320_512, rel=0.001)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x", "models.mine: 'x' is not a mapping"),
        ({}, "models.mine: says nowhere what to load; give 'path: /FOLDER/FILE.gguf'"),
        ({"path": "/m.gguf"}, "its memory cannot be known; give 'bytes'"),
        ({**OWN, "byte": 1}, "models.mine.byte: unknown key. Did you mean 'bytes'?"),
        ({**OWN, "bytes": "big"}, "bytes: 'big' is not the file's size in bytes"),
        ({**OWN, "precision": "q9"}, "models.mine.precisions.q9: unknown precision"),
        ({**OWN, "shape": {"layers": 2}}, "models.mine.shape: 'hidden' is missing"),
        ({"precisions": {"q4_k_m": {"bytes": 5}}}, "sources: is empty; give 'path'"),
        ({"precisions": {"q4_k_m": {"bytes": 5, "sources": [{"source": "x", "path": "y"}]}}},
         "needs 'source', one of bundled, modelscope"),
    ],
)  # fmt: skip
def test_wrong_own_entries(entry, message):
    with pytest.raises(PlanError) as caught:
        plan({}, models={"mine": entry})
    assert message in str(caught.value)


def test_a_cpu_that_llama_servers_program_does_not_suit_gets_ollama():
    answers = {"modelscope": UP, "huggingface": UP}
    found = plan(answers, llamacpp_cpu_flags=["avx2", "avx512f", "avx_vnni"])
    assert found["engine"] == "ollama"
    assert "its CPU lacks avx512f, avx_vnni, which the pinned program" in str(found["reasons"])
    assert plan(answers, llamacpp_cpu_flags=["avx2"])["engine"] == "llamacpp"


H100 = {"index": 0, "uuid": "GPU-0", "name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559,
        "compute_capability": "9.0"}  # fmt: skip


def test_auto_takes_what_a_hub_that_answers_has():
    """The fp8 and awq checkpoints of 32B are on Hugging Face alone; bf16 and GGUF on both."""
    up = plan({"modelscope": UP, "huggingface": UP}, gpus=[H100])
    assert (up["engine"], up["model"], up["precision"]) == ("vllm", "deepseek-r1-32b", "fp8")
    found = plan({"modelscope": UP, "huggingface": DOWN}, gpus=[H100])
    assert not found["problems"] and found["download"]["source"] == "modelscope"
    assert (found["model"], found["precision"]) == ("deepseek-r1-32b", "bf16"), found["reasons"]
    told = "rejected: deepseek-r1-32b fp8: Hugging Face at https://hub.example does not answer"
    assert told in str(found["reasons"])
    there = plan({"modelscope": UP, "huggingface": DOWN}, ["deepseek-r1-32b/fp8"], gpus=[H100])
    assert there["precision"] == "fp8", "what is on the host needs no hub"


def test_what_no_hub_has_is_made_from_the_checkpoint():
    asked = {"model": "deepseek-r1-1.5b", "precision": "q6_k"}
    found = plan({"modelscope": DOWN, "huggingface": UP}, **asked)
    assert found["fits"] and found["engine"] == "llamacpp"
    download = found["download"]
    assert download["source"] == "quantize"
    assert download["files"][0]["path"] == "deepseek-r1-1.5b-q6_k.gguf"
    assert download["revision"] == "first, llama.cpp-b10434"
    checkpoint = download["from"]
    assert (checkpoint["source"], checkpoint["precision"]) == ("huggingface", "bf16")
    assert checkpoint["repository"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    # The checkpoint, one file of 16 bits, and the result.
    assert found["disk_bytes"] > 2 * checkpoint["bytes"] + download["bytes"]
    said = "no hub has deepseek-r1-1.5b q6_k, so it is made on the host from bf16"
    assert said in " ".join(found["reasons"])


def test_what_a_hub_has_is_not_made():
    found = plan({"modelscope": UP}, model="deepseek-r1-1.5b", precision="q5_k_m")
    assert found["download"]["source"] == "modelscope"


def test_a_pinned_checkpoint_is_part_of_what_is_made():
    sources = [{"source": "huggingface", "repository": "a/b", "revision": "c0ffee"}]
    shape = CATALOGUE["deepseek-r1-1.5b"]["shape"]
    own = {"shape": shape, "precisions": {"bf16": {"sources": sources}}, "pre_tokenizer": "qwen2"}
    found = plan({"huggingface": UP}, model="mine", precision="q4_0", models={"mine": own})
    assert found["download"]["revision"] == "c0ffee, llama.cpp-b10434"
    assert found["download"]["pre_tokenizer"] == "qwen2"


def test_what_was_made_needs_no_hub():
    asked = {"model": "deepseek-r1-1.5b", "precision": "q6_k"}
    hubs = {"modelscope": DOWN, "huggingface": DOWN}
    found = plan(hubs, present=["deepseek-r1-1.5b/q6_k"], disk=100, **asked)
    assert found["fits"] and not found["problems"]
    assert found["download"]["source"] == "quantize"


def test_nothing_is_made_while_no_hub_answers():
    hubs = {"modelscope": DOWN, "huggingface": DOWN}
    found = plan(hubs, model="deepseek-r1-1.5b", precision="q6_k")
    assert "Hugging Face at https://hub.example does not answer" in found["problems"][0]


@pytest.mark.parametrize(
    ("model", "disk", "said"),
    [
        ("deepseek-r1-14b", 100_000, "to make it from bf16 takes 28.5 GiB of RAM, more than"),
        ("deepseek-r1-1.5b", 5_000, "deepseek-r1-1.5b q6_k needs 8.9 GiB of disk"),
    ],
)
def test_no_room_to_make_it(model, disk, said):
    found = plan({"huggingface": UP}, disk=disk, model=model, precision="q6_k")
    assert not found["fits"]
    assert said in found["problems"][0]


def held(*names):
    """What a bundle holds, one file of each."""
    files = [{"path": "m.gguf", "bytes": 900_000_000, "sha256": "0" * 64}]
    return {"path": "/media/b", "models": dict.fromkeys(names, files)}


def test_of_a_bundle_the_plan_takes_what_it_holds():
    found = plan({}, bundle=held("deepseek-r1-1.5b/q8_0"))
    assert (found["model"], found["precision"]) == ("deepseek-r1-1.5b", "q8_0")
    download = found["download"]
    assert download["source"] == "file" and download["alternatives"] == []
    assert download["repository"] == "/media/b/models/deepseek-r1-1.5b/q8_0"
    assert download["bytes"] == 900_000_000 and download["files"][0]["sha256"] == "0" * 64


def test_what_a_bundle_does_not_hold_is_refused():
    found = plan({}, model="deepseek-r1-7b", bundle=held("deepseek-r1-1.5b/q8_0"))
    (said,) = found["problems"]
    assert said.startswith(
        "model: the bundle /media/b does not hold it, deepseek-r1-7b q4_k_m. Fix:"
    )
    assert said.endswith("set model and precision to what it holds: deepseek-r1-1.5b/q8_0.")


def test_what_was_quantized_into_a_bundle_is_not_made_again():
    """So the host needs neither the RAM nor the disk to make it."""
    wish = {"model": "deepseek-r1-7b", "precision": "q6_k", "disk": 9000}
    assert plan({}, **wish)["problems"]
    found = plan({}, **wish, bundle=held("deepseek-r1-7b/q6_k"))
    assert found["download"]["source"] == "file" and not found["problems"]


def test_the_model_of_the_project_needs_no_bundle():
    found = plan({}, model="tiny-r1", bundle=held("deepseek-r1-1.5b/q8_0"))
    assert found["download"]["source"] == "bundled" and not found["problems"]


def test_making_that_takes_too_long_is_refused():
    asked = {"model": "deepseek-r1-1.5b", "precision": "q6_k"}
    took = plan({"huggingface": UP}, **asked)["download"]["seconds"]
    least = -(-took // 60)
    found = plan({"huggingface": UP}, quantize_minutes=least - 1, **asked)
    assert not found["fits"]
    said = found["problems"][0]
    assert f"to make it from bf16 takes about {least} min with 2 CPU cores" in said
    assert (
        f"more than model_quantize_minutes allows, {least - 1}. Set it to {least} or more" in said
    )
    assert plan({"huggingface": UP}, quantize_minutes=least, **asked)["fits"]
    made = plan({"huggingface": UP}, ["deepseek-r1-1.5b/q6_k"], quantize_minutes=1, **asked)
    assert made["fits"], "it is there"


def test_how_long_it_takes_is_told_before():
    asked = {"model": "deepseek-r1-1.5b", "precision": "q6_k"}
    found = plan({"huggingface": UP}, **asked)
    took = found["download"]["seconds"]
    told = f"about {round(took / 60)} min"
    assert f"That takes {told} when all is fetched" in str(found["reasons"])
    assert f"quantize  {told} on this host" in summary(found)
    # 3.55 GB: docs/quantize.md has the seconds of each step on two cores.
    assert 300 < took < 1500
    more = making.of(3.55e9, "q6_k", Hardware(cpus=16), Wishes()).seconds
    assert 60 < more < took / 3
    assert 60 < making.of(3.55e9, "gptq", Hardware(cpus=16), Wishes()).seconds < 180, "87 s"


def test_an_importance_matrix_is_part_of_what_is_made():
    asked = {"model": "deepseek-r1-1.5b", "imatrix": True}
    found = plan({"huggingface": UP}, precision="q6_k", **asked)
    without = plan({"huggingface": UP}, precision="q6_k", **(asked | {"imatrix": False}))
    assert found["download"]["imatrix"]
    assert found["download"]["revision"] == without["download"]["revision"] + ", imatrix"
    assert found["download"]["seconds"] > without["download"]["seconds"]
    assert "made on the host with an importance matrix from bf16" in str(found["reasons"])
    own = plan({"huggingface": UP}, precision="q6_k", calibration="/srv/prompts.txt", **asked)
    assert own["download"]["seconds"] > found["download"]["seconds"], "of up to 128 windows"
    plain = plan({"huggingface": UP}, precision="f16", **asked)["download"]
    assert not plain["imatrix"] and "imatrix" not in plain["revision"]
