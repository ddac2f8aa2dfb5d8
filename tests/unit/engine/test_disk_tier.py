"""The engine with a tier on disk: what comes back, who waits for it, and who does not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from engine_harness import Answers, byte_tokenizer, collect, drain, make_engine, null_backend, prompt_of, run
from outpace import backends
from outpace._native import has_fast_prefill
from outpace.config import resolve_engine_config
from outpace.engine.block_store import BlockStore
from outpace.engine.engine import Engine
from outpace.engine.new_block_store import new_block_store
from outpace.engine.prefix_cache import PrefixCache
from outpace.models.checkpoint import open_checkpoint
from outpace.types import BLOCK_SIZE, Backend, DraftHints, FinishReason, KVFormat, SamplingParams
from tiny_checkpoint import TinyFactory

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=8)
PROMPT = prompt_of(500)


class GatedStore(BlockStore):
    """A disk that does nothing while its gate is closed."""

    num_reads = 0

    def __init__(self, *arguments) -> None:
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(*arguments)

    def read(self, digests, blocks):
        self.gate.wait()
        self.num_reads += 1
        return super().read(digests, blocks)

    def write(self, digests, blocks):
        self.gate.wait()
        super().write(digests, blocks)


Start = Callable[..., Engine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an engine over one folder; each has an empty KV cache, as after a restart."""
    engines: list[Engine] = []

    def new(num_blocks: int = 64, *, gated: bool = False, **config) -> Engine:
        backend = null_backend(num_blocks)
        store = GatedStore(tmp_path / "model", b"k" * 32, backend.kv_blocks.shape[1], 1 << 24)
        if gated:
            store.gate.clear()
        engines.append(make_engine(backend, store=store, **config))
        return engines[-1]

    yield new
    for engine in engines:
        if engine.disk is not None:
            engine.disk.store.gate.set()
        engine.close()


