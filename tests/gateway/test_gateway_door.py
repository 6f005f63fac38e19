"""Who gets in, what is answered to those who do not, and what is out of reach."""


import pytest

CHAT = {"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 2+2?"}]}


def test_a_key_opens_the_door(gateway):
    answer = gateway.ask("/v1/models")
    assert answer.status == 200
    assert answer.json()["data"][0]["id"] == "tiny-r1"
    assert len(answer.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize("key", [None, "wrong", "key-of-default x", "key-of-defaul", ""])
def test_without_a_known_key_nobody_gets_in(gateway, key):
    answer = gateway.ask("/v1/chat/completions", CHAT, key=key)
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
