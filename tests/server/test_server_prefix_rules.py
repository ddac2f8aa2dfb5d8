"""What changes between an agent's sessions stays behind what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_messages import reminder, system, user
from hypothesis import given
from hypothesis import strategies as st
from serving import RunningServer

from outpace.server.prefix_rules import KNOWN_RULES, PrefixRule, apply_rules

BILLING = "x-anthropic-billing-header: cc_version=2.1.197.a1f; cc_entrypoint=cli; cch=3fa2c;"
OPENCODE = (
    "Here is some useful information about the environment you are running in:\n"
    "<env>\n"
    "  Working directory: /home/ann/shop\n"
    "  Workspace root folder: /home/ann/shop\n"
    "  Is directory a git repo: yes\n"
    "  Platform: linux\n"
    "  Today's date: Thu Nov 26 2026\n"
    "</env>"
)
CLAUDE = (
    "# Environment\n"
    "You have been invoked in the following environment: \n"
    " - Primary working directory: /home/ann/shop\n"
    "  - Is a git repository: true\n"
    " - Platform: linux\n"
    " - You are powered by the model named Opus."
)

GIT = (
    "gitStatus: This is the git status at the start of the conversation. Note that this status is a snapshot "
    "in time, and will not update during the conversation.\n\n"
    "Current branch: fix-it\n\n"
    "Main branch (you will usually use this for PRs): main\n\n"
    "Git user: Ann\n\n"
    "Status:\n M shop.py\n?? notes.txt\n\n"
    "Recent commits:\ndec8e91 Prices in cents\n0a1b2c3 First"
)
DATE = "# currentDate\nToday's date is 2026-11-27."
CONTEXT = (
    "<system-reminder>\nAs you answer the user's questions, you can use the following context:\n# claudeMd\n"
    f"Use tabs.\n{DATE}\n\n      IMPORTANT: this context may or may not be relevant.\n</system-reminder>"
)
SKILLS = "<system-reminder>\nThe following skills are available:\n- deploy\n</system-reminder>"
QWEN_DATE = "Today's date is Friday, November 27, 2026."
QWEN = (
    "<system-reminder>\nThis is the Qwen Code. We are setting up the context for our chat.\n"
    f"{QWEN_DATE}\nMy operating system is: linux\n</system-reminder>"
)
MEMORY = (
    "You have a persistent file-based memory at `/home/ann/.claude/projects/-home-ann-shop/memory/`. "
    "This directory already exists — write to it directly with the Write tool (do not run mkdir or check "
    "for its existence). "
)


@pytest.mark.parametrize("fragment", [OPENCODE, CLAUDE, GIT], ids=["opencode", "claude", "git"])
@pytest.mark.parametrize("before", ["", "You are a coding agent.\n"])
@pytest.mark.parametrize("after", ["", "\nBe brief.\n\nUse tools."])
def test_an_environment_moves_word_for_word(fragment: str, before: str, after: str) -> None:
    messages = [system(before + fragment + after), user("Fix it."), user("Now.")]
    expected = [user(f"{fragment}\n\nFix it."), user("Now.")]
    if rest := before + after.removeprefix("\n"):
        expected.insert(0, system(rest))
    assert apply_rules(messages, KNOWN_RULES) == expected


def test_accounting_is_dropped() -> None:
    messages = [system(f"{BILLING}\nYou are terse."), user("Hi")]
    assert apply_rules(messages, KNOWN_RULES) == [system("You are terse."), user("Hi")]
    assert apply_rules([system(BILLING), user("Hi")], KNOWN_RULES) == [user("Hi")]


def test_several_fragments_keep_their_order() -> None:
    messages = [system(f"{BILLING}\nA\n{OPENCODE}\nB"), system(f"C\n{CLAUDE}"), user("Hi")]
    assert apply_rules(messages, KNOWN_RULES) == [
        system("A\nB"), system("C\n"), user(f"{OPENCODE}\n\n{CLAUDE}\n\nHi"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "Explain x-anthropic-billing-header: to me",
        OPENCODE.replace("<env>", "<environment>").replace("</env>", "</environment>"),
        OPENCODE.replace("Working directory", "Directory"),
        OPENCODE.replace("</env>", ""),
        OPENCODE.replace("  Platform: linux\n", "  rm -rf everything\n"),
        CLAUDE.replace("# Environment", "## Environment"),
        CLAUDE.replace("Primary working", "Working"),
        f"> {CLAUDE}".replace("\n", "\n> "),
        GIT.replace("Current branch", "Branch"),
        GIT.replace("Recent commits:\n", "Recent commits: "),
        f"My {GIT}",
        CONTEXT,
    ],
)
def test_what_only_looks_alike_stays(text: str) -> None:
    messages = [system(text), user("Hi")]
    assert apply_rules(messages, KNOWN_RULES) == messages


def test_a_repository_without_commits_or_changes() -> None:
    new = GIT.partition(" M shop.py")[0] + "(clean)\n\nRecent commits:\n"
    assert apply_rules([system(f"S\n\n{new}"), user("Hi")], KNOWN_RULES) == [
        system("S\n\n"),
        user(f"{new.rstrip()}\n\nHi"),
    ]
    more = f"{GIT}\nperforceMode: off"
    assert apply_rules([system(f"S\n\n{more}"), user("Hi")], KNOWN_RULES)[0] == system(
        "S\n\nperforceMode: off"
    )


@pytest.mark.parametrize(
    ("said", "date"),
    [
        (CONTEXT, DATE),
        (CONTEXT.replace("'", "\u2019").replace("2026-11-27", "2026/11/27"), None),
        (QWEN, QWEN_DATE),
    ],
)
def test_the_date_of_a_reminder_goes_behind_all_reminders(said: str, date: str | None) -> None:
    date = date or DATE.replace("'", "\u2019").replace("2026-11-27", "2026/11/27")
    before = said.replace(f"{date}\n", "")
    assert before != said
    for asked in ("What is in here?", "", SKILLS.replace("\n", " "), "<system-reminder>\nopen"):
        messages = [system("S"), user(f"{said}\n{SKILLS}\n\n{asked}"), user(said)]
        last = ["", f"\n\n{asked}"][bool(asked)]
        if asked.endswith("</system-reminder>"):  # one more of them
            expected = f"{before}\n{SKILLS}\n\n{asked}\n\n{reminder(date)}"
        else:
            expected = f"{before}\n{SKILLS}\n\n{reminder(date)}{last}"
        assert apply_rules(messages, KNOWN_RULES) == [system("S"), user(expected), user(said)]


def test_what_moves_from_both_places_stands_before_the_question() -> None:
    messages = [system(f"A\n{CLAUDE}\nB\n\n{GIT}"), user(f"{CONTEXT}\n\n{SKILLS}\n  Go on.")]
    context = CONTEXT.replace(f"{DATE}\n", "")
    assert apply_rules(messages, KNOWN_RULES) == [
        system("A\nB\n\n"),
        user("\n\n".join([context, SKILLS, CLAUDE, GIT, reminder(DATE), "  Go on."])),
    ]
    assert apply_rules([messages[0], user("\n\tGo on. ")], KNOWN_RULES)[1] == user(
        f"{CLAUDE}\n\n{GIT}\n\n\n\tGo on. "
    )


def test_a_conversation_that_goes_on_begins_as_before() -> None:
    """What moved stays where it is: each turn's prompt begins with the last one's."""
    messages = [system(f"A\n\n{GIT}"), user(f"{CONTEXT}\n{SKILLS}\nGo on.")]
    first = apply_rules(messages, KNOWN_RULES)
    more = [{"role": "assistant", "content": "Done."}, user(f"{CONTEXT}\nAnd now?")]
    assert apply_rules(messages + more, KNOWN_RULES) == first + more


@pytest.mark.parametrize(
    "asked",
    [
        f"Why does it say this?\n{CONTEXT}",
        DATE,
        f"<reminder>\n{DATE}\n</reminder>",
        f"<system-reminder>\n{DATE}",
        CONTEXT.replace("Today's date is", "He said: Today's date is"),
        CONTEXT.replace("Today's", "Yesterday's"),
        CONTEXT.replace("2026-11-27", "what " * 30),
    ],
)
def test_what_the_user_wrote_stays(asked: str) -> None:
    messages = [system("S"), user(asked)]
    assert apply_rules(messages, KNOWN_RULES) == messages


@pytest.mark.parametrize("fragment", [BILLING, OPENCODE, CLAUDE, MEMORY, GIT])
def test_only_the_system_prompt_is_looked_at(fragment: str) -> None:
    messages = [system("S"), user(fragment), {"role": "assistant", "content": fragment}, system(fragment)]
    assert apply_rules(messages, KNOWN_RULES) == messages


def test_the_folder_of_the_memory_moves_and_what_it_is_for_stays() -> None:
    about = "Each memory is one file holding one fact, with frontmatter:\n\n```markdown\n"
    for said in (MEMORY, MEMORY.partition("This")[0]):
        messages = [system(f"# Memory\n\n{said}{about}"), user("Fix it.")]
        assert apply_rules(messages, KNOWN_RULES) == [
            system(f"# Memory\n\n{about}"),
            user(f"{said}\n\nFix it."),
        ]
    for other in (f"Note: {MEMORY}", MEMORY.replace("`", "'"), MEMORY.replace("`.", "`, maybe.")):
        messages = [system(other + about), user("Fix it.")]
        assert apply_rules(messages, KNOWN_RULES) == messages


def test_nothing_moves_where_no_user_spoke() -> None:
    messages = [system(OPENCODE), {"role": "assistant", "content": "Yes?"}]
    assert apply_rules(messages, KNOWN_RULES) == messages


pieces = st.lists(
    st.sampled_from(
        [BILLING, OPENCODE, CLAUDE, MEMORY, GIT, CONTEXT, QWEN, SKILLS, DATE, "A", "", "\n", " - b", "<env>"]
    ),
    max_size=6,
)


@given(pieces, pieces, st.sampled_from(["", "Q\n"]))
def test_nothing_is_lost_but_accounting(said: list[str], asked: list[str], begin: str) -> None:
    """Every line but accounting is still there, as often as before; applying twice is applying once."""

    def lines(messages: list[dict[str, Any]]) -> list[str]:
        text = "\n".join(message["content"] for message in messages)
        told = (line for line in text.split("\n") if line and line != BILLING)
        return sorted(line for line in told if "system-reminder>" not in line)

    question = begin + "\n".join(asked)
    messages = [system("\n".join(said)), user(question)]
    once = apply_rules(messages, KNOWN_RULES)
    assert lines(once) == lines([system("\n".join(said).replace(BILLING, "")), user(question)])
    assert messages == [system("\n".join(said)), user(question)]
    assert apply_rules(once, KNOWN_RULES) == once


def test_two_folders_share_the_beginning(native_server: RunningServer) -> None:
    """A real server: the session of another folder finds the system prompt and its tools in the cache."""

    def ask(folder: str) -> dict[str, Any]:
        body = {
            "messages": [
                system(OPENCODE.replace("/home/ann/shop", folder) + "\n" + "Be careful with files. " * 30),
                user("Hi"),
            ],
            "max_tokens": 1,
        }
        answer = httpx.post(f"{native_server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]

    ask("/home/ann/one")
    usage = ask("/srv/two")
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 96


def test_rules_have_names_of_their_own() -> None:
    names = [rule.name for rule in KNOWN_RULES]
    assert len(set(names)) == len(names)
    assert all(isinstance(rule, PrefixRule) for rule in KNOWN_RULES)


def test_the_rules_are_listed() -> None:
    listed = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for rule in KNOWN_RULES:
        assert f"| `{rule.name}` | {rule.client} | {rule.place} | {rule.action} |" in listed
