"""Prefix rules of a file: what it may say, and what is told of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_messages import reminder, system, user

from outpace.errors import UsageError
from outpace.server.prefix_rules import apply_rules, read_rules


def test_rules_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[[rule]]\nname = 'clock'\npattern = '^Now: .*\\n'\naction = 'move'\nclient = 'ours'\n")
    rules = read_rules(path)
    assert [rule.name for rule in rules] == ["clock"]
    messages = [system("A\nNow: 12:30\nB"), user("Hi")]
    assert apply_rules(messages, rules) == [system("A\nB"), user("Now: 12:30\n\nHi")]
    assert apply_rules(messages, ()) == messages


def test_rules_for_reminders(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        "[[rule]]\nname = 'clock'\npattern = '^Now: .*\\n'\naction = 'move'\nplace = 'reminder'\n"
        "[[rule]]\nname = 'count'\npattern = '^Turn \\d+\\n'\naction = 'drop'\nplace = 'reminder'\n"
    )
    said = "Now: 12:30\nTurn 7\nBe brief."
    messages = [system(said), user(f"{reminder(said)}\nNow: 1:00\nTurn 8\n")]
    assert apply_rules(messages, read_rules(path)) == [
        system(said),
        user(f"{reminder('Be brief.')}\n\n{reminder('Now: 12:30')}\n\nNow: 1:00\nTurn 8\n"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no \\[\\[rule"),
        ("rule = 5", "no \\[\\[rule"),
        ("[[rule]", "can't be read"),
        ("[[rule]]\nname = 5", "strings"),
        ("[[rule]]\nnames = 'a'", "no 'names'"),
        ("[[rule]]\nname = 'a'\naction = 'drop'", "'pattern' is missing"),
        ("[[rule]]\nname = 'a'\npattern = '('\naction = 'drop'", "pattern: "),
        ("[[rule]]\nname = 'a'\npattern = 'a*'\naction = 'drop'", "nothing"),
        ("[[rule]]\nname = 'a'\npattern = 'a'\naction = 'hide'", "'drop' or 'move'"),
        ("[[rule]]\nname = 'a'\npattern = 'a'\naction = 'move'\nplace = 'tools'", "'system' or 'reminder'"),
    ],
)
def test_a_file_that_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_rules(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_rules(tmp_path / "none.toml")
