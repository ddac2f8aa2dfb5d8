"""Settings, resolved once: the only place that reads the environment and looks at the machine (with `cores`).

`OUTPACE_CACHE` is Outpace's own cache folder, `OUTPACE_PACKED_CACHE_BYTES` how much of it packed weights may
take (0: none), `OUTPACE_PREFIX_CACHE_BYTES` how much the prefix cache of servers; `OUTPACE_DRAFT_PERSIST=0`
keeps no text of requests on disk; `HF_*` variables mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypedDict, get_args

from outpace.cores import default_threads
from outpace.errors import OutOfMemoryError, UsageError
from outpace.types import (
    BLOCK_SIZE,
    DraftSharing,
    EngineConfig,
    KVFormat,
    ModelSpec,
    Prefill,
    PrefixSharing,
    WeightFormat,
)

_YES, _NO = ("1", "ON", "YES", "TRUE", "Y", "T"), ("0", "OFF", "NO", "FALSE", "N", "F")  # in any case

# --- folders and the hub ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HuggingFaceSettings:
    """How the Hugging Face hub is reached, as its own client resolves it."""

    cache_dir: Path  # the standard cache, shared with transformers and others
    endpoint: str  # without a slash at the end
    token: str | None  # None: the one that `hf auth login` stored, if any
    offline: bool


def cache_dir() -> Path:
    """Outpace's own cache folder: `$OUTPACE_CACHE`, `$XDG_CACHE_HOME/outpace` or `~/.cache/outpace`."""
    own = os.environ.get("OUTPACE_CACHE")
    return Path(own).expanduser().absolute() if own else _user_cache() / "outpace"


PACKED_CACHE_BYTES = 20_000_000_000


def packed_cache_bytes() -> int:
    """How many bytes of packed weights are kept, `$OUTPACE_PACKED_CACHE_BYTES` or 20 GB; 0: none are."""
    return _bytes("OUTPACE_PACKED_CACHE_BYTES", PACKED_CACHE_BYTES)


PREFIX_CACHE_BYTES = 8_000_000_000


def prefix_cache_bytes() -> int:
    """How many bytes of prefixes a server keeps, `$OUTPACE_PREFIX_CACHE_BYTES` or 8 GB; 0: none."""
    return _bytes("OUTPACE_PREFIX_CACHE_BYTES", PREFIX_CACHE_BYTES)


def prefixes_dir() -> Path:
    """Where the prefix cache's tier on disk is, by model."""
    return cache_dir() / "prefixes"


