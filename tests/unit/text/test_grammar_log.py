"""The grammars that are kept on disk: read back, bounded, and whatever the disk does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_harness import byte_tokenizer
from outpace.errors import InvalidParameterError
from outpace.text.grammar import GrammarCompiler
from outpace.text.grammar_log import MAX_BYTES, MAX_GRAMMARS, GrammarLog
from outpace.types import Grammar

FIRST, SECOND = Grammar("regex", "a|b"), Grammar("json_schema", '{"type": "integer"}')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grammars.jsonl"


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_was_written_is_read_the_newest_last_and_each_once(path: Path) -> None:
    log = GrammarLog(path)
    assert log.read() == []
    for grammar in (FIRST, SECOND, FIRST):
        log.append(grammar)
    assert GrammarLog(path).read() == [SECOND, FIRST]
    assert path.stat().st_mode & 0o777 == 0o600


def test_any_text_comes_back(path: Path) -> None:
    grammar = Grammar("lark", 'start: "\ud800\u2028\x85\n"')
    GrammarLog(path).append(grammar)
    assert GrammarLog(path).read() == [grammar]


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\n",
        b'["regex", "a',
        b'["perl", "a"]\n',
        b'["regex", 1]\n',
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'["regex"]\n',
    ],
)
def test_damaged_lines_are_passed_over(path: Path, damage: bytes) -> None:
    log = GrammarLog(path)
    log.append(FIRST)
    with path.open("ab") as file:
        file.write(damage)
    log.append(SECOND)
    log.append(SECOND)  # a line that was cut off takes the first of the two with it
    assert log.read() == [FIRST, SECOND]


def test_so_many_are_kept_and_no_more(path: Path) -> None:
    log = GrammarLog(path)
    for number in range(MAX_GRAMMARS + 5):
        log.append(Grammar("regex", str(number)))
    assert [grammar.source for grammar in log.read()] == [str(n) for n in range(5, MAX_GRAMMARS + 5)]


def test_the_file_stays_within_its_bound(path: Path) -> None:
    log = GrammarLog(path)
    for number in range(12):
        log.append(Grammar("regex", str(number % 10) * (MAX_BYTES // 8)))
        assert path.stat().st_size <= MAX_BYTES
    assert log.read()[-1].source[0] == "1"
    assert [each.name for each in path.parent.iterdir()] == [path.name], "nothing half written is left"


def test_a_disk_that_refuses_ends_nothing(path: Path) -> None:
    path.mkdir()
    GrammarLog(path).append(FIRST)
    assert GrammarLog(path).read() == []
    GrammarLog(path.parent / "no such folder" / "file").append(FIRST)


def test_a_full_disk_ends_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = GrammarLog(path)
    log.append(FIRST)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log.append(SECOND)
    assert log.read() == [FIRST]


def test_the_next_process_compiles_them_before_they_are_asked_for(path: Path) -> None:
    first = GrammarCompiler(byte_tokenizer(), path)
    first.start(FIRST)
    first.start(FIRST)
    with pytest.raises(InvalidParameterError):
        first.start(Grammar("regex", "("))
    assert GrammarLog(path).read() == [FIRST], "what is no grammar is not kept"
    assert len(path.read_bytes().splitlines()) == 1
    GrammarLog(path).append(Grammar("lark", "start: %%"))  # of a dialect that is read no longer

    second = GrammarCompiler(byte_tokenizer(), path)
    second.warm_up()
    wait_for(lambda: second.num_compiled == 1)
    second.start(FIRST)
    assert len(path.read_bytes().splitlines()) == 2, "it was there, so it is not written again"
