"""`bench speculation`: drafts against llama.cpp, plain and with its own prompt lookup, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from outpace.bench.contenders import LlamaCppContender, LlamaCppProcess
from outpace.bench.generate import follow
from outpace.bench.peer import PAUSE
from outpace.bench.workload import WorkloadRequest
from outpace.llm import LLM
from outpace.types import DraftHints

LOOKUP_TOKENS = (2, 10)  # llama-cpp-python's advice for processors, and its default
COLUMNS = ("off", "on", "llama.cpp", *(f"llama.cpp lookup {count}" for count in LOOKUP_TOKENS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationFigures:
    """One workload: decode tokens/s of each contender; the field names are keys of the JSON and stay.

    `ratio`: Outpace with drafts over each of the others, the better of llama.cpp's lookups as "lookup".
    """

    workload: str
    requests: int
    tokens: int
    tok_s: Mapping[str, float]
    ratio: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationReport:
    """The figures of `bench speculation`."""

    model: str
    peer_version: str
    peer_flags: str
    workloads: tuple[SpeculationFigures, ...]


def bench_speculation(
    llm: LLM,
    process: LlamaCppProcess,
    workloads: Mapping[str, Sequence[WorkloadRequest]],
    *,
    on_turn: Callable[[str], None] = lambda _: None,
) -> SpeculationReport:
    """Run each request with each contender in turn, greedily; all generate as many tokens as Outpace does."""
    results = [_workload(llm, process, name, requests, on_turn) for name, requests in workloads.items()]
    return SpeculationReport(
        model=llm.model_name,
        peer_version=process.version,
        peer_flags=process.flags,
        workloads=tuple(results),
    )


def _workload(
    llm: LLM,
    process: LlamaCppProcess,
    name: str,
    requests: Sequence[WorkloadRequest],
    on_turn: Callable[[str], None],
) -> SpeculationFigures:
    peer = LlamaCppContender(process, flash=False)  # the better one for few rows
    seconds = dict.fromkeys(COLUMNS, 0.0)
    tokens = 0
    for number, request in enumerate(requests, 1):
        prompt = llm.encode_chat(request.messages)

        def run(drafts: bool, prompt: list[int] = prompt, request: WorkloadRequest = request) -> list[int]:
            hints = DraftHints(name, drafts=drafts)
            timing = follow(lambda: iter(llm.loop.submit(prompt, request.params, hints=hints)))
            seconds["on" if drafts else "off"] += timing.decode_seconds
            return timing.token_ids

        count = len(run(drafts=False))
        assert run(drafts=True)
        tokens += count - 1
        on_turn(f"{name}, request {number}: {count} tokens")
        if count < 2:
            continue
        time.sleep(PAUSE)
        seconds["llama.cpp"] += peer.decode(prompt, count).decode_seconds
        for num_pred in LOOKUP_TOKENS:
            decoded = peer.lookup(prompt, count, num_pred=num_pred)
            seconds[f"llama.cpp lookup {num_pred}"] += decoded.decode_seconds
        time.sleep(PAUSE)
    tok_s = {column: tokens / taken if taken else 0.0 for column, taken in seconds.items()}
    others = {
        "off": tok_s["off"],
        "llama.cpp": tok_s["llama.cpp"],
        "lookup": max(tok_s[column] for column in COLUMNS if "lookup" in column),
    }
    return SpeculationFigures(
        workload=name,
        requests=len(requests),
        tokens=tokens,
        tok_s=tok_s,
        ratio={other: tok_s["on"] / value if value else 0.0 for other, value in others.items()},
    )
