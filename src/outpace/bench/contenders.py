"""Engines behind the same measurements, so that they can take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from outpace.bench.generate import follow
from outpace.bench.peers.worker import PeerProcess
from outpace.engine.step_driver import CONTEXT, StepDriver
from outpace.llm import LLM
from outpace.types import SamplingParams

INSTALL_HINT = (
    "llama-cpp-python is not installed. Build it with clang (gcc 12 builds crash on AMX): "
    'CC=clang-16 CXX=clang++-16 CMAKE_ARGS="-DGGML_NATIVE=ON" pip install "outpace[peer]"'
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """One greedy generation."""

    token_ids: tuple[int, ...]
    ttft_seconds: float
    decode_seconds: float  # from the first token to the last


class Contender(Protocol):
    """An engine that can be measured, one measurement at a time."""

    def decode(self, prompt_token_ids: Sequence[int], max_tokens: int) -> Decoded:
        """Generate exactly `max_tokens` greedily, past any end token."""
        ...

    def step(self, rows: int, runs: int, context: int = CONTEXT) -> list[float]:
        """Seconds of steps of `rows` rows in one request after `context` tokens, each row verified."""
        ...

    def prefill(self, num_tokens: int) -> float:
        """Seconds of computing a prompt from nothing."""
        ...


class OutpaceContender:
    """This engine, in this process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._driver = StepDriver(llm.backend, llm.config.max_batch_tokens)

    def decode(self, prompt_token_ids: Sequence[int], max_tokens: int) -> Decoded:
        """Through the engine's loop, as any caller does."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        timing = follow(lambda: iter(self._llm.loop.submit(prompt_token_ids, params)))
        return Decoded(tuple(timing.token_ids), (timing.ttft_ms or 0.0) / 1e3, timing.decode_seconds)

    def step(self, rows: int, runs: int, context: int = CONTEXT) -> list[float]:
        """Straight to the backend, after one run to warm up."""
        self._driver.prefill(context)
        return [self._driver.step(rows, context) for _ in range(runs + 1)][1:]

    def prefill(self, num_tokens: int) -> float:
        """Straight to the backend."""
        return self._driver.prefill(num_tokens)


class LlamaCppProcess(PeerProcess):
    """The worker process of `outpace.bench.peers.llama_cpp`. Raises OutpaceError where it is not installed.

    Attributes: `flags`, what its build uses of the CPU; `version`, of llama-cpp-python; `load_seconds`.
    """

    def __init__(self, path: Path, num_threads: int, context: int) -> None:
        super().__init__("llama.cpp", "outpace.bench.peers.llama_cpp", "llama_cpp", INSTALL_HINT)
        try:
            loaded = self.ask("load", path=str(path), threads=num_threads, context=context)
        except BaseException:
            self.close()
            raise
        self.flags = str(loaded["flags"])
        self.version = str(loaded["version"])
        self.load_seconds = float(loaded["load_s"])


class LlamaCppContender:
    """llama.cpp with flash attention on or off."""

    def __init__(self, process: LlamaCppProcess, *, flash: bool) -> None:
        self._process = process
        self._flash = flash

    def decode(self, prompt_token_ids: Sequence[int], max_tokens: int) -> Decoded:
        """llama_decode a token at a time, argmax between."""
        reply = self._process.ask(
            "decode", token_ids=list(prompt_token_ids), max_tokens=max_tokens, flash=self._flash
        )
        return Decoded(tuple(reply["token_ids"]), reply["ttft_s"], reply["decode_s"])

    def lookup(self, prompt_token_ids: Sequence[int], max_tokens: int, *, num_pred: int) -> Decoded:
        """The same with drafts by llama-cpp-python's prompt lookup, n-grams of up to 2 as it has them."""
        reply = self._process.ask(
            "lookup",
            token_ids=list(prompt_token_ids),
            max_tokens=max_tokens,
            flash=self._flash,
            num_pred=num_pred,
            max_ngram=2,
        )
        return Decoded(tuple(reply["token_ids"]), reply["ttft_s"], reply["decode_s"])

    def step(self, rows: int, runs: int, context: int = CONTEXT) -> list[float]:
        """llama_decode of one batch."""
        return self._process.ask("step", rows=rows, context=context, runs=runs, flash=self._flash)["seconds"]

    def prefill(self, num_tokens: int) -> float:
        """llama_decode of the prompt."""
        return float(self._process.ask("prefill", tokens=num_tokens, flash=self._flash)["seconds"])


class OpenVinoProcess(PeerProcess):
    """The worker process of `outpace.bench.peers.openvino`. Raises OutpaceError where it is not installed.

    Attributes: `version`, of openvino-genai; `load_seconds`, of two pipelines.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        hint = 'openvino-genai is not installed: pip install "outpace[peer]"'
        super().__init__("OpenVINO", "outpace.bench.peers.openvino", "openvino_genai", hint)
        try:
            loaded = self.ask("load", path=str(path), threads=num_threads)
        except BaseException:
            self.close()
            raise
        self.version = str(loaded["version"])
        self.load_seconds = float(loaded["load_s"])

    def decode_seconds(self, prompt_token_ids: Sequence[int], max_tokens: int, *, lookup: bool) -> float:
        """From the first token to the last of a greedy generation, with its prompt lookup or without."""
        reply = self.ask("decode", token_ids=list(prompt_token_ids), max_tokens=max_tokens, lookup=lookup)
        return float(reply["decode_s"])
