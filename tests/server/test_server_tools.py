"""Tools through both real clients: calls whole and streamed, results sent back, and what goes wrong."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from scripted import saying
from serving import RunningServer, open_raw, running, wait_until_busy
from tool_requests import ANTHROPIC, ASK, CHAT, MESSAGES, OPENAI, streamed

from outpace.llm import LLM
from outpace.server.settings import ServerSettings
from outpace.text.chat_template import ChatTemplate
from outpace.text.tool_calls.tool_prompt import told_in_text

ROME = '{"city": "Rome \\"é\\""}'
OSLO = '{"city": "Oslo"}'


def written(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


TWO_CALLS = f"Let me look.\n{written('weather', ROME)}\n{written('weather', OSLO)}"


def test_calls_in_the_openai_dialect(chat: Any, server: RunningServer) -> None:
    with saying(server.llm, TWO_CALLS):
        [choice] = chat().choices
        message, end = streamed(chat(stream=True))
    assert choice.finish_reason == end == "tool_calls"
    assert choice.message.content == message["content"] == "Let me look."
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "weather", ROME),
        ("function", "weather", OSLO),
    ]
    assert [(call["name"], call["arguments"]) for call in message["calls"]] == [
        ("weather", ROME),
        ("weather", OSLO),
    ]
    ids = [call.id for call in calls] + [call["id"] for call in message["calls"]]
    assert len(set(ids)) == 4
    assert all(each.startswith("call_") for each in ids)


class Weather(pydantic.BaseModel):
    """The weather in a city."""

    city: str


def test_the_openai_clients_own_helpers(client: openai.OpenAI, server: RunningServer) -> None:
    """Tools made of types are strict: their arguments are held to the schema, and read back as types."""
    asked: dict[str, Any] = {
        "model": "test-model",
        "messages": ASK,
        "max_tokens": 200,
        "tools": [openai.pydantic_function_tool(Weather, name="weather")],
    }
    with saying(server.llm, TWO_CALLS), client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        [choice] = stream.get_final_completion().choices
    assert choice.message.content == "Let me look."
    said = [call.function.parsed_arguments for call in choice.message.tool_calls or ()]
    assert said == [Weather(city='Rome "é"'), Weather(city="Oslo")]
    assert "tool_calls.function.arguments.delta" in kinds


def test_arguments_come_while_they_are_written(served_llm: LLM) -> None:
    text = json.dumps({"city": "Rome, " * 40})
    settings = ServerSettings(port=0, shutdown_grace=0.2, stream_interval=0)  # else a slow machine joins them
    with (
        running(served_llm, settings) as server,
        saying(served_llm, written("weather", text)),
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        chunks: Any = client.chat.completions.create(**{**OPENAI, "model": "test-model", "stream": True})
        parts = [
            part.function.arguments for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()
        ]
    assert "".join(parts) == text
    assert len(parts) > 20


def test_a_call_alone_has_no_content(chat: Any, server: RunningServer) -> None:
    with saying(server.llm, written("weather", OSLO)):
        message = chat().choices[0].message
        chunks = list(chat(stream=True))
    assert message.content is None
    assert len(message.tool_calls) == 1
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_calls_in_the_anthropic_dialect(claude: anthropic.Anthropic, server: RunningServer) -> None:
    with saying(server.llm, TWO_CALLS):
        whole = claude.messages.create(**ANTHROPIC)
        with claude.messages.stream(**ANTHROPIC) as stream:
            kinds = [event.type for event in stream]
            pieces = stream.get_final_message()
    for message in (whole, pieces):
        assert message.stop_reason == "tool_use"
        blocks = [block.to_dict() for block in message.content]
        assert [block.pop("id")[:6] for block in blocks[1:]] == ["toolu_", "toolu_"]
        assert [(block["type"], block.get("text"), block.get("input")) for block in blocks] == [
            ("text", "Let me look.", None),
            ("tool_use", None, json.loads(ROME)),
            ("tool_use", None, json.loads(OSLO)),
        ]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    assert "input_json" in kinds


def test_only_one_call_where_only_one_is_wanted(
    chat: Any, claude: anthropic.Anthropic, server: RunningServer
) -> None:
    script = TWO_CALLS + " That is all." * 20
    one = {"type": "auto", "disable_parallel_tool_use": True}
    with saying(server.llm, script):
        answers = [chat(parallel_tool_calls=False, n=2), chat(parallel_tool_calls=False)]
        message, end = streamed(chat(parallel_tool_calls=False, stream=True))
        whole = claude.messages.create(**ANTHROPIC, tool_choice=one)  # type: ignore[call-overload]
        with claude.messages.stream(**ANTHROPIC, tool_choice=one) as stream:  # type: ignore[arg-type]
            final = stream.get_final_message()
        server.wait_idle(2)
    for answer in answers:
        for choice in answer.choices:
            assert [call.function.arguments for call in choice.message.tool_calls] == [ROME]
            assert choice.finish_reason == "tool_calls"
    assert answers[1].usage.completion_tokens < 60, "it ends with the call"
    assert (len(message["calls"]), end) == (1, "tool_calls")
    for anthropics in (whole, final):
        assert [block.type for block in anthropics.content] == ["text", "tool_use"]
        assert anthropics.stop_reason == "tool_use"


def test_no_tools_no_calls(chat: Any, claude: anthropic.Anthropic, server: RunningServer) -> None:
    with saying(server.llm, TWO_CALLS):
        for fields in ({"tools": None}, {"tool_choice": "none"}):
            [choice] = chat(**fields).choices
            assert choice.message.content == TWO_CALLS
            assert choice.message.tool_calls is None
            assert choice.finish_reason == "stop"
        answer = claude.messages.create(**ANTHROPIC, tool_choice={"type": "none"})
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": TWO_CALLS}]
    assert answer.stop_reason == "end_turn"


HISTORY = [
    *ASK,
    {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {"id": f"call_{i}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            for i, arguments in enumerate((ROME, OSLO))
        ],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
]


def test_results_are_sent_back(chat: Any, claude: anthropic.Anthropic, server: RunningServer) -> None:
    """Both dialects give the model one and the same conversation."""
    plain = [
        *ASK,
        {"role": "assistant", "content": TWO_CALLS},
        {
            "role": "user",
            "content": "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>",
        },
    ]
    tokenizer = server.llm.tokenizer
    told = tokenizer.render_chat(told_in_text(plain, OPENAI["tools"]))
    assert told.index("# Tools") < told.index(TWO_CALLS) < told.index("<tool_response>")
    count = len(tokenizer.encode(told, add_special=False, parse_special=True))
    with saying(server.llm, "Sunny and rainy."):
        answer = chat(messages=HISTORY)
    assert answer.usage.prompt_tokens == count
    assert answer.choices[0].message.content == "Sunny and rainy."
    assert answer.choices[0].finish_reason == "stop"
    messages: list[Any] = [
        *ASK,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "a", "name": "weather", "input": json.loads(ROME)},
                {"type": "tool_use", "id": "b", "name": "weather", "input": json.loads(OSLO)},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "sunny"},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "rain"}]},
            ],
        },
    ]
    counted = claude.messages.count_tokens(model="claude-x", messages=messages, tools=ANTHROPIC["tools"])
    assert counted.input_tokens == count


def test_odd_histories_are_let_through(chat: Any) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{not json"}}
    for messages in (
        [*ASK, {"role": "tool", "tool_call_id": "nobody", "content": "sunny"}],
        [*ASK, {"role": "assistant", "tool_calls": [call]}],
        [*ASK, {"role": "assistant", "content": None, "tool_calls": [call, call]}, *ASK],
        [*ASK, {"role": "assistant", "content": "", "tool_calls": []}, *ASK],
    ):
        assert chat(messages=messages, max_tokens=1).choices


def test_calls_that_are_no_json(chat: Any, claude: anthropic.Anthropic, server: RunningServer) -> None:
    broken = "{'city': NaN,}"
    with saying(server.llm, written("weather", broken)):
        message = chat().choices[0].message
        whole = claude.messages.create(**ANTHROPIC)
    assert message.tool_calls[0].function.arguments == broken
    [block] = whole.content
    assert isinstance(block, anthropic.types.ToolUseBlock)
    assert block.input == {"INVALID_JSON": broken}


def test_an_answer_that_is_cut_off_in_a_call(
    chat: Any, claude: anthropic.Anthropic, server: RunningServer
) -> None:
    with saying(server.llm, written("weather", OSLO)):
        [choice] = chat(max_tokens=24).choices
        whole = claude.messages.create(**{**ANTHROPIC, "max_tokens": 24})
        with claude.messages.stream(**{**ANTHROPIC, "max_tokens": 24}) as stream:
            final = stream.get_final_message()
        stopped = claude.messages.create(**ANTHROPIC, stop_sequences=["Oslo"])
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    assert OSLO.startswith(call.function.arguments)
    assert whole.stop_reason == final.stop_reason == "max_tokens"
    assert [block.type for block in final.content] == ["tool_use"]
    assert stopped.stop_reason == "stop_sequence"


def test_logprobs_are_those_of_all_tokens(chat: Any, server: RunningServer) -> None:
    with saying(server.llm, TWO_CALLS):
        whole = chat(logprobs=True)
        chunks = list(chat(logprobs=True, stream=True))
    count = whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content) == count
    said = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert sum(map(len, said)) == count


def test_thoughts(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    template = served_llm.tokenizer.chat_template
    assert template is not None
    for opened in (False, True):
        source = template.source + "{# </think> #}" + ("<think>\n" if opened else "")
        monkeypatch.setattr(served_llm.tokenizer, "chat_template", ChatTemplate(source, "", "<|im_end|>"))
        text = ("" if opened else "<think>\n") + f"I must look.\n</think>\n\n{TWO_CALLS}"
        with running(served_llm) as server, saying(served_llm, text):
            thoughts = text.partition("</think>")[0] + "</think>"
            tokens = served_llm.tokenizer.encode(thoughts, add_special=False, parse_special=True)
            check_thoughts(server, len(tokens))


def check_thoughts(server: RunningServer, num_thoughts: int) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        one: Any = client.chat.completions.create(**{**OPENAI, "model": "test-model"})
        [choice] = one.choices
        two: Any = client.chat.completions.create(**{**OPENAI, "model": "test-model", "n": 2})
        response = client.responses.create(model="test-model", input="How is it?", max_output_tokens=200)
        plain = client.chat.completions.create(model="test-model", messages=ASK, stream=True)
        deltas = [chunk.choices[0].delta for chunk in plain]
    for answer, times in ((one, 1), (two, 2)):
        assert answer.usage.completion_tokens_details.reasoning_tokens == times * num_thoughts
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == num_thoughts
    assert choice.message.model_extra["reasoning_content"] == "I must look."  # type: ignore[index]
    assert choice.message.content == "Let me look."
    assert len(choice.message.tool_calls or ()) == 2
    thoughts = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    assert "".join(thoughts) == "I must look."
    assert "".join(delta.content or "" for delta in deltas) == TWO_CALLS
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as claude:
        for thinking, shown in (
            ({"type": "enabled", "budget_tokens": 1024}, True),
            ({"type": "disabled"}, False),
        ):
            whole = claude.messages.create(**ANTHROPIC, thinking=thinking)  # type: ignore[call-overload]
            with claude.messages.stream(**ANTHROPIC, thinking=thinking) as stream:  # type: ignore[arg-type]
                final = stream.get_final_message()
            for message in (whole, final):
                first, *others = message.content
                if shown:
                    assert first.to_dict() == {
                        "type": "thinking",
                        "thinking": "I must look.",
                        "signature": "unsigned",
                    }
                    first, *others = others
                assert first.type == "text"
                assert [block.type for block in others] == ["tool_use", "tool_use"]


def test_a_client_that_leaves_in_a_call(server: RunningServer) -> None:
    with saying(server.llm, written("weather", json.dumps({"city": "Rome " * 300}))):
        for path, body in ((CHAT, OPENAI), (MESSAGES, ANTHROPIC)):
            body = {**body, "model": "claude-x", "stream": True, "max_tokens": 700}  # noqa: PLW2901
            connection = open_raw(server, path, body)
            wait_until_busy(server)
            while b"Rome" not in connection.recv(4096):
                pass
            connection.close()
            server.wait_idle(2)
