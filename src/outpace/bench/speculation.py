"""`bench speculation`: drafts against peers, plain and with their own prompt lookup, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from outpace.bench.contenders import LlamaCppContender, LlamaCppProcess, OpenVinoProcess
from outpace.bench.generate import follow
from outpace.bench.peer import PAUSE
from outpace.bench.workload import WorkloadRequest
from outpace.llm import LLM
from outpace.types import DraftHints

LOOKUP_TOKENS = (2, 10)  # llama-cpp-python's advice for processors, and its default
LOOKUPS = tuple(f"llama.cpp lookup {count}" for count in LOOKUP_TOKENS)
COLUMNS = ("off", "on", "llama.cpp", *LOOKUPS)
OPENVINO = ("OpenVINO", "OpenVINO lookup")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationFigures:
    """One workload: decode tokens/s of each contender; the field names are keys of the JSON and stay.

    `ratio`: Outpace with drafts over each of the others, the better of llama.cpp's lookups as
    "llama.cpp lookup".
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
    openvino_version: str  # "": not installed
    workloads: tuple[SpeculationFigures, ...]


def bench_speculation(
    llm: LLM,
    process: LlamaCppProcess,
    openvino: OpenVinoProcess | None,
    workloads: Mapping[str, Sequence[WorkloadRequest]],
    *,
    on_turn: Callable[[str], None] = lambda _: None,
) -> SpeculationReport:
    """Run each request with each contender in turn, greedily; all generate as many tokens as Outpace does."""
    results = [
        _workload(llm, process, openvino, name, requests, on_turn) for name, requests in workloads.items()
    ]
    return SpeculationReport(
        model=llm.model_name,
        peer_version=process.version,
        peer_flags=process.flags,
        openvino_version=openvino.version if openvino else "",
        workloads=tuple(results),
    )


def _workload(
    llm: LLM,
    process: LlamaCppProcess,
    openvino: OpenVinoProcess | None,
    name: str,
    requests: Sequence[WorkloadRequest],
    on_turn: Callable[[str], None],
) -> SpeculationFigures:
    peer = LlamaCppContender(process, flash=False)  # the better one for few rows
    seconds = dict.fromkeys((*COLUMNS, *(OPENVINO if openvino else ())), 0.0)
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
        for lookup, num_pred in zip(LOOKUPS, LOOKUP_TOKENS, strict=True):
            decoded = peer.lookup(prompt, count, num_pred=num_pred)
            seconds[lookup] += decoded.decode_seconds
        if openvino is not None:
            for column, looks_up in zip(OPENVINO, (False, True), strict=True):
                seconds[column] += openvino.decode_seconds(prompt, count, lookup=looks_up)
        time.sleep(PAUSE)
    tok_s = {column: tokens / taken if taken else 0.0 for column, taken in seconds.items()}
    others = {name: value for name, value in tok_s.items() if name != "on" and name not in LOOKUPS}
    others["llama.cpp lookup"] = max(tok_s[column] for column in LOOKUPS)
    return SpeculationFigures(
        workload=name,
        requests=len(requests),
        tokens=tokens,
        tok_s=tok_s,
        ratio={other: tok_s["on"] / value if value else 0.0 for other, value in others.items()},
    )
