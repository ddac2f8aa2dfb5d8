"""llama.cpp as a worker process, see `outpace.bench.peers.worker`.

Run as `python -m outpace.bench.peers.llama_cpp`. It uses the C API through llama-cpp-python's ctypes
bindings, without that package's Python sampling: a greedy pick is numpy's argmax over the logits.
What it reports are its best figures: threads busy only when asked, logits only of the rows that need
them, two contexts of one model (flash attention off and on) for the caller to take the better of.

Commands, by "op":
    load     path, threads, context            -> load_s, flags, version
    decode   token_ids, max_tokens, flash      -> token_ids, ttft_s, decode_s (greedy, past any end token)
    lookup   token_ids, max_tokens, flash, num_pred, max_ngram -> token_ids, ttft_s, decode_s, steps: the same
             with llama-cpp-python's prompt lookup (LlamaPromptLookupDecoding)
    step     rows, context, runs, flash        -> seconds: one for each run; every row yields logits
    prefill  tokens, flash                     -> seconds
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from outpace.bench.peers.worker import serve

BATCH_TOKENS = 2048  # n_batch: tokens in one llama_decode
MICRO_BATCH_TOKENS = 512  # n_ubatch: rows computed at once, llama.cpp's default


def _ignore(*_: object) -> None:
    """Takes llama.cpp's log lines."""


