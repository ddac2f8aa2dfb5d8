"""The nouns and the Protocols of Outpace, on one page.

Everything that crosses a room's wall is defined here. The rooms import this module; it imports
nothing of theirs. Array comments give the shape and the unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
UInt32Array = NDArray[np.uint32]

BLOCK_SIZE = 32
"""Tokens in one block of the paged KV cache."""


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop id or a stop string
    LENGTH = "length"  # max_tokens, the end of the context, or its deadline
    TIMEOUT = "timeout"  # its deadline passed before its first token, or would have
    ABORT = "abort"  # the caller cancelled, or the client went away
    ERROR = "error"  # the step that carried it failed

    @property
    def is_failure(self) -> bool:
        """Whether the answer is not to be used."""
        return self in {FinishReason.TIMEOUT, FinishReason.ABORT, FinishReason.ERROR}


# --- what a caller asks for ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like, to its end. Tokens that do not fit are never picked.

    `json_schema`: any JSON text that the schema admits. `regex`: what the expression (of Rust's kind, without
    anchors) matches as a whole. `lark`: a context-free grammar as llguidance reads them.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str  # the schema as JSON text, the expression, the grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. The names and the meanings are those of the OpenAI API and of vLLM.

    The token at a position is a pure function of the model, the token ids before it, these
    parameters and the seed. `outpace.engine.sampling.validate` states the limits of every field.
    """

    max_tokens: int | None = None  # None: up to the end of the context
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # over prompt and output; 1: off
    presence_penalty: float = 0.0  # over the output; 0: off
    frequency_penalty: float = 0.0  # over the output; 0: off
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None  # None: drawn once per request, and reported
    n: int = 1  # choices for each prompt
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    shown_token_ids: tuple[int, ...] = ()  # special tokens that the text shows; others are left out
    logprobs: int | None = None  # None: none; k: that of the token and of the k likeliest
    grammar: Grammar | None = None  # what the answer must look like; None: anything
    embed: bool = False  # the first delta brings the prompt's embedding; the whole prompt is computed


SAMPLING_DTYPE = np.dtype(
    [
        ("seed", np.uint64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("top_k", np.int32),
        ("num_logprobs", np.int32),  # -1: none
        ("num_prompt_tokens", np.int32),  # where the output starts, for the penalties
        ("padding", np.int32),
    ]
)
"""One request's sampling parameters as the backends read them; 48 bytes, laid out as in api.h."""


# --- what a model is ----------------------------------------------------------------------------

RopeKind = Literal["none", "interleaved", "half"]
"""`interleaved` rotates pairs (2i, 2i+1), `half` rotates pairs (i, i + d/2) (GPT-NeoX style)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All that the generic decoder forward needs to know of an architecture.

    A new architecture is a page in `outpace.models.architectures` that fills one of these in.
    """

    architecture: str  # the family's name, as in GGUF: "llama", "qwen2", ...
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_context: int  # tokens, as the model states it
    norm_eps: float
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen3)
    rope_kind: RopeKind = "half"
    rope_inv_freq: tuple[float, ...] = ()  # [rotary_dim / 2], radians per token, scaling applied
    rope_attention_factor: float = 1.0  # multiplies cos and sin (YaRN)
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tied_embeddings: bool = False
    sliding_window: int = 0  # tokens that a query sees, itself included; 0: all
    attention_softcap: float = 0.0  # 0: off
    logit_softcap: float = 0.0  # 0: off
    embedding_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one tensor's bytes lie on disk. Nothing is read before a backend asks for it."""

    name: str  # canonical, see `outpace.models.names`: "embed", "layers.0.q", "output_norm", ...
    path: Path
    offset: int  # bytes from the start of the file
    num_bytes: int
    dtype: str  # ggml's name: "F32", "F16", "BF16", "Q4_K", ...
    shape: tuple[int, ...]  # (rows, columns) = (outputs, inputs), or (elements,)


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


