"""What the gateway does to a request for R1, and how a client says otherwise."""

import json

import pytest
from gateway_parts import PLAN

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture
def sent(start_gateway, stand_in):
    """sent(policy, header, **body) returns what the engine is asked, and the rules applied."""
    stand_in.says('{"choices":[]}')
    gateways = {}

    def ask(header=None, policy=None, plan=None, **body):
        key = json.dumps([policy, plan])
        if key not in gateways:
            gateways[key] = start_gateway(
                stand_in.port, gateway_policy=policy or {}, plan_result=PLAN | (plan or {})
            )
        headers = {"X_R1_Policy": header} if header else {}
        answer = gateways[key].ask("/v1/chat/completions", {"model": "tiny-r1"} | body, **headers)
        _head, got = stand_in.requests.pop()
        got = json.loads(got)
        got.pop("model")
        return got, answer.headers["X-R1-Policy"]

    return ask


def user(text):
    return {"role": "user", "content": text}


ALL = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 4096}


def test_sampling_and_an_end_where_the_client_says_none(sent):
    assert sent(messages=[]) == ({"messages": [], **ALL}, "sampling, max_tokens")
    given = {"temperature": 0, "top_p": 1, "max_tokens": 9}
    assert sent(messages=[], **given) == ({"messages": [], **given}, "none")
    body, applied = sent(messages=[], max_completion_tokens=99999, temperature=1, top_p=1)
    assert body["max_completion_tokens"] == 4096 and "max_tokens" not in body
    assert applied == "max_tokens_ceiling"


def test_vllm_ends_an_answer_itself(sent):
    body, _applied = sent(messages=[], plan={"engine": "vllm"})
    assert "max_tokens" not in body


SYSTEM = {"role": "system", "content": "Be brief."}


def test_a_system_prompt_goes_into_the_first_turn_of_the_user(sent):
    body, applied = sent(messages=[SYSTEM, user("2+2?"), user("3+3?")])
    assert body["messages"] == [user("Be brief.\n\n2+2?"), user("3+3?")]
    assert "system_prompt" in applied
    parts = [{"type": "text", "text": "2+2?"}, {"type": "image_url", "image_url": {"url": "x/y"}}]
    body, _applied = sent(messages=[SYSTEM, {"role": "user", "content": parts, "name": "me"}])
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Be brief."}, *parts], "name": "me"}
    ]
    assert sent(messages=[SYSTEM])[0]["messages"] == [user("Be brief.")]
    two = [SYSTEM, {"role": "developer", "content": [{"type": "text", "text": "In French."}]}]
    assert sent(messages=[*two, user("a")])[0]["messages"] == [user("Be brief.\n\nIn French.\n\na")]


def test_a_model_that_takes_a_system_prompt_gets_it(sent):
    body, applied = sent(messages=[SYSTEM, user("a")], plan={"prompt": {"system_prompt": True}})
    assert body["messages"] == [SYSTEM, user("a")] and "system_prompt" not in applied


def test_thoughts_of_earlier_turns_are_left_out(sent):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body, applied = sent(messages=[
        user("<think>mine</think>"),
        {"role": "assistant", "content": "<think>so</think>\n4", "tool_calls": [call]},
        {"role": "assistant", "reasoning_content": "so", "content": "5", "reasoning": "so"},
        {"role": "tool", "tool_call_id": "1", "content": "</think>"},
    ])  # fmt: skip
    assert body["messages"] == [
        user("<think>mine</think>"),
        {"role": "assistant", "content": "4", "tool_calls": [call]},
        {"role": "assistant", "content": "5"},
        {"role": "tool", "tool_call_id": "1", "content": "</think>"},
    ]
    assert "history" in applied


def test_rules_are_switched_off_by_model_and_by_request(sent):
    messages = [SYSTEM, user("a"), {"role": "assistant", "content": "b", "reasoning": "c"}]
    off = dict.fromkeys(("sampling", "system_prompt", "history", "max_tokens"))
    assert sent(policy=off, messages=messages) == ({"messages": messages}, "none")
    assert sent("off", messages=messages) == ({"messages": messages}, "none")
    body, applied = sent("-history, -system_prompt", messages=messages)
    assert (body, applied) == ({"messages": messages, **ALL}, "sampling, max_tokens")
    other = {"sampling": {"temperature": 0.5}, "max_tokens": 7}
    body, _applied = sent(policy=other, messages=[])
    assert body == {"messages": [], "temperature": 0.5, "max_tokens": 7}


def test_advice_on_request(sent):
    body, applied = sent("+boxed", messages=[user("a"), user("b")])
    assert body["messages"] == [user("a"), user(f"b\n\n{BOXED}")]
    assert "boxed" in applied
    assert sent("+no_such_rule", messages=[user("a")])[0]["messages"] == [user("a")]


# Bodies that no rule understands: the engine says what is wrong with them.
ODD = [
    '{"model":"x","messages":5}', '{"messages":[{"role":5,"content":{}}]}',
    '{"messages":[{"content":null}]}', '{"messages":[{"role":"user"},{"role":"system"}]}',
]  # fmt: skip


def test_odd_bodies_reach_the_engine(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port)
    for body in ODD:
        assert gateway.ask("/v1/chat/completions", body.encode()).status == 200, body


def test_what_no_rule_touches_is_sent_byte_for_byte(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port)
    kept = (
        '{ "role" : "user", "content":"\\u00e9 \\/ \\ud83d\\ude00", "n": 1E400, '
        '"big":123456789012345678901234567890}'
    )
    body = (
        '{"model":"x" , "messages":[{"role":"user","content":"a"}, %s],'
        ' "seed": 18446744073709551615, "temperature":0.60, "top_p":1, "max_tokens": 5 }'
    )
    gateway.ask("/v1/chat/completions", (body % kept).encode())
    assert stand_in.requests.pop()[1].decode() == body % kept
    system = '[{"role":"system","content":"s"},'
    gateway.ask("/v1/chat/completions", (body % kept).replace("[", system, 1).encode())
    changed = (body % kept).replace('"content":"a"}, ', '"content":"s\\n\\na"},')
    assert stand_in.requests.pop()[1].decode() == changed


def test_the_header_is_part_of_what_is_cached(start_gateway, stand_in, redis):
    stand_in.says('{"choices":[{"message":{"content":"4"},"finish_reason":"stop"}]}')
    gateway = start_gateway(stand_in.port)
    body = {"messages": [SYSTEM, user("2+2?")], "temperature": 0}

    def ask(header):
        answer = gateway.ask("/v1/chat/completions", body, X_R1_Policy=header)
        return answer.headers["X-Cache"], answer.headers["X-R1-Policy"]

    assert ask("+boxed") == ("MISS", "sampling, max_tokens, system_prompt, boxed")
    assert ask("+boxed") == ("HIT", "sampling, max_tokens, system_prompt, boxed")
    assert ask("off") == ("MISS", "none")
