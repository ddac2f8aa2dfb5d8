"""`bench overhead`: what the server adds to the engine's time, and a thousand tools to a request's.

Two sides answer the same request in turns, and the figures are medians over the pairs. TTFT runs from
handing over the conversation (to the engine: before its template and its tokens; to the server: before the
first byte) to the first text. Tokens/s are (output tokens - 1) / (last piece - first piece), on both sides.
The client is a plain socket in this process, on the same cores as the server: what it takes counts as the
server's.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice, product
from statistics import median
from string import ascii_lowercase
from typing import Any, Literal
from urllib.parse import urlsplit

from outpace.bench.answers import AnswerTiming
from outpace.bench.dialects import DIALECTS
from outpace.bench.peers.worker import PeerProcess
from outpace.bench.server_process import ServerProcess
from outpace.errors import OutpaceError

__all__ = ["OverheadReport", "Pairs", "Side", "bench_engine_overhead", "bench_tool_overhead"]

_WORKER = "outpace.bench.peers.engine"
_CHAT = DIALECTS["/v1/chat/completions"]
_TASK = "Write a long story about the keeper of a lighthouse."
_CALL = "Call the tool write. Its text is a long story about the keeper of a lighthouse, many sentences."
_FILLER = "The lamp turns once in ten seconds and is seen for twenty miles. "
_TIMEOUT = 1800.0  # seconds for an answer: the prompt with many tools is long


@dataclass(frozen=True, slots=True)
class Pairs:
    """How the sides take turns."""

    rounds: int = 6
    max_tokens: int = 256
    draft: Literal["off", "auto"] = "off"
    say: Callable[[str], None] = lambda _: None  # told how far it is


@dataclass(frozen=True, slots=True)
class Side:
    """What one side did, medians."""

    name: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    tok_s: float


@dataclass(frozen=True, slots=True)
class OverheadReport:
    """The figures of `bench overhead`; the field names are keys of the JSON and stay."""

    model: str
    draft: str
    rounds: int
    base: Side
    other: Side
    tok_s_ratio: float  # other / base, the median of the pairs
    ttft_more_ms: float  # other - base, the median of the pairs
    tok_s_ratios: list[float]  # of each pair


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt_tokens: int
    completion_tokens: int
    ttft: float  # seconds
    tpot: float


_Ask = Callable[[], _Answer]


def bench_engine_overhead(model: str, pairs: Pairs, serve_options: Sequence[str] = ()) -> OverheadReport:
    """The engine alone in a process of its own, then the same through a server, in turns."""
    messages = [{"role": "user", "content": _TASK}]
    fields = {"messages": messages, "max_tokens": pairs.max_tokens}
    body = {**fields, "temperature": 0, "ignore_eos": True}
    with ExitStack() as stack:
        engine = stack.enter_context(closing(PeerProcess("the engine", _WORKER, "outpace", "")))
        engine.ask("load", model=model, draft=pairs.draft)
        server = stack.enter_context(_server(model, pairs, serve_options))
        client = stack.enter_context(_Client(server.url))
        alone = "engine alone", lambda: _Answer(**engine.ask("answer", **fields))
        return _compare(model, pairs, alone, ("through the server", lambda: client.ask(body)))


def bench_tool_overhead(
    model: str, num_tools: int, pairs: Pairs, serve_options: Sequence[str] = ()
) -> OverheadReport:
    """A call that must come, with one tool and with `num_tools` to choose from, in turns.

    The prompt with one tool is filled up with text, so that both sides read as much. The first request of
    each side, which reads the prompt and compiles the grammar, is not counted.
    """
    with _server(model, pairs, serve_options) as server, _Client(server.url) as client:
        fields = {"max_tokens": pairs.max_tokens, "temperature": 0, "tool_choice": "required"}
        many = fields | _request(num_tools, 0)
        pairs.say(f"reading the prompt with {num_tools} tools")
        num_tokens = client.prompt_tokens(many)
        one = fields | _request(1, _filler_for(client, num_tokens))
        pairs.say(f"reading one with as many tokens ({num_tokens})")
        name = f"{num_tools} tools"
        return _compare(model, pairs, ("1 tool", lambda: client.ask(one)), (name, lambda: client.ask(many)))


def _server(model: str, pairs: Pairs, options: Sequence[str]) -> ServerProcess:
    return ServerProcess(model, ("--draft", pairs.draft, "--no-draft-persist", *options))


def _compare(model: str, pairs: Pairs, base: tuple[str, _Ask], other: tuple[str, _Ask]) -> OverheadReport:
    """Both sides in turns, after one request of each that is not counted."""
    came: list[tuple[_Answer, _Answer]] = []
    for number in range(pairs.rounds + 1):
        left, right = base[1](), other[1]()
        if number:
            came.append((left, right))
            pairs.say(f"{number} of {pairs.rounds}: {left.tpot / right.tpot:.3f} of the tokens/s")
    ratios = [left.tpot / right.tpot for left, right in came]
    return OverheadReport(
        model=model,
        draft=pairs.draft,
        rounds=pairs.rounds,
        base=_side(base[0], [left for left, _ in came]),
        other=_side(other[0], [right for _, right in came]),
        tok_s_ratio=median(ratios),
        ttft_more_ms=1e3 * median(right.ttft - left.ttft for left, right in came),
        tok_s_ratios=ratios,
    )


def _side(name: str, answers: Sequence[_Answer]) -> Side:
    return Side(
        name,
        answers[-1].prompt_tokens,
        answers[-1].completion_tokens,
        1e3 * median(answer.ttft for answer in answers),
        1 / median(answer.tpot for answer in answers),
    )


def _request(num_tools: int, num_fillers: int) -> dict[str, Any]:
    """Messages and tools. `write` takes a text; the others anything, so that a thousand fit a context."""
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    functions: list[dict[str, Any]] = [{"name": "write", "parameters": text}]
    names = islice(product(ascii_lowercase, repeat=3), num_tools - 1)  # short, so that a thousand fit
    functions += [{"name": "".join(letters)} for letters in names]
    return {
        "messages": [
            {"role": "system", "content": "You call tools." + _FILLER * num_fillers},
            {"role": "user", "content": _CALL},
        ],
        "tools": [{"type": "function", "function": function} for function in functions],
    }


def _filler_for(client: _Client, num_tokens: int) -> int:
    """How often the filler must be said for a prompt with one tool that is about so long."""
    short, long = (client.prompt_tokens(_request(1, count)) for count in (0, 100))
    return max(0, round(100 * (num_tokens - short) / (long - short)))


class _Client:
    """One connection to a server, kept (context manager)."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT)

    def __enter__(self) -> _Client:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise OutpaceError(f"{path}: status {answer.status}: {answer.read()[:500].decode()}")
        return answer

    def prompt_tokens(self, request: dict[str, Any]) -> int:
        """Tokens of a request's prompt, which the server has read then."""
        answer = json.loads(self._post(_CHAT.path, {**request, "max_tokens": 1}).read())
        return answer["usage"]["prompt_tokens"]

    def ask(self, request: dict[str, Any]) -> _Answer:
        """Stream an answer and time it. Raises `OutpaceError` where it is none that can be timed."""
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        timing = AnswerTiming(time.perf_counter())
        answer = self._post(_CHAT.path, body)
        while line := answer.readline():
            if said := _CHAT.read_line(line.decode().strip()):
                timing.take(said, time.perf_counter() - timing.start)
        if timing.error or timing.ttft is None or timing.tpot is None:
            raise OutpaceError(
                f"the answer has {timing.completion_tokens} tokens in {len(timing.events)} pieces, too few "
                "to be timed; try a larger model"
            )
        return _Answer(timing.prompt_tokens, timing.completion_tokens, timing.ttft, timing.tpot)