# --- one step -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that a drafter proposes to follow a request's last token.

    `parents[i]` is the index of the draft token before token i, below i, or -1 for the request's last token;
    None is a chain. Each path from -1 down is one guess at what follows; the likeliest goes first, as it
    alone costs no copies in the KV cache. A draft changes when a token comes, never which.
    """

    token_ids: Sequence[int]
    parents: Sequence[int] | None = None
    proposer: str = ""  # whose guess it is, for metrics and reports


Lane = Literal["priority", "default", "flex"]


@dataclass(frozen=True, slots=True)
class DraftHints:
    """What a caller may tell about a request that changes when its tokens come, never which."""

    # Whose shared drafts it may see and feed: one client's text never shows in another's. And whose cached
    # prefixes it finds, with `EngineConfig.prefix_sharing` "scope".
    scope: str = ""
    prediction: Sequence[int] = ()  # token ids that the output is expected to resemble
    drafts: bool = True  # False: plain decoding, and nothing of it is kept to draft from
    pin_seconds: float = 0.0  # how long its prompt's blocks leave memory after all others, from its end on
    lane: Lane = "default"  # how soon it begins where requests wait
    deadline: float = 0.0  # time.perf_counter() seconds when it ends, however far it is; 0: never


@dataclass(slots=True)
class StepBatch:
    """One step's rows as flat arrays; a row is one token at one position of one request.

    The rows of request i are `row_start[i] : row_start[i + 1]`, consecutive positions from
    `num_computed_tokens[i]` on. The last `num_draft_tokens[i]` of them are drafts. Where `sample[i]`
    is set, the row before the drafts and every draft row yield a token; else the request is in the
    midst of its prompt and the rows only fill the KV cache.

    Where drafts branch, `draft_parents` holds for each draft row the index, among its request's drafts, of
    the draft before it (a lower one), or -1 for the row before the drafts; in other rows it means nothing.
    A draft's position is that of the row before the drafts plus its depth (1 for a child of -1), and it sees
    its own path alone: choice and logits are those of that path as a chain. All rows have slots.
    """

    token_ids: Int32Array  # [num_rows]
    row_start: Int32Array  # [num_requests + 1]
    num_computed_tokens: Int32Array  # [num_requests] tokens already in the KV cache
    num_draft_tokens: Int32Array  # [num_requests]
    sample: NDArray[np.uint8]  # [num_requests] 0 or 1
    block_tables: Int32Array  # [num_requests, width] block ids, -1 past the end
    sampling: NDArray[np.void]  # [num_requests] of SAMPLING_DTYPE
    # Only what some requests need; None where no request of the batch needs it.
    history: list[Int32Array | None] | None = None  # prompt and output ids, for the penalties
    logit_bias: list[tuple[Int32Array, Float32Array] | None] | None = None  # (token ids, biases)
    # For the row before the drafts and for each draft a row of bits, lowest first, of the tokens that may
    # follow: [1 + num_draft_tokens[i] rows, flat: ceil(vocab_size / 32) words each]; None: all may.
    token_masks: list[UInt32Array | None] | None = None
    draft_parents: Int32Array | None = None  # [num_rows]; None: every draft is a chain
    # Only the first so many tokens of the vocabulary need be chosen among; 0: all. It spares the native
    # backend the others' rows of the output; their logits are -inf there.
    num_output_tokens: int = 0
    want_logits: bool = False  # return the logits of every row (oracle, perplexity)
    want_hidden: bool = False  # return the final hidden states of every row (embeddings)

    @property
    def num_rows(self) -> int:
        """Rows in the step."""
        return len(self.token_ids)

    @property
    def num_requests(self) -> int:
        """Requests in the step."""
        return len(self.num_computed_tokens)


@dataclass(slots=True)
class StepOutput:
    """What a step chose.

    Request i gets `token_ids[i, : num_accepted[i] + 1]`: the drafts that equal what plain decoding
    picks, then the bonus token. A request whose `sample` is 0 gets nothing. In a tree they are a path: from
    the row before the drafts on, the first child that equals the token picked. The KV cache then holds that
    path as if it had been a chain.
    """

    token_ids: Int32Array  # [num_requests, 1 + max draft]
    num_accepted: Int32Array  # [num_requests] draft tokens accepted
    logprobs: Float32Array | None = None  # [num_requests, 1 + max draft] nats, of the raw logits
    top_token_ids: Int32Array | None = None  # [num_requests, 1 + max draft, k] likeliest first
    top_logprobs: Float32Array | None = None  # [num_requests, 1 + max draft, k]
    logits: Float32Array | None = None  # [num_rows, vocab_size], when the batch asks
    hidden: Float32Array | None = None  # [num_rows, hidden_size], after the output norm, when it asks


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one engine step did and took; the raw material of the metrics."""

    num_rows: int
    num_requests: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_new_tokens: int
    step_seconds: float  # all of Engine.step
    backend_seconds: float  # of that, inside Backend.step
    draft_seconds: float = 0.0  # of that, proposing and learning from what was accepted


# --- what a caller gets -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token's log probability and its likeliest rivals, in nats, of the raw logits."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DraftCount:
    """What one proposer did for a request."""

    proposer: str
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """One piece of a request's stream: new tokens, the text they complete, and the end if it is one."""

    request_id: str
    index: int  # which of the n choices
    token_ids: tuple[int, ...]
    text: str  # whole characters only; may be empty while one is incomplete
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None  # with FinishReason.ERROR
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    num_output_tokens: int = 0  # so far
    num_drafted: int = 0  # draft tokens proposed so far
    num_accepted: int = 0  # draft tokens accepted so far
    num_from_draft: int = 0  # of token_ids, the first so many were drafted
    proposer: str = ""  # by whom
    draft_counts: tuple[DraftCount, ...] = ()  # with the finish_reason: over the whole request
    stop: str | None = None  # with FinishReason.STOP: the stop string that came; None: a stop id
    embedding: tuple[float, ...] | None = None  # with `SamplingParams.embed`: see `outpace.engine.embedding`


