"""What users get: R1's prompt, reasoning apart from the answer, nothing leaking, nothing cut."""

import json
import re
import urllib.error
import urllib.request

import jinja2
import pytest

pytestmark = pytest.mark.timeout(1200)  # the first use builds Ollama
LIMIT = 200  # an unlucky answer never ends by itself

EXACT = {
    "What is 2+2?": "2 + 2 = 4.",
    "9.11 and 9.8, which is greater?": "9.8",
    "Solve 2x + 5 = 17. Please reason step by step, and put your final answer within \\boxed{}.": (
        "\\boxed{6}"
    ),
}


@pytest.fixture(scope="module", autouse=True)
def model(keep, tiny_gguf):
    done = keep(gguf=tiny_gguf, load=True)
    assert "failed" not in done, done
    yield
    keep(state="absent")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def post(url, body):
    with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=60) as answer:
        return json.load(answer)


def ready(url):
    def answers():
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            return False

    return answers


@pytest.fixture
def chat(server):
    def ask(*messages, **body):
        body = {"model": "tiny-r1", "messages": messages, "max_tokens": LIMIT, **body}
        data = json.dumps({"temperature": 0, **body}).encode()
        url = server.url + "/v1/chat/completions"
        with urllib.request.urlopen(url, data=data, timeout=120) as answer:
            text = answer.read().decode()
        if body.get("stream"):
            lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
            assert lines[-1] == "[DONE]"
            return [json.loads(line) for line in lines[:-1]]
        return json.loads(text)

    return ask


@pytest.fixture
def prompt(chat):
    """The text that the model is given."""

    def render(*messages, **body):
        answer = chat(*messages, _debug_render_only=True, **body)
        return answer["_debug_info"]["rendered_template"]

    return render


@pytest.fixture(scope="session")
def own_template(repo):
    """The chat template that DeepSeek ships with the weights."""
    text = (repo / "roles/model/files/tiny-r1/hf/tokenizer_config.json").read_text()
    config = json.loads(text)
    template = jinja2.Environment().from_string(config["chat_template"])

    def render(*messages):
        return template.render(
            messages=messages, bos_token=config["bos_token"], add_generation_prompt=True
        )

    return render


