"""What an answer must look like: grammars, and where an answer stands in one. llguidance does the parsing.

A grammar says of every state which tokens may follow. It never looks at logits, so the tokens allowed at a
position are a pure function of the grammar and of the answer before it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from outpace.errors import GrammarError, InvalidParameterError
from outpace.text.grammar_log import MAX_GRAMMARS, GrammarLog
from outpace.text.tokenizer import Tokenizer
from outpace.types import Grammar, UInt32Array

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

__all__ = ["MAX_SOURCE", "AnswerState", "GrammarCompiler", "any_lark"]

MAX_SOURCE = 1 << 20
"""Characters of a grammar's source."""

_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""JSON on one line, as json.dumps writes it: keys and punctuation then leave no choice and cost no step of
their own, and a small model cannot lose itself in white space. A schema may say otherwise in "x-guidance"."""


def any_lark(source: str) -> Grammar:
    """A grammar in Lark's form, or in GBNF, which llama.cpp's users have: told apart by their rules.

    Raises `InvalidParameterError` for GBNF that cannot be read; Lark is looked at when it is compiled.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    if len(source) > MAX_SOURCE:
        raise InvalidParameterError(_too_long(source), "grammar")
    try:
        return Grammar("lark", any_to_lark(source))
    except Exception as error:  # it says nothing of what it raises
        reason = " ".join(str(error).split())[:500]
        raise InvalidParameterError(f"the grammar cannot be read: {reason}", "grammar") from None


class AnswerState:
    """How far one answer has come in its grammar. Not for several threads at once.

    The parser has limits, and stays in error once it has met one. So a copy is made before tokens are looked
    at which may not become the answer's (about 30 microseconds): it takes the parser's place where they led
    it there.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._before: LLMatcher | None = None  # a copy of it, without the tokens that were only looked at
        self._num_ahead = 0  # those

    def accept(self, token_ids: Sequence[int]) -> None:
        """The answer goes on with these. Raises `GrammarError` where they lead the parser to a limit."""
        if not self._matcher.is_stopped():
            self._matcher.consume_tokens(list(token_ids))
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:500]
            raise GrammarError(f"the answer cannot be held to its grammar: {reason}; simplify the grammar")

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice."""
        return self._matcher.compute_ff_tokens()

    def fill_mask(self, mask: UInt32Array) -> bool:
        """Write the tokens that may come next, a bit each, lowest first; at the end those that end it.

        Returns whether it could: a parser that meets a limit has none.
        """
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return not self._matcher.is_error()

    def fits(self, token_id: int) -> bool:
        """Go on with a token where it fits; returns whether it did."""
        if self._before is None:
            self._before = self._matcher.deep_copy()
        fits = self._matcher.try_consume_tokens([token_id]) == 1
        self._num_ahead += fits
        return fits

    def rewind(self) -> None:
        """Take back what `fits` went on with."""
        if self._before is not None and self._matcher.is_error():
            self._matcher = self._before
        elif self._num_ahead:
            self._matcher.rollback(self._num_ahead)
        self._before, self._num_ahead = None, 0


class GrammarCompiler:
    """Compiles grammars for one vocabulary, and keeps those that were used last. Safe for several threads.

    With a path for a log, the next process that warms up compiles them beforehand.
    """

    def __init__(self, tokenizer: Tokenizer, log: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._log = None if log is None else GrammarLog(log)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @property
    def num_compiled(self) -> int:
        """Grammars that a request would not wait for."""
        return len(self._compiled)

    def warm_up(self) -> None:
        """Prepare the vocabulary, which else the first grammar waits for (0.6 s for 150,000 tokens).

        Then the grammars of the log, on a thread of their own: compiling leaves the interpreter to others.
        """
        with self._lock:
            self._prepared()
        if self._log is not None:
            threading.Thread(target=self._compile_log, args=[self._log], daemon=True).start()

    def start(self, grammar: Grammar) -> AnswerState:
        """The state of an empty answer. Raises `InvalidParameterError` for what is no grammar."""
        with self._lock:
            known = grammar in self._compiled
            state = AnswerState(self._compiled_once(grammar).deep_copy())
        if self._log is not None and not known:
            self._log.append(grammar)
        return state

    def _compile_log(self, log: GrammarLog) -> None:
        for grammar in log.read():
            with self._lock, suppress(InvalidParameterError):  # of another version's dialect
                self._compiled_once(grammar)

    def _compiled_once(self, grammar: Grammar) -> LLMatcher:
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher

        if len(grammar.source) > MAX_SOURCE:
            raise InvalidParameterError(_too_long(grammar.source), "grammar")
        matcher = LLMatcher(self._prepared(), _source(grammar))
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:500]
            raise InvalidParameterError(f"the {_NAMES[grammar.kind]} cannot be used: {reason}", "grammar")
        return matcher

    def _prepared(self) -> LLTokenizer:
        if self._vocabulary is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            words = TokenizerWrapper(_Vocabulary(self._tokenizer))
            ends = sorted(self._tokenizer.eos_ids)
            self._vocabulary = LLTokenizer(words, n_vocab=self._tokenizer.vocab_size, eos_token=ends)
        return self._vocabulary


def _too_long(source: str) -> str:
    return f"the grammar has {len(source)} characters, and {MAX_SOURCE} is the limit"


_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it. Raises `InvalidParameterError` for a schema that cannot be one."""
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            try:
                schema = json.loads(grammar.source)
            except ValueError as error:
                raise InvalidParameterError(f"the JSON schema is no JSON: {error}", "grammar") from None
            if not isinstance(schema, dict):
                raise InvalidParameterError("the JSON schema must be an object", "grammar")
            try:
                return LLMatcher.grammar_from_json_schema(
                    cast("dict[str, Any]", schema), defaults=_JSON_STYLE
                )
            except ValueError as error:  # whole numbers beyond 64 bits
                raise InvalidParameterError(f"the JSON schema cannot be used: {error}", "grammar") from None
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.source)


class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i, skip_special=False) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of a text."""
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_special=False)
