"""A request as drafters see it, without an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outpace.engine.sampling import pack
from outpace.types import DraftHints, Int32Array, SamplingParams


@dataclass
class Asking:
    """As much of a request as the controller and look-ups need."""

    key: str = "r/0"
    tokens: list[int] = field(default_factory=lambda: list(range(10)))
    hints: DraftHints = field(default_factory=DraftHints)
    num_prompt_tokens: int = 10
    num_cached_tokens: int = 0
    index: int = 0

    @property
    def token_ids(self) -> Int32Array:
        return np.asarray(self.tokens, np.int32)

    @property
    def sampling_record(self) -> NDArray[np.void]:
        return pack(SamplingParams(temperature=0.0), 0, self.num_prompt_tokens).record

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)
