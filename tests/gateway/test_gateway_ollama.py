"""The gateway before a real Ollama: its prompts are never cut silently."""

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import openai_client
import pytest
from gateway_parts import KEYS, PLAN, REPO, Role, listens

CONTEXT = 256
# A template of one's own, with which Ollama does not find the thought of a stream.
SIMPLE = """{{ range .Messages }}<｜User｜>{{ .Content }}{{ end }}<｜Assistant｜><think>
{{ if .Thinking }}{{ end }}"""
MODELFILE = """\
FROM GGUF
TEMPLATE \"\"\"TEXT\"\"\"
PARAMETER num_ctx CONTEXT
PARAMETER num_predict 64
"""


def as_deployed() -> str:
    """The template that the role gives its models."""
    plan = PLAN | {"engine": "ollama", "prompt": {"forced_think": True}}
    return Role("ollama", plan_result=plan).variable("__ollama_template")


@pytest.fixture(params=["simple"])
def ollama(request, background, free_port, tmp_path, tiny_gguf):
    """A real Ollama that serves tiny-r1 with a short context; its port."""
    built = subprocess.run(
        [REPO / "tests/tools/build_ollama"], check=True, stdout=subprocess.PIPE, text=True
    )
    program, port = Path(built.stdout.strip()), free_port()
    environment = os.environ | {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(tmp_path / "models"),
        "OLLAMA_CONTEXT_LENGTH": str(CONTEXT),
        "HOME": str(tmp_path),
    }
    background([program, "serve"], ready=lambda: listens(port), env=environment)
    template = SIMPLE if request.param == "simple" else as_deployed()
    words = {"GGUF": str(tiny_gguf), "TEXT": template, "CONTEXT": str(CONTEXT)}
    modelfile = re.sub("|".join(words), lambda found: words[found[0]], MODELFILE)
    (tmp_path / "Modelfile").write_text(modelfile)
    create = [program, "create", "tiny-r1", "-f", tmp_path / "Modelfile"]
    subprocess.run(create, check=True, env=environment, capture_output=True)
    return port


@pytest.fixture
def gateway(start_gateway, redis, ollama):
    plan = PLAN | {"engine": "ollama", "max_model_len": CONTEXT}
    return start_gateway(ollama, plan_result=plan)


def question(text):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 64}


def test_a_prompt_longer_than_the_context_is_refused(gateway, ollama):
    long = question("Hello " * 2 * CONTEXT)
    error = gateway.chat(**long)
    assert error.status == 400
    assert error.json()["error"]["code"] == "context_length_exceeded"
    assert error.json()["error"]["message"].startswith(
        f"The prompt is longer than the context of {CONTEXT} tokens: "
    )
    # What Ollama itself does with it: an answer to a part of the question.
    body = json.dumps({"model": "tiny-r1", **long}).encode()
    bare = f"http://127.0.0.1:{ollama}/v1/chat/completions"
    with urllib.request.urlopen(bare, data=body) as answer:
        assert json.load(answer)["usage"]["prompt_tokens"] <= CONTEXT


def test_a_prompt_of_more_bytes_but_fewer_tokens_is_answered(gateway):
    text = "What is 2+2?"
    parts = [{"type": "text", "text": text}]
    answer = gateway.chat(
        messages=[{"role": "user", "content": parts}], max_tokens=64, user="u" * 2 * CONTEXT
    )
    assert answer.json()["choices"][0]["message"]["content"].strip() == "2 + 2 = 4."


def test_models_have_the_names_that_requests_use(gateway):
    assert [one["id"] for one in gateway.ask("/v1/models").json()["data"]] == ["tiny-r1"]
    assert gateway.ask("/v1/models/tiny-r1").json()["id"] == "tiny-r1"


@pytest.mark.parametrize(
    ("ollama", "unopened"), [("as deployed", False), ("simple", True)], indirect=["ollama"]
)
def test_openais_client(start_gateway, redis, ollama, unopened):
    plan = PLAN | {"engine": "ollama", "max_model_len": CONTEXT}
    gateway = start_gateway(ollama, plan_result=plan, gateway_unopened_think=unopened)
    openai_client.check(gateway.url, KEYS[0]["key"])
