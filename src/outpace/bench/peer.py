"""`bench peer`: the same workload through Outpace and llama.cpp in one run, turn by turn, as ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from outpace.bench.bandwidth import threads_of
from outpace.bench.contenders import Contender, LlamaCppContender, LlamaCppProcess, OutpaceContender
from outpace.bench.step import PREFILL_LENGTHS, ROW_COUNTS
from outpace.bench.workload import WorkloadRequest
from outpace.llm import LLM

OURS = "outpace"
STEP_ROWS = (1, 8, 16, 32)
LONG_CONTEXT = 2048  # where decoding is measured once more
STEP_RUNS = 5  # in each round
PAUSE = 0.25  # seconds between turns: OpenMP's threads spin for 0.2 s after their last work

Prompt = tuple[Sequence[int], int]
"""A request of the workload: prompt token ids, and the tokens to generate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One engine's figures: medians over the rounds; the field names are keys of the JSON and stay."""

    decode_tok_s: float  # over the whole workload, tokens after the first
    ttft_ms: float  # median over the requests
    step_ms: Mapping[str, float]  # rows in one request at context 256 -> milliseconds
    prefill_tok_s: Mapping[str, float]  # prompt tokens -> tokens/s
    context_decode: Mapping[str, float]  # tokens of context -> tokens/s of steps of one row


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    """The figures of `bench peer`. A ratio above 1 says that Outpace is faster by that factor.

    `peer` holds, for each figure, the better of llama.cpp's two (flash attention off and on), and
    `peer_variants` holds both. `equal_tokens` is the share of generated tokens before the first that
    differs between the engines; their arithmetic is not the same, so it may be below 1.
    """

    model: str
    workload: str
    rounds: int
    threads: int
    outpace_build: Mapping[str, str | int]
    peer_build: Mapping[str, str]
    outpace_load_s: float
    peer_load_s: float
    outpace: Figures
    peer: Figures
    peer_variants: Mapping[str, Figures]
    ratio: Figures
    equal_tokens: float


@dataclass(slots=True)
class _Samples:
    """What one contender measured, over the rounds."""

    decode_tok_s: list[float]
    ttft_ms: list[float]
    step_ms: dict[str, list[float]]
    prefill_tok_s: dict[str, list[float]]
    context_decode: dict[str, list[float]]
    outputs: list[Sequence[int]]  # of the last round

    def figures(self) -> Figures:
        return Figures(
            decode_tok_s=median(self.decode_tok_s),
            ttft_ms=median(self.ttft_ms),
            step_ms={rows: median(values) for rows, values in self.step_ms.items()},
            prefill_tok_s={length: median(values) for length, values in self.prefill_tok_s.items()},
            context_decode={context: median(values) for context, values in self.context_decode.items()},
        )


def compare(
    contenders: Mapping[str, Contender],
    prompts: Sequence[Prompt],
    *,
    rounds: int,
    max_context: int,
    pause: float = PAUSE,
    on_turn: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Figures], dict[str, list[Sequence[int]]]]:
    """Measure the contenders strictly in turn, never two at a time; every other round in reverse order.

    Prompt lengths above `max_context`, and contexts that reach it, are left out. Returns figures and the last
    round's token ids, by contender.
    """
    lengths = [length for length in PREFILL_LENGTHS if length <= max_context]
    contexts = [context for context in (LONG_CONTEXT,) if context < max_context]
    samples = {name: _new_samples(lengths, contexts) for name in contenders}
    measurements: list[tuple[str, Callable[[Contender, _Samples], None]]] = [
        ("decode", lambda contender, into: _decode(contender, prompts, into)),
        *((f"step({rows})", _step(rows)) for rows in STEP_ROWS),
        *((f"prefill({length})", _prefill(length)) for length in lengths),
        *((f"decode at {context}", _decode_at(context)) for context in contexts),
    ]
    names = list(contenders)
    for number in range(rounds):
        for what, measure in measurements:
            for name in names if number % 2 == 0 else reversed(names):
                on_turn(f"round {number + 1} of {rounds}: {what}, {name}")
                time.sleep(pause)
                measure(contenders[name], samples[name])
    outputs = {name: taken.outputs for name, taken in samples.items()}
    return {name: taken.figures() for name, taken in samples.items()}, outputs


