"""How one model writes its answers: its family, its thoughts, and the special tokens that are marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from outpace.text.tokenizer import Tokenizer
from outpace.text.tool_calls.families import (
    HERMES,
    Family,
    ThoughtMarks,
    family_of,
    opens_thoughts,
    reads_tools,
    thoughts_of,
)
from outpace.text.tool_calls.parser import AnswerParser
from outpace.text.tool_calls.sink import Tools
from outpace.text.tool_calls.thought_tokens import ThoughtTokens


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a model writes calls and thoughts, as its chat template and its vocabulary tell."""

    family: Family
    thoughts: ThoughtMarks | None
    reads_tools: bool  # whether the template shows tools; where it does not, `tool_prompt` does
    special_marks: Mapping[str, int]  # marks that are special tokens: the text shows them only on request

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> AnswerForm:
        """The form of the model that this tokenizer belongs to."""
        template = tokenizer.chat_template
        if template is None:
            return cls(HERMES, None, reads_tools=False, special_marks={})
        source = template.tool_source or template.source
        family, thoughts = family_of(source), thoughts_of(source)
        texts = (*family.tokens, *((thoughts.begin, thoughts.end) if thoughts else ()))
        special = {
            text: token
            for text in texts
            if (token := tokenizer.token_id(text)) is not None and token in tokenizer.special_ids
        }
        return cls(family, thoughts, reads_tools(source), special)

    def parser(
        self, tools: Tools | None, prompt: str = "", *, own_marks: bool = False
    ) -> AnswerParser | None:
        """A reader for the answer to a rendered `prompt`; None where it can only be text.

        `own_marks`: only the marks that the family writes itself count, as in the answer's grammar.
        """
        if tools is None and self.thoughts is None:
            return None
        family = self.family
        if own_marks:
            family = replace(family, marks=family.own_marks)
        return AnswerParser(family, tools, self.thoughts, thinking=opens_thoughts(prompt, self.thoughts))

    def thought_tokens(self, tokenizer: Tokenizer, prompt: str) -> ThoughtTokens | None:
        """What counts the thoughts in the answer to a rendered `prompt`; None for a model that has none."""
        if self.thoughts is None:
            return None
        return ThoughtTokens(
            self.thoughts,
            partial(tokenizer.token_bytes, skip_special=False),
            thinking=opens_thoughts(prompt, self.thoughts),
        )

    def shown_token_ids(self, *, calls: bool) -> tuple[int, ...]:
        """The special tokens that the reader must see, with or without calls."""
        shown: Iterable[str] = self.family.tokens if calls else ()
        thoughts = (self.thoughts.begin, self.thoughts.end) if self.thoughts else ()
        return tuple(self.special_marks[text] for text in (*shown, *thoughts) if text in self.special_marks)
