"""Reads an answer as it comes: text, thoughts, and calls of tools.

However the text is cut into pieces, what comes out is the same (neighbours of one kind put together).
Nothing is lost: what looked like a call and cannot be one comes out as text. What is held back is only what a
mark may begin with, a call's name up to its first argument, and space, which around calls says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from outpace.text.tool_calls.families import Family, Marks, ThoughtMarks, earliest, num_held
from outpace.text.tool_calls.json_reader import read_arguments, read_call
from outpace.text.tool_calls.pieces import Piece, Text, Thinking
from outpace.text.tool_calls.sink import SPACE, Reading, Sink, Tools, skip_space
from outpace.text.tool_calls.tag_reader import FUNCTION, read_tag_call, read_word

_FENCE = "```"
_BETWEEN = frozenset(",;")  # besides space, between calls
_AFTER = frozenset("}]")  # too many closing brackets after a call
_NAMED = re.compile(r"([\w.-]{1,128})(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*")
_MAX_NAMED = 256
_FENCE_TAG = "json"


class AnswerParser:
    """Reads one answer. `push` and `finish` return the pieces that have become certain.

    With tools, an answer that begins with an object (bare or in a code fence) which names one of them is a
    call too, as small models often leave the marks out.
    """

    def __init__(
        self,
        family: Family,
        tools: Tools | None,
        thoughts: ThoughtMarks | None = None,
        *,
        thinking: bool = False,
    ) -> None:
        """`tools` None: there are no calls to be read. `thinking`: the prompt has opened the thoughts."""
        self._sink = Sink(tools or {})
        self._thoughts = thoughts
        self._may_call = tools is not None
        self._marks = family.marks if self._may_call else ()
        self._begins = tuple(each.begin for each in self._marks)
        self._words = (_FENCE, FUNCTION, *(each.end for each in family.marks if each.end))
        self._waiting = ""  # text that is not read yet: it may begin a mark, or is space
        thinking = thinking and thoughts is not None
        self._read: Callable[[], bool] = self._read_thoughts if thinking else self._read_text
        self._block: Reading[bool] | None = None
        self._opened = ("", 0)  # the text that opened the block, and how many calls had begun before it
        self._at_start = True  # nothing but space, thoughts and calls so far
        self._after_mark = thinking  # space that comes now stands around calls or thoughts

    @property
    def num_calls(self) -> int:
        """Calls that are whole so far."""
        return self._sink.num_ended

    @property
    def num_begun(self) -> int:
        """Calls that have begun so far."""
        return self._sink.num_begun

    def push(self, text: str) -> list[Piece]:
        """More of the answer."""
        self._waiting += text
        while self._waiting and self._read():
            pass
        return self._sink.take()

    def finish(self) -> list[Piece]:
        """The answer has ended: what was held back."""
        while self._block is not None:
            self._close(whole=_send(self._block, "") is True)
            while self._waiting and self._read():
                pass
        text, self._waiting = self._waiting, ""
        self._emit(Thinking if self._read == self._read_thoughts else Text, text)
        return self._sink.take()

    # --- each of these reads on in what waits; False: it needs more ----------------------------------

    def _read_thoughts(self) -> bool:
        assert self._thoughts is not None
        thoughts, end, rest = self._waiting.partition(self._thoughts.end)
        if not end:
            self._emit_certain(Thinking, (self._thoughts.end,))
            return False
        self._emit(Thinking, thoughts.rstrip())
        self._waiting, self._after_mark, self._read = rest, True, self._read_text
        return True

    def _read_text(self) -> bool:
        if self._at_start:
            text = self._waiting.lstrip()
            if not text or (self._thoughts is not None and _begins(self._thoughts.begin, text)):
                return False
            if self._thoughts is not None and text.startswith(self._thoughts.begin):
                self._waiting = text.removeprefix(self._thoughts.begin)
                self._after_mark, self._read = True, self._read_thoughts
                return True
            if self._may_call and text[0] in "{[`" and not any(_begins(each, text) for each in self._begins):
                space, self._waiting = self._waiting[: -len(text)], text
                self._open(self._bare(), space, known_names=True)
                return True
        found = earliest(self._waiting, self._marks)
        if found is None:
            self._emit_certain(Text, self._begins)
            return False
        at, marks = found
        before = self._waiting[:at].rstrip()
        self._emit(Text, before)
        opened = self._waiting[len(before) : at + len(marks.begin)]
        self._waiting = self._waiting[at + len(marks.begin) :]
        self._open(self._marked(marks), opened, known_names=marks.known_names)
        return True

    def _read_block(self) -> bool:
        block, sink = self._block, self._sink
        assert block is not None
        for index, character in enumerate(self._waiting, 1):
            sink.hold(character)
            whole = _send(block, character)
            if whole is not None:
                self._waiting = self._waiting[index:]
                self._close(whole=whole)
                return True
        self._waiting = ""
        return False

    def _open(self, block: Reading[bool], opened: str, *, known_names: bool) -> None:
        next(block)
        self._block, self._read = block, self._read_block
        self._opened = opened, self._sink.num_begun
        self._sink.known_names = known_names

    def _close(self, *, whole: bool) -> None:
        """The block has ended. What of it is no call is read again as text, or is text already."""
        self._block, self._read = None, self._read_text
        opened, num_before = self._opened
        rest = self._sink.drop()
        if self._sink.num_begun > num_before:
            self._after_mark = True
        else:
            self._emit(Text, opened)
            self._at_start = False
            whole = False
        if not whole:
            self._at_start = False
            self._waiting = rest + self._waiting

    # --- what may stand in a block: these return whether it has come to its end ------------------------

    def _marked(self, marks: Marks) -> Reading[bool]:
        if marks.begin == FUNCTION:
            follows = yield from read_tag_call(self._sink)
            return follows is not None and (yield from self._calls(follows))
        character = yield from skip_space()
        if not marks.end and (character.isalnum() or character == "_"):
            follows = yield from self._named_call(character)
            return follows is not None and (yield from self._calls(follows))
        return (yield from self._calls(character))

    def _bare(self) -> Reading[bool]:
        character = yield
        if character == "`":
            if (yield from read_word(character, (_FENCE,))) != _FENCE:
                return False
            character = yield
            if character == "j":
                if (yield from read_word(character, (_FENCE_TAG,))) != _FENCE_TAG:
                    return False
                character = yield
        return (yield from self._calls(character))

    def _calls(self, follows: str) -> Reading[bool]:
        """Calls in a row; `follows` has been read already."""
        sink = self._sink
        num_before = sink.num_begun
        while follows:
            call: str | None
            if follows in SPACE or follows in _BETWEEN or (follows == "[" and sink.num_begun == num_before):
                call = yield from skip_space()
            elif follows in _AFTER and sink.num_begun:
                sink.drop()
                call = yield from skip_space()
            elif follows == "{":
                call = yield from read_call(sink)
            else:
                word = yield from read_word(follows, self._words)
                if word != FUNCTION:
                    return word in self._words
                call = yield from read_tag_call(sink)
            if call is None:
                return False
            follows = call
        return False

    def _named_call(self, begun: str) -> Reading[str | None]:
        """`NAME{...}` or `NAME[ARGS]{...}` (Mistral, from its eleventh tokenizer on)."""
        name = begun
        character = yield
        while character not in {"", "{"} and len(name) < _MAX_NAMED:
            name += character
            character = yield
        named = _NAMED.fullmatch(name)
        if character != "{" or named is None or not self._sink.may_call(named[1]):
            return None
        self._sink.begin(named[1])
        return (yield from read_arguments(self._sink))

    # --- text --------------------------------------------------------------------------------------

    def _emit(self, kind: type[Text | Thinking], text: str) -> None:
        if self._after_mark:
            text = text.lstrip()
        if text:
            self._after_mark = False
            if kind is Text and text.strip():
                self._at_start = False
            self._sink.add(kind(text))

    def _emit_certain(self, kind: type[Text | Thinking], marks: tuple[str, ...]) -> None:
        """Emit what waits except for what may begin a mark, and the space before that."""
        certain = self._waiting[: len(self._waiting) - num_held(self._waiting, marks)].rstrip()
        self._emit(kind, certain)
        self._waiting = self._waiting[len(certain) :]


def _begins(mark: str, text: str) -> bool:
    """Whether `text` is the beginning of a mark, and not all of it."""
    return len(text) < len(mark) and mark.startswith(text)


def _send(block: Reading[bool], character: str) -> bool | None:
    """Let a block read one more character; whether it is whole once it has ended, None before."""
    try:
        block.send(character)
    except StopIteration as end:
        return bool(end.value)
    return None
