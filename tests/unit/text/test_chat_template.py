"""Chat templates: what transformers renders, and nothing that a hostile one wants."""

from __future__ import annotations

import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.errors import InvalidParameterError, ModelFormatError
from outpace.models.checkpoint import open_checkpoint
from outpace.models.tokenizer_source import GGUFTokenizer
from outpace.text.chat_template import ChatTemplate

# Written for these tests in the manner of well-known models; they use what such templates use.
LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- set first_user_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """\
{%- set ns = namespace(index=0, seen=false) %}
{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{%- for message in messages if not message.role in ["tool", "system"] and not message.tool_calls %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " ~ message["content"] ~ "[/INST]" }}
    {%- elif message.tool_calls is defined %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if loop.last %}{{- "]" + eos_token }}{%- else %}{{- ", " }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {% generation %}{{- " " + message["content"]|trim + eos_token}}{% endgeneration %}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- elif message["role"] == "system" %}{% continue %}
    {%- endif %}
{%- endfor %}
"""
MACROS = """\
{%- macro list_of(items, depth=0) -%}
{%- for item in items recursive %}
{%- if item is mapping %}{{ item | dictsort | list }}{% else %}{{ item }}{% endif %}
{%- if not loop.last %}, {% endif %}{{ loop.index }}/{{ loop.length }}{% endfor %}
{%- endmacro %}
{% set fmt = '%s-%05d' % ('x', 7) %}{{ fmt }} {{ '{:>8}'.format('r') }}
{{ 2 ** 10 }} {{ [1, 2] + [3] }} {{ (1, 2) }}
{% for message in messages %}
    {% if message.content is string %}{{ message.content | upper | replace('A', 'a') | indent(2) }}{% endif %}
    {% for key, value in message.items() %}
{{ key }}={{ value }};{% if loop.first %}{% continue %}{% endif %}!{% endfor %}
{% endfor %}
{{ list_of(['a', {'b': 1, 'a': [none, true, 1.5]}]) }} {{ dict(a=1) | tojson }}
{{ 'é<&>' | tojson }} {{ undefined_thing }}
{{ messages | map(attribute='role') | join('|') }} {{ range(5) | list }} {{ {'k': 'v'}.k ~ 1 ~ none }}
"""
TEMPLATES = {"llama3": LLAMA3, "mistral": MISTRAL, "macros": MACROS}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get <b>weather</b> & more 'x' \"y\" é 中",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "add", "description": "Add", "parameters": {"type": "object", "properties": {}}},
    },
]


def call(identifier: str, name: str, arguments: object) -> dict[str, object]:
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "Hello <b>&\n\n  there "}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [{"role": "system", "content": " Be terse. "}, USER],
    "turns": [USER, {"role": "assistant", "content": " b\n"}, {"role": "user", "content": "c", "name": None}],
    "tool": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("abcdefghi", "get_weather", {"city": 'Zürich "x"'})],
        },
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": '{"t": 12}'},
        {"role": "assistant", "content": "12 degrees"},
        USER,
    ],
    "tools": [
        USER,
        {
            "role": "assistant",
            "content": "see",
            "tool_calls": [call("abcdefghi", "add", {"a": 1}), call("abcdefghj", "add", "{}")],
        },
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "1"},
        {"role": "tool", "tool_call_id": "abcdefghj", "content": "2"},
    ],
    "thinking": [USER, {"role": "assistant", "content": "x", "reasoning": "because"}, USER],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    ],
    "unordered": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}],
}


