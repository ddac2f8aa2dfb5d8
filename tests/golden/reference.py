"""The stored reference of a real model: what transformers says in float32, small enough to commit.

A full row of logits is 150 thousand floats, so a reference keeps, for every position, the loss and
the likeliest token, and for every `stride`-th position the `TOP` likeliest tokens with their log
probabilities. The rest of the vocabulary is one more class, the tail. By the log sum inequality the
divergence over these classes never exceeds that over the whole vocabulary: `tail_kl` is a lower
bound of the true one, and a tight one where the tail is light (`test_oracle_real_models.py` measures
both on the smallest model).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
TOP = 64

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Document:
    """One text that the models read from position 0, and what the reference says of it.

    The entry at position t of `nll` and `best` speaks of the token after it, t + 1.
    """

    name: str
    kind: str  # "code" or "prose"
    token_ids: Ints  # [n]
    nll: Floats  # [n - 1] nats
    best: Ints  # [n] likeliest next token
    positions: Ints  # [m] those of which the distribution is kept
    top_token_ids: Ints  # [m, TOP] likeliest first
    top_logprobs: Floats  # [m, TOP] nats


@dataclass(frozen=True)
class Reference:
    """All documents of one model, and how they were made."""

    model_sha256: str
    made_with: dict[str, str]
    documents: list[Document]


def save(reference: Reference, path: Path) -> None:
    """Write a reference as one compressed npz file."""
    arrays: dict[str, NDArray[np.generic]] = {}
    heads: list[dict[str, str]] = []
    for i, document in enumerate(reference.documents):
        heads.append({"name": document.name, "kind": document.kind})
        for field in ("token_ids", "nll", "best", "positions", "top_token_ids", "top_logprobs"):
            arrays[f"{i}.{field}"] = getattr(document, field)
    head = {"model_sha256": reference.model_sha256, "made_with": reference.made_with, "documents": heads}
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load(name: str) -> Reference:
    """Read the reference `tests/golden/data/{name}.npz`."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        head = json.loads(arrays["head"].tobytes())
        documents = [
            Document(
                name=entry["name"],
                kind=entry["kind"],
                token_ids=arrays[f"{i}.token_ids"],
                nll=arrays[f"{i}.nll"],
                best=arrays[f"{i}.best"],
                positions=arrays[f"{i}.positions"],
                top_token_ids=arrays[f"{i}.top_token_ids"],
                top_logprobs=arrays[f"{i}.top_logprobs"],
            )
            for i, entry in enumerate(head["documents"])
        ]
    return Reference(head["model_sha256"], head["made_with"], documents)


def exact_kl(reference: Floats, logits: Floats) -> NDArray[np.float64]:
    """KL(reference || ours) in nats for each row of two arrays of logits [rows, vocab]."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Log probabilities of logits [..., vocab], in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def tail_kl(top_logprobs: Floats, our_logprobs: NDArray[np.floating]) -> NDArray[np.float64]:
    """KL over the kept classes and the tail, for each row: never above the exact one.

    Both are [rows, TOP], of the same tokens: the reference's likeliest.
    """
    p, q = top_logprobs.astype(np.float64), our_logprobs.astype(np.float64)
    p_tail = np.clip(1.0 - np.exp(p).sum(axis=-1), 1e-9, 1.0)
    q_tail = np.clip(1.0 - np.exp(q).sum(axis=-1), 1e-9, 1.0)
    return (np.exp(p) * (p - q)).sum(axis=-1) + p_tail * np.log(p_tail / q_tail)
