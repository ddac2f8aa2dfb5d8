"""Workload files: the shipped ones, and what is wrong with others."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from outpace.bench.workload import load, shipped_names
from outpace.errors import UsageError
from outpace.types import Grammar

SHIPPED = "adversarial, agent_session, agent_turns, chat, copy_file, edit_file, extract_json, write_code"


def test_these_workloads_are_shipped() -> None:
    assert shipped_names() == SHIPPED.split(", ")
    for name in shipped_names():
        requests = load(name)
        assert len(requests) == (12 if name == "agent_session" else 6)
        hot = 2.0 if name == "adversarial" else 0.0
        assert all(request.params.temperature == hot for request in requests)


def test_a_session_goes_on_from_turn_to_turn() -> None:
    requests = load("agent_session")
    continued = [
        after.messages[: len(before.messages)] == before.messages
        for before, after in itertools.pairwise(requests)
    ]
    assert continued.count(False) == 1, "two sessions"
    assert all(request.messages[0]["role"] == "system" for request in requests)


def test_a_prediction_may_come_with_a_request(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(line(prediction="x = 1"))
    assert load(str(path))[0].prediction == "x = 1"
    path.write_text(line(prediction=7))
    with pytest.raises(UsageError, match="prediction: must be text"):
        load(str(path))


def test_a_schema_may_come_with_a_request(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(line(json_schema={"type": "integer"}))
    assert load(str(path))[0].params.grammar == Grammar("json_schema", '{"type": "integer"}')
    path.write_text(line(json_schema="integer"))
    with pytest.raises(UsageError, match="json_schema: must be an object"):
        load(str(path))


def test_edits_are_of_files_of_60_to_150_lines() -> None:
    for request in load("edit_file"):
        code = str(request.messages[-1]["content"]).split("```")[1]
        assert 60 <= code.count("\n") <= 150
        # Room to write the whole file again: no tokenizer needs a token for less than 2 characters of code.
        assert request.max_tokens >= len(code) / 4


def test_agent_turns_hold_tool_output() -> None:
    for request in load("agent_turns"):
        roles = [message["role"] for message in request.messages]
        assert roles[0] == "system"
        assert roles[1:] == ["user", "assistant"] * (len(roles) // 2 - 1) + ["user"]
        assert str(request.messages[-1]["content"]).startswith("exit code")


def line(**changes: object) -> str:
    record: dict[str, object] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    return json.dumps({name: value for name, value in {**record, **changes}.items() if value is not None})


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line() + "\n\n" + line(temperature=0.5) + "\n")
    first, second = load(str(path))
    assert (first.max_tokens, first.params.temperature) == (3, 0)
    assert second.params.temperature == 0.5
    assert second.params.seed is not None  # the same tokens every time, also when sampled


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        (line(messages=None), "messages"),
        (line(messages=[]), "messages"),
        (line(messages=["x"]), "messages"),
        (line(messages=[{"content": "x"}]), "messages"),
        (line(max_tokens=None), "max_tokens"),
        (line(max_tokens=0), "max_tokens"),
        (line(max_tokens=True), "max_tokens"),
        (line(temperature=-1), "temperature"),
        (line(temperature="warm"), "temperature"),
        (line(top_q=1), "unknown field 'top_q'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line() + "\n" + bad + "\n")
    with pytest.raises(UsageError) as raised:
        load(str(path))
    assert f"{path}:2: " in str(raised.value)
    assert problem in str(raised.value)


def test_no_such_workload() -> None:
    with pytest.raises(UsageError, match=SHIPPED):
        load("nonsense")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_nothing_to_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"empty\.jsonl"):
        load(str(path))
