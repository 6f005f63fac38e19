"""What OpenAI's own client gets through a gateway before an engine that serves tiny-r1."""

import asyncio

import openai

ASK = [{"role": "user", "content": "What is 2+2?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
THOUGHT, ANSWER = "2+2 equals 4", "2 + 2 = 4."


def check(url: str, key: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    assert [model.id for model in client.models.list()] == ["tiny-r1"]
    assert client.models.retrieve("tiny-r1").id == "tiny-r1"
    whole(client)
    streamed(client)
    with_tools(client)
    asyncio.run(at_once(url, key))
    errors(url, key)


def asked(**more) -> dict:
    return {"model": "tiny-r1", "messages": ASK, "temperature": 0, "max_tokens": 200} | more


def thought_of(part) -> str:
    """Under both its names the same."""
    older, newer = (getattr(part, name, None) for name in ("reasoning_content", "reasoning"))
    assert older == newer, part
    return older or ""


def whole(client) -> None:
    answer = client.chat.completions.create(**asked())
    message = answer.choices[0].message
    assert (message.role, message.content.strip()) == ("assistant", ANSWER)
    assert THOUGHT in thought_of(message)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    cut = client.chat.completions.create(**asked(max_tokens=5))
    assert cut.choices[0].finish_reason == "length"


def joined(chunks: list) -> tuple[str, str, str | None]:
    """Thought, answer and finish reason of a stream."""
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    ends = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(ends) == 1
    assert len({chunk.id for chunk in chunks}) == 1
    thought = "".join(thought_of(choice.delta) for choice in choices)
    return thought, "".join(choice.delta.content or "" for choice in choices).strip(), ends[0]


def streamed(client) -> None:
    for options in (None, {"include_usage": True}):
        more = {"stream_options": options} if options else {}
        chunks = list(client.chat.completions.create(**asked(stream=True, **more)))
        thought, answer, end = joined(chunks)
        assert THOUGHT in thought
        assert (answer, end) == (ANSWER, "stop")
        assert bool(chunks[-1].usage) == bool(options)
    with client.chat.completions.with_streaming_response.create(**asked(stream=True)) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")


def with_tools(client) -> None:
    """Tools may be sent: the answer is well formed, or says that they are not for this model."""
    try:
        answer = client.chat.completions.create(**asked(tools=[TOOL]))
    except openai.BadRequestError as refusal:
        assert "tool" in refusal.message
        return
    choice = answer.choices[0]
    assert choice.finish_reason in ("stop", "length", "tool_calls")
    assert bool(choice.message.tool_calls) == (choice.finish_reason == "tool_calls")
    assert choice.message.content or choice.message.tool_calls


async def at_once(url: str, key: str) -> None:
    """The asynchronous client, several at a time; seeds keep them apart."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:

        async def stream(seed):
            answer = await client.chat.completions.create(**asked(stream=True, seed=seed))
            return joined([chunk async for chunk in answer])

        for thought, answer, end in await asyncio.gather(*map(stream, range(4))):
            assert THOUGHT in thought
            assert (answer, end) == (ANSWER, "stop")


def errors(url: str, key: str) -> None:
    def refused(kind, code, call, key=key):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
        try:
            call(client)
        except kind as error:
            assert type(error) is kind, error
            assert error.code == code, error
            assert error.message and error.request_id, error
        else:
            raise AssertionError(f"{kind.__name__} was expected")

    refused(
        openai.AuthenticationError, "invalid_api_key", lambda client: client.models.list(), "wrong"
    )
    refused(
        openai.NotFoundError, "not_found", lambda client: client.get("/no/such", cast_to=object)
    )
    refused(
        openai.BadRequestError, "bad_request",
        lambda client: client.chat.completions.create(**asked(messages=[5])),
    )  # fmt: skip