def bench_peer(
    llm: LLM,
    path: Path,
    requests: Sequence[WorkloadRequest],
    *,
    workload: str,
    rounds: int,
    max_tokens: int,
    on_turn: Callable[[str], None] = lambda _: None,
) -> PeerReport:
    """Compare `llm` with llama.cpp on the same GGUF file and the same prompt token ids.

    `llm` must have drafts and the prefix cache off: plain decoding is compared, and every round starts
    from nothing. Each request generates its `max_tokens`, but at most `max_tokens`, past any end token.
    Raises OutpaceError where llama-cpp-python is not installed, BackendError where llama.cpp fails.
    """
    prompts: list[Prompt] = [
        (llm.encode_chat(request.messages), max(2, min(request.max_tokens, max_tokens)))
        for request in requests
    ]
    longest = max(len(token_ids) + count for token_ids, count in prompts)
    max_prefill = min(max(PREFILL_LENGTHS), llm.config.max_context)
    threads = threads_of(llm.backend.description)
    with closing(LlamaCppProcess(path, threads, max(longest, max_prefill) + max(ROW_COUNTS))) as process:
        contenders: dict[str, Contender] = {
            OURS: OutpaceContender(llm),
            "flash_attention_off": LlamaCppContender(process, flash=False),
            "flash_attention_on": LlamaCppContender(process, flash=True),
        }
        figures, outputs = compare(
            contenders, prompts, rounds=rounds, max_context=llm.config.max_context, on_turn=on_turn
        )
    variants = {name: taken for name, taken in figures.items() if name != OURS}
    best = better(list(variants.values()))
    return PeerReport(
        model=llm.model_name,
        workload=workload,
        rounds=rounds,
        threads=threads,
        outpace_build=dict(llm.backend.description),
        peer_build={"llama-cpp-python": process.version, "flags": process.flags},
        outpace_load_s=llm.load_seconds,
        peer_load_s=process.load_seconds,
        outpace=figures[OURS],
        peer=best,
        peer_variants=variants,
        ratio=ratios(figures[OURS], best),
        equal_tokens=equal_share(outputs[OURS], outputs["flash_attention_off"]),
    )


def better(variants: Sequence[Figures]) -> Figures:
    """The best value of each figure among one engine's variants."""
    return Figures(
        decode_tok_s=max(figures.decode_tok_s for figures in variants),
        ttft_ms=min(figures.ttft_ms for figures in variants),
        step_ms={rows: min(f.step_ms[rows] for f in variants) for rows in variants[0].step_ms},
        prefill_tok_s={
            length: max(f.prefill_tok_s[length] for f in variants) for length in variants[0].prefill_tok_s
        },
        context_decode={
            context: max(f.context_decode[context] for f in variants)
            for context in variants[0].context_decode
        },
    )


def ratios(ours: Figures, theirs: Figures) -> Figures:
    """How many times faster ours is than theirs, figure by figure (times are turned over)."""
    return Figures(
        decode_tok_s=ours.decode_tok_s / theirs.decode_tok_s,
        ttft_ms=theirs.ttft_ms / ours.ttft_ms,
        step_ms={rows: theirs.step_ms[rows] / ours.step_ms[rows] for rows in ours.step_ms},
        prefill_tok_s={
            length: ours.prefill_tok_s[length] / theirs.prefill_tok_s[length] for length in ours.prefill_tok_s
        },
        context_decode={
            context: speed / theirs.context_decode[context] for context, speed in ours.context_decode.items()
        },
    )


def equal_share(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of tokens that come before the first difference, over all requests."""
    equal = sum(_common_prefix(mine, other) for mine, other in zip(ours, theirs, strict=True))
    return equal / max(1, sum(len(mine) for mine in ours))


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for count, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return count
    return min(len(first), len(second))


def _new_samples(lengths: Sequence[int], contexts: Sequence[int]) -> _Samples:
    def empty(keys: Sequence[int]) -> dict[str, list[float]]:
        return {str(key): [] for key in keys}

    return _Samples([], [], empty(STEP_ROWS), empty(lengths), empty(contexts), [])


def _decode(contender: Contender, prompts: Sequence[Prompt], into: _Samples) -> None:
    decoded = [contender.decode(token_ids, max_tokens) for token_ids, max_tokens in prompts]
    seconds = sum(one.decode_seconds for one in decoded)
    into.decode_tok_s.append(sum(len(one.token_ids) - 1 for one in decoded) / seconds)
    into.ttft_ms.append(1e3 * median(one.ttft_seconds for one in decoded))
    into.outputs = [one.token_ids for one in decoded]


def _step(rows: int) -> Callable[[Contender, _Samples], None]:
    def measure(contender: Contender, into: _Samples) -> None:
        into.step_ms[str(rows)] += [1e3 * seconds for seconds in contender.step(rows, STEP_RUNS)]

    return measure


def _prefill(length: int) -> Callable[[Contender, _Samples], None]:
    def measure(contender: Contender, into: _Samples) -> None:
        into.prefill_tok_s[str(length)].append(length / contender.prefill(length))

    return measure


def _decode_at(context: int) -> Callable[[Contender, _Samples], None]:
    def measure(contender: Contender, into: _Samples) -> None:
        into.context_decode[str(context)] += [
            1 / seconds for seconds in contender.step(1, STEP_RUNS, context)
        ]

    return measure