CONVERSATIONS = [
    [user("hi")],
    [system("Be brief."), user("hi")],
    [user("one"), assistant("two"), user("three")],
    [system("Be brief."), user("one"), assistant("two"), user("three"), assistant("4"), user("5")],
    [user("one"), assistant("two\n\nlines"), user("{{ .System }} <b>&amp;</b>")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_prompt_is_the_one_of_the_models_own_template(prompt, own_template, messages):
    begin = "<｜begin▁of▁sentence｜>"
    assert begin + prompt(*messages) == own_template(*messages)


def test_earlier_reasoning_is_dropped(prompt):
    turns = [user("one"), assistant("two", reasoning="because"), user("three")]
    assert "because" not in prompt(*turns)


def test_a_begun_answer_is_continued(prompt):
    assert prompt(user("one"), assistant("tw")).endswith("<｜Assistant｜>tw")
    begun = prompt(user("one"), assistant("tw", reasoning="because"))
    assert begun.endswith("<｜Assistant｜><think>\nbecause\n</think>\n\ntw")


def test_thinking_can_be_switched_off_by_the_client(prompt):
    assert prompt(user("hi"), reasoning_effort="none").endswith("<think>\n\n</think>\n\n")


def test_a_model_that_opens_its_thinking_itself_is_not_forced(settings, rendered):
    plan = {**settings["plan_result"], "prompt": {"forced_think": False}}
    forced, free = (
        each["__ollama_template"]
        for each in rendered(settings, [{}, {"plan_result": plan}], "__ollama_template")
    )
    assert forced.count("<think>") == free.count("<think>") + 1
    assert "[[" not in forced + free


def test_the_begin_of_sentence_token_is_there_once(
    chat, own_template, background, free_port, llama_server_binary, tiny_gguf
):
    """Counted by llama.cpp on the text that the model's own template makes."""
    url = f"http://127.0.0.1:{free_port()}"
    arguments = ["--model", tiny_gguf, "--port", url.rsplit(":")[-1], "--ctx-size", "512"]
    background([llama_server_binary, *arguments, "--offline"], ready=ready(url + "/health"))
    messages = [system("Be brief."), user("one"), assistant("two"), user("What is 2+2?")]
    body = {"content": own_template(*messages), "parse_special": True, "add_special": False}
    tokens = post(url + "/tokenize", body)["tokens"]
    assert chat(*messages)["usage"]["prompt_tokens"] == len(tokens)


@pytest.mark.parametrize("question", EXACT)
def test_the_answer_is_right_and_its_reasoning_apart(chat, question):
    answer = chat(user(question))
    (choice,) = answer["choices"]
    assert EXACT[question] in choice["message"]["content"]
    assert choice["message"]["reasoning"].strip()
    assert choice["finish_reason"] == "stop"
    assert answer["model"] == "tiny-r1"
    assert not re.search("<think>|</think>|<｜", json.dumps(choice, ensure_ascii=False))


@pytest.mark.parametrize("question", EXACT)
def test_a_stream_says_the_same(chat, question):
    message = chat(user(question))["choices"][0]["message"]
    chunks = [c for x in chat(user(question), stream=True) for c in x["choices"]]
    for field in ("content", "reasoning"):
        assert "".join(c["delta"].get(field, "") for c in chunks) == message[field]
    assert [c["finish_reason"] for c in chunks if c["finish_reason"]] == ["stop"]


def test_a_stop_word_of_the_client_does_not_let_tokens_leak(chat):
    message = chat(user("What is 2+2?"), stop=["never said"])["choices"][0]["message"]
    assert message["content"] == "2 + 2 = 4."


def test_an_answer_without_end_is_ended(keep, role, chat, tiny_gguf):
    """num_predict is the planned context, where Ollama alone would go on ten times as long."""
    assert role.parameters["num_predict"] == role.parameters["num_ctx"] == 1024
    done = keep(name="short", gguf=tiny_gguf, parameters={**role.parameters, "num_predict": 7})
    assert done["changed"], done
    answer = chat(user("What is 2+2?"), model="short", max_tokens=None)
    keep(name="short", state="absent")
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_is_too_long_can_be_known(server, chat):
    """The OpenAI route cuts it without a word; the native route refuses it when told to."""
    body = {
        "model": "tiny-r1",
        "messages": [user("word " * 2000)],
        "truncate": False,
        "stream": False,
        "options": {"num_predict": 1},
    }
    with pytest.raises(urllib.error.HTTPError) as error:
        post(server.url + "/api/chat", body)
    assert error.value.code == 400
    assert b"exceeds the context length" in error.value.read()
    assert chat(*body["messages"], max_tokens=1)["usage"]["prompt_tokens"] == 1024


def test_tools_are_refused_not_ignored(server, chat):
    tool = {"type": "function", "function": {"name": "x", "parameters": {"type": "object"}}}
    with pytest.raises(urllib.error.HTTPError) as error:
        chat(user("hi"), tools=[tool])
    assert error.value.code == 400 and b"does not support tools" in error.value.read()


def test_the_plain_name_works_and_is_listed_with_its_tag(server):
    with urllib.request.urlopen(server.url + "/v1/models", timeout=30) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["tiny-r1:latest"]
    with urllib.request.urlopen(server.url + "/v1/models/tiny-r1", timeout=30) as answer:
        assert json.load(answer)["id"] == "tiny-r1"


def test_models_of_other_hosts_are_out_of_reach(server, chat):
    with pytest.raises(urllib.error.HTTPError) as error:
        chat(user("hi"), model="gpt-oss:120b-cloud")
    assert error.value.code == 403