def with_transformers(source: str, messages: list[dict[str, Any]], **extra: Any) -> str | None:
    """What transformers renders; None where it refuses."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        return render_jinja_template(
            [chat], chat_template=source, bos_token="<s>", eos_token="</s>", **extra
        )[0][0]
    except Exception:
        return None


def check(source: str, messages: list[dict[str, Any]], **extra: Any) -> None:
    expected = with_transformers(source, copy.deepcopy(messages), **copy.deepcopy(extra))
    template = ChatTemplate(source, "<s>", "</s>")
    before = copy.deepcopy((messages, extra))
    if expected is None:
        with pytest.raises(InvalidParameterError):
            template.render(messages, **extra)
    else:
        assert template.render(messages, **extra) == expected
    assert (messages, extra) == before


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no_tools", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_same_as_transformers(
    name: str, conversation: str, tools: list[Any] | None, generation: bool
) -> None:
    check(TEMPLATES[name], CONVERSATIONS[conversation], tools=tools, add_generation_prompt=generation)


def check_model(path: Path) -> None:
    source = open_checkpoint(path).tokenizer
    assert isinstance(source, GGUFTokenizer)
    assert source.chat_template
    for messages in CONVERSATIONS.values():
        for tools in (None, TOOLS):
            for generation in (True, False):
                check(source.chat_template, messages, tools=tools, add_generation_prompt=generation)


def test_smollm2_same_as_transformers(model_135m: Path) -> None:
    check_model(model_135m)


@pytest.mark.model05b
def test_qwen_same_as_transformers(model_05b: Path) -> None:
    check_model(model_05b)


def test_most_of_the_cases_above_render() -> None:
    """Else they would all agree by refusing."""
    rendered = [
        with_transformers(s, m, tools=t)
        for s in TEMPLATES.values()
        for m in CONVERSATIONS.values()
        for t in (None, TOOLS)
    ]
    assert sum(text is not None for text in rendered) > 0.7 * len(rendered)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": JSON},
            optional={"tool_calls": JSON, "name": JSON},
        ),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(sorted(TEMPLATES)),
)
def test_any_json_renders_as_in_transformers_or_is_refused(messages: list[dict[str, Any]], name: str) -> None:
    check(TEMPLATES[name], messages, add_generation_prompt=True)


# --- variables ----------------------------------------------------------------------------------


def test_extra_variables_and_special_tokens() -> None:
    source = (
        "{{ bos_token }}{{ unk_token }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    )
    template = ChatTemplate(source, "B", "E", special_tokens={"unk_token": "U"})
    assert template.render([USER]) == "BU"
    assert template.render([USER], enable_thinking=False) == "BUFalse"
    assert template.render([USER], bos_token="other") == "otherU"


def test_the_tool_template_is_for_tools() -> None:
    template = ChatTemplate("plain", "", "", tool_source="tools")
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=TOOLS) == "tools"
    assert ChatTemplate("plain", "", "").render([USER], tools=TOOLS) == "plain"


def test_today() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", "", "").render([USER]) == time.strftime("%Y")


# --- refusals -----------------------------------------------------------------------------------


def test_the_templates_own_refusal_reaches_the_user() -> None:
    with pytest.raises(InvalidParameterError, match="roles must alternate") as caught:
        ChatTemplate(MISTRAL, "", "").render(CONVERSATIONS["unordered"])
    assert caught.value.parameter == "messages"


@pytest.mark.parametrize(
    "messages",
    [[], ["text"], [None], [{"role": "user", "content": object()}], [{"role": "user", "content": b"x"}]],
)
def test_messages_that_are_no_messages(messages: list[Any]) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        ChatTemplate(MACROS, "", "").render(messages)
    assert caught.value.parameter == "messages"


def test_messages_nested_too_deep() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidParameterError, match="64 levels"):
        ChatTemplate("x", "", "").render([{"role": "user", "content": deep}])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for %}", "line 1"),
        ("ok\n{{ 1 +", "line 2"),
        ("{% unknown %}", "line 1"),
        ("{% generation %}", "generation"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "syntax"),
        ("x" * 2_000_000, "2000000 characters"),
        ("{{ x | no_such_filter }}", "no_such_filter"),
    ],
    ids=str,
)
def test_broken_templates_say_where(source: str, problem: str) -> None:
    with pytest.raises(ModelFormatError, match=problem) as caught:
        ChatTemplate(source, "", "", name="m.gguf").render([USER])
    assert caught.value.path == "m.gguf"


def test_one_template_in_many_threads() -> None:
    template = ChatTemplate(LLAMA3, "<s>", "</s>")
    results: dict[int, str] = {}

    def work(index: int) -> None:
        results[index] = template.render([{"role": "user", "content": str(index)}])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f"\n\n{i}<|eot_id|>" in results[i] for i in range(16))


def test_json_is_not_escaped_for_html() -> None:
    rendered = ChatTemplate("{{ tools | tojson }}", "", "").render([USER], tools=TOOLS)
    assert json.loads(rendered) == TOOLS
    assert "<b>weather</b> & more 'x'" in rendered
