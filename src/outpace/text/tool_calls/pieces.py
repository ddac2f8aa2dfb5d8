"""What an answer consists of, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """More of the text that is meant for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """More of the model's thoughts."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool begins; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text that is the call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is whole. Where the answer ends in the midst of one, this never comes."""


Piece = Text | Thinking | CallBegin | CallArguments | CallEnd


def merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces with neighbours of one kind put together."""
    kind: type[Text | Thinking | CallArguments] | None = None
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, CallBegin | CallEnd):
            if kind is not None:
                yield kind("".join(texts))
            kind, texts = None, []
            yield piece
        elif kind is type(piece):
            texts.append(piece.text)
        else:
            if kind is not None:
                yield kind("".join(texts))
            kind, texts = type(piece), [piece.text]
    if kind is not None:
        yield kind("".join(texts))
