"""Embeddings of prompts: the mean of their tokens' final hidden states.

A decoder's mean is what `/v1/embeddings` gives of a model that was not trained for embeddings. The states are
those after the output norm, row-wise like all else, and added one after the other in double precision: an
embedding has the same bits however its prompt was cut into steps, and whatever ran beside it.
"""

from __future__ import annotations

import numpy as np

from outpace.types import Float32Array

__all__ = ["PooledStates"]


class PooledStates:
    """The sum of a prompt's states so far. A prompt that is begun anew is added up anew."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._num_added = 0
        self._sum = np.zeros(0, np.float64)

    @property
    def is_whole(self) -> bool:
        """Whether all of the prompt's tokens are in."""
        return self._num_added == self._num_tokens

    def add(self, position: int, states: Float32Array) -> None:
        """Add the states, [rows, hidden_size], of the prompt's tokens from `position` on."""
        if position == 0:
            self._num_added = 0
            self._sum = np.zeros(states.shape[1], np.float64)
        assert position == self._num_added, "each state counts once, in order"
        added = states[: self._num_tokens - position]
        for state in added:  # one by one: the order of numpy's own sum depends on their number
            np.add(self._sum, state, out=self._sum)
        self._num_added += len(added)

    def mean(self) -> tuple[float, ...]:
        """The mean, [hidden_size], in single precision."""
        return tuple((self._sum / self._num_tokens).astype(np.float32).tolist())
