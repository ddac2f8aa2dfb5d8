"""The nouns and the Protocols of Outpace.

Everything that crosses a room's wall is defined here. The rooms import this package; it imports nothing of
theirs. Array comments give the shape and the unit.

sampling    what a caller asks for       output    what it gets: deltas, and why they end
config      the engine's settings        model     what a model is
step        one step, and the backend    draft     what is guessed, and who guesses
"""

from outpace.types.arrays import Float32Array, Int32Array, UInt32Array
from outpace.types.config import DraftSharing, EngineConfig, KVFormat, Prefill, PrefixSharing, WeightFormat
from outpace.types.draft import (
    Draft,
    Drafter,
    DraftHead,
    DraftHints,
    DraftRequest,
    HeadBatch,
    HeadOutput,
    Lane,
)
from outpace.types.model import ModelSpec, RopeKind, TensorRef
from outpace.types.output import DraftCount, FinishReason, TokenDelta, TokenLogprob
from outpace.types.sampling import SAMPLING_DTYPE, Grammar, SamplingParams
from outpace.types.step import BLOCK_SIZE, Backend, StepBatch, StepOutput, StepStats

__all__ = [
    "BLOCK_SIZE",
    "SAMPLING_DTYPE",
    "Backend",
    "Draft",
    "DraftCount",
    "DraftHead",
    "DraftHints",
    "DraftRequest",
    "DraftSharing",
    "Drafter",
    "EngineConfig",
    "FinishReason",
    "Float32Array",
    "Grammar",
    "HeadBatch",
    "HeadOutput",
    "Int32Array",
    "KVFormat",
    "Lane",
    "ModelSpec",
    "Prefill",
    "PrefixSharing",
    "RopeKind",
    "SamplingParams",
    "StepBatch",
    "StepOutput",
    "StepStats",
    "TensorRef",
    "TokenDelta",
    "TokenLogprob",
    "UInt32Array",
    "WeightFormat",
]