def answer(engine: Engine, prompt: list[int] = PROMPT, scope: str = "") -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were cached."""
    engine.submit(prompt, GREEDY, "r", DraftHints(scope))
    last = drain(engine)["r", 0]
    assert last.last is not None
    return last.token_ids, last.last.num_cached_tokens


def fill(start: Start, *prompts: list[int], **options) -> list[list[int]]:
    engine = start(**options)
    tokens = [answer(engine, prompt)[0] for prompt in prompts or (PROMPT,)]
    engine.close()
    return tokens


def test_a_prefix_survives_a_restart(start: Start) -> None:
    [expected] = fill(start)
    tokens, cached = answer(start())
    assert tokens == expected
    assert cached == (len(PROMPT) - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_the_answer_too_is_kept_for_the_next_turn(start: Start) -> None:
    engine = start()
    said = run(engine, PROMPT, replace(GREEDY, max_tokens=100))["r", 0].token_ids
    engine.close()
    turn = [*PROMPT, *said, *prompt_of(20, 5)]
    expected = answer(start(prefix_cache=False), turn)[0]
    assert answer(start(), turn) == (expected, (len(PROMPT) + 99) // BLOCK_SIZE * BLOCK_SIZE)


def test_a_prefix_survives_its_eviction_from_memory(start: Start) -> None:
    engine = start(num_blocks=20)
    expected, _ = answer(engine)
    engine.disk.flush()
    answer(engine, prompt_of(600, 2))
    assert engine.pool.cache.num_evicted > 0
    assert answer(engine) == (expected, 480)
    assert engine.disk.store.num_evicted == 0
    assert engine.pool.num_held == 0
    engine.pool.check()


def test_memory_first_and_the_rest_from_disk(start: Start) -> None:
    long = [*PROMPT, *prompt_of(300, 3)]
    expected = fill(start, long)[0]
    engine = start()
    answer(engine, long[:200])
    assert answer(engine, long) == (expected, 768)
    text = metrics(engine)
    assert 'outpace:prefix_tier_hit_tokens_total{model_name="m",tier="memory"} 192.0' in text
    # All but 8 of the first prompt and 576 of the second.
    assert f'outpace:prefix_tier_hit_tokens_total{{model_name="m",tier="disk"}} {192 + 576}.0' in text
    assert f'outpace:prefix_tier_miss_tokens_total{{model_name="m",tier="disk"}} {8 + 32}.0' in text
    assert 'outpace:prefix_disk_write_errors_total{model_name="m"} 0.0' in text
    assert f'outpace:prefix_disk_bytes{{model_name="m"}} {25 * 128}.0' in text


def metrics(engine: Engine) -> str:
    from prometheus_client import generate_latest

    from outpace.engine.prometheus import registry_of

    return generate_latest(registry_of(lambda: {"m": engine.metrics})).decode()


def test_short_ones_are_not_written_and_none_is_twice(start: Start) -> None:
    engine = start()
    answer(engine, prompt_of(BLOCK_SIZE * 4 - 8))
    engine.disk.flush()
    assert engine.disk.store.num_written == 0
    for _ in range(3):
        answer(engine)
        engine.disk.flush()
    assert engine.disk.store.num_written == 15
    answer(engine, [*PROMPT[:320], *prompt_of(64, 9)])
    engine.disk.flush()
    assert engine.disk.store.num_written == 17


@pytest.mark.parametrize("end", ["abort", "error"])
def test_what_was_computed_is_kept_however_the_request_ends(start: Start, end: str) -> None:
    engine = start(max_batch_tokens=100)
    engine.submit(PROMPT, GREEDY, "r")
    for _ in range(3):
        engine.step()
    engine.abort("r") if end == "abort" else engine.fail_all("it broke")
    drain(engine)
    engine.close()
    assert engine.disk.store.num_written == 300 // BLOCK_SIZE


def test_a_block_that_is_evicted_while_it_is_copied_is_not_written(start: Start) -> None:
    class Evicting(PrefixCache):
        """Evicts the third block that somebody looks at."""

        looks = 0

        def epoch(self, block: int) -> int:
            self.looks += 1
            return super().epoch(block) + (self.looks >= 6)

    engine = start()
    cache = Evicting()
    engine.pool.cache = cache
    engine.disk._cache = cache
    answer(engine)
    engine.disk.flush()
    assert engine.disk.store.num_written == 2
    engine.close()
    assert answer(start())[1] == 64


class HeldMemory:
    """A KV cache whose reader stands still until it is let go."""

    def __init__(self, blocks: np.ndarray) -> None:
        self.blocks = blocks
        self.reached, self.go = threading.Event(), threading.Event()

    def __getitem__(self, block: int) -> np.ndarray:
        self.reached.set()
        self.go.wait()
        return self.blocks[block]


@pytest.mark.parametrize("line", range(1, 14))
def test_a_copy_that_begins_amid_an_eviction_is_right_or_dropped(start: Start, line: int) -> None:
    """The interpreter may change threads at each line of it."""
    cache = PrefixCache()
    cache.insert(b"a", 0)
    cache.release(0)
    blocks = np.zeros((1, 64), np.uint8)
    tier = start().disk
    tier._cache, tier._copies = cache, np.zeros_like(blocks)
    memory = tier._memory = HeldMemory(blocks)
    copied: list[int] = []
    writer = threading.Thread(target=lambda: copied.append(tier._copy([b"a"])))
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code is not PrefixCache.evict.__code__:
            return None
        lines += event == "line"
        if event == "line" and lines == line:
            writer.start()
            while writer.is_alive() and not memory.reached.wait(0.01):
                pass
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert cache.evict() == 0
    finally:
        sys.settrace(before)
    if lines < line:
        writer.start()
    blocks[0] = 1  # another prefix
    memory.go.set()
    writer.join()
    assert copied == [0] or not tier._copies.any()


def test_blocks_that_are_evicted_before_their_turn_are_not_written(start: Start) -> None:
    engine = start(num_blocks=20, gated=True)
    for seed in range(6):
        answer(engine, prompt_of(500, seed))
    engine.disk.store.gate.set()
    expected = answer(start(prefix_cache=False), prompt_of(500, 2))[0]
    engine.close()
    assert engine.disk.store.num_written < 6 * 15
    assert answer(start(), prompt_of(500, 2))[0] == expected


# --- waiting --------------------------------------------------------------------------------------


def test_others_go_on_while_a_prefix_is_read(start: Start) -> None:
    [expected] = fill(start)
    engine = start(gated=True)
    engine.submit(prompt_of(10, 4), replace(GREEDY, max_tokens=10_000), "other")
    answers: Answers = {}
    collect(answers, engine.step())
    engine.submit(PROMPT, GREEDY, "r")
    for _ in range(50):
        collect(answers, engine.step())
    assert len(answers["other", 0].token_ids) == 51
    assert ("r", 0) not in answers
    engine.disk.store.gate.set()
    while ("r", 0) not in answers:
        collect(answers, engine.step())
    engine.abort("other")
    assert drain(engine, answers)["r", 0].token_ids == expected


def test_steps_do_not_wait_for_writes(start: Start) -> None:
    engine = start(gated=True)
    for seed in range(5):
        answer(engine, prompt_of(200, seed))
    assert engine.disk.store.num_written == 0
    engine.disk.store.gate.set()
    engine.disk.flush()
    assert engine.disk.store.num_written == 5 * 6


def test_requests_with_one_prefix_read_it_once(start: Start) -> None:
    prompts = {name: [*PROMPT, *prompt_of(5, seed)] for seed, name in enumerate("abc")}
    expected = run(start(prefix_cache=False), prompts, GREEDY)
    fill(start)
    engine = start()
    answers = run(engine, prompts, GREEDY)
    assert {key: each.token_ids for key, each in answers.items()} == {
        key: each.token_ids for key, each in expected.items()
    }
    assert engine.disk.store.num_reads == 1
    assert all(each.last.num_cached_tokens == 480 for each in answers.values())


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_a_request_that_leaves_while_it_waits_loses_nothing(start: Start, num_steps: int) -> None:
    [expected] = fill(start)
    engine = start(gated=True)
    engine.submit(PROMPT, GREEDY, "r")
    answers: Answers = {}
    for _ in range(num_steps):
        collect(answers, engine.step())
    engine.abort("r")
    collect(answers, engine.step())
    assert answers["r", 0].finish_reason is FinishReason.ABORT
    assert engine.pool.num_held == 15, "somebody writes to them"
    engine.disk.store.gate.set()
    drain(engine)
    assert (engine.pool.num_held, engine.disk.num_loads) == (0, 0)
    engine.pool.check()
    assert answer(engine) == (expected, 480)
    assert engine.disk.store.num_reads == 1, "it had come into memory all the same"


def test_the_engine_may_end_while_something_is_read(start: Start) -> None:
    fill(start)
    engine = start(gated=True)
    engine.submit(PROMPT, GREEDY, "r")
    engine.step()
    engine.abort_all()
    engine.disk.store.gate.set()
    engine.close()


def test_damage_costs_time_alone(start: Start, tmp_path: Path) -> None:
    [expected] = fill(start)
    (path,) = tmp_path.glob("*/*.blocks")
    data = bytearray(path.read_bytes())
    at = next(i for i in range(len(data) - 1, 0, -1) if data[i]) - 5 * 128  # some way before the last block
    data[at] ^= 1
    path.write_bytes(data)
    engine = start()
    tokens, cached = answer(engine)
    assert tokens == expected
    assert 200 < cached < 480
    assert engine.disk.store.num_damaged == 1
    engine.close()
    assert answer(start()) == (expected, 480), "it was written anew"


# --- who shares -----------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("sharing", "seen"), [("all", 480), ("scope", 0)])
def test_scopes(start: Start, sharing: str, seen: int, restart: bool) -> None:
    engine = start(prefix_sharing=sharing)
    expected, _ = answer(engine, scope="mine")
    if restart:
        engine.close()
        engine = start(prefix_sharing=sharing)
    assert answer(engine, scope="yours") == (expected, seen)
    assert answer(engine, scope="mine") == (expected, 480)
    assert answer(engine) == (expected, seen)


# --- the native core ------------------------------------------------------------------------------


def native(path: Path, **options) -> tuple[Backend, BlockStore | None, dict]:
    checkpoint = open_checkpoint(path)
    options = {"kv_cache_bytes": 4 << 20, "num_threads": 2, "prefix_cache_disk_bytes": 1 << 26, **options}
    config = resolve_engine_config(checkpoint.spec, options)
    backend = backends.create(checkpoint, config)
    return backend, new_block_store(checkpoint, backend, config), options


def native_answer(path: Path, **options) -> tuple[list[int], int]:
    backend, store, _ = native(path, **options)
    engine = make_engine(backend, byte_tokenizer(512), store=store, max_batch_tokens=64)
    prompt = np.random.default_rng(3).integers(1, 512, 400).tolist()
    engine.submit(prompt, GREEDY, "r")
    got = drain(engine)["r", 0]
    engine.close()
    backend.close()
    assert got.last is not None
    return got.token_ids, got.last.num_cached_tokens


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefixes"


@pytest.mark.parametrize("kv_format", ["int8", "f16"])
def test_blocks_of_the_native_core(tiny_checkpoint: TinyFactory, cache: Path, kv_format: KVFormat) -> None:
    path = tiny_checkpoint("qwen2", dtype="Q8_0").path
    expected, cached = native_answer(path, kv_format=kv_format)
    assert cached == 0
    assert native_answer(path, kv_format=kv_format, num_threads=1, isa="portable") == (expected, 384)
    assert list(cache.glob("*/*.blocks"))


def test_another_model_or_format_never_matches(
    tiny_checkpoint: TinyFactory, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_checkpoint("qwen2", dtype="Q8_0").path.read_bytes())
    native_answer(path)
    assert native_answer(path)[1] == 384
    assert native_answer(path, kv_format="f16")[1] == 0
    assert native_answer(path, backend="null")[1] == 0
    if has_fast_prefill("auto"):
        assert native_answer(path, prefill="fast")[1] == 0
    path.write_bytes(tiny_checkpoint("qwen2", dtype="Q4_0").path.read_bytes())
    assert native_answer(path)[1] == 0, "another model under the same name"
    assert native_answer(tiny_checkpoint("qwen2", dtype="Q8_0").path)[1] == 0, "the same model elsewhere"


def test_off_unless_asked_for(tiny_checkpoint: TinyFactory, cache: Path) -> None:
    path = tiny_checkpoint("qwen2", dtype="Q8_0").path
    for options in ({"prefix_cache_disk_bytes": 0}, {"prefix_cache": False}):
        backend, store, _ = native(path, **options)
        backend.close()
        assert store is None
    assert not cache.exists()
