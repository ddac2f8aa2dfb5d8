"""A backend that writes what a test tells it to: the null backend, with its choices replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from outpace.llm import LLM
from outpace.types import StepBatch, StepOutput


class ScriptedBackend:
    """Every request's output is one of the scripts, told apart by the length of its prompt."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.script: Sequence[int] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self, batch: StepBatch) -> StepOutput:
        """As the null backend's, but the token at a position of the output is the script's."""
        out = self._backend.step(batch)
        starts = batch.row_start
        for i in range(batch.num_requests):
            if not batch.sample[i]:
                continue
            num_rows = int(starts[i + 1] - starts[i]) - int(batch.num_draft_tokens[i])
            position = int(batch.num_computed_tokens[i]) + num_rows
            index = position - int(batch.sampling["num_prompt_tokens"][i])
            out.token_ids[i, 0] = self.script[min(index, len(self.script) - 1)]
            out.num_accepted[i] = 0
        return out


@contextmanager
def saying(llm: LLM, text: str) -> Iterator[None]:
    """Within, every answer of `llm` is `text`, and then its end."""
    engine = llm.loop.engine
    before = engine.backend
    scripted = ScriptedBackend(before)
    tokens = llm.tokenizer.encode(text, add_special=False, parse_special=True)
    scripted.script = [*tokens, min(llm.tokenizer.eos_ids)]
    engine.backend = scripted
    try:
        yield
    finally:
        engine.backend = before
