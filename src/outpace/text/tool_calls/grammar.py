"""Grammars of answers that call tools: in the family's own form, the arguments as the schemas say.

The source is llguidance's dialect of Lark. JSON is written on one line as `json.dumps` writes it, which is
also how chat templates show earlier calls: what the model writes and what the next prompt holds are then the
same tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from outpace.text.tool_calls.form import AnswerForm
from outpace.text.tool_calls.tag_reader import FUNCTION
from outpace.types import Grammar

MAX_SCHEMAS = 128
"""With more tools than that, arguments of those that are not strict may be any object: a schema takes about a
millisecond to compile, a name a twentieth of that."""
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_HEAD = """%llguidance {}
TEXT: /(.|\\n)*/
SPACE: /[ \\n]{1,4}/
"""

_END_OF_PARAMETER = "\n</parameter>\n"
_BARE = r"/\s*(```(json)?\s*)?[{\[](.|\n)*/"
"""What the reader may take for a call without marks, as a regular expression."""


@dataclass(frozen=True, slots=True)
class TextArgument:
    """The one argument of a tool that takes text, when that is to be in a grammar (`regex` or `lark`)."""

    name: str
    grammar: Grammar


@dataclass(frozen=True, slots=True)
class CallSpec:
    """A tool that may be called. What cannot be checked of its schema is ignored unless it is `strict`."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False
    text: TextArgument | None = None


def json_grammar(schema: Mapping[str, Any], *, strict: bool) -> Grammar:
    """An answer that is JSON as `schema` says."""
    return Grammar("json_schema", json.dumps(_styled(schema, strict=strict)))


def choice_grammar(texts: Sequence[str]) -> Grammar:
    """An answer that is one of the texts."""
    return Grammar("lark", f"start: {' | '.join(json.dumps(text, ensure_ascii=False) for text in texts)}")


def answer_grammar(
    form: AnswerForm,
    calls: Sequence[CallSpec],
    *,
    required: bool,
    parallel: bool,
    opened: bool,
    answer: Grammar | None = None,
) -> Grammar:
    """Thoughts where the model has some, then calls, or text with calls in it.

    `required`: calls and no text, as an answer that must call needs none. `parallel`: several calls in a row.
    `opened`: the prompt has opened the thoughts. `answer`: what there is instead of text.
    """
    lark = _Lark(form)
    lark.thoughts(opened=opened)
    parts: list[str] = []
    if calls:
        lark.calls(calls, parallel=parallel)
        parts.append("calls")
    if answer is not None:
        lark.grammar("answer", answer)
        parts.append("answer")
    elif not required:
        parts = [lark.text_with_calls(parallel=parallel)]
    lark.rule("start", f"thoughts ({' | '.join(parts)})")
    return Grammar("lark", lark.source)


