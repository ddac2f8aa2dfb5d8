"""What speculation did, shown: tokens coloured by who drafted them, and a line of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outpace.types import DraftCount, TokenDelta

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["DraftPainter", "drafts_line"]

# Select graphic rendition (ECMA-48): one colour for each proposer, in the order in which they appear.
COLOURS = ("\x1b[32m", "\x1b[36m", "\x1b[35m", "\x1b[33m", "\x1b[34m", "\x1b[31m")
PLAIN = "\x1b[0m"


class DraftPainter:
    """Colours the drafted part of each delta of one stream; what plain decoding chose stays as it is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from outpace.text.detokenizer import Detokenizer

        self._detokenizer = Detokenizer(tokenizer)
        self._colours: dict[str, str] = {}

    def paint(self, delta: TokenDelta) -> str:
        """The delta's text, its drafted beginning in the proposer's colour."""
        drafted = self._detokenizer.push(list(delta.token_ids[: delta.num_from_draft]))
        self._detokenizer.push(list(delta.token_ids[delta.num_from_draft :]))
        if not delta.num_from_draft or not drafted or not delta.text.startswith(drafted):
            return delta.text  # a stop string held text back, or the drafts ended within a character
        return self._colour(delta.proposer) + drafted + PLAIN + delta.text[len(drafted) :]

    def legend(self) -> str:
        """Which colour is whose, for the proposers that were seen."""
        return " · ".join(f"{colour}{proposer}{PLAIN}" for proposer, colour in self._colours.items())

    def _colour(self, proposer: str) -> str:
        if proposer not in self._colours:
            self._colours[proposer] = COLOURS[len(self._colours) % len(COLOURS)]
        return self._colours[proposer]


def drafts_line(counts: Sequence[DraftCount], num_steps: int, seconds: float) -> str:
    """Accepted of drafted tokens by proposer, and what drafting took in `num_steps` steps, in one line."""
    parts = [f"{each.proposer} {each.num_accepted} of {each.num_drafted}" for each in counts]
    return f"drafts accepted: {', '.join(parts)} · {seconds / max(1, num_steps) * 1e6:.0f} µs a step to draft"
