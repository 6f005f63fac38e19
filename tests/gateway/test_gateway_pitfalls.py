"""What other gateways get wrong: the questions that a cache must tell apart, and those it must not.
tests/bench/pitfalls.py tries these and more on nginx's own cache and on LiteLLM, too."""

import json

import pytest

COMPLETE = '{"choices":[{"message":{"content":"4"},"finish_reason":"stop"}],"nr":%d}'


@pytest.fixture
def asked(start_gateway, redis, stand_in):
    """asked(body) returns the number of the engine's answer, and what X-Cache says."""
    original = stand_in.answer

    def answer(connection):
        stand_in.says(COMPLETE % len(stand_in.requests))
        original(connection)

    stand_in.answer = answer
    gateway = start_gateway(stand_in.port)

    def ask(body):
        body = body if isinstance(body, bytes) else json.dumps({"temperature": 0} | body).encode()
        got = gateway.ask("/v1/chat/completions", body)
        assert got.status == 200, got.body
        return got.json()["nr"], got.cache

    return ask


OTHER_FIELDS = {
    "guided_json": [{"type": "string"}, {"type": "object"}],
    "guided_regex": ["a", "b"],
    "min_p": [0.1, 0.2],
    "top_k": [1, 2],
    "repetition_penalty": [1.0, 1.1],
    "chat_template_kwargs": [{"enable_thinking": True}, {"enable_thinking": False}],
    "a_field_of_next_year": [1, 2],
}


@pytest.mark.parametrize("name", OTHER_FIELDS)
def test_every_field_counts_also_those_openai_does_not_know(asked, name):
    first, second = ({"messages": [], name: value} for value in OTHER_FIELDS[name])
    assert asked(first) == (1, "MISS")
    assert asked(second) == (2, "MISS")
    assert asked(first) == (1, "HIT")


def test_numbers_beyond_2_to_53_are_told_apart(asked):
    body = b'{"messages":[],"temperature":0,"x":%d}'
    assert asked(body % 9007199254740992) == (1, "MISS")
    assert asked(body % 9007199254740993) == (2, "MISS")
    assert asked(body % 9007199254740992) == (1, "HIT")


def test_a_conversation_of_many_messages_is_cached(asked):
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(21)]
    assert asked({"messages": turns}) == (1, "MISS")
    assert asked({"messages": turns}) == (1, "HIT")
    assert asked({"messages": turns[2:]}) == (2, "MISS")


@pytest.mark.parametrize("size", [20_000, 900_000, 3_000_000])
def test_a_long_question_never_gets_another_ones_answer(asked, size):
    """Above 1 MB nginx writes the body to disk; then there is nothing to look for in the cache."""
    a, b = ({"messages": [{"role": "user", "content": letter * size}]} for letter in "ab")
    (first, _), (second, cache), (again, _) = asked(a), asked(b), asked(a)
    assert (first, second) == (1, 2)
    assert again != second
    if size > 1_000_000:
        assert (cache, again) == ("BYPASS", 3)
