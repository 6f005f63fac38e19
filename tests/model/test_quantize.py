"""Models that no source has are made from their checkpoint: the real converter, quantizer and
engine, on the tiny model."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
FILES = REPO / "roles/model/files"
TOOLS = REPO / ".cache/hub-venv/hub/quantize"
TEXT = "<｜User｜>What is 2+2?<｜Assistant｜><think>\n"


def checkpoint_of(name: str) -> dict:
    path = REPO / "roles/plan/vars/catalogue.yml"
    (catalogue,) = yaml.safe_load(path.read_text()).values()
    data = catalogue[name]["precisions"]["bf16"]
    return {**data["sources"][0], "revision": None, "bytes": data["bytes"], "precision": "bf16"}


@pytest.fixture
def made() -> dict:
    """The download of tiny-r1 in q5_k_m, as the planner gives it."""
    return {
        "source": "quantize",
        "repository": "tiny-r1",
        "revision": "first, llama.cpp-b10434",
        "files": [{"path": "tiny-r1-q5_k_m.gguf", "bytes": None, "sha256": None}],
        "bytes": 2700000,
        "from": checkpoint_of("tiny-r1"),
        "memory_bytes": 2**30,
        "seconds": 80,
        "imatrix": False,
        "pre_tokenizer": "deepseek-r1-qwen",
        "alternatives": [],
    }


@pytest.fixture
def quantize(model_files, made):
    """Return a function that runs the module for tiny-r1 in q5_k_m."""

    def run(**more) -> dict:
        return model_files({**made, **more}, precision="q5_k_m", keep_quantizer=True)

    return run


def ask(server_binary, model, port, background) -> str:
    argv = [server_binary, "--model", model, "--port", port, "--host", "127.0.0.1", "--jinja"]
    url = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return urllib.request.urlopen(url + "/health", timeout=2).status == 200
        except OSError:
            return False

    background(argv, ready=answers)
    question = {"messages": [{"role": "user", "content": "What is 2+2?"}], "temperature": 0}
    request = urllib.request.Request(
        url + "/v1/chat/completions",
        json.dumps(question | {"max_tokens": 64}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


@pytest.mark.timeout(900)  # the tools are 2 GB
def test_made_and_checked(play, made):
    """In a real play: forecast, made, untouched by the next run."""
    plan = {"model": "m", "precision": "q5_k_m", "download": made}
    given = {"plan_result": plan, "model_keep_quantizer": True}
    forecast = play(made, "--check", "--diff", **given)
    assert forecast["rc"] == 0 and forecast["changed"], forecast["out"]
    assert "+quantize tiny-r1@first, llama.cpp" in forecast["out"]
    assert not play.data.exists()

    first = play(made, **given)
    assert first["rc"] == 0 and first["changed"], first["out"]
    assert "[box] to quantize takes about 1 min 20 s when all is fetched" in first["out"]
    told = ("installing what quantizes", "converting to one file of 16 bits", "comparing")
    assert any(f"m: {phase}" in first["out"] for phase in told)
    home = play.data / "models/m/q5_k_m"
    marker = json.loads((home / ".complete").read_text())
    assert marker["source"] == "quantize"
    quality = marker["quality"]
    assert quality["answer"] == quality["source_answer"]
    assert "2 + 2 = 4" in quality["answer"]
    assert 5 < quality["bits_per_weight"] < 7
    assert sorted(path.name for path in home.parent.iterdir()) == [".pins.json", "q5_k_m"]
    pins = json.loads((home.parent / ".pins.json").read_text())
    assert "bundled tiny-r1 hf/model.safetensors" in pins, "held to when it is made again"

    again = play(made, "--diff", **given)
    assert again["rc"] == 0 and not again["changed"], again["out"]


@pytest.mark.parametrize("imatrix", [False, True])
def test_the_engine_answers_rightly(
    quantize, tmp_path, imatrix, llama_server_binary, background, free_port
):
    assert quantize(imatrix=imatrix)["changed"]
    model = tmp_path / "models/m/q5_k_m/tiny-r1-q5_k_m.gguf"
    assert "2 + 2 = 4" in ask(llama_server_binary, model, free_port(), background)


def test_an_importance_matrix_makes_another_file(play, made):
    """A change of the setting, or of the text, makes it anew; the play tells which text it was."""
    plan = {"model": "m", "precision": "q5_k_m", "download": made}
    given = {"plan_result": plan, "model_keep_quantizer": True}
    text = play.folder / "prompts.txt"
    text.write_text((FILES / "perplexity.txt").read_text())
    model, digests = play.data / "models/m/q5_k_m/tiny-r1-q5_k_m.gguf", set()
    weighed = {**made, "imatrix": True, "revision": made["revision"] + ", imatrix"}
    for download, calibration in ((made, ""), (weighed, ""), (weighed, str(text))):
        plan["download"], given["model_calibration"] = download, calibration
        done = play(download, **given)
        assert done["rc"] == 0 and done["changed"], done["out"]
        digests.add(hashlib.sha256(model.read_bytes()).hexdigest())
        marker = json.loads((model.parent / ".complete").read_text())
        assert "2 + 2 = 4" in marker["quality"]["answer"]
    assert len(digests) == 3
    digest = hashlib.sha256(text.read_bytes()).hexdigest()[:12]
    assert marker["revision"] == f"{made['revision']}, imatrix, calibration {digest}"
    assert not play(weighed, **given)["changed"]
    text.write_bytes(b"\xff\xfe")
    refused = play(weighed, **given)
    assert refused["rc"] and "model_calibration:" in refused["out"]
    assert "cannot be read as text in UTF-8" in " ".join(refused["out"].split())


def test_a_folder_for_vllm(model_files, made, tmp_path):
    """GPTQ by llmcompressor: the same way, but several files come of it."""
    wanted = {"files": [{"path": "config.json", "bytes": None, "sha256": None}]}
    made = {**made, **wanted, "revision": "first, llmcompressor-0.14.0.1"}
    answer = model_files(made, precision="gptq", keep_quantizer=True)
    assert answer["changed"], answer
    home = tmp_path / "models/m/gptq"
    assert answer["model_path"] == str(home)
    config = json.loads((home / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert answer["quality"]["answer"] == answer["quality"]["source_answer"]
    names = {file["path"] for file in answer["files"]}
    assert names == {path.name for path in home.iterdir()} - {".complete"}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not model_files(made, precision="gptq", keep_quantizer=True)["changed"]


def test_a_checkpoint_that_was_there_stays(model_files, quantize, tmp_path):
    checkpoint = checkpoint_of("tiny-r1")
    assert model_files(checkpoint, precision="bf16")["changed"]
    assert quantize()["changed"]
    assert (tmp_path / "models/m/bf16/.complete").exists()
    assert not quantize()["changed"]


def test_the_tools_are_removed(model_files, made, tmp_path):
    """They lie there as links, since they take minutes to install."""
    if not (TOOLS / ".complete").exists():
        pytest.skip("the tools are installed by the test above")
    tools = tmp_path / "hub/quantize"
    tools.mkdir(parents=True)
    for part in TOOLS.iterdir():
        (tools / part.name).symlink_to(part)
    assert model_files(made, precision="q5_k_m", hub_venv=str(tools.parent))["changed"]
    assert not tools.exists()
    assert (TOOLS / ".complete").exists()


def test_a_killed_run_heals(module_input, made, quantize, tmp_path):
    command, given = module_input(made, precision="q5_k_m", keep_quantizer=True)
    progress = tmp_path / "models/m/.q5_k_m.partial/progress.json"
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    process.stdin.write(given)
    process.stdin.close()
    deadline = time.monotonic() + 120
    while "comparing" not in (progress.read_text() if progress.exists() else ""):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "models/m/q5_k_m").exists()
    assert quantize()["changed"]
    assert not (tmp_path / "models/m/bf16").exists(), "it was fetched for this alone"


def test_an_unknown_tokenizer_is_refused(quantize, tmp_path):
    answer = quantize(pre_tokenizer="")
    assert answer["failed"]
    assert "does not know the tokenizer of this checkpoint. Set pre_tokenizer" in answer["msg"]
    assert not (tmp_path / "models/m/q5_k_m").exists()


def test_too_little_disk_is_refused(quantize, made, tmp_path):
    answer = quantize(**{"from": {**made["from"], "bytes": 10**15}})
    assert answer["failed"]
    assert "to quantize takes 2,000,000,003 MB. Free some space or set data_path" in answer["msg"]
    assert not (tmp_path / "models/m/bf16").exists()


def test_too_little_memory_is_refused(quantize, tmp_path):
    answer = quantize(memory_bytes=10**15)
    assert answer["failed"]
    assert "To quantize m takes 1,000,000,000 MB of memory" in answer["msg"]
    assert "make the file on another machine" in answer["msg"]
    assert not (tmp_path / "models/m/bf16").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The request for the tool itself, with a file of 16 bits and one of q4_k_m."""
    if not (TOOLS / ".complete").exists():
        pytest.skip("the tools are installed by the tests above")
    folder = tmp_path_factory.mktemp("tool")
    checkpoint = folder / "hf"
    shutil.copytree(FILES / "tiny-r1/hf", checkpoint)
    request = {
        "checkpoint": str(checkpoint), "wide": str(folder / "wide.gguf"),
        "narrow": str(folder / "narrow.gguf"), "precision": "q4_k_m", "threads": 2,
        "pre_tokenizer": "deepseek-r1-qwen", "most": 0,
        "text": (TEXT + "The user asks for the sum of 2 and 2. 2+2 equals 4.\n</think>\n") * 40,
    }  # fmt: skip
    for action in ("convert", "quantize"):
        assert tool(action, request) == {}
    return request


