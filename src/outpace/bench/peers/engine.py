"""Outpace's own engine in a worker process: what a server stands in front of."""

from __future__ import annotations

import time
from typing import Any

from outpace.bench.answers import AnswerTiming
from outpace.bench.peers.worker import serve
from outpace.llm import LLM
from outpace.types import SamplingParams


class Worker:
    """The worker's state: the model."""

    def __init__(self) -> None:
        self._llm: LLM | None = None

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Load a model, or answer a conversation."""
        if command["op"] == "load":
            self._llm = LLM(command["model"], draft=command["draft"], draft_persist=False)
            return {}
        assert self._llm is not None
        params = SamplingParams(max_tokens=command["max_tokens"], temperature=0.0, ignore_eos=True)
        timing = AnswerTiming(time.perf_counter())
        for delta in self._llm.stream(command["messages"], params):
            if delta.text:
                timing.events.append(time.perf_counter() - timing.start)
            timing.prompt_tokens, timing.completion_tokens = delta.num_prompt_tokens, delta.num_output_tokens
        return {
            "ttft": timing.ttft,
            "tpot": timing.tpot,
            "prompt_tokens": timing.prompt_tokens,
            "completion_tokens": timing.completion_tokens,
        }


if __name__ == "__main__":
    serve(Worker().answer)