def _bytes(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise UsageError(f"{variable} is {text!r}, not a number of bytes; 0 keeps none")
    return int(text) if text else default


def drafts_dir() -> Path:
    """Where the text of earlier requests is kept to draft from, by model."""
    return cache_dir() / "drafts"


def step_costs_dir() -> Path:
    """Where it is kept what steps cost on this machine, by model."""
    return cache_dir() / "step_costs"


def draft_persist() -> bool:
    """Whether text is kept across restarts unless told otherwise: `$OUTPACE_DRAFT_PERSIST`, yes.

    Raises `UsageError` for a value that is neither yes nor no.
    """
    text = os.environ.get("OUTPACE_DRAFT_PERSIST", "")
    if text.upper() not in ("", *_YES, *_NO):  # whoever wants nothing kept shall not be misunderstood
        raise UsageError(f"OUTPACE_DRAFT_PERSIST is {text!r}; 0 keeps no text on disk, 1 does")
    return text.upper() not in _NO


def wants_colour() -> bool:
    """Whether a terminal may be sent colours: yes, unless `$NO_COLOR` is set (no-color.org)."""
    return not os.environ.get("NO_COLOR")


def moves_cursor() -> bool:
    """Whether a terminal knows more than lines one after the other: yes, unless `$TERM` says "dumb"."""
    return os.environ.get("TERM") != "dumb"


def serve_environment() -> dict[str, str]:
    """What variables say of options of `outpace serve`: names of `EngineConfig`, values as a user types them.

    Raises `UsageError` for one that can't be read.
    """
    said: dict[str, str] = {}
    if os.environ.get("OUTPACE_PREFIX_CACHE_BYTES"):
        said["prefix_cache_disk_bytes"] = str(prefix_cache_bytes())
    if os.environ.get("OUTPACE_DRAFT_PERSIST"):
        said["draft_persist"] = str(draft_persist())
    return said


def state_dir() -> Path:
    """Where what a user typed is kept: `$XDG_STATE_HOME/outpace` or `~/.local/state/outpace`."""
    return (_path("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "outpace"


def config_dir() -> Path:
    """Where a user's settings are: `$XDG_CONFIG_HOME/outpace` or `~/.config/outpace`."""
    return (_path("XDG_CONFIG_HOME") or Path.home() / ".config") / "outpace"


def keys_file() -> Path:
    """Where the API keys of servers are kept."""
    return config_dir() / "api-keys.json"


def serve_config_file() -> Path:
    """The options of `outpace serve`, unless it is told another file."""
    return config_dir() / "serve.toml"


def huggingface_settings() -> HuggingFaceSettings:
    """`HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`, with the hub's defaults."""
    home = _path("HF_HOME") or _user_cache() / "huggingface"
    return HuggingFaceSettings(
        cache_dir=_path("HF_HUB_CACHE") or _path("HUGGINGFACE_HUB_CACHE") or home / "hub",
        endpoint=os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"),
        token=os.environ.get("HF_TOKEN") or None,
        offline=_flag("HF_HUB_OFFLINE") or _flag("TRANSFORMERS_OFFLINE"),
    )


@dataclass(frozen=True, slots=True)
class TracesSettings:
    """How traces are sent, in the words of OpenTelemetry's variables."""

    exporter: str
    protocol: str


def traces_settings() -> TracesSettings | None:
    """What OpenTelemetry's variables say; None where they ask for no traces.

    They do where `OTEL_TRACES_EXPORTER` names an exporter, or an address of OTLP is set.
    """
    addresses = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    given = any(_otel(name) for name in addresses)
    exporter = _otel("OTEL_TRACES_EXPORTER") or ("otlp" if given else "none")
    if exporter == "none" or _otel("OTEL_SDK_DISABLED") == "true":
        return None
    protocol = _otel("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _otel("OTEL_EXPORTER_OTLP_PROTOCOL")
    return TracesSettings(exporter, protocol or "http/protobuf")


def _otel(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's, with some variables set."""
    return {**os.environ, **changes}


def _user_cache() -> Path:
    return _path("XDG_CACHE_HOME") or Path.home() / ".cache"


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(os.path.expandvars(value)).expanduser().absolute() if value else None


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _YES


# --- the engine ----------------------------------------------------------------------------------


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig` as keyword arguments; what is absent has that class's default."""

    backend: Literal["native", "torch", "null"]
    num_threads: int
    pin_threads: bool
    isa: str
    weight_format: WeightFormat
    kv_format: KVFormat
    prefill: Prefill
    max_context: int
    kv_cache_bytes: int
    max_num_seqs: int
    max_batch_tokens: int
    max_queue_seconds: int
    max_stall_ms: int
    prefix_cache: bool
    prefix_cache_disk_bytes: int
    prefix_sharing: PrefixSharing
    draft: Literal["off", "auto"]
    max_draft_tokens: int
    max_tree_tokens: int
    draft_model: str
    draft_head: str
    draft_sharing: DraftSharing
    draft_index_tokens: int
    draft_persist: bool


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "backend": ("native", "torch", "null"),
    "weight_format": get_args(WeightFormat),
    "kv_format": get_args(KVFormat),
    "prefill": get_args(Prefill),
    "prefix_sharing": get_args(PrefixSharing),
    "draft": ("off", "auto"),
    "draft_sharing": get_args(DraftSharing),
}
_LIMITS: Mapping[str, tuple[int, int]] = {
    "num_threads": (0, 1024),
    "max_context": (0, 2**31 - 1),
    "kv_cache_bytes": (0, 2**62),
    "prefix_cache_disk_bytes": (0, 2**62),
    "max_num_seqs": (1, 4096),
    "max_batch_tokens": (1, 65536),
    "max_queue_seconds": (0, 86_400),
    "max_stall_ms": (0, 3_600_000),
    "max_draft_tokens": (0, 255),
    "max_tree_tokens": (0, 4096),
    "draft_index_tokens": (0, 1 << 28),
}


def resolve_engine_config(spec: ModelSpec, options: EngineOptions) -> EngineConfig:
    """Check the options and choose what they leave open; nothing in the result is 0 for "choose".

    Raises `UsageError` where an option is unknown or out of its limits, `OutOfMemoryError` where the KV cache
    does not fit in memory.
    """
    _check_options(options)
    config = EngineConfig(**options)
    if "draft_persist" not in options:
        config = replace(config, draft_persist=draft_persist())
    if config.max_context > spec.max_context:
        raise UsageError(
            f"max_context is {config.max_context}, but the model's own limit is {spec.max_context}"
        )
    if config.prefill == "fast" and config.backend != "native":
        raise UsageError(f"prefill='fast' is of the native backend alone, not of {config.backend}")
    context = config.max_context or spec.max_context
    return replace(
        config,
        num_threads=config.num_threads or default_threads(),
        max_context=context,
        kv_cache_bytes=_kv_budget(spec, config, context),
    )


def _check_options(options: EngineOptions) -> None:
    known = {field.name for field in fields(EngineConfig)}
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"{name} is no option; there are {', '.join(sorted(known))}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise UsageError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
        if name == "isa" and not isinstance(value, str):
            raise UsageError(f"isa must be the name of an instruction set tier or auto, not {value!r}")
        if name in ("draft_model", "draft_head") and not isinstance(value, str):
            raise UsageError(f"{name} must be a name or a path, or nothing, not {value!r}")
        if name in ("prefix_cache", "pin_threads", "draft_persist") and not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, not {value!r}")
        if name in _LIMITS:
            low, high = _LIMITS[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def kv_bytes_per_block(spec: ModelSpec, kv_format: KVFormat) -> int:
    """Bytes of keys and values of one block of BLOCK_SIZE tokens, all layers.

    int8: a byte for each element, a float32 scale for each token and head; f16: two bytes for each element.
    Heads are padded to a multiple of 16 elements, as in native/kv_cache.cpp.
    """
    heads = spec.num_layers * spec.num_kv_heads
    head_dim = -(-spec.head_dim // 16) * 16
    if kv_format == "f16":
        return heads * 2 * 2 * head_dim * BLOCK_SIZE
    return heads * 2 * (head_dim + 4) * BLOCK_SIZE


def cache_bytes_per_block(spec: ModelSpec, config: EngineConfig) -> int:
    """Bytes of all that a native backend keeps of one block's tokens.

    Keys and values and, where there is a draft head, the hidden states that it reads: two bytes for each
    element, as in native/hidden_states.h.
    """
    states = spec.hidden_size * 2 * BLOCK_SIZE if config.draft_head and config.draft != "off" else 0
    return kv_bytes_per_block(spec, config.kv_format) + states


def _kv_budget(spec: ModelSpec, config: EngineConfig, context: int) -> int:
    """Bytes for the KV cache: as asked; else a full context (or 4 of 8192) in at most 1/4 of free memory."""
    per_block = cache_bytes_per_block(spec, config)
    available = available_memory()
    if config.kv_cache_bytes:
        if config.kv_cache_bytes < per_block:
            raise OutOfMemoryError(
                f"kv_cache_bytes is {config.kv_cache_bytes}, but one block of {BLOCK_SIZE} tokens "
                f"takes {per_block}; raise it"
            )
        if config.kv_cache_bytes > available:
            raise OutOfMemoryError(
                f"kv_cache_bytes is {config.kv_cache_bytes}, but only {available} bytes of memory are free; "
                "lower it, or free memory"
            )
        return config.kv_cache_bytes
    blocks = -(-max(context, 4 * 8192) // BLOCK_SIZE)
    budget = min(blocks * per_block, available // 4)
    if budget < per_block:
        raise OutOfMemoryError(
            f"{available} bytes of memory are free: too little for a KV cache; free memory"
        )
    return budget // per_block * per_block


def available_memory() -> int:
    """Bytes of memory that this process may still take: the machine's, and its control group's if less."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = "".join(_lines(group / "memory.max"))
    if limit.isdigit():
        used = int("".join(_lines(group / "memory.current")) or 0)
        for line in _lines(group / "memory.stat"):  # the page cache can be dropped
            if line.startswith("inactive_file "):
                used -= int(line.split()[1])
        available = min(available, max(0, int(limit) - used))
    return available


def process_seconds() -> float | None:
    """Seconds since this process was started, to a hundredth; None where the system does not tell."""
    stat = "".join(_lines(Path("/proc/self/stat")))
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    if len(fields) < 20 or not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _lines(path: Path) -> list[str]:
    """A small system file's lines; none where this system has no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
