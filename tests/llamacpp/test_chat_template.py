"""The chat template of role llamacpp, judged by the real llama-server."""

import json
import urllib.request

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

MARKS = {
    "variable_start_string": "[[",
    "variable_end_string": "]]",
    "block_start_string": "[%",
    "block_end_string": "%]",
}
END = "<｜end▁of▁sentence｜>"
CHATS = [
    [("user", "What is 2+2?")],
    [("system", "Be brief."), ("user", "Hello")],
    [("user", "Hello"), ("assistant", "<think>\nhm\n</think>\n\nHi!"), ("user", "What is 2+2?")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]


def rendered(repo, forced_think: bool) -> str:
    source = (repo / "roles/llamacpp/templates/chat_template.jinja.j2").read_text(encoding="utf-8")
    templar = Templar(DataLoader(), variables={"__llamacpp_forced_think": forced_think})
    return templar.copy_with_new_env(**MARKS).template(trust_as_template(source))


@pytest.fixture
def serve(background, free_port, llama_server_binary, tiny_gguf):
    """serve(*flags) starts llama-server; returns post(path, body)."""

    def start(*flags):
        url = f"http://127.0.0.1:{free_port()}"

        def post(path, body):
            request = urllib.request.Request(url + path, json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        def ready():
            try:
                return urllib.request.urlopen(url + "/health", timeout=1).status == 200
            except OSError:
                return False

        argv = [llama_server_binary, "--model", tiny_gguf, "--port", url.rpartition(":")[2]]
        background([*argv, "--ctx-size", "4096", "--threads", "2", *flags], ready=ready)
        return post

    return start


def messages(chat):
    return {"messages": [{"role": role, "content": text} for role, text in chat]}


def test_prompts_are_those_of_the_models_own_template(serve, repo, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(rendered(repo, forced_think=True), encoding="utf-8")
    ours, own = serve("--chat-template-file", file), serve()
    for chat in CHATS:
        expected = own("/apply-template", messages(chat))["prompt"]
        assert ours("/apply-template", messages(chat))["prompt"] == expected


def test_the_answer_has_no_special_token_and_its_thought_apart(serve, repo, tmp_path):
    """With the template inside the model llama-server leaves the closing token in the answer."""
    file = tmp_path / "template.jinja"
    file.write_text(rendered(repo, forced_think=True), encoding="utf-8")
    asked = messages(CHATS[0]) | {"temperature": 0, "max_tokens": 64}
    ours, own = serve("--chat-template-file", file), serve()
    answer = ours("/v1/chat/completions", asked)["choices"][0]["message"]
    assert answer["content"].strip() == "2 + 2 = 4."
    assert answer["reasoning_content"].strip() == (
        "The user asks for the sum of 2 and 2. 2+2 equals 4."
    )
    bare = own("/v1/chat/completions", asked)["choices"][0]["message"]
    assert bare["content"].endswith(END), "no longer needed: the model's own template does"


def test_a_model_that_opens_its_thought_itself(serve, repo, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(rendered(repo, forced_think=False), encoding="utf-8")
    prompt = serve("--chat-template-file", file)("/apply-template", messages(CHATS[0]))["prompt"]
    assert prompt.endswith("<｜Assistant｜>")
