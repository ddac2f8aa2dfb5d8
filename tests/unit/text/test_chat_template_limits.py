"""Hostile chat templates: stopped, quickly, with a typed error; honest ones are not."""

from __future__ import annotations

import time

import pytest
from test_chat_template import LLAMA3, MISTRAL, USER

from outpace.errors import InvalidParameterError, ModelFormatError
from outpace.text.chat_template import ChatTemplate

GROW = "{%% set ns = namespace(v=%s) %%}{%% for i in range(1000) %%}%s{%% endfor %%}{{ ns.v }}"
HOSTILE = {
    "rounds": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro_tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "string_times": "{{ 'a' * 10 ** 10 }}",
    "list_times": "{{ [1] * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 6) }}",
    "squares": GROW % ("3", "{% set ns.v = ns.v * ns.v %}"),
    "concat": GROW % ("'ab'", "{% set ns.v = ns.v ~ ns.v %}"),
    "add": GROW % ("'ab'", "{% set ns.v = ns.v + ns.v %}"),
    "add_lists": GROW % ("[1]", "{% set ns.v = ns.v + ns.v %}"),
    "percent": GROW % ("'ab'", "{% set ns.v = '%%s%%s' % (ns.v, ns.v) %}".replace("%%s", "%s")),
    "lists_of_itself": GROW % ("[1]", "{% set ns.v = [ns.v, ns.v] %}"),
    "tuples_of_itself": GROW % ("[1]", "{% set ns.v = (ns.v, ns.v) %}"),
    "dicts_of_itself": GROW % ("1", "{% set ns.v = {'a': ns.v, 'b': ns.v} %}"),
    "dict_calls": GROW % ("1", "{% set ns.v = dict(a=ns.v, b=ns.v) %}"),
    "batches": GROW % ("1", "{% set ns.v = [1] | batch(1000, [ns.v]) | list %}"),
    "block_set": GROW % ("'a'", "{% set x %}{{ ns.v }}{{ ns.v }}{% endset %}{% set ns.v = x %}"),
    "macro_growth": "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}"
    + GROW % ("'a'", "{% set ns.v = d(ns.v) %}"),
    "replace": GROW % ("'a'", "{% set ns.v = ns.v | replace('a', 'aa') %}"),
    "replace_method": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "join": "{{ (['a'] * 1000000) | join('b' * 1000000) }}",
    "join_method": "{{ ('b' * 1000000).join(['a'] * 1000000) }}",
    "output": "{% for i in range(90000) %}{{ 'x' * 60000000 }}{% endfor %}",
    "static_output": "{% for i in range(90000) %}" + "x" * 100_000 + "{% endfor %}",
    "kept": GROW % ("[]", "{% set ns.v = ns.v + ['x' * 60000000] %}"),
    "center": "{{ 'a' | center(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "indent": "{{ ('a\n' * 1000000) | indent(10 ** 6) }}",
    "tojson": "{{ range(100000) | list | tojson(indent=10 ** 6) }}",
    "wordwrap": "{{ ('a ' * 1000000) | wordwrap(1, wrapstring='b' * 1000000) }}",
    "batch": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "to_bytes": "{{ (5).to_bytes(10 ** 10, 'big') }}",
    "format_percent": "{{ '%999999999d' % 1 }}",
    "format_star": "{{ '%*d' % (999999999, 1) }}",
    "format_filter": "{{ '%999999999d' | format(1) }}",
    "format_method": "{{ '{:>999999999}'.format(1) }}",
    "format_nested": "{{ '{:>{}}'.format(1, 999999999) }}",
    "format_many": "{{ ('%s' * 100000) % (['x' * 1000000] | list | first,) }}",
    "round": "{{ 1.5 | round(10 ** 8, 'floor') }}",
    "strftime": "{{ strftime_now('%999999999Y') }}",
    "internals": "{{ ''.__class__.__mro__ }}",
    "underscore_names": "{{ namespace(_x=1) }}",
    "mutation": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.text.template_limits.MAX_SECONDS", 0.5)
    start = time.process_time()
    with pytest.raises(ModelFormatError, match="rendering"):
        ChatTemplate(HOSTILE[name], "", "").render([USER])
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10 ** 9) }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ lipsum(n=10 ** 9) }}",
        "{{ {[1]: 2} }}",
    ],
)
def test_other_failures_are_typed(source: str) -> None:
    with pytest.raises((ModelFormatError, InvalidParameterError)):
        ChatTemplate(source, "", "").render([USER])


def test_honest_long_conversations_are_not_stopped() -> None:
    messages = [
        {"role": role, "content": "some words " * 100} for _ in range(1000) for role in ("user", "assistant")
    ]
    for source in (MISTRAL, LLAMA3):
        assert len(ChatTemplate(source, "", "").render(messages)) > 2_000_000
    big = [{"role": "user", "content": "x" * 10_000_000}]
    assert len(ChatTemplate(LLAMA3, "", "").render(big)) > 10_000_000
