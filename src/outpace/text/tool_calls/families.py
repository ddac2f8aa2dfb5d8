"""How the model families write tool calls and thoughts: a table of marks, and which row a model speaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around calls; between the two there may be several."""

    begin: str
    end: str = ""  # "": up to the end of the answer, or to what is no call
    known_names: bool = False  # only tools that were given; else any name is the model's call


@dataclass(frozen=True, slots=True)
class Family:
    """One way to write calls.

    `signs` are what a chat template of this family contains, all of them. `body` is what the family writes
    between its marks: an object with name and `arguments_key`, the same in a list, or tags. Reading takes
    any body in any family's marks, as models mix them up; the grammar writes the family's own.
    """

    name: str
    signs: tuple[str, ...]
    marks: tuple[Marks, ...]
    body: Literal["object", "list", "tags"] = "object"
    arguments_key: str = "arguments"
    written: Marks | None = None  # what the family itself writes around each call, or around the list
    further_tokens: tuple[str, ...] = ()  # special tokens besides the marks that the reader needs to see
    short_ids: bool = False  # its templates insist on calls' ids of nine letters and digits

    @property
    def own_marks(self) -> tuple[Marks, ...]:
        """The marks that the family writes itself: one that writes none around its objects has tags."""
        return (_TAGS,) if self.written is None else (self.written,)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The texts that, where they are special tokens, must be left in the answer's text."""
        marks = (text for each in self.marks for text in (each.begin, each.end) if text)
        return (*marks, *self.further_tokens)


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """What stands around the thoughts at the beginning of an answer."""

    begin: str
    end: str


_CALL = Marks("<tool_call>", "</tool_call>")
_LIST = Marks("[TOOL_CALLS]")
_TAGS = Marks("<function=", "</function>")  # the reader knows this form by its beginning
_PYTHON = Marks("<|python_tag|>")
_HERMES = (_CALL, _TAGS, Marks("<tools>", "</tools>", known_names=True))

HERMES = Family("hermes", ("<tool_call>",), _HERMES, written=_CALL)
"""Also what models without a form of their own are asked to write."""
PLAIN_JSON = Family("json", (), _HERMES)
"""An object and nothing else: what is left for templates that show tools and no marks."""

FAMILIES = (
    Family(
        "mistral",
        ("[TOOL_CALLS]",),
        (_LIST,),
        "list",
        written=_LIST,
        further_tokens=("[CALL_ID]", "[ARGS]"),
        short_ids=True,
    ),
    Family("qwen-tags", ("<tool_call>", "<function=", "<parameter="), _HERMES, "tags", written=_CALL),
    HERMES,
    Family("llama3", ("<|python_tag|>",), (_PYTHON, _TAGS), arguments_key="parameters"),
    Family("llama3", ('"parameters":', "<|eot_id|>"), (_TAGS,), arguments_key="parameters"),
)
"""Looked through from the first; a template of several forms is of the first that fits."""

THOUGHTS = (ThoughtMarks("<think>", "</think>"), ThoughtMarks("[THINK]", "[/THINK]"))

_READS_TOOLS = re.compile(r"\btools\b")


def reads_tools(template: str) -> bool:
    """Whether a chat template shows tools to the model."""
    return _READS_TOOLS.search(template) is not None


def family_of(template: str) -> Family:
    """The family that a chat template belongs to; `HERMES` where it knows nothing of tools."""
    if not reads_tools(template):
        return HERMES
    for family in FAMILIES:
        if all(sign in template for sign in family.signs):
            return family
    return PLAIN_JSON


def thoughts_of(template: str) -> ThoughtMarks | None:
    """The marks of a model's thoughts, by its chat template; None for a model that does not think."""
    return next((marks for marks in THOUGHTS if marks.end in template), None)


def opens_thoughts(prompt: str, marks: ThoughtMarks | None) -> bool:
    """Whether a prompt ends within thoughts, so that the answer goes on from there."""
    return marks is not None and prompt.rstrip().endswith(marks.begin)


def earliest(text: str, marks: Sequence[Marks]) -> tuple[int, Marks] | None:
    """Where the first of the marks begins in `text`, and which it is."""
    found = [(at, each) for each in marks if (at := text.find(each.begin)) >= 0]
    return min(found, key=lambda each: each[0]) if found else None


def num_held(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    longest = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest
