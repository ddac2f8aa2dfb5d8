"""GGUF files written byte by byte, so that tests can lie in any field of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: Any) -> bytes:
    return string(value) if kind == STR else struct.pack("<" + FORMATS[kind], value)


def array(kind: int, values: Sequence[Any], count: int | None = None) -> bytes:
    """Element type, count and elements; `count` may lie."""
    head = struct.pack("<IQ", kind, len(values) if count is None else count)
    return head + b"".join(scalar(kind, value) for value in values)


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    """A key, the type of its value, and the value's bytes."""
    return string(key) + struct.pack("<I", kind) + payload


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]  # as in the file: fastest dimension first
    kind: int = 0
    offset: int | None = None  # None: after the one before it
    num_dimensions: int | None = None

    def num_bytes(self) -> int:
        size = {0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 23: (256, 136)}[
            self.kind
        ]
        count = 1
        for extent in self.shape:
            count *= extent
        return count // size[0] * size[1]


@dataclass
class File:
    """A GGUF file; every count may be overridden with a lie."""

    entries: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    alignment: int = 32
    tail: int = 0  # bytes that the data section has beyond (or, negative, short of) what the tensors need

    def to_bytes(self) -> bytes:
        header = b"GGUF" + struct.pack(
            "<IQQ",
            self.version,
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(self.entries) if self.num_keys is None else self.num_keys,
        )
        header += b"".join(self.entries)
        end = 0
        for tensor in self.tensors:
            offset = end if tensor.offset is None else tensor.offset
            dimensions = len(tensor.shape) if tensor.num_dimensions is None else tensor.num_dimensions
            header += string(tensor.name) + struct.pack("<I", dimensions)
            header += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack(
                "<IQ", tensor.kind, offset
            )
            if tensor.offset is None:
                end = -(-(end + tensor.num_bytes()) // self.alignment) * self.alignment
        header += b"\0" * (-len(header) % self.alignment)
        return header + b"\1" * max(end + self.tail, 0)


VOCAB, HIDDEN, INNER, HEADS, KV_HEADS = 40, 32, 64, 4, 2


def small_entries(arch: str = "llama", **changes: bytes | None) -> dict[str, bytes]:
    """The metadata of a small model by key; `changes` replace some (__ for a dot), None drops one."""
    tokens = [f"t{i}" for i in range(VOCAB)]
    entries = {
        "general.architecture": entry("general.architecture", STR, string(arch)),
        f"{arch}.context_length": entry(f"{arch}.context_length", U32, scalar(U32, 128)),
        f"{arch}.embedding_length": entry(f"{arch}.embedding_length", U32, scalar(U32, HIDDEN)),
        f"{arch}.block_count": entry(f"{arch}.block_count", U32, scalar(U32, 1)),
        f"{arch}.feed_forward_length": entry(f"{arch}.feed_forward_length", U32, scalar(U32, INNER)),
        f"{arch}.attention.head_count": entry(f"{arch}.attention.head_count", U32, scalar(U32, HEADS)),
        f"{arch}.attention.head_count_kv": entry(
            f"{arch}.attention.head_count_kv", U32, scalar(U32, KV_HEADS)
        ),
        f"{arch}.attention.layer_norm_rms_epsilon": entry(
            f"{arch}.attention.layer_norm_rms_epsilon", F32, scalar(F32, 1e-5)
        ),
        f"{arch}.rope.freq_base": entry(f"{arch}.rope.freq_base", F32, scalar(F32, 10000.0)),
        "tokenizer.ggml.model": entry("tokenizer.ggml.model", STR, string("gpt2")),
        "tokenizer.ggml.tokens": entry("tokenizer.ggml.tokens", ARR, array(STR, tokens)),
        "tokenizer.ggml.token_type": entry("tokenizer.ggml.token_type", ARR, array(I32, [1] * VOCAB)),
        "tokenizer.ggml.merges": entry("tokenizer.ggml.merges", ARR, array(STR, ["t 1", "t 2"])),
        "tokenizer.ggml.eos_token_id": entry("tokenizer.ggml.eos_token_id", U32, scalar(U32, 2)),
    }
    for name, payload in changes.items():
        key = name.replace("__", ".")
        if payload is None:
            del entries[key]
        else:
            entries[key] = payload
    return entries


def small_tensors() -> dict[str, Tensor]:
    """The tensors of the small model by name, in the file's dimension order."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "token_embd.weight": (HIDDEN, VOCAB),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": (HIDDEN, kv),
        "blk.0.attn_v.weight": (HIDDEN, kv),
        "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (HIDDEN, INNER),
        "blk.0.ffn_up.weight": (HIDDEN, INNER),
        "blk.0.ffn_down.weight": (INNER, HIDDEN),
    }
    return {name: Tensor(name, shape) for name, shape in shapes.items()}


def small_file(
    entries: Mapping[str, bytes] | None = None, tensors: Mapping[str, Tensor] | None = None, **changes: Any
) -> File:
    """A whole, valid model of 20 kB."""
    return File(
        list((entries or small_entries()).values()), list((tensors or small_tensors()).values()), **changes
    )
