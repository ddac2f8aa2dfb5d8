"""`outpace chat`: talk with a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.drafts import DraftPainter
from outpace.cli.loading import open_llm
from outpace.cli.options import EngineFlags, SamplingFlags, ShowDraftsFlag, flatten, utf8
from outpace.cli.run import checked, probe_bandwidth, speed_lines
from outpace.cli.status_line import StatusLine, dimmed
from outpace.errors import InvalidParameterError, UsageError
from outpace.types import SamplingParams

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from outpace.llm import LLM

HELP = """\
/reset         forget the conversation
/system TEXT   set the system message (nothing: remove it) and forget the conversation
/save FILE     write the conversation to a file, as JSON messages
/help          show this
Ctrl-C stops an answer, Ctrl-D leaves."""

TEMPERATURE = 0.7

Ask = Callable[[], str | None]
"""Waits for the user's next line; None at the end of the input."""


@flatten
def chat(
    model: Annotated[
        str | None, typer.Argument(help="A model's short name, path or repository.", show_default=False)
    ] = None,
    *,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message.")] = None,
    show_drafts: ShowDraftsFlag = False,
    sampling: SamplingFlags,
    engine: EngineFlags,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands."""
    from outpace.engine.sampling import validate
    from outpace.models.hub import DEFAULT_MODEL

    if system is not None:
        utf8(system, "--system")
    params = sampling.as_params(temperature=TEMPERATURE)
    with open_llm(model or DEFAULT_MODEL, engine) as llm:
        if llm.chat_template is None:
            raise UsageError(f"{llm.model_name} has no chat template; use `outpace run --raw`")
        validate(params, llm.spec.vocab_size)
        talk(Conversation(llm, params, system, show_drafts), _asker(llm.model_name))


@dataclass(slots=True)
class Conversation:
    """The messages so far, and how the next answer comes about."""

    llm: LLM
    params: SamplingParams
    system: str | None = None
    show_drafts: bool = False
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])  # without the system message
    _bandwidth: float | None = None  # GB/s, measured once

    @property
    def all_messages(self) -> list[dict[str, str]]:
        """The messages as the chat template takes them."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return opening + self.messages

    def answer(self, text: str) -> None:
        """Stream the answer to `text`. Ctrl-C ends it; what has come so far stays in the conversation.

        A question that was stopped before anything came is dropped. Raises what `EngineLoop.submit` raises;
        the conversation is then as it was before.
        """
        from outpace.bench.timing import StreamTiming

        timing = StreamTiming()
        question = {"role": "user", "content": text}
        stream = self.llm.loop.submit(self.llm.encode_chat([*self.all_messages, question]), self.params)
        painter = DraftPainter(self.llm.tokenizer) if self.show_drafts else None
        pieces: list[str] = []
        with StatusLine(sys.stdout) as status:
            status.update("reading")
            try:
                for delta in checked(stream, timing):
                    pieces.append(delta.text)
                    print(painter.paint(delta) if painter else delta.text, end="", flush=True)
                    status.update(f"{len(timing.token_ids)} tokens · {timing.tok_s or 0.0:.1f} tokens/s")
            except KeyboardInterrupt:
                stream.cancel()
        print(flush=True)
        if not pieces:
            print("Stopped before an answer; the question is dropped.")
            return
        self.messages += [question, {"role": "assistant", "content": "".join(pieces)}]
        if sys.stdout.isatty():
            self._bandwidth = self._bandwidth or probe_bandwidth(self.llm)
            print(dimmed(speed_lines(self.llm, timing, self._bandwidth)))
        if painter and painter.legend():
            print(painter.legend())


def talk(conversation: Conversation, ask: Ask) -> None:
    """Answer line after line until the input ends."""
    while (line := ask()) is not None:
        text = line.strip()
        if text.startswith("/"):
            print(command(conversation, text))
        elif text:
            try:
                conversation.answer(text)
            except KeyboardInterrupt:  # the answer had just ended: only its line of speeds is missing
                print()
            except InvalidParameterError as error:  # too long a conversation, for instance: it goes on
                print(f"outpace: error: {error} (/reset forgets the conversation)", file=sys.stderr)


def command(conversation: Conversation, text: str) -> str:
    """Carry out a command line; returns what to tell the user."""
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    match name:
        case "/help":
            return HELP
        case "/reset":
            conversation.messages.clear()
            return "The conversation is forgotten."
        case "/system":
            conversation.system = argument or None
            conversation.messages.clear()
            return "The system message is set." if argument else "There is no system message now."
        case "/save":
            return _save(conversation, argument)
        case _:
            return f"There is no command {name}.\n{HELP}"


def _save(conversation: Conversation, argument: str) -> str:
    if not argument:
        return "Where to? /save FILE"
    path = Path(argument).expanduser()
    text = json.dumps({"messages": conversation.all_messages}, ensure_ascii=False, indent=2)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        return f"Not saved: {error}"
    return f"Saved {len(conversation.all_messages)} messages to {path}."


def _history() -> History:
    """The lines of earlier chats, for their owner alone to read; of this chat where no file can be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from outpace.config import state_dir

    path = state_dir() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError as error:
        print(f"outpace: lines are not kept for later: {error}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(path)


def _asker(model_name: str) -> Ask:
    """How the user's lines come in: from a prompt with history, or plainly where stdin is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda: sys.stdin.readline() or None
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(history=_history())
    print(f"{model_name}. /help lists the commands, Ctrl-D leaves.")

    def ask() -> str | None:
        while True:
            try:
                return session.prompt("> ")
            except EOFError:
                return None
            except KeyboardInterrupt:
                continue  # Ctrl-C at the prompt drops the line

    return ask
