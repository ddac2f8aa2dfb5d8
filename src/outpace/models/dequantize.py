"""Tensors on disk to float32 arrays. It knows block formats, not models.

The block layouts are ggml's (ggml-common.h). The native core reads the same bytes with its own code;
this one serves the oracle, so it is written to be read: one structured dtype and one formula each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from outpace.errors import ModelFormatError, UnsupportedModelError
from outpace.types import Float32Array, TensorRef

Blocks = NDArray[np.void]  # [n] of a format's structured dtype
Bytes = NDArray[np.uint8]

_CHUNK_BLOCKS = 1 << 15  # blocks decoded at once, so that the temporaries stay small


def _halves(packed: Bytes, run: int) -> Bytes:
    """4-bit values of bytes [n, b]: of each run of bytes first the low halves, then the high, [n, 2 b]."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> np.array([[0], [4]], np.uint8)) & np.uint8(15)).reshape(len(packed), -1)


def _bits(packed: Bytes) -> Bytes:
    """Single bits of bytes [n, b], least significant first, [n, 8 b]."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _scale(blocks: Blocks, field: str) -> Float32Array:
    """A half-precision field of each block as a column, [n, 1]."""
    return blocks[field].astype(np.float32)[:, None]


def _centred(quants: Bytes, zero: int) -> Float32Array:
    """Unsigned quants less their zero point, [n, values]."""
    return (quants.astype(np.int8) - np.int8(zero)).astype(np.float32)


def _q4_0(blocks: Blocks) -> Float32Array:
    return _scale(blocks, "d") * _centred(_halves(blocks["q"], 16), 8)


def _q4_1(blocks: Blocks) -> Float32Array:
    return _scale(blocks, "d") * _halves(blocks["q"], 16).astype(np.float32) + _scale(blocks, "m")


def _five_bits(blocks: Blocks) -> Bytes:
    return _halves(blocks["q"], 16) | (_bits(blocks["high"]) << np.uint8(4))


def _q5_0(blocks: Blocks) -> Float32Array:
    return _scale(blocks, "d") * _centred(_five_bits(blocks), 16)


def _q5_1(blocks: Blocks) -> Float32Array:
    return _scale(blocks, "d") * _five_bits(blocks).astype(np.float32) + _scale(blocks, "m")


def _q8_0(blocks: Blocks) -> Float32Array:
    return _scale(blocks, "d") * blocks["q"]


def _sub_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight 6-bit scales and eight 6-bit minima that Q4_K and Q5_K pack into 12 bytes, [n, 8] each.

    Bytes 0-3 and 4-7 hold scales 0-3 and minima 0-3 in their low 6 bits; their top 2 bits are the
    top bits of scales 4-7 and minima 4-7, whose low 4 bits lie in the halves of bytes 8-11.
    """
    scales, minima, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    six, top = np.uint8(0x3F), np.uint8(0xC0)
    return (
        np.concatenate([scales & six, (rest & np.uint8(15)) | ((scales & top) >> np.uint8(2))], axis=1),
        np.concatenate([minima & six, (rest >> np.uint8(4)) | ((minima & top) >> np.uint8(2))], axis=1),
    )


def _affine_groups(blocks: Blocks, quants: Bytes) -> Float32Array:
    """d x scale x q - dmin x minimum over eight groups of 32, [n, 256]."""
    scales, minima = _sub_scales(blocks["scales"])
    d = (_scale(blocks, "d") * scales.astype(np.float32))[:, :, None]
    m = (_scale(blocks, "dmin") * minima.astype(np.float32))[:, :, None]
    values = d * quants.astype(np.float32).reshape(-1, 8, 32)
    values -= m
    return values.reshape(-1, 256)


def _q4_k(blocks: Blocks) -> Float32Array:
    return _affine_groups(blocks, _halves(blocks["q"], 32))


def _q5_k(blocks: Blocks) -> Float32Array:
    # Bit g of high[j] is the fifth bit of value j of group g.
    high = _bits(blocks["high"]).reshape(-1, 32, 8).transpose(0, 2, 1).reshape(-1, 256)
    return _affine_groups(blocks, _halves(blocks["q"], 32) | (high << np.uint8(4)))


