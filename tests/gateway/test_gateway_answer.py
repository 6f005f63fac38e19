"""One answer format and one error format, whichever engine serves."""

import json
import random
import re
from pathlib import Path

import openai
import pytest
from gateway_parts import KEYS, REPO

RECORDED = REPO / "tests/ollama/recorded"
END = "<｜end▁of▁sentence｜>"


def recorded(name: str) -> tuple[str, str, bytes]:
    """Status, type and body of what a real Ollama once answered."""
    head, _, body = Path(RECORDED / f"{name}.http").read_bytes().partition(b"\n\n")
    status, *headers = head.decode().splitlines()
    kind = next(h for h in headers if h.startswith("Content-Type")).split(": ")[1]
    return status.removeprefix("HTTP/1.1 "), kind, body


def replay(stand_in, name: str) -> bytes:
    status, kind, body = recorded(name)
    if "event-stream" in kind:
        stand_in.streams(body)
    else:
        stand_in.says(body, status, kind)
    return body


def test_ollama_answer(start_gateway, stand_in):
    before = json.loads(replay(stand_in, "chat"))
    answer = start_gateway(stand_in.port).chat()
    after = answer.json()
    message = after["choices"][0]["message"]
    assert message.pop("reasoning_content") == message["reasoning"]
    assert after == before
    assert answer.headers["Content-Length"] == str(len(answer.body))


