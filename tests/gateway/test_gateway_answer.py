"""One answer format and one error format, whichever engine serves."""

import json
import random
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


FOLDED = [  # before and after
    ("a\n\n\n\nb", "a\n\nb"),
    ("\n\n\n\na\n\n\n", "\n\na\n\n"),
    ("a  \n \t\n\r\n   \n    b  c", "a  \n \t\n    b  c"),
    ("a\r\n\r\n\r\n\r\nb", "a\r\n\r\nb"),
    ("a\n\nb\nc\n\nd", "a\n\nb\nc\n\nd"),
    ("a\n\n\n   ", "a\n\n   "),
    ("a\n\n\n\u3000\n\n\nb", "a\n\n\u3000\n\nb"),
    ("```py\na\n\n\n\nb\n```\n\n\n\nc", "```py\na\n\n\n\nb\n```\n\nc"),
    ("~~~\n\n\n\n```\n\n\n\n~~~~ \n\n\n\n", "~~~\n\n\n\n```\n\n\n\n~~~~ \n\n"),
    ("````\n```\n\n\n\n````\n\n\nx", "````\n```\n\n\n\n````\n\nx"),
    ("1. x\n   - ```\n     a\n\n\n\n     ```\n\n\n", "1. x\n   - ```\n     a\n\n\n\n     ```\n\n"),
    ("> ```\n> a\n\n\n\n> ```\n\n\n", "> ```\n> a\n\n\n\n> ```\n\n"),
    ("```inline```\n\n\n\nb", "```inline```\n\nb"),
    ("so ```\n\n\n\nb", "so ```\n\nb"),
    ("x" * 300 + "\n\n\n```" + "y" * 300 + "\n\n\n", "x" * 300 + "\n\n```" + "y" * 300 + "\n\n\n"),
]


def test_blank_lines_are_folded_where_the_policy_says_so(start_gateway, stand_in):
    folds = start_gateway(stand_in.port, gateway_policy={"blank_lines": "fold"})
    leaves = start_gateway(stand_in.port)
    for before, after in FOLDED:
        answer = {"choices": [{"message": {"content": before, "reasoning": "a\n\n\n\nb"}}]}
        stand_in.says(json.dumps(answer))
        found = folds.chat()
        assert found.json()["choices"][0]["message"]["content"] == after
        assert found.json()["choices"][0]["message"]["reasoning"] == "a\n\n\n\nb"
        assert "blank_lines" in found.headers["X-R1-Policy"]
        found = leaves.chat()
        assert found.json()["choices"][0]["message"]["content"] == before
        assert "blank_lines" not in found.headers["X-R1-Policy"]
        body = {"messages": [], "model": "tiny-r1"}
        found = folds.ask("/v1/chat/completions", body, X_R1_Policy="-blank_lines")
        assert found.json()["choices"][0]["message"]["content"] == before


def test_blank_lines_of_a_text_to_complete_stay(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port, gateway_policy={"blank_lines": "fold"})
    body = '{"choices":[{"text":"a\\n\\n\\n\\nb","finish_reason":"stop"}]}'
    stand_in.says(body)
    answer = gateway.ask("/v1/completions", {"prompt": "x"})
    assert answer.body.decode() == body
    assert "blank_lines" not in answer.headers["X-R1-Policy"]


def test_blank_lines_in_a_stream_as_in_a_whole_answer(start_gateway, stand_in):
    """Cut anywhere, with thoughts and leaked tokens around."""
    dice = random.Random(9)
    gateway = start_gateway(stand_in.port, gateway_policy={"blank_lines": "fold"})
    bits = [
        "\n",
        "\n\n",
        "\n\n\n",
        " ",
        "\t",
        "\r\n",
        "a",
        "é",
        "```",
        "~~~",
        "> ",
        "- ",
        "```py\n",
        END,
    ]
    texts = [before for before, _ in FOLDED] + ["x\n\n\n  <｜", f"x\n\n\n{END}\n\n"]
    for _ in range(200):
        texts.append("".join(dice.choices(bits, k=dice.randrange(1, 20))))
        texts.append("<think>a\n\n\n\nb</think>\n\n\n" + texts[-1])
    folded = 0
    for text in texts:
        stand_in.says(json.dumps({"choices": [{"message": {"content": text}}]}))
        message = gateway.chat().json()["choices"][0]["message"]
        folded += len(message["content"]) < len(text)
        places = range(len(text) + 1)
        cuts = dice.choice([list(places), sorted(dice.choices(places, k=dice.randrange(6)))])
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        last = dice.choice([event({}, "stop"), b""])
        stand_in.streams(b"".join(event({"content": piece}) for piece in pieces), last + DONE)
        body = gateway.chat(stream=True).body
        for key in ("reasoning", "content"):
            assert joined(body, key) == message.get(key, ""), (text, pieces, body)
    assert folded > 100


# As vLLM writes them: spacing, order, escapes, numbers and members that nobody else knows.
EXACT = [
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}',
    b'{"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "4\\/2 \\u00e9"},'
    b' "logprobs": {"content": [{"token": "4", "logprob": -1.10e-05, "bytes": [52], '
    b'"top_logprobs": [{"token":"\\n\\n","logprob":-9999.0,"bytes":[10,10]}]}],'
    b' "refusal": null}, "finish_reason": null, "token_ids":[9]}]}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function",'
    b'"function":{"name":"weather","arguments":""}}]}}]}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":'
    b'"{\\"city\\": \\"\\u6771\\u4eac <think>\\\\n\\n\\n\\n\\"}"}}]},"logprobs":null}]}',
    b'{"choices":[{"index":0,"delta":{"content":null},"finish_reason":"tool_calls","stop_reason":null}],'
    b'"system_fingerprint":"fp","big":9007199254740993}',
    b'{"choices":[],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":null,"completion_tokens_details":{"reasoning_tokens":1}}}',
    b"[DONE]",
]


@pytest.mark.parametrize("fold", [None, "fold"])
def test_logprobs_and_tool_calls_of_a_stream_byte_for_byte(start_gateway, stand_in, fold):
    gateway = start_gateway(stand_in.port, gateway_policy={"blank_lines": fold})
    stream = b"".join(b"data: %s\n\n" % chunk for chunk in EXACT)
    for size in (len(stream), 7):
        stand_in.streams(*[stream[i : i + size] for i in range(0, len(stream), size)])
        stand_in.pieces = [piece for piece in stand_in.pieces if isinstance(piece, bytes)]
        answer = gateway.chat(stream=True, stream_options={"include_usage": True})
        assert answer.body == stream


@pytest.mark.parametrize("fold", [None, "fold"])
def test_logprobs_and_tool_calls_of_a_whole_answer_byte_for_byte(start_gateway, stand_in, fold):
    gateway = start_gateway(stand_in.port, gateway_policy={"blank_lines": fold})
    whole = (
        b'{"id" : "chatcmpl-tool-1","object":"chat.completion","choices":[{"index":0,"message":{'
        b'"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":'
        b'{"name":"weather","arguments":"{\\"city\\":\\"\\u6771\\n\\n\\n\\n\\"}"}}],"function_call":null},'
        b'"logprobs":{"content":[{"token":"\\u003c","logprob":-0.0,"bytes":[60],"top_logprobs":[]}]},'
        b'"finish_reason":"tool_calls","stop_reason":128008}],"usage":{"prompt_tokens":12,'
        b'"completion_tokens":3,"completion_tokens_details":{"reasoning_tokens":0}},"kv":1E400}'
    )
    stand_in.says(whole)
    assert gateway.chat().body == whole
