"""What a caller asks for: how tokens are chosen, and what an answer must look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


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