class _Lark:
    """A grammar in the making."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._family = form.family
        self._rules: list[str] = []
        self._objects: list[str] = []  # calls as objects
        self._in_tags: list[str] = []  # calls in tags, from the name on

    @property
    def source(self) -> str:
        """The grammar so far."""
        return _HEAD + "\n".join(self._rules) + "\n"

    def rule(self, name: str, body: str) -> None:
        """Add a rule."""
        self._rules.append(f"{name}: {body}")

    def grammar(self, name: str, grammar: Grammar) -> None:
        """A rule for what is in a grammar of its own."""
        match grammar.kind:
            case "json_schema":
                self.rule(name, f"%json {grammar.source}")
            case "regex":
                self.rule(name, _regex(grammar.source))
            case "lark":
                self.rule(name, f"%lark {{\n{grammar.source}\n}}")

    def mark(self, text: str) -> str:
        """A mark as a terminal: a special token, or its text."""
        token = self._form.special_marks.get(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def up_to(self, name: str, mark: str, text: str = "TEXT") -> None:
        """A rule for text up to the first `mark`, that included."""
        special = mark in self._form.special_marks
        self.rule(name if special else f"{name}[lazy]", f"{text} {self.mark(mark)}")

    def thoughts(self, *, opened: bool) -> None:
        """`thoughts`, which may be none."""
        marks = self._form.thoughts
        if marks is None:
            self.rule("thoughts", '""')
            return
        self.up_to("thoughts_end", marks.end)
        whole = "thoughts_end SPACE?"
        self.rule("thoughts", whole if opened else f"({self.mark(marks.begin)} {whole})?")

    def calls(self, calls: Sequence[CallSpec], *, parallel: bool) -> None:
        """`calls`, one or several, and `call_body`, what stands between the marks of the first."""
        self._each(calls)
        written, listed = self._family.written, self._family.body == "list"
        objects = ["object_call"] if self._objects else []
        forms = [*objects, "tag_call"] if self._in_tags else objects
        self.rule("one_call", " | ".join(forms))
        if listed:
            more = '(", " object_call)*' if parallel else ""
            forms = [f'"[" {form} {more} "]"' if form == "object_call" else form for form in forms]
            self.rule("call_body", " | ".join(forms))
        elif written is not None:
            self.rule("call_body", f'"\\n" one_call "\\n" {self.mark(written.end)}')
        else:
            self.rule("call_body", "one_call")
        whole = f"{self.mark(written.begin)} call_body" if written else "call_body"
        self.rule("call", whole)
        self.rule("calls", 'call ("\\n" call)*' if parallel and not listed else "call")

    def _each(self, calls: Sequence[CallSpec]) -> None:
        """`object_call` and `tag_call`: objects or tags as the family has it, where there are such calls.

        A text of a grammar is in tags everywhere: within JSON it would be another one, escaped. A family
        without marks may write any call in tags, which are its marks then (`Family.own_marks`).
        """
        self.rule("any_object", "%json " + json.dumps(_styled({"type": "object"}, strict=True)))
        for index, call in enumerate(calls):
            if call.text is not None or self._family.body == "tags":
                self._in_tags.append(self._tags(call, f"text_{index}"))
                continue
            arguments = "any_object"
            if len(calls) <= MAX_SCHEMAS or call.strict:
                arguments = f"arguments_{index}"
                self.rule(arguments, f"%json {json.dumps(_arguments(call))}")
            self._objects.append(self._object(call, arguments))
            if self._family.written is None:
                self._in_tags.append(f'{json.dumps(f"{call.name}>")} {arguments} "</function>"')
        if self._objects:
            self.rule("object_call", " | ".join(self._objects))
        if self._in_tags:
            self.rule("function_body", " | ".join(self._in_tags))
            self.rule("tag_call", f"{json.dumps(FUNCTION)} function_body")

    def text_with_calls(self, *, parallel: bool) -> str:
        """Any text, in which a mark begins a call; the expression for it.

        The reader takes what begins with an object for a call without marks, so such an object is one here.
        """
        parts = ["FREE"]
        self.rule("FREE", "TEXT & ~" + _BARE)
        if self._objects:
            more = '("\\n" object_call)*' if parallel else ""
            fenced = " | ".join(f'"```{tag}\\n" object_call {more} "\\n```"' for tag in ("", "json"))
            self.rule("bare", f"object_call {more} | {fenced}")
            parts.append("bare")
        written = self._family.written
        if written is not None:
            self.up_to("up_to_call", written.begin, "FREE")
            parts.append(f"(up_to_call call_body){'+' if parallel else ''} FREE")
        elif self._in_tags:
            self.up_to("up_to_call", FUNCTION, "FREE")
            parts.append(f"(up_to_call function_body){'+' if parallel else ''} FREE")
        return " | ".join(parts)

    def _object(self, call: CallSpec, arguments: str) -> str:
        head = json.dumps('{"name": ' + json.dumps(call.name) + f', "{self._family.arguments_key}": ')
        return f'{head} {arguments} "}}"'

    def _tags(self, call: CallSpec, text_rule: str) -> str:
        """A call in tags, from its name on; `text_rule` names the rule for its text of a grammar, if any."""
        schema = _arguments(call)
        properties = cast("dict[str, Any]", schema.get("properties") or {})
        required = cast("list[Any]", schema.get("required") or [])
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        parts = [json.dumps(f"{call.name}>\n")]
        for name, each in properties.items():
            if call.text is not None and name == call.text.name:
                value = self._text_value(text_rule, call.text.grammar)
            else:
                value = self._tag_value(each, shared, strict=call.strict)
            part = f"{json.dumps(f'<parameter={name}>' + chr(10))} {value}"
            parts.append(part if name in required else f"({part})?")
        return " ".join([*parts, '"</function>"'])

    def _text_value(self, rule: str, grammar: Grammar) -> str:
        """A text of a grammar as a parameter's value, and its end."""
        end = json.dumps(_END_OF_PARAMETER)
        if grammar.kind == "regex":  # one that matches anything takes the end for its own, if it may
            self.rule(f"{rule}[lazy]", f"{_regex(grammar.source)} {end}")
            return rule
        self.grammar(rule, grammar)
        return f"{rule} {end}"

    def _tag_value(self, schema: Any, shared: Mapping[str, Any], *, strict: bool) -> str:
        """A parameter's value and its end."""
        end = json.dumps(_END_OF_PARAMETER)
        if not isinstance(schema, dict):
            schema = {}
        schema = cast("dict[str, Any]", schema)
        choices = schema.get("enum")
        if schema.get("type") == "string" and isinstance(choices, list):
            return f"({' | '.join(json.dumps(str(each)) for each in cast('list[Any]', choices))}) {end}"
        if schema.get("type", "string") == "string" and "$ref" not in schema and "anyOf" not in schema:
            if not any(rule.startswith("text_value") for rule in self._rules):
                self.rule("text_value[lazy]", f"TEXT {end}")
            return "text_value"
        return f"%json {json.dumps(_styled({**shared, **schema}, strict=strict))} {end}"


def _regex(source: str) -> str:
    """A regular expression as Lark writes it, where two slashes begin a comment."""

    def escaped(found: re.Match[str]) -> str:
        return {"/": r"\/", "\n": r"\n"}.get(found[0], found[0])

    return "/" + re.sub(r"\\.|/|\n", escaped, source or "(?:)", flags=re.DOTALL) + "/"


def _arguments(call: CallSpec) -> dict[str, Any]:
    """The schema of a call's arguments, which are an object whatever it says."""
    return _styled({**call.schema, "type": "object"}, strict=call.strict)


def _styled(schema: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    said = schema.get("x-guidance")
    wishes = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    lenient = {} if strict else {"lenient": True}
    return {**schema, "x-guidance": {**_STYLE, **lenient, **wishes}}
