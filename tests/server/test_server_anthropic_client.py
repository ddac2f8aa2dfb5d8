"""The real `anthropic` client against the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from serving import MAX_CONTEXT, RunningServer, running

from outpace.errors import UsageError
from outpace.llm import LLM
from outpace.server.model_pool import ModelPool
from outpace.server.settings import ServerSettings
from outpace.types import BLOCK_SIZE, SamplingParams

HI: list[Any] = [{"role": "user", "content": "Name a colour."}]
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0.0}}
ASKED: dict[str, Any] = {"model": "claude-opus-4-8", "max_tokens": 12, "messages": HI}


@pytest.fixture
def claude(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def engine_text(server: RunningServer, messages: Any, **params: Any) -> str:
    [output] = server.llm.chat(messages, SamplingParams(temperature=0, **params))
    return output.outputs[0].text


def test_message(claude: anthropic.Anthropic, server: RunningServer) -> None:
    answer = claude.messages.create(**ASKED, **GREEDY)
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "claude-opus-4-8")
    assert text_of(answer) == engine_text(server, HI, max_tokens=12)
    assert answer.stop_reason == "max_tokens"
    assert answer.stop_sequence is None
    usage = answer.usage
    assert usage.output_tokens == 12
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == len(server.llm.encode_chat(HI))
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


@pytest.mark.parametrize("stop", [False, True])
def test_stream_equals_message(claude: anthropic.Anthropic, *, stop: bool) -> None:
    asked = {**ASKED, "max_tokens": 40}
    if stop:
        text = text_of(claude.messages.create(**asked, **GREEDY))
        asked["stop_sequences"] = ["not there at all", text[len(text) // 2 :][:3]]
    whole = claude.messages.create(**asked, **GREEDY)
    with claude.messages.stream(**asked, **GREEDY) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert "".join(pieces) == text_of(whole) == text_of(streamed)
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.stop_sequence == whole.stop_sequence
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    if stop:
        assert whole.stop_reason == "stop_sequence"
        assert whole.stop_sequence == asked["stop_sequences"][1]
    else:
        assert pieces  # how many is up to the drafts
        assert whole.stop_reason == "max_tokens"


def test_end_of_turn(claude: anthropic.Anthropic, native_server: RunningServer) -> None:
    asked: dict[str, Any] = {
        "model": "claude-x",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
    }
    with anthropic.Anthropic(base_url=native_server.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(**asked, **GREEDY)
    assert "Tokyo" in text_of(answer)
    assert answer.stop_reason == "end_turn"
    assert answer.stop_sequence is None


def test_conversations_are_what_templates_read(claude: anthropic.Anthropic, server: RunningServer) -> None:
    """Blocks, a system prompt and turns in a row give the answer of plain messages."""
    answer = claude.messages.create(
        model="test-model",
        max_tokens=8,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"},
            {"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Very."},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "user", "content": "Name a"},
            {"role": "user", "content": "colour."},
        ],
        **GREEDY,
    )
    same = [
        {"role": "system", "content": "You are terse.\nVery."},
        {"role": "user", "content": "Hello\nyou"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Name a\ncolour."},
    ]
    assert text_of(answer) == engine_text(server, same, max_tokens=8)
    assert answer.model == "test-model"


def test_an_answer_goes_on_from_its_beginning(claude: anthropic.Anthropic, server: RunningServer) -> None:
    messages = [*HI, {"role": "assistant", "content": "I like the colour"}]
    answer = claude.messages.create(**{**ASKED, "messages": messages}, **GREEDY)
    tokenizer = server.llm.tokenizer
    prompt = tokenizer.encode(
        tokenizer.render_chat(HI) + "I like the colour", add_special=False, parse_special=True
    )
    [expected] = server.llm.generate([prompt], SamplingParams(temperature=0, max_tokens=12))
    assert text_of(answer) == expected.outputs[0].text


def test_usage_tells_what_the_cache_did(claude: anthropic.Anthropic, server: RunningServer) -> None:
    long = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "colour " * 200, "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "?"},
            ],
        }
    ]
    count = claude.messages.count_tokens(model="claude-x", messages=long).input_tokens  # type: ignore[arg-type]
    asked = {**ASKED, "messages": long, "max_tokens": 2}
    first = claude.messages.create(**asked).usage
    cache = server.llm.loop.engine.pool.cache
    assert cache is not None
    assert cache.num_pinned > 0
    assert first.cache_creation_input_tokens
    assert first.cache_creation_input_tokens + (first.cache_read_input_tokens or 0) >= count - BLOCK_SIZE
    with claude.messages.stream(**asked) as stream:
        second = stream.get_final_message().usage
    assert second.cache_read_input_tokens
    assert second.cache_read_input_tokens >= count - BLOCK_SIZE
    for usage in (first, second):
        parts = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        assert usage.input_tokens + parts == count


def test_a_prompt_may_be_read_ahead(claude: anthropic.Anthropic) -> None:
    """With no token asked for, nothing is answered, and the next request finds the prompt in the cache."""
    long: list[Any] = [{"role": "user", "content": "Read ahead. " * 40}]
    first = claude.messages.create(**{**ASKED, "messages": long, "max_tokens": 0})
    assert (first.content, first.stop_reason, first.usage.output_tokens) == ([], "max_tokens", 0)
    with claude.messages.stream(**{**ASKED, "messages": long, "max_tokens": 0}) as stream:
        again = stream.get_final_message()
    assert (again.content, again.stop_reason, again.usage.output_tokens) == ([], "max_tokens", 0)
    answer = claude.messages.create(**{**ASKED, "messages": long})
    assert (answer.usage.cache_read_input_tokens or 0) >= BLOCK_SIZE


def test_the_older_place_of_a_schema(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    answer = claude.messages.create(**ASKED, extra_body={"output_format": form, "temperature": 0.0})
    assert text_of(answer) in {'{"a": "x"}', '{"a": "y"}'}


def test_count_tokens(claude: anthropic.Anthropic, server: RunningServer) -> None:
    counted = claude.messages.count_tokens(model="claude-x", system="Be terse.", messages=HI)
    rendered = server.llm.encode_chat([{"role": "system", "content": "Be terse."}, *HI])
    assert counted.input_tokens == len(rendered)


def test_what_agents_send_is_let_through(claude: anthropic.Anthropic) -> None:
    """The beta address, headers, and fields that change nothing here."""
    answer = claude.beta.messages.create(
        model="claude-haiku-4-5",
        max_tokens=5,
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}],
            },
            {"role": "system", "content": "Agents: none."},
        ],
        metadata={"user_id": "{}"},
        thinking={"type": "enabled", "budget_tokens": 2000},
        service_tier="auto",
        betas=["interleaved-thinking-2025-05-14"],
        extra_body={
            "speed": "fast",
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
            "top_k": 5,
            "top_p": 0.9,
            "no_such_field": [1, {"a": None}],
        },
    )
    assert answer.usage.output_tokens <= 5
    assert answer.stop_reason in {"max_tokens", "end_turn"}


def test_models(claude: anthropic.Anthropic) -> None:
    [model] = claude.models.list().data
    assert (model.id, model.type, model.max_input_tokens) == ("test-model", "model", MAX_CONTEXT)
    assert claude.models.retrieve("claude-opus-4-8").id == "claude-opus-4-8"
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("gpt-9")


def test_aliases(served_llm: LLM) -> None:
    settings = ServerSettings(port=0, aliases={"fast": None, "slow": "test-model"})
    with (
        running(served_llm, settings) as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list().data] == ["test-model", "fast", "slow"]
        for name in ("fast", "slow"):
            assert client.messages.create(**{**ASKED, "model": name}).model == name
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**{**ASKED, "model": "faster"})
    with pytest.raises(UsageError, match=r"--alias slow=gpt-9.*'test-model'"):
        ModelPool(served_llm, "test-model", ServerSettings(aliases={"slow": "gpt-9"}))


def test_keys(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, api_key="sk-right")) as server:
        for given in ({"api_key": "sk-right"}, {"auth_token": "sk-right"}):
            with anthropic.Anthropic(base_url=server.url, max_retries=0, **given) as client:
                assert client.messages.create(**ASKED).usage.output_tokens
        with (
            anthropic.Anthropic(base_url=server.url, api_key="sk-wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError) as refused,
        ):
            client.messages.create(**ASKED)
        assert refused.value.type == "authentication_error"


def test_exceptions_are_the_clients_own(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(**{**ASKED, "model": "gpt-9"})
    assert unknown.value.type == "not_found_error"
    assert unknown.value.request_id is not None
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as too_long:
            claude.messages.create(
                **{**ASKED, "messages": [{"role": "user", "content": "a " * 5000}]}, stream=stream
            )
        assert too_long.value.type == "invalid_request_error"
        # The words that agents look for.
        assert "prompt is too long: 50" in too_long.value.message
        assert f"tokens > {MAX_CONTEXT} maximum" in too_long.value.message
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        claude.messages.create(**ASKED, stop_sequences=[""])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(**{**ASKED, "max_tokens": -1})


def test_async_client(server: RunningServer) -> None:
    async def ask(client: anthropic.AsyncAnthropic, number: int) -> tuple[str, str]:
        asked = {**ASKED, "messages": [{"role": "user", "content": f"Number {number}"}]}
        whole = await client.messages.create(**asked, **GREEDY)
        async with client.messages.stream(**asked, **GREEDY) as stream:
            return text_of(whole), await stream.get_final_text()

    async def main() -> list[tuple[str, str]]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(8)))

    answers = asyncio.run(main())
    assert all(whole == streamed for whole, streamed in answers)
    assert len({whole for whole, _ in answers}) > 1
    server.wait_idle()
