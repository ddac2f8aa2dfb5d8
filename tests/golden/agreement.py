"""How well a backend agrees with a stored reference, and the bounds that it must meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.reference import Document, tail_kl
from outpace.types import Backend
from stepping import Rows, blocks_for, make_batch, prompt

MAX_MEAN_KL = 0.01  # nats
MIN_TOP1 = 0.97
MAX_PERPLEXITY_CHANGE = 0.01
MAX_KV_PERPLEXITY_CHANGE = 0.005  # of int8 keys and values against f16
"""Int8 activations and an int8 KV cache stay well inside; a wrong rope, norm, mask or scale cannot."""


@dataclass(frozen=True)
class Agreement:
    """A backend beside the reference on one document, position by position."""

    document: Document
    kl: NDArray[np.float64]  # [m] nats, at document.positions; a lower bound, see golden.reference
    best: NDArray[np.int64]  # [n] our likeliest next token
    nll: NDArray[np.float64]  # [n - 1] nats


@dataclass(frozen=True)
class Figures:
    """The three figures that the bounds speak of."""

    num_tokens: int
    mean_kl: float
    top1: float
    perplexity_change: float  # relative

    @property
    def within_bounds(self) -> bool:
        """Whether all three bounds hold."""
        return (
            self.mean_kl < MAX_MEAN_KL
            and self.top1 >= MIN_TOP1
            and abs(self.perplexity_change) < MAX_PERPLEXITY_CHANGE
        )

    def __str__(self) -> str:
        return (
            f"{self.num_tokens} tokens: mean KL {self.mean_kl:.5f}, top-1 {self.top1:.4f}, "
            f"perplexity {self.perplexity_change:+.3%}"
        )


def compare(
    backend: Backend, document: Document, *, length: int | None = None, chunk: int = 128
) -> Agreement:
    """Run the first `length` tokens of a document from position 0, in chunks, as one request."""
    ids = document.token_ids[:length]
    table = list(range(blocks_for(len(ids))))
    kls, bests, nlls = [], [], []
    for start in range(0, len(ids), chunk):
        rows = Rows(ids[start : start + chunk], start, table, sample=False, sampling=prompt(len(ids)))
        logits = backend.step(make_batch([rows], want_logits=True)).logits
        assert logits is not None
        assert np.isfinite(logits).all()
        bests.append(logits.argmax(-1))
        normalizer = _log_sum_exp(logits)  # [rows]
        following = ids[start + 1 : start + 1 + chunk]
        picked = logits[np.arange(len(following)), following].astype(np.float64)
        nlls.append(normalizer[: len(following)] - picked)
        kept = np.flatnonzero((document.positions >= start) & (document.positions < start + len(logits)))
        at = document.positions[kept] - start
        ours = np.take_along_axis(logits[at], document.top_token_ids[kept].astype(np.int64), axis=-1)
        kls.append(tail_kl(document.top_logprobs[kept], ours - normalizer[at, None]))
    return Agreement(document, np.concatenate(kls), np.concatenate(bests), np.concatenate(nlls))


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    tops = logits.max(axis=-1)
    # Row by row: what lies between stays in the processor's cache, in a third of the time.
    sums = [np.exp(row - top).sum(dtype=np.float64) for row, top in zip(logits, tops, strict=True)]
    return np.log(sums) + tops


def figures(agreements: Sequence[Agreement], *, from_position: int = 0) -> Figures:
    """Figures over all documents given, of the positions from `from_position` on."""
    kl, same, ours, theirs = [], [], [], []
    for agreement in agreements:
        document, length = agreement.document, len(agreement.best)
        positions = document.positions[: len(agreement.kl)]
        kl.append(agreement.kl[positions >= from_position])
        same.append((agreement.best == document.best[:length])[from_position:])
        ours.append(agreement.nll[from_position:])
        theirs.append(document.nll[: len(agreement.nll)][from_position:])
    change = _mean(ours) - _mean(theirs)
    agree = np.concatenate(same)
    return Figures(len(agree), float(np.concatenate(kl).mean()), float(agree.mean()), math.expm1(change))


def perplexity_change(ours: Sequence[Agreement], theirs: Sequence[Agreement]) -> float:
    """How much higher our perplexity is than theirs on the same documents, relative."""
    assert ours
    assert [a.document.name for a in ours] == [a.document.name for a in theirs]
    return math.expm1(_mean([a.nll for a in ours]) - _mean([a.nll for a in theirs]))


def _mean(parts: Sequence[NDArray[np.floating]]) -> float:
    return float(np.concatenate(parts).astype(np.float64).mean())