def _q6_k(blocks: Blocks) -> Float32Array:
    # Two halves of 128 values; in each, 64 low bytes and 32 high bytes of four 2-bit fields.
    low = _halves(blocks["low"], 64)
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    high = ((blocks["high"].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 256)
    quants = _centred(low | (high << np.uint8(4)), 32)
    scales = _scale(blocks, "d") * blocks["scales"]
    return (scales[:, :, None] * quants.reshape(-1, 16, 16)).reshape(-1, 256)


def _float(blocks: Blocks) -> Float32Array:
    return blocks["x"].astype(np.float32)[:, None]


def _bfloat16(blocks: Blocks) -> Float32Array:
    return (blocks["x"].astype(np.uint32) << 16).view(np.float32)[:, None]


_Decoder = Callable[[Blocks], Float32Array]
_D = ("d", "<f2")
_K_HEAD = [_D, ("dmin", "<f2"), ("scales", "u1", 12)]

# ggml's name -> (one block on disk, values in a block, decoder to [blocks, values])
_FORMATS: dict[str, tuple[np.dtype[np.void], int, _Decoder]] = {
    "F32": (np.dtype([("x", "<f4")]), 1, _float),
    "F16": (np.dtype([("x", "<f2")]), 1, _float),
    "BF16": (np.dtype([("x", "<u2")]), 1, _bfloat16),
    "Q8_0": (np.dtype([_D, ("q", "i1", 32)]), 32, _q8_0),
    "Q4_0": (np.dtype([_D, ("q", "u1", 16)]), 32, _q4_0),
    "Q4_1": (np.dtype([_D, ("m", "<f2"), ("q", "u1", 16)]), 32, _q4_1),
    "Q5_0": (np.dtype([_D, ("high", "u1", 4), ("q", "u1", 16)]), 32, _q5_0),
    "Q5_1": (np.dtype([_D, ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)]), 32, _q5_1),
    "Q4_K": (np.dtype([*_K_HEAD, ("q", "u1", 128)]), 256, _q4_k),
    "Q5_K": (np.dtype([*_K_HEAD, ("high", "u1", 32), ("q", "u1", 128)]), 256, _q5_k),
    "Q6_K": (np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D]), 256, _q6_k),
}

FORMATS = frozenset(_FORMATS)
"""The ggml names of the formats that `dequantize` reads."""


def dequantize(data: bytes | memoryview | Bytes, dtype: str) -> Float32Array:
    """Decode bytes of a ggml format to a flat float32 array, in the order of the file.

    Raises `UnsupportedModelError` for a format that is not in `FORMATS`, `ValueError` where the bytes
    are no whole number of blocks.
    """
    if dtype not in _FORMATS:
        raise UnsupportedModelError(
            f"tensor type {dtype} is not supported; supported are {', '.join(sorted(FORMATS))}"
        )
    block, values, decode = _FORMATS[dtype]
    blocks = np.frombuffer(data, block)
    out = np.empty((len(blocks), values), np.float32)
    step = _CHUNK_BLOCKS * 256 // values
    for start in range(0, len(blocks), step):
        out[start : start + step] = decode(blocks[start : start + step])
    return out.reshape(-1)


def read_tensor(tensor: TensorRef) -> Float32Array:
    """Read one tensor from its file as float32, in its shape.

    Raises `UnsupportedModelError` for its type, `ModelFormatError` where shape, size and file disagree.
    """
    if tensor.dtype not in _FORMATS:
        raise UnsupportedModelError(
            f"{tensor.path}: {tensor.name}: tensor type {tensor.dtype} is not supported; "
            f"supported are {', '.join(sorted(FORMATS))}"
        )
    block, values, _ = _FORMATS[tensor.dtype]
    elements = math.prod(tensor.shape)
    if elements % values or elements // values * block.itemsize != tensor.num_bytes:
        raise ModelFormatError(
            tensor.path,
            tensor.name,
            f"{tensor.num_bytes} bytes do not hold shape {tensor.shape} as {tensor.dtype}",
        )
    data = np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
    if len(data) != tensor.num_bytes:
        raise ModelFormatError(
            tensor.path,
            tensor.name,
            f"the file ends after {len(data)} of the tensor's {tensor.num_bytes} bytes",
        )
    return dequantize(data, tensor.dtype).reshape(tensor.shape)