def test_ollama_stream(start_gateway, stand_in):
    replay(stand_in, "chat_stream")
    gateway = start_gateway(stand_in.port)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[0]["key"], max_retries=0)
    stream = client.chat.completions.create(model="tiny-r1", messages=[], stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    thought = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
    assert thought == "The user asks for the sum of 2 and 2. 2+2 equals 4.\n"
    assert "".join(delta.content for delta in deltas) == "2 + 2 = 4."


@pytest.mark.parametrize("step", [1, 3, 50, 1000])
def test_stream_may_be_cut_anywhere(start_gateway, stand_in, step):
    _, _, body = recorded("chat_stream")
    body = b": a comment\r\n\r\n" + body[:2000].rpartition(b"data:")[0] + b"data: [DONE]"
    stand_in.streams(*[body[i : i + step] for i in range(0, len(body), step)])
    stand_in.pieces = [piece for piece in stand_in.pieces if isinstance(piece, bytes)]
    answer = start_gateway(stand_in.port).chat(stream=True).body
    assert answer.startswith(b": a comment\r\n\r\ndata: {")
    assert answer.endswith(b"\n\ndata: [DONE]")
    deltas = [
        json.loads(line[6:])["choices"][0]["delta"]
        for line in answer.decode().splitlines()
        if line.startswith("data: {")
    ]
    assert all(delta["reasoning"] == delta["reasoning_content"] for delta in deltas)


def test_ollama_errors(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port)
    for name in ("error_no_model", "error_bad_json", "error_tools", "error_cloud"):
        before = json.loads(replay(stand_in, name))["error"]
        status = int(recorded(name)[0][:3])
        answer = gateway.chat()
        if status in (401, 403):  # between the gateway and its engine, not the client's fault
            assert answer.status == 502
        else:
            assert answer.status == status
            assert answer.error["message"] == before["message"]
            assert answer.error["type"] == before["type"]
            assert isinstance(answer.error["code"], str)


# status, type and body from the engine; message and type for the client
ERRORS = [
    (
        "400 Bad Request",
        "application/json",
        '{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}',
        "too long",
        "exceed_context_size_error",
    ),
    (
        "404 Not Found",
        "application/json",
        '{"object":"error","message":"no model","type":"NotFoundError","code":404}',
        "no model",
        "NotFoundError",
    ),
    ("500 Oops", "application/json", '{"error":"it broke"}', "it broke", "server_error"),
    ("503 Busy", "text/html", "<h1>Busy</h1>", "not ready", "server_error"),
    ("429 Busy", "text/plain", "", "Too many", "rate_limit_error"),
]


def test_engine_errors_take_one_shape(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port)
    for status, kind, body, message, type_ in ERRORS:
        stand_in.says(body, status, kind)
        answer = gateway.chat()
        assert answer.status == int(status[:3])
        assert message in answer.error["message"]
        assert answer.error["type"] == type_
        assert isinstance(answer.error["code"], str)


def test_engine_that_refuses_the_gateway(start_gateway, stand_in):
    stand_in.says('{"error":{"code":401,"message":"Invalid API Key"}}', "401 Unauthorized")
    answer = start_gateway(stand_in.port).chat()
    assert (answer.status, answer.error["type"]) == (502, "server_error")


ODD = (
    '{ "id":"x", "created":9007199254740993, "big":123456789012345678901234567890,'
    ' "float":0.1000000000000000055, "exp":1E400,  "empty":[], "none":{},'
    ' "choices":[ {"index":0,"logprobs":{"content":[{"token":"a/b","logprob":-1.10e-05,'
    '"bytes":[],"top_logprobs":[]}]}, "message": {"role":"assistant","content":%s,'
    '"tool_calls":[]%s }, "finish_reason":"stop"} ], "usage":{"a":18446744073709551615}}'
)


BOTH = ',"reasoning":"%s","reasoning_content":"%s"'
# content and what follows it, before and after
CHANGES = [
    # nothing to do: not a byte changes
    ('"hi"', "", '"hi"', ""),
    ("null", "", "null", ""),
    ('""', ',"reasoning":"r","reasoning_content":"r"', '""', BOTH % ("r", "r")),
    # one name
    ('""', ',"reasoning_content":"r"', '""', ',"reasoning_content":"r","reasoning":"r"'),
    ('"<think>a</think>b"', ',"reasoning":"r"', '"<think>a</think>b"', BOTH % ("r", "r")),
    (
        '"hi"',
        ',"reasoning":"\\u003ca/\\"}]\\n\\ud83d\\ude00"',
        '"hi"',
        ',"reasoning":"\\u003ca/\\"}]\\n\\ud83d\\ude00",'
        '"reasoning_content":"\\u003ca/\\"}]\\n\\ud83d\\ude00"',
    ),
    # left in the content
    (
        r'"\u003cthink\u003e\nso/x \"q\"\n\u003c/think\u003e\n\n4"',
        "",
        '"4"',
        BOTH % (r"so/x \"q\"", r"so/x \"q\""),
    ),
    (
        '"so\\n</think>\\n4"',
        ',"reasoning_content":null',
        '"4"',
        ',"reasoning_content":"so","reasoning":"so"',
    ),
    ('"<think>\\nunfinished"', "", '""', BOTH % ("unfinished", "unfinished")),
    # leaked token
    (f'"4 / 2{END}"', "", '"4 / 2"', ""),
    (f'"4{END}{END}\\n"', "", '"4"', ""),
    (f'"{END} is a token"', "", f'"{END} is a token"', ""),
]


def test_only_what_must_change_changes(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port)
    for content, more, content_after, more_after in CHANGES:
        stand_in.says(ODD % (content, more))
        assert gateway.chat().body.decode() == ODD % (content_after, more_after)


def random_value(dice: random.Random, depth=3):
    kind = dice.randrange(8 if depth else 5)
    if kind == 0:
        return dice.choice([None, True, False, 0, -1.5e-7, 2**70, 0.1])
    if kind < 5:
        alphabet = '"\\{}[]:,/<> \n\t\u0000é…😀ab'
        return "".join(dice.choices(alphabet, k=dice.randrange(12)))
    if kind < 7:
        return [random_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    keys = ["content", "reasoning", "message", "choices", "x", 'q"', "\\"]
    return {dice.choice(keys): random_value(dice, depth - 1) for _ in range(dice.randrange(4))}


def test_random_answers(start_gateway, stand_in):
    """Odd strings and nesting around what changes: the rest must come out as it went in."""
    dice = random.Random(20)
    gateway = start_gateway(stand_in.port)
    for _ in range(300):
        choices = []
        for _ in range(dice.randrange(1, 4)):
            message = {"x": random_value(dice), "content": "a", "reasoning": f"{dice.random()}\\"}
            choices.append({"y": random_value(dice), "message": message, "z": random_value(dice)})
        answer = {"a": random_value(dice), "choices": choices, "b": random_value(dice)}
        indent, ascii_only = dice.choice([None, 1]), dice.choice([True, False])
        stand_in.says(json.dumps(answer, indent=indent, ensure_ascii=ascii_only))
        for choice in choices:
            choice["message"]["reasoning_content"] = choice["message"]["reasoning"]
        assert gateway.chat().json() == answer


def event(delta: dict, finish=None, index=0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def deltas_of(body: bytes, index=0) -> list[dict]:
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return [choice["delta"] for choice in choices if choice["index"] == index]


def joined(body: bytes, key: str, index=0) -> str:
    return "".join(delta.get(key) or "" for delta in deltas_of(body, index))


def test_leaked_token_in_a_stream(start_gateway, stand_in):
    stand_in.streams(event({"content": f"4{END}"}), event({}, "stop"), DONE)
    body = start_gateway(stand_in.port).chat(stream=True).body
    assert joined(body, "content") == "4"
    assert body.endswith(DONE)


TEMPLATES = [
    "%s", "<think>%s</think>%s", "\n<think>\n%s\n</think>\n\n%s", "<think>%s", "%s</think>",
    " <thin%s", "<%s", "%s<｜", "%s <｜end▁of▁sentence｜> %s",
]  # fmt: skip


def random_text(dice: random.Random) -> str:
    bits = [
        "a",
        " ",
        "\n",
        "<",
        "</",
        "<think",
        "</think",
        END,
        END[:7],
        "<|im_end|>",
        "é",
        "1 < 2",
        "\n\n\n",
        "```",
        "`",
    ]
    template = dice.choice(TEMPLATES)
    return template % tuple(
        "".join(dice.choices(bits, k=dice.randrange(6))) for _ in range(template.count("%s"))
    )


ASKED = {"messages": [{"role": "user", "content": "x"}]}


def folded(text: str) -> str:
    """Runs of blank lines as one, but for those inside fenced code."""
    fences = [match.end() for match in re.finditer(r"^ *```", text, re.MULTILINE)]
    parts = [text[i:j] for i, j in zip([0, *fences], [*fences, len(text)], strict=True)]
    return "".join(
        part if number % 2 else re.sub(r"\n{3,}", "\n\n", part) for number, part in enumerate(parts)
    )


@pytest.mark.parametrize("policy", [{}, {"blank_lines": "fold"}], ids=["as it is", "folded"])
def test_a_stream_says_what_a_whole_answer_says(start_gateway, stand_in, policy):
    """Thought and tokens left in the content, cut anywhere. A thought without its opening tag can
    be known in a whole answer alone."""
    dice = random.Random(6)
    gateway = start_gateway(stand_in.port, gateway_policy=policy)
    for _ in range(250):
        text = random_text(dice)
        if "</think>" in text and not text.lstrip().startswith("<think>"):
            continue
        stand_in.says(json.dumps({"choices": [{"message": {"content": text}}]}))
        message = gateway.chat().json()["choices"][0]["message"]
        if policy:
            plain = gateway.ask("/v1/chat/completions", ASKED, X_R1_Policy="-blank_lines")
            content = plain.json()["choices"][0]["message"]["content"]
            assert message["content"] == folded(content), text
        cuts = sorted(dice.choices(range(len(text) + 1), k=dice.randrange(6)))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        events = [event({"content": piece}) for piece in pieces]
        last = dice.choice([event({}, "stop"), b""])  # engines that leave it out
        stand_in.streams(event({"role": "assistant", "content": ""}), *events, last + DONE)
        body = gateway.chat(stream=True).body
        for key in ("reasoning", "reasoning_content", "content"):
            assert joined(body, key) == message.get(key, ""), (text, pieces, body)
        assert body.endswith(DONE)


def test_a_stream_without_the_opening_tag(start_gateway, stand_in):
    """Where the operator says that the engine leaves it out."""
    stand_in.streams(
        event({"content": " so"}), event({"content": "\n</th"}), event({"content": "ink>\n\n4"}),
        event({}, "stop"), DONE,
    )  # fmt: skip
    for unopened, thought, said in ((True, "so", "4"), (False, "", " so\n</think>\n\n4")):
        gateway = start_gateway(stand_in.port, gateway_unopened_think=unopened)
        body = gateway.chat(stream=True).body
        assert (joined(body, "reasoning"), joined(body, "content")) == (thought, said)


def test_a_thought_that_the_engine_tells_itself(start_gateway, stand_in):
    """Then the content is the answer, tags and all."""
    stand_in.streams(
        event({"role": "assistant", "content": None}), event({"reasoning": "so"}),
        event({"content": "<thi"}), event({"content": "nk>x"}, "stop"), DONE,
    )  # fmt: skip
    body = start_gateway(stand_in.port).chat(stream=True).body
    assert joined(body, "content") == "<think>x"
    assert joined(body, "reasoning") == joined(body, "reasoning_content") == "so"


def test_choices_of_a_stream_are_kept_apart(start_gateway, stand_in):
    stand_in.streams(
        event({"content": "<thi"}, index=0), event({"content": "<thi"}, index=1),
        event({"content": "nk>a</think>"}, index=1), event({"content": "s"}, "stop", 0),
        event({"content": "b"}, "stop", 1), DONE,
    )  # fmt: skip
    body = start_gateway(stand_in.port).chat(stream=True).body
    assert (joined(body, "content", 0), joined(body, "reasoning", 0)) == ("<this", "")
    assert (joined(body, "content", 1), joined(body, "reasoning", 1)) == ("b", "a")


@pytest.mark.parametrize(
    ("said", "told"),
    [("eos", "stop"), ("max_tokens", "length"), ("abort", "length"), ("tool_calls", "tool_calls")],
)
def test_finish_reasons_in_openais_words(start_gateway, stand_in, said, told):
    gateway = start_gateway(stand_in.port)
    stand_in.says(json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": said}]}))
    assert gateway.chat().json()["choices"][0]["finish_reason"] == told
    stand_in.streams(event({"content": "a"}), event({}, said), DONE)
    assert f'"finish_reason": "{told}"'.encode() in gateway.chat(stream=True).body.replace(
        f'"finish_reason":"{told}"'.encode(), f'"finish_reason": "{told}"'.encode()
    )


def test_an_error_in_mid_stream(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port)
    for said in ({"error": {"code": 500, "message": "it broke"}}, {"error": "it broke"}):
        stand_in.streams(event({"content": "a"}), f"data: {json.dumps(said)}\n\n".encode())
        last = gateway.chat(stream=True).body.decode().strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"] == {
            "message": "it broke", "type": "server_error", "code": "internal_error", "param": None,
        }  # fmt: skip


def test_several_choices(start_gateway, stand_in):
    choice = '{"message":{"content":"a","reasoning":"%d"},"finish_reason":"stop"}'
    stand_in.says(f'{{"choices":[{choice % 1},{choice % 2}]}}')
    choices = start_gateway(stand_in.port).chat().json()["choices"]
    assert [c["message"]["reasoning_content"] for c in choices] == ["1", "2"]


def test_strange_answers_pass_as_they_are(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port)
    for body in ("not json", "[]", "{", '{"choices":5}', '{"choices":[5]}', ""):
        stand_in.says(body)
        assert gateway.chat().body.decode() == body


def test_blank_lines_are_folded_where_the_policy_says_so(start_gateway, stand_in):
    text = "a\n\n\n\nb\n\n```\nc\n\n\n\nd\n```\n\n\ne"
    stand_in.says(json.dumps({"choices": [{"message": {"content": text}}]}))
    gateway = start_gateway(stand_in.port, gateway_policy={"blank_lines": "fold"})
    answer = gateway.ask("/v1/chat/completions", ASKED)
    assert answer.json()["choices"][0]["message"]["content"] == (
        "a\n\nb\n\n```\nc\n\n\n\nd\n```\n\ne"
    )
    assert "blank_lines" in answer.headers["X-R1-Policy"]
    stand_in.says(json.dumps({"choices": [{"text": text, "index": 0}]}))
    answer = gateway.ask("/v1/completions", {"prompt": "x"})
    assert answer.json()["choices"][0]["text"] == text, "a text to complete stays as it is"
    assert "blank_lines" not in answer.headers["X-R1-Policy"]
