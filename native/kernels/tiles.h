// How a weight matrix lies in memory.
//
// A matrix of N outputs and K inputs is cut into strips of 16 outputs; a strip is contiguous and holds
// three planes, one after the other (each a multiple of 32 bytes, the strip padded to 64):
//
//   quants   per group of 32 inputs, lines of 64 bytes = 16 outputs x 4 bytes:
//              4, 5, 6 bits: 4 lines; byte i of output o in line l holds inputs 4l + i (low nibble)
//                            and 16 + 4l + i (high nibble)
//              8 bits:       8 lines; line q holds inputs 4q .. 4q + 3, biased by 128
//   high     5 bits: 64 bytes a group, 8 masks of 64 bits; bit 4o + i of mask q belongs to input 4q + i
//            6 bits: 2 lines a group; in line h, bits 2f of byte i of output o belong to
//                    input 4 (4h + f) + i
//   scales   per group of 32: f16 d[16], then f16 m[16] where the format has minima
//            Q4_K, Q5_K per 256: u32 words[3][16] (ggml's 12 packed bytes of 6-bit scales and
//                    minima), f16 d[16], f16 dmin[16]
//            Q6_K per 256: i8 scales[16 groups of 16][16], f16 d[16]
//
// so that one line feeds one VNNI instruction and the bytes per weight are those of the file.
// Float matrices are one plane: for each input, 16 outputs of f32, f16 or bf16.
#pragma once

#include <cstdint>

namespace outpace {

constexpr int kStrip = 16;         // outputs in a strip
constexpr int kGroup = 32;         // inputs in a group
constexpr int kSuperBlock = 256;   // inputs in a super-block of the K formats

enum class Format { f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };

constexpr bool is_float(Format f) { return f <= Format::bf16; }
constexpr bool is_k(Format f) { return f >= Format::q4_k; }
constexpr bool has_min(Format f) { return f == Format::q4_1 || f == Format::q5_1; }

constexpr int bits(Format f) {
  switch (f) {
    case Format::q4_0:
    case Format::q4_1:
    case Format::q4_k: return 4;
    case Format::q5_0:
    case Format::q5_1:
    case Format::q5_k: return 5;
    case Format::q6_k: return 6;
    case Format::q8_0: return 8;
    case Format::f32: return 32;
    default: return 16;
  }
}

// What the unsigned quants are biased by.
constexpr int zero_point(Format f) {
  switch (f) {
    case Format::q4_0: return 8;
    case Format::q5_0: return 16;
    case Format::q6_k: return 32;
    case Format::q8_0: return 128;
    default: return 0;
  }
}

// Bytes per group of 32 inputs and 16 outputs.
constexpr int quant_bytes(Format f) { return f == Format::q8_0 ? 512 : 256; }
constexpr int high_bytes(Format f) { return bits(f) == 5 ? 64 : bits(f) == 6 ? 128 : 0; }

// Bytes of the scales plane per group of 32 (or per super-block of 256, for the K formats).
constexpr int scale_bytes(Format f) {
  if (f == Format::q6_k) return 256 + 32;
  if (is_k(f)) return 192 + 64;
  return has_min(f) ? 64 : 32;
}

struct TileMatrix {
  Format format = Format::f32;
  int64_t rows = 0, columns = 0;  // outputs N, inputs K
  int64_t strip_bytes = 0;
  int64_t high_offset = 0, scale_offset = 0;  // of the planes, from the strip's start
  uint8_t* data = nullptr;                    // [num_strips, strip_bytes], 64-byte aligned

  int64_t num_strips() const { return (rows + kStrip - 1) / kStrip; }
  int64_t padded_rows() const { return num_strips() * kStrip; }
  int64_t total_bytes() const { return num_strips() * strip_bytes; }
  const uint8_t* strip(int64_t s) const { return data + s * strip_bytes; }
};

// The shape of a matrix in tiles, without memory.
inline TileMatrix tile_shape(Format format, int64_t rows, int64_t columns) {
  TileMatrix m{format, rows, columns, 0, 0, 0, nullptr};
  int64_t bytes;
  if (is_float(format)) {
    bytes = columns * kStrip * (bits(format) / 8);
  } else {
    const int64_t groups = columns / kGroup;
    m.high_offset = groups * quant_bytes(format);
    m.scale_offset = m.high_offset + groups * high_bytes(format);
    bytes = m.scale_offset +
            (is_k(format) ? columns / kSuperBlock : groups) * scale_bytes(format);
  }
  m.strip_bytes = (bytes + 63) / 64 * 64;
  return m;
}

// Rows of activations quantized per super-block of 256, as one plane of 8-bit integers.
struct KPlane {
  int8_t* q = nullptr;       // [rows, K]
  float* scale = nullptr;    // [rows, K / 256]; in the low plane 0 where a super-block has none
  int16_t* sum = nullptr;    // [rows, K / 32] of q, in the order 0 2 1 3 4 6 5 7 of a super-block's groups
  int32_t* sum16 = nullptr;  // [rows, K / 16] of q
};

// Rows of activations as the matmul kernels read them. Which members are set depends on the weights:
// float weights read `x`, the group formats the arrays per 32, the K formats the planes.
//
// One 8-bit scale for 256 activations loses the small ones where a few are very large (the first
// token of a text, above all). A super-block whose largest activation is over kWide times its root
// mean square therefore gets 15 bits: a high plane and a low one, each with a scale of its own.
struct Activations {
  int64_t columns = 0;          // K
  float* x = nullptr;           // [rows, stride_x]
  int64_t stride_x = 0;
  int8_t* q32 = nullptr;        // [rows, K]
  float* scale32 = nullptr;     // [rows, K / 32]
  int32_t* sum32 = nullptr;     // [rows, K / 32] of q32
  float* scaled_sum32 = nullptr;  // [rows, K / 32] scale x sum
  KPlane high, low;
};

constexpr float kWide = 12.0f;

}  // namespace outpace