class LlamaCpp:
    """One model and its two contexts."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        """Load. Raises RuntimeError where llama.cpp refuses the file or the memory is short."""
        self._api: Any = importlib.import_module("llama_cpp")
        self._silence: Any = self._api.llama_log_callback(_ignore)  # must outlive the model
        self._api.llama_log_set(self._silence, ctypes.c_void_p(0))
        self._api.llama_backend_init()
        self._context_tokens = context
        started = perf_counter()
        self._model: Any = self._api.llama_model_load_from_file(
            path.encode(), self._api.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._contexts = {flash: self._new_context(threads, context, flash) for flash in (False, True)}
        self.load_s = perf_counter() - started
        self._vocab_size = int(self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model)))
        self._batch: Any = self._api.llama_batch_init(BATCH_TOKENS, 0, 1)

    def _new_context(self, threads: int, context: int, flash: bool) -> Any:
        api = self._api
        params = api.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        created = api.llama_init_from_model(self._model, params)
        if not created:
            raise RuntimeError("llama.cpp cannot make a context")
        return created

    @property
    def flags(self) -> str:
        """What the build uses of the CPU, as llama.cpp says it."""
        return str(self._api.llama_print_system_info().decode())

    def decode(self, token_ids: Sequence[int], max_tokens: int, flash: bool) -> dict[str, Any]:
        """Greedy generation of exactly `max_tokens`."""
        context = self._contexts[flash]
        self._forget(context)
        started = perf_counter()
        self._prefill(context, token_ids)
        chosen = [self._argmax(context)]
        first = perf_counter()
        for position in range(len(token_ids), len(token_ids) + max_tokens - 1):
            self._decode(context, chosen[-1:], position)
            chosen.append(self._argmax(context))
        return {"token_ids": chosen, "ttft_s": first - started, "decode_s": perf_counter() - first}

    def lookup(
        self, token_ids: Sequence[int], max_tokens: int, flash: bool, num_pred: int, max_ngram: int
    ) -> dict[str, Any]:
        """Greedy generation of exactly `max_tokens`, with drafts of `num_pred` tokens from the text."""
        context = self._contexts[flash]
        memory = self._api.llama_get_memory(context)
        self._forget(context)
        started = perf_counter()
        self._prefill(context, token_ids)
        text = np.array([*token_ids, self._argmax(context)], np.intc)
        first = perf_counter()
        steps = 0
        end = len(token_ids) + max_tokens
        while len(text) < end:
            position = len(text) - 1
            draft = _find_candidate(text, max_ngram, min(num_pred, end - len(text) - 1))
            rows = [int(text[-1]), *draft]
            self._decode(context, rows, position, all_logits=True)
            steps += 1
            chosen = [self._argmax(context, row) for row in range(len(rows))]
            accepted = 0
            while accepted < len(draft) and draft[accepted] == chosen[accepted]:
                accepted += 1
            self._api.llama_memory_seq_rm(memory, 0, position + 1 + accepted, -1)
            text = np.append(text, np.array(chosen[: accepted + 1], np.intc))
        seconds = perf_counter() - first
        new = text[len(token_ids) :].tolist()
        return {"token_ids": new, "ttft_s": first - started, "decode_s": seconds, "steps": steps}

    def step(self, rows: int, context_tokens: int, runs: int, flash: bool) -> list[float]:
        """Seconds of steps of `rows` rows after `context_tokens`, with logits for each row."""
        context = self._contexts[flash]
        memory = self._api.llama_get_memory(context)
        self._forget(context)
        self._prefill(context, self._arbitrary(context_tokens))
        token_ids = self._arbitrary(rows)
        seconds: list[float] = []
        for _ in range(runs + 1):
            seconds.append(self._decode(context, token_ids, context_tokens, all_logits=True))
            self._api.llama_memory_seq_rm(memory, 0, context_tokens, -1)
        return seconds[1:]  # the first one warms up

    def prefill(self, num_tokens: int, flash: bool) -> float:
        """Seconds of computing a prompt of `num_tokens` from nothing."""
        context = self._contexts[flash]
        self._forget(context)
        return self._prefill(context, self._arbitrary(num_tokens))

    def _prefill(self, context: Any, token_ids: Sequence[int]) -> float:
        starts = range(0, len(token_ids), BATCH_TOKENS)
        return sum(self._decode(context, token_ids[start : start + BATCH_TOKENS], start) for start in starts)

    def _decode(
        self, context: Any, token_ids: Sequence[int], position: int, *, all_logits: bool = False
    ) -> float:
        """Seconds inside llama.cpp; filling the batch through ctypes is not counted."""
        if position + len(token_ids) > self._context_tokens:  # llama.cpp would abort the process
            raise ValueError(f"more than the context of {self._context_tokens} tokens")
        batch = self._batch
        count = batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i] = token_id
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == count - 1
        started = perf_counter()
        if status := self._api.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode failed with {status}")
        self._api.llama_synchronize(context)
        return perf_counter() - started

    def _argmax(self, context: Any, row: int = -1) -> int:
        logits = self._api.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _forget(self, context: Any) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)

    def _arbitrary(self, count: int) -> list[int]:
        return np.random.default_rng(0).integers(0, self._vocab_size, count).tolist()


def _find_candidate(text: Any, max_ngram: int, num_pred: int) -> list[int]:
    """What followed the first place where the text's last tokens occur, the longest n-gram first.

    As `LlamaPromptLookupDecoding.find_candidate_pred_tokens` of llama-cpp-python does it.
    """
    for size in range(min(max_ngram, len(text) - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(text, (size,))
        for index in np.nonzero(np.all(windows == text[-size:], axis=1))[0]:
            start = int(index) + size
            end = min(start + num_pred, len(text))
            if start < end:
                return text[start:end].tolist()
    return []


class Worker:
    """Answers the commands; holds at most one model."""

    def __init__(self) -> None:
        self._peer: LlamaCpp | None = None

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        match command:
            case {"op": "load", "path": path, "threads": threads, "context": context}:
                self._peer = LlamaCpp(path, threads, context)
                version = importlib.metadata.version("llama-cpp-python")
                return {"load_s": self._peer.load_s, "flags": self._peer.flags.strip(), "version": version}
            case {"op": "decode", "token_ids": token_ids, "max_tokens": max_tokens, "flash": flash}:
                return self._loaded.decode(token_ids, max_tokens, flash)
            case {"op": "lookup", **arguments}:
                return self._loaded.lookup(**arguments)
            case {"op": "step", "rows": rows, "context": context, "runs": runs, "flash": flash}:
                return {"seconds": self._loaded.step(rows, context, runs, flash)}
            case {"op": "prefill", "tokens": tokens, "flash": flash}:
                return {"seconds": self._loaded.prefill(tokens, flash)}
            case _:
                raise ValueError(f"not a command: {command}")

    @property
    def _loaded(self) -> LlamaCpp:
        if self._peer is None:
            raise RuntimeError("no model is loaded")
        return self._peer


if __name__ == "__main__":
    serve(Worker().answer)
