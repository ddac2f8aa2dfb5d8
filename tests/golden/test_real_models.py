"""The native core on real models, against transformers in float32 on the same weights.

The references are stored (tests/tools/make_reference.py makes them); `test_bounds.py` proves that the
bounds notice a wrong rope, norm, mask or scale. The divergence here is over the 64 likeliest tokens and
the rest as one class, a lower bound of the true one; `test_exact_divergence` takes all of the vocabulary.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import pytest

from golden.agreement import MAX_KV_PERPLEXITY_CHANGE, Agreement, compare, figures, perplexity_change
from golden.reference import exact_kl, load
from outpace import _native
from outpace.backends import create
from outpace.backends.torch_backend import TorchBackend
from outpace.config import EngineOptions, resolve_engine_config
from outpace.models.checkpoint import open_checkpoint
from outpace.types import Backend, EngineConfig, KVFormat, Prefill
from stepping import run_logits

pytestmark = pytest.mark.timeout(1800)  # 8,448 tokens of each model, on any machine

LONG = 2000  # positions from here on are judged on their own, too

MODELS = {"smollm2-135m": "model_135m", "qwen2.5-coder-0.5b": "model_05b", "qwen2.5-coder-1.5b": "model_15b"}


def native(path: Path, kv_format: KVFormat = "int8", prefill: Prefill = "exact") -> Backend:
    checkpoint = open_checkpoint(path)
    options = EngineOptions(max_context=4096, kv_format=kv_format, prefill=prefill)
    return create(checkpoint, resolve_engine_config(checkpoint.spec, options))


@cache
def agreements(name: str, path: Path, kv_format: KVFormat, prefill: Prefill = "exact") -> list[Agreement]:
    """The model's agreement with the documents of its reference; each model and format is run once."""
    backend = native(path, kv_format, prefill)
    try:
        return [compare(backend, document) for document in load(name).documents]
    finally:
        backend.close()


def check(agreements: list[Agreement]) -> None:
    """All bounds for code, for prose, and for positions beyond 2,000."""
    for kind in ("code", "prose"):
        of_kind = [agreement for agreement in agreements if agreement.document.kind == kind]
        got = figures(of_kind)
        print(f"{kind}: {got}")
        assert got.num_tokens >= 4000
        assert got.within_bounds, f"{kind}: {got}"
    late = figures([a for a in agreements if len(a.best) > LONG], from_position=LONG)
    print(f"beyond position {LONG}: {late}")
    assert late.num_tokens >= 2000
    assert late.within_bounds, f"beyond position {LONG}: {late}"


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_transformers(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(MODELS[name])
    reference = load(name)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == reference.model_sha256, (
            f"the reference was made of another file than {path}: run tests/tools/make_reference.py"
        )
    check(agreements(name, path, "int8"))


def test_f16_kv_cache_agrees_with_transformers(model_135m: Path) -> None:
    check(agreements("smollm2-135m", model_135m, "f16"))


@pytest.mark.parametrize("name", MODELS)
def test_int8_keys_and_values_keep_the_perplexity_of_f16(name: str, request: pytest.FixtureRequest) -> None:
    """On all documents: on 1,152 tokens of one alone, chance makes up to half a percent."""
    path: Path = request.getfixturevalue(MODELS[name])
    int8, f16 = agreements(name, path, "int8"), agreements(name, path, "f16")
    for kind in ("code", "prose"):
        pair = [[a for a in of_format if a.document.kind == kind] for of_format in (int8, f16)]
        change = perplexity_change(*pair)
        print(f"{kind}: perplexity of int8 over f16 keys and values {change:+.3%}")
        assert abs(change) < MAX_KV_PERPLEXITY_CHANGE


@pytest.mark.skipif(not _native.has_fast_prefill("auto"), reason="prefill='fast' needs AMX")
@pytest.mark.parametrize("name", MODELS)
def test_prompts_in_bf16_agree_with_transformers(name: str, request: pytest.FixtureRequest) -> None:
    check(agreements(name, request.getfixturevalue(MODELS[name]), "int8", "fast"))


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("kv_format", ["int8", "f16"])
def test_exact_divergence(model_135m: Path, kv_format: KVFormat) -> None:
    """Over the whole vocabulary, against the oracle (which equals transformers, see test_bounds.py)."""
    checkpoint = open_checkpoint(model_135m)
    backend = native(model_135m, kv_format=kv_format)
    oracle = TorchBackend(checkpoint, EngineConfig())
    for document in load("smollm2-135m").documents[1::2]:
        ids = document.token_ids[:200].tolist()
        divergence = exact_kl(run_logits(oracle, ids), run_logits(backend, ids)).mean()
        print(f"{document.name}: {divergence:.5f} nats")
        assert divergence < 0.01
