"""The real `openai` client against the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from serving import MAX_CONTEXT, RunningServer

MESSAGES: list[Any] = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": [{"type": "text", "text": "Name a"}, {"type": "text", "text": "colour."}]},
]
FIXED: dict[str, Any] = {"model": "test-model", "max_tokens": 12, "temperature": 0.8, "seed": 7}
FULL_LENGTH: dict[str, Any] = {"extra_body": {"ignore_eos": True}}


def test_chat(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, **FIXED, **FULL_LENGTH)
    assert answer.object == "chat.completion"
    assert answer.model == "test-model"
    assert answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.logprobs is None
    assert answer.usage is not None
    prompt = server.llm.encode_chat(
        [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Name a\ncolour."}]
    )
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == len(prompt) + 12


def test_the_answer_is_the_engines(client: openai.OpenAI, server: RunningServer) -> None:
    from outpace.types import SamplingParams

    answer = client.chat.completions.create(messages=[{"role": "user", "content": "Hi"}], **FIXED)
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=7)
    [expected] = server.llm.chat([{"role": "user", "content": "Hi"}], params)
    assert answer.choices[0].message.content == expected.outputs[0].text
    assert answer.choices[0].finish_reason == expected.outputs[0].finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == expected.num_output_tokens


def test_chat_stream_equals_chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, n=2, **FIXED, **FULL_LENGTH)
    stream = client.chat.completions.create(
        messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}, **FIXED, **FULL_LENGTH
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *said, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == 24
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in said)
    for index, choice in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in said if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [piece.finish_reason for piece in mine if piece.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason == "length"
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_stream_without_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **FIXED))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert "usage" not in chunks[0].model_fields_set


def test_chat_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "messages": MESSAGES,
        "logprobs": True,
        "top_logprobs": 3,
        **FIXED,
        **FULL_LENGTH,
    }
    [choice] = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    content = choice.logprobs.content
    assert len(content) == 12
    raw = b"".join(bytes(token.bytes or []) for token in content)
    assert raw.decode(errors="replace").startswith((choice.message.content or "").rstrip("\ufffd"))
    for token in content:
        assert token.logprob <= 0
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert token.logprob <= tops[0]
    streamed = [
        token
        for chunk in client.chat.completions.create(stream=True, **asked)
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == content


def test_zero_top_logprobs(client: openai.OpenAI) -> None:
    [choice] = client.chat.completions.create(messages=MESSAGES, logprobs=True, **FIXED).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content
    assert all(token.top_logprobs == [] for token in choice.logprobs.content)


def test_stop_string(client: openai.OpenAI) -> None:
    free = client.completions.create(prompt="One two three", **{**FIXED, "max_tokens": 40}, **FULL_LENGTH)
    text = free.choices[0].text
    stop = text[len(text) // 2 :][:3]
    for stops in (stop, ["not there at all", stop]):
        request: dict[str, Any] = {**FIXED, "max_tokens": 40, "stop": stops, **FULL_LENGTH}
        [choice] = client.completions.create(prompt="One two three", **request).choices
        assert choice.finish_reason == "stop"
        assert choice.text == text[: text.index(stop)]
        chunks = list(client.completions.create(prompt="One two three", stream=True, **request))
        assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_seed_repeats_and_its_absence_does_not(client: openai.OpenAI) -> None:
    def ask(**given: Any) -> str:
        request = {
            "model": "test-model",
            "prompt": "Once",
            "max_tokens": 24,
            "temperature": 2.0,
            **FULL_LENGTH,
        }
        return client.completions.create(**request, **given).choices[0].text

    assert ask(seed=1) == ask(seed=1)
    assert len({ask(seed=1), ask(seed=2), ask(), ask()}) == 4


def test_completion_defaults_to_16_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="test-model", prompt="A", seed=1, **FULL_LENGTH)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_completion_of_several_prompts(client: openai.OpenAI, server: RunningServer) -> None:
    prompts = ["The sea is", "Two and two are"]
    both = client.completions.create(prompt=prompts, n=2, **FIXED)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    as_ids = client.completions.create(
        prompt=[server.llm.encode_prompt(prompt) for prompt in prompts], n=2, **FIXED
    )
    assert [choice.text for choice in as_ids.choices] == [choice.text for choice in both.choices]
    one = client.completions.create(prompt=server.llm.encode_prompt(prompts[1]), **FIXED)
    assert one.choices[0].text == both.choices[2].text
    stream = client.completions.create(
        prompt=prompts, n=2, stream=True, stream_options={"include_usage": True}, **FIXED
    )
    *chunks, last = stream
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in both.choices]
    assert last.usage is not None
    assert both.usage is not None
    assert last.usage.prompt_tokens == both.usage.prompt_tokens
    assert last.usage.completion_tokens == both.usage.completion_tokens
    server.wait_idle()


def test_completion_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "The sea is", "logprobs": 2, **FIXED, **FULL_LENGTH}
    [choice] = client.completions.create(**asked).choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 12
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
    offsets = [
        offset
        for chunk in client.completions.create(stream=True, **asked)
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset or []
    ]
    assert offsets == logprobs.text_offset


def test_echo(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt="The sea is", **FIXED).choices[0].text
    echoed = client.completions.create(prompt="The sea is", echo=True, **FIXED).choices[0].text
    assert echoed == "The sea is" + plain
    chunks = client.completions.create(prompt="The sea is", echo=True, stream=True, **FIXED)
    assert "".join(chunk.choices[0].text for chunk in chunks) == echoed


def test_max_completion_tokens_wins(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES, model="test-model", max_tokens=9, max_completion_tokens=3, **FULL_LENGTH
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_length_at_the_end_of_the_context(client: openai.OpenAI) -> None:
    prompt = [5] * (MAX_CONTEXT - 4)
    answer = client.completions.create(model="test-model", prompt=prompt, max_tokens=100, **FULL_LENGTH)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 5


def test_logit_bias_forces_a_token(client: openai.OpenAI, server: RunningServer) -> None:
    token = server.llm.tokenizer.encode(" yes", add_special=False)[0]
    answer = client.completions.create(
        model="test-model", prompt="No", max_tokens=3, temperature=0, logit_bias={str(token): 100}
    )
    assert answer.choices[0].text == server.llm.tokenizer.decode([token] * 3)


def test_harmless_fields_are_let_through(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES,
        user="me",
        metadata={"a": "b"},
        store=False,
        parallel_tool_calls=True,
        service_tier="auto",
        response_format={"type": "text"},
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="none",
        **FIXED,
    )
    assert answer.choices[0].finish_reason in {"stop", "length"}


def test_models(client: openai.OpenAI, server: RunningServer) -> None:
    [model] = client.models.list().data
    assert model.id == "test-model"
    assert client.models.retrieve("test-model") == model
    assert model.model_extra == {"max_model_len": MAX_CONTEXT}
    by_path = client.completions.create(model=server.llm.model_name, prompt="A", max_tokens=1)
    assert by_path.model == "test-model"


def test_exceptions_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-9", prompt="A")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="test-model", prompt=[5] * (MAX_CONTEXT + 1))
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "prompt"
    assert str(MAX_CONTEXT) in too_long.value.message
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(
            model="test-model", messages=[{"role": "user", "content": "a " * 5000}]
        )
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as hot:
        client.completions.create(model="test-model", prompt="A", temperature=-1)
    assert hot.value.param == "temperature"


def test_async_client(server: RunningServer) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        request: dict[str, Any] = {**FIXED, "seed": number, "prompt": f"Number {number}"}
        whole = await client.completions.create(**request)
        pieces = [
            chunk.choices[0].text async for chunk in await client.completions.create(stream=True, **request)
        ]
        return whole.choices[0].text, "".join(pieces)

    async def main() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(8)))

    answers = asyncio.run(main())
    assert all(whole == streamed for whole, streamed in answers)
    assert len({whole for whole, _ in answers}) > 1
    server.wait_idle()
