"""The native core's threads as a user meets them: idle they cost nothing, and two models share a machine."""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from outpace import backends
from outpace.config import resolve_engine_config
from outpace.models.checkpoint import open_checkpoint
from outpace.types import Backend
from stepping import Rows, make_batch


def load(path: Path) -> Backend:
    checkpoint = open_checkpoint(path)
    options = {"backend": "native", "kv_cache_bytes": 4 << 20, "num_threads": 2}
    return backends.create(checkpoint, resolve_engine_config(checkpoint.spec, options))


def decode(backend: Backend, seconds: float) -> tuple[list[int], float]:
    """Greedy tokens of a short text, over and over, for some time; steps per second."""
    tokens: list[int] = []
    num_steps, start = 0, time.perf_counter()
    while not num_steps or time.perf_counter() - start < seconds:
        text, fed = [1, 2, 3, 4, 5], 0
        while len(text) < 20:
            out = backend.step(make_batch([Rows(text[fed:], fed, [0])]))
            fed = len(text)
            text.append(int(out.token_ids[0, 0]))
            num_steps += 1
        assert not tokens or tokens == text
        tokens = text
    return tokens, num_steps / (time.perf_counter() - start)


def together(models: Sequence[Backend], seconds: float) -> list[tuple[list[int], float]]:
    with ThreadPoolExecutor(len(models)) as threads:
        ready = threading.Barrier(len(models))

        def one(model: Backend) -> tuple[list[int], float]:
            ready.wait(10)
            return decode(model, seconds)

        return list(threads.map(one, models))


def idle_cpu_seconds(path: Path) -> float:
    """Of this process in a second, with a model that has worked and waits."""
    model = load(path)
    decode(model, 0.1)
    time.sleep(0.1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    model.close()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_an_idle_model_costs_nothing(tiny_checkpoint) -> None:
    # In a process of its own: here other tests' threads may still clean up.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        used = process.submit(idle_cpu_seconds, tiny_checkpoint("llama").path).result(60)
    assert used < 0.01


def test_two_models_share_the_cores(model_135m: Path) -> None:
    """Each gets its share, and the same tokens as alone."""
    models = [load(model_135m), load(model_135m)]
    alone, pace = decode(models[0], 0.5)
    for attempt in range(4):  # whatever else runs here takes its share too
        results = together(models, 1)
        for tokens, _ in results:
            assert tokens == alone
        if all(share > 0.3 * pace for _, share in results):
            break
        pace = decode(models[0], 0.5)[1]
        assert attempt < 3, (pace, [share for _, share in results])
    for model in models:
        model.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_do_not_depend_on_the_pool(tiny_checkpoint, threads: int) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama").path)
    outputs = []
    for pin in (True, False):
        options = {"kv_cache_bytes": 4 << 20, "num_threads": threads, "pin_threads": pin}
        model = backends.create(checkpoint, resolve_engine_config(checkpoint.spec, options))
        outputs.append(model.step(make_batch([Rows([1, 2, 3], 0, [0])], want_logits=True)).logits)
        model.close()
    np.testing.assert_array_equal(*outputs)
