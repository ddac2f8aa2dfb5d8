"""Grammars: what may come next, what must, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine_harness import byte_tokenizer
from outpace.errors import GrammarError, InvalidParameterError
from outpace.models.checkpoint import open_checkpoint
from outpace.text.grammar import MAX_SOURCE, AnswerState, GrammarCompiler
from outpace.text.tokenizer import Tokenizer
from outpace.types import Grammar, UInt32Array

SCHEMA = {
    "type": "object",
    "properties": {"file_name": {"type": "string"}, "line": {"type": "integer"}},
    "required": ["file_name", "line"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """Token i is byte i; 0 ends."""
    return GrammarCompiler(byte_tokenizer())


def allowed(state: AnswerState, vocab_size: int = 256) -> set[int]:
    mask: UInt32Array = np.zeros(-(-vocab_size // 32), np.uint32)
    state.fill_mask(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def text_of(state: AnswerState) -> str:
    return bytes(state.forced()).decode()


def test_only_what_fits_may_come(compiler: GrammarCompiler) -> None:
    state = compiler.start(Grammar("regex", "(yes|no)!"))
    assert allowed(state) == {ord("y"), ord("n")}
    state.accept(list(b"no"))
    assert allowed(state) == {ord("!")}
    state.accept([ord("!")])
    assert allowed(state) == {0}, "the end"


def test_the_end_stays_the_end(compiler: GrammarCompiler) -> None:
    state = compiler.start(Grammar("regex", "a"))
    for token_ids in ([ord("a")], [0], [0, 0]):
        state.accept(token_ids)
        assert allowed(state) == {0}


def test_what_is_forced_is_known_ahead(compiler: GrammarCompiler) -> None:
    state = compiler.start(Grammar("json_schema", json.dumps(SCHEMA)))
    assert text_of(state) == '{"file_name": "'
    state.accept(state.forced())
    assert state.forced() == []
    state.accept(list(b'a.py"'))
    assert text_of(state) == ', "line": '


def test_a_schema_may_ask_for_another_style(compiler: GrammarCompiler) -> None:
    style = {"x-guidance": {"item_separator": ",", "key_separator": ":"}}
    state = compiler.start(Grammar("json_schema", json.dumps({**SCHEMA, **style})))
    assert text_of(state) == '{"file_name":"'


def test_states_of_one_grammar_are_apart(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", "[ab]c")
    first, second = compiler.start(grammar), compiler.start(grammar)
    first.accept([ord("a")])
    assert allowed(first) == {ord("c")}
    assert allowed(second) == {ord("a"), ord("b")}


def test_rewinding_takes_tokens_back(compiler: GrammarCompiler) -> None:
    state = compiler.start(Grammar("regex", "(ab|ba)c"))
    assert state.fits(ord("a"))
    assert not state.fits(ord("a"))
    assert state.fits(ord("b"))
    state.rewind()
    assert allowed(state) == {ord("a"), ord("b")}


def test_a_look_ahead_that_meets_a_limit_leaves_the_answer_alone(compiler: GrammarCompiler) -> None:
    counts = " | ".join(" ".join(["e"] * count) for count in range(2, 25))
    state = compiler.start(Grammar("lark", f'start: (e | "b")*\ne: "a" | "" | {counts}'))
    state.accept(list(b"aaaa"))
    for _ in range(2):
        assert state.fits(ord("a"))
        assert not state.fits(ord("a")), "that is too much for the parser"
        state.rewind()
        assert allowed(state) == {0, ord("a"), ord("b")}
    state.accept(list(b"ab"))
    assert allowed(state) == {0, ord("a"), ord("b")}
    with pytest.raises(GrammarError, match="items"):
        state.accept(list(b"aaaaaa"))


def test_a_grammar_of_lark_may_nest(compiler: GrammarCompiler) -> None:
    state = compiler.start(Grammar("lark", 'start: "(" start ")" | "x"'))
    state.accept(list(b"((x"))
    assert text_of(state) == "))"


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("json_schema", "{"), "no JSON"),
        (Grammar("json_schema", "[1]"), "must be an object"),
        (Grammar("json_schema", '{"minimum": -1535030082244784569712640}'), "cannot be used"),
        (Grammar("json_schema", '{"minimum": 1e999}'), "cannot be used"),
        (Grammar("json_schema", '{"type": "thing"}'), "thing"),
        (Grammar("json_schema", '{"$ref": "https://example.org/schema"}'), "JSON schema cannot be used"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("regex", "a" * (MAX_SOURCE + 1)), "is the limit"),
    ],
)
def test_what_is_no_grammar_is_refused(compiler: GrammarCompiler, grammar: Grammar, says: str) -> None:
    with pytest.raises(InvalidParameterError, match=says) as caught:
        compiler.start(grammar)
    assert caught.value.parameter == "grammar"


def test_a_token_that_does_not_fit_is_an_error(compiler: GrammarCompiler) -> None:
    state = compiler.start(Grammar("regex", "abc"))
    with pytest.raises(GrammarError, match="cannot be held to its grammar"):
        state.accept(list(b"ax"))


def test_a_thousand_grammars_do_not_pile_up(compiler: GrammarCompiler) -> None:
    for number in range(1000):
        compiler.start(Grammar("regex", f"a{{{number + 1}}}"))
    assert len(compiler._compiled) <= 64


def test_a_real_vocabulary(model_135m: Path) -> None:
    tokenizer = Tokenizer.from_checkpoint(open_checkpoint(model_135m))
    compiler = GrammarCompiler(tokenizer)
    compiler.warm_up()
    state = compiler.start(Grammar("json_schema", json.dumps(SCHEMA)))
    text = '{"file_name": "caf\u00e9 \U0001f680.py", "line": 12}'
    for token_id in tokenizer.encode(text, add_special=False):
        assert token_id in allowed(state, tokenizer.vocab_size)
        state.accept([token_id])
    assert allowed(state, tokenizer.vocab_size) == set(tokenizer.eos_ids)
