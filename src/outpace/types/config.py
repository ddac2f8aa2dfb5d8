"""The engine's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WeightFormat = Literal["keep", "q8_0", "q4_0"]
"""What matrices of more bits than that become at load; others stay as they are in the file."""

KVFormat = Literal["int8", "f16"]

Prefill = Literal["exact", "fast"]
"""How prompts are read. "exact": by the integer products that also generate, so an answer depends on its text
alone. "fast": by products in bf16, where the machine has AMX, which is quicker where the weights are no K
formats and more than some 60 tokens are new.

With "fast" what is computed of a prompt still does not depend on batches, chunks or threads, and drafts still
change nothing. But tokens and embeddings differ from those of "exact", as between two engines; and as what
was generated is not rounded, a later turn may go on differently from the prefix cache than from its text
read anew.
"""

PrefixSharing = Literal["scope", "all"]
"""Whose cached prefixes a request may find: those of its `DraftHints.scope`, or all.

Text never passes from one request to another through the prefix cache, but time does: who shares it with
others can tell from a quick first token that somebody has sent the same beginning.
"""

DraftSharing = Literal["off", "scope", "all"]
"""Whose earlier text may be drafted: nobody's but the request's own, that of its `DraftHints.scope`, all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine's settings, resolved once by `outpace.config` and never changed."""

    backend: Literal["native", "torch", "null"] = "native"
    num_threads: int = 0  # 0: one per physical core that this process may use
    pin_threads: bool = True  # where cores have several processors; not the calling one
    isa: str = "auto"  # "portable", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "neon-i8mm", ...
    weight_format: WeightFormat = "keep"
    kv_format: KVFormat = "int8"
    prefill: Prefill = "exact"
    max_context: int = 0  # tokens per request; 0: the model's own
    kv_cache_bytes: int = 0  # budget of the KV cache, reserved up front; 0: chosen from free memory
    max_num_seqs: int = 64  # requests that run at once; more wait
    max_batch_tokens: int = 512  # rows in one step, decode, drafts and prefill chunks together
    max_queue_seconds: int = 600  # of prompts to read; a request beyond is refused; 0: no limit
    max_stall_ms: int = 250  # between a stream's tokens while others' prompts are read; 0: no bound
    prefix_cache: bool = True
    prefix_cache_disk_bytes: int = 0  # budget of its tier on disk, all models together; 0: none
    prefix_sharing: PrefixSharing = "all"  # between requests, in memory and on disk
    draft: Literal["off", "auto"] = "auto"
    max_draft_tokens: int = 47  # per request and step; the controller asks for less where more does not pay
    max_tree_tokens: int = 64  # in drafts that branch, all requests of a step together
    draft_model: str = ""  # a smaller one of the same vocabulary, by any name that LLM takes; runs in 4 bits
    draft_head: str = ""  # folder of a trained draft head for this model; "": none
    draft_sharing: DraftSharing = "scope"  # between requests
    # Kept for drafts, all scopes together: 40 bytes of memory and 8 on disk each.
    draft_index_tokens: int = 1 << 20
    draft_persist: bool = True  # keep them across restarts
