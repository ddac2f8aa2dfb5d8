"""What looking up costs: a token's update and look-up must not be felt in a step of a few milliseconds."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pytest
from kept_text import said, text_of

from outpace import _native
from outpace.draft.suffix import OWN_ORDERS, SHARED_ORDERS, SuffixProposer
from outpace.llm import LLM
from outpace.types import Int32Array

MOST = 20e-6  # seconds for a token; on a quiet Zen 4 about 3e-6


@pytest.fixture(scope="module")
def code(model_135m: Path) -> Int32Array:
    """Tokens of the standard library's source: text with long repetitions, as agents read it."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    text = "".join(file.read_text(errors="replace") for file in files)
    with LLM(model_135m, backend="null", max_context=32) as llm:
        return np.array(llm.tokenizer.encode(text[:1_500_000]), np.int32)


@pytest.mark.parametrize("length", [2_000, 32_000, 200_000])
def test_a_request_s_own_text(code: Int32Array, length: int) -> None:
    index = _native.TokenIndex(1 << 30, OWN_ORDERS)
    # Half of what comes is new, half was there before.
    come = np.concatenate([code[length : length + 250], code[length // 2 : length // 2 + 250]])
    text = np.concatenate([code[:length], come])
    start = perf_counter()
    _native.propose_own([index], [text[:length]], [16])
    assert (perf_counter() - start) / length < MOST
    times: list[float] = []
    for end in range(length + 1, len(text) + 1):
        start = perf_counter()
        _native.propose_own([index], [text[:end]], [16])
        times.append(perf_counter() - start)
    assert median(times) < MOST


def test_everyone_s_text(code: Int32Array) -> None:
    index = _native.TokenIndex(len(code), SHARED_ORDERS)
    start = perf_counter()
    index.append(code)
    assert (perf_counter() - start) / len(code) < MOST
    times: list[float] = []
    found = 0
    for end in range(1_000, len(code), len(code) // 500):
        start = perf_counter()
        found += _native.propose_shared([index], [code[end - 64 : end]], [16]) is not None
        times.append(perf_counter() - start)
    assert found > 400
    assert median(times) < MOST


@pytest.mark.parametrize("is_prompt", [False, True])
@pytest.mark.parametrize("length", [2_000, 32_000, 200_000])
def test_a_text_that_is_rewritten(code: Int32Array, length: int, is_prompt: bool) -> None:
    """Its place is lost, and searched for at each token, for half of the output."""
    start = perf_counter()
    cursor = _native.EditCursor(code[:length], is_prompt)
    assert (perf_counter() - start) / length < MOST
    output = np.concatenate([code[length // 2 : length // 2 + 100], code[-300:], code[100:300]])
    times: list[float] = []
    num_guessed = 0
    for end in range(1, len(output) + 1):
        start = perf_counter()
        num_guessed += _native.propose_edits([cursor], [output[:end]], [0], [16]) is not None
        times.append(perf_counter() - start)
    assert num_guessed > 200
    assert median(times) < MOST


def test_a_look_up_and_an_update_take_microseconds() -> None:
    """Twenty are the limit for both together; a busy machine gets ten tries."""

    def seconds() -> float:
        proposer, request = SuffixProposer(), said(text_of(8000))
        proposer.propose([request], [16])
        tokens: Int32Array = np.array([*request.tokens, *request.tokens[100:400]], np.int32)
        took: list[float] = []
        for length in range(8001, 8300):
            request.tokens = tokens[:length]  # type: ignore[assignment]  # a view, as the engine's requests give
            start = perf_counter()
            proposer.propose([request], [16])
            took.append(perf_counter() - start)
        return median(took)

    assert min(seconds() for _ in range(10)) < MOST
