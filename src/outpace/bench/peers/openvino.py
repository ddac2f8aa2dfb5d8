"""OpenVINO GenAI as a worker process, see `outpace.bench.peers.worker`.

Run as `python -m outpace.bench.peers.openvino`. It reads the GGUF file itself. Its prompt lookup runs with
the settings of its own examples: 5 tokens, n-grams of 3.

Commands, by "op":
    load     path, threads                     -> load_s, version
    decode   token_ids, max_tokens, lookup     -> ttft_s, decode_s (greedy, past any end token)
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from outpace.bench.peers.worker import serve

LOOKUP_TOKENS = 5
LOOKUP_NGRAM = 3


class OpenVino:
    """One model as two pipelines, with and without prompt lookup: a pipeline is one or the other."""

    def __init__(self, path: str, threads: int) -> None:
        self._genai: Any = importlib.import_module("openvino_genai")
        self._tensor: Any = importlib.import_module("openvino").Tensor
        started = perf_counter()
        self._pipelines = {lookup: self._new_pipeline(path, threads, lookup) for lookup in (False, True)}
        self.load_s = perf_counter() - started

    def _new_pipeline(self, path: str, threads: int, lookup: bool) -> Any:
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if lookup:
            options["prompt_lookup"] = True
        return self._genai.LLMPipeline(path, "CPU", **options)

    def decode(self, token_ids: Sequence[int], max_tokens: int, lookup: bool) -> dict[str, Any]:
        """Greedy generation of exactly `max_tokens`."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        if lookup:
            config.num_assistant_tokens = LOOKUP_TOKENS
            config.max_ngram_size = LOOKUP_NGRAM
        ids = np.array([token_ids], np.int64)
        inputs = self._genai.TokenizedInputs(self._tensor(ids), self._tensor(np.ones_like(ids)))
        came: list[float] = []

        def note(_text: str) -> bool:
            came.append(perf_counter())
            return False

        started = perf_counter()
        result = self._pipelines[lookup].generate(inputs, config, note)
        ended = perf_counter()
        first = result.perf_metrics.get_ttft().mean / 1e3
        return {"ttft_s": first, "decode_s": ended - started - first}


class Worker:
    """Answers the commands; holds at most one model."""

    def __init__(self) -> None:
        self._peer: OpenVino | None = None

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        match command:
            case {"op": "load", "path": path, "threads": threads}:
                self._peer = OpenVino(path, threads)
                return {"load_s": self._peer.load_s, "version": importlib.metadata.version("openvino-genai")}
            case {"op": "decode", **arguments} if self._peer is not None:
                return self._peer.decode(**arguments)
            case _:
                raise ValueError(f"not a command, or no model is loaded: {command}")


if __name__ == "__main__":
    serve(Worker().answer)