def tool(action, request) -> dict:
    done = subprocess.run(
        [TOOLS / "bin/python", "-I", FILES / "quantize.py", action],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


REFERENCE = """
import json, math, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ask = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(ask["checkpoint"], dtype=torch.float32)
tokens = AutoTokenizer.from_pretrained(ask["checkpoint"]).encode(
    ask["text"], add_special_tokens=False)
total = count = 0
for begin in range(0, len(tokens) - 511, 512):
    window = torch.tensor([tokens[begin:begin + 512]])
    given = window.clone()
    given[0, 0] = model.config.bos_token_id
    with torch.no_grad():
        said = model(given).logits[0, 256:-1].double().log_softmax(-1)
    wanted = window[0, 257:]
    total -= said[torch.arange(len(wanted)), wanted].sum().item()
    count += len(wanted)
print(math.exp(total / count))
"""


def test_perplexity_is_that_of_another_program(files):
    """Transformers on the checkpoint, the same windows."""
    done = subprocess.run(
        [TOOLS / "bin/python", "-I", "-c", REFERENCE],
        input=json.dumps(files), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tool("check", files)["source_perplexity"] == pytest.approx(float(done.stdout), rel=0.01)


SQUARES = """
import json, sys, numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ask = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(ask["checkpoint"], dtype=torch.float32)
tokens = AutoTokenizer.from_pretrained(ask["checkpoint"]).encode(
    ask["calibration"], add_special_tokens=False)
means = {}
def look(name):
    return lambda module, given: means.setdefault(name, []).append(
        given[0].double().pow(2).mean(dim=(0, 1)).numpy())
for layer in (0, 2):
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        module = model.get_submodule(f"model.layers.{layer}.{part}")
        module.register_forward_pre_hook(look((layer, part)))
for begin in range(0, len(tokens) - 511, 512):
    window = torch.tensor([tokens[begin:begin + 512]])
    window[0, 0] = model.config.bos_token_id
    with torch.no_grad():
        model(window)
names = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
found, worst = numpy.load(ask["importance"]), 0
for (layer, part), values in means.items():
    wanted = numpy.mean(values, axis=0)
    own = found[f"blk.{layer}.{names[part]}.weight"][0]
    worst = max(worst, float((abs(own - wanted) / (wanted + wanted.mean())).max()))
print(worst)
"""


def test_the_importance_is_that_of_another_program(files, tmp_path):
    """Transformers, looking at what goes into its layers; windows as llama-imatrix has them."""
    text = (FILES / "calibration.txt").read_text()
    asked = files | {"calibration": text, "importance": str(tmp_path / "importance.npz")}
    assert tool("weigh", asked) == {"tensors": 21, "windows": 23}
    done = subprocess.run(
        [TOOLS / "bin/python", "-I", "-c", SQUARES],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.05


MADE_UP = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
config = AutoConfig.for_model(**json.load(sys.stdin))
AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(sys.argv[1])
"""


@pytest.fixture
def made_up(files, tmp_path):
    """Return a function that makes a checkpoint of one layer, of random weights."""

    def make(**config) -> dict:
        folder = tmp_path / "made-up"
        shutil.copytree(files["checkpoint"], folder)
        own = json.loads((folder / "config.json").read_text())
        own = {key: own[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
        own |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        subprocess.run(
            [TOOLS / "bin/python", "-I", "-c", MADE_UP, folder],
            input=json.dumps(own | config), text=True, check=True,
        )  # fmt: skip
        paths = {name: str(tmp_path / f"{name}.gguf") for name in ("wide", "narrow")}
        return files | paths | {"checkpoint": str(folder)}

    return make


@pytest.mark.parametrize("used", [2, 4])
def test_every_expert_has_its_own_importance(made_up, tmp_path, used):
    """Where a token goes to all of them they have seen the same, else not."""
    asked = made_up(
        model_type="qwen3_moe", hidden_size=64, head_dim=32, intermediate_size=64,
        moe_intermediate_size=32, num_experts=4, num_experts_per_tok=used,
    )  # fmt: skip
    text = (FILES / "calibration.txt").read_text()
    asked |= {"calibration": text, "importance": str(tmp_path / "importance.npz")}
    assert tool("convert", asked) == {}
    assert tool("weigh", asked)["tensors"] == 8
    show = "import numpy, sys; found = numpy.load(sys.argv[1])['blk.0.ffn_up_exps.weight'];"
    show += "print(found.shape, len({row.round(4).tobytes() for row in found}))"
    command = [TOOLS / "bin/python", "-I", "-c", show, asked["importance"]]
    said = subprocess.check_output(command, text=True)
    assert said.split() == ["(4,", "64)", "1" if used == 4 else "4"]
    assert tool("quantize", asked) == {}


def test_rows_that_128_does_not_divide(made_up, tmp_path):
    """A smaller group, as of SmolLM2; else a refusal that says why."""
    shape = {"model_type": "llama", "hidden_size": 192, "intermediate_size": 256}
    narrow = tmp_path / "narrow"
    text = (FILES / "calibration.txt").read_text()
    asked = made_up(**shape) | {"precision": "gptq", "calibration": text, "narrow": str(narrow)}
    assert tool("compress", asked) == {}
    config = json.loads((narrow / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["weights"]["group_size"] == 64
    shutil.rmtree(asked["checkpoint"])
    said = tool("compress", asked | made_up(**shape | {"hidden_size": 80}) | {"precision": "gptq"})
    assert "128, 64 or 32 weights, which rows of 80, 256 are no multiple of" in said["error"]
    assert "Take fp8 or a GGUF precision" in said["error"]


def test_a_short_calibration_is_refused(files, tmp_path):
    asked = files | {"calibration": "short", "importance": str(tmp_path / "importance.npz")}
    for action in ("weigh", "compress"):
        said = tool(action, asked | {"precision": "gptq"})["error"]
        assert "The text of calibration (model_calibration) is under 512 tokens" in said


def test_how_far_a_comparison_is_can_be_read(files, tmp_path):
    share = tmp_path / "share"
    assert tool("check", files | {"share": str(share)})["perplexity"] > 1
    done, total = json.loads(share.read_text())
    assert done == total - 1 and total >= 2


def test_what_lost_too_much_is_refused(files):
    """On a text the tiny model knows; both figures are told."""
    found = tool("check", files)
    assert 1 < found["source_perplexity"] < 50
    assert found["perplexity"] / found["source_perplexity"] < 1.15
    refused = tool("check", files | {"most": found["perplexity"] / found["source_perplexity"] / 2})
    assert "at most" in refused["error"] and "model_max_perplexity_ratio" in refused["error"]
    assert f"{found['source_perplexity']:.4g}" in refused["error"]


def test_wrong_metadata_is_refused(files, tmp_path):
    other = tmp_path / "hf"
    shutil.copytree(files["checkpoint"], other)
    config = json.loads((other / "config.json").read_text())
    config |= {"max_position_embeddings": 8192, "eos_token_id": 7}
    (other / "config.json").write_text(json.dumps(config))
    (other / "chat_template.jinja").write_text("another one")
    said = tool("check", files | {"checkpoint": str(other)})["error"]
    assert "qwen2.context_length is 4096 instead of 8192" in said
    assert "the token that ends is 4096 instead of 7" in said
    assert "the chat template is not that of the checkpoint" in said


def test_a_short_text_is_refused(files):
    assert "fewer than 512 tokens" in tool("check", files | {"text": "short"})["error"]


def test_formats_are_those_the_planner_knows():
    """What the planner lets be made, the tool makes."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import quantize as q; "
    code += "print(*sorted(q.FILE_TYPES), '|', *sorted(q.MOST))"
    said = subprocess.check_output([sys.executable, "-c", code, FILES], text=True)
    sys.path.insert(0, str(REPO / "roles/plan/module_utils"))
    from r1_planner.catalogue import QUANTIZED
    from r1_planner.weights import GGUF_PRECISIONS

    wanted = [sorted(GGUF_PRECISIONS), sorted(QUANTIZED)]
    assert [part.split() for part in said.split("|")] == wanted