class Backend(Protocol):
    """Runs the forward pass and picks tokens. One call per step; not reentrant."""

    @property
    def spec(self) -> ModelSpec:
        """The model that it runs."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of BLOCK_SIZE tokens in the KV cache that it holds."""
        ...

    @property
    def kv_blocks(self) -> NDArray[np.uint8] | None:
        """The KV cache's own memory, [num_blocks or more, bytes of a block]; None where it has no such form.

        A full block, copied to any other place in it, means the same there. Valid until `close`.
        """
        ...

    @property
    def state_blocks(self) -> NDArray[np.uint8] | None:
        """What is kept beside these blocks for a draft head, [num_blocks or more, bytes]; None: nothing.

        Whoever copies a block into the KV cache sets these bytes to zeros: they are of what was there before.
        """
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        ...

    @property
    def description(self) -> Mapping[str, str | int]:
        """What a report needs: isa, threads, kv format and the like."""
        ...

    def step(self, batch: StepBatch) -> StepOutput:
        """Run one step. Raises `BackendError`; the KV cache then holds garbage in the batch's new slots."""
        ...

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        ...


@dataclass(slots=True)
class HeadBatch:
    """Requests for which a draft head shall guess. First it reads the tokens that it has not read.

    Those of request i are `token_ids[row_start[i] : row_start[i + 1]]`, consecutive positions from
    `positions[i]` on, the request's last token the last. All tokens before that one are in the model's KV
    cache.
    """

    token_ids: Int32Array  # [num_rows]
    row_start: Int32Array  # [num_requests + 1]
    positions: Int32Array  # [num_requests] in the request
    starts: Int32Array  # [num_requests] where it began to read: its own positions count from there
    block_tables: Int32Array  # [num_requests, width] in the model's KV cache, -1 past the end
    head_block_tables: Int32Array  # [num_requests, width] in its own, of the positions that it has read
    max_tokens: Int32Array  # [num_requests] guesses at most, at least 1
    sampling: NDArray[np.void]  # [num_requests] of SAMPLING_DTYPE; penalties count for nothing
    least_chances: Float32Array  # [>= most of max_tokens] of all d guesses so far, for another one to follow


@dataclass(slots=True)
class HeadOutput:
    """What a draft head guesses: for request i, `token_ids[i, : num_tokens[i]]`, a chain."""

    token_ids: Int32Array  # [num_requests, width]
    chances: Float32Array  # [num_requests, width] of each, as the head sees it, after those before it
    num_tokens: Int32Array  # [num_requests] 0 from a head whose weights are damaged


class DraftHead(Protocol):
    """A light trained drafter that lives in a backend, on its model's hidden states."""

    context: int  # tokens of a request that it holds at most, guesses included
    num_blocks: int  # of its own KV cache, BLOCK_SIZE tokens each
    weight_bytes: int  # that one guess reads

    def guess(self, batch: HeadBatch) -> HeadOutput:
        """Read and guess. Raises `BackendError`; changes nothing that the model's steps read."""
        ...


class DraftRequest(Protocol):
    """What a proposer may know of a request; the engine's `Request` is one. Read only."""

    @property
    def key(self) -> str:
        """Unique among the choices of all open requests."""
        ...

    @property
    def token_ids(self) -> Int32Array:
        """Prompt and output so far, [num_tokens]: a view, valid until tokens are appended."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output so far."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Of those, the prompt's."""
        ...

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt's, found in the prefix cache."""
        ...

    @property
    def index(self) -> int:
        """Which of the n choices; choice 0 speaks for the prompt that they share."""
        ...

    @property
    def hints(self) -> DraftHints:
        """What the caller told."""
        ...

    @property
    def sampling_record(self) -> NDArray[np.void]:
        """[1] of SAMPLING_DTYPE: a proposer that samples does so with the request's own noise."""
        ...

    @property
    def block_ids(self) -> list[int]:
        """Its blocks in the KV cache, in order, for proposers that keep entries of their own beside it."""
        ...

    def digests(self, num_blocks: int) -> list[bytes]:
        """The chained digests of at least the first `num_blocks` full blocks: what each block holds."""
        ...


class Drafter(Protocol):
    """Decides what is drafted, the engine's one partner in this; see `outpace.draft.controller`."""

    def propose(
        self, requests: Sequence[DraftRequest], rooms: Sequence[int], num_rows: int, num_tree_tokens: int
    ) -> Sequence[Draft | None]:
        """A draft of up to `rooms[i]` tokens for request i, or none.

        The step has `num_rows` rows without drafts; trees may have `num_tree_tokens` tokens all together.
        """
        ...

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        """The step is done: what `propose` was asked for has its new tokens; some may have ended.

        `seconds` is what the backend took; 0 where other work in the step makes that no measure.
        """
        ...

    def finish(self, request: DraftRequest) -> None:
        """The request has ended; also for requests that were never asked for."""
        ...

    def close(self) -> None:
        """The engine ends. Safe to call twice."""
        ...
