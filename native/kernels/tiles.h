// How a weight matrix lies in memory.
//
// A matrix of N outputs and K inputs is cut into strips of 16 outputs, and a strip into cells: 32 inputs
// of a group format, or a super-block of 256 of a K format. A cell holds, one after the other:
//
//   quants   per group of 32 inputs, lines of 64 bytes = 16 outputs x 4 bytes:
//              4, 5, 6 bits: 4 lines; byte i of output o in line l holds inputs 4l + i (low nibble)
//                            and 16 + 4l + i (high nibble)
//              8 bits:       8 lines; line q holds inputs 4q .. 4q + 3, biased by 128
//   high     5 bits: 64 bytes a group, 8 masks of 64 bits; bit 4o + i of mask q belongs to input 4q + i
//            6 bits: 2 lines a group; in line h, bits 2f of byte i of output o belong to
//                    input 4 (4h + f) + i
//   scales   group formats: f16 d[16], then f16 m[16] where the format has minima
//            Q4_K, Q5_K: u32 words[3][16] (ggml's 12 packed bytes of 6-bit scales and minima),
//                    f16 d[16], f16 dmin[16]
//            Q6_K:   i8 scales[16 groups of 16][16], f16 d[16]
//
// so that one line feeds one VNNI instruction, the bytes per weight are those of the file, and a step
// reads the whole matrix as one stream from end to end, which is what prefetchers follow best (with many rows
// two strips at a time).
// Float matrices are one plane: for each input, 16 outputs of f32, f16 or bf16.
#pragma once

#include <cstdint>

namespace outpace {

constexpr int kStrip = 16;        // outputs in a strip
constexpr int kGroup = 32;        // inputs in a group
constexpr int kSuperBlock = 256;  // inputs in a super-block of the K formats

enum class Format { f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };

constexpr bool is_float(Format f) { return f <= Format::bf16; }
constexpr bool is_k(Format f) { return f >= Format::q4_k; }
constexpr bool has_min(Format f) { return f == Format::q4_1 || f == Format::q5_1; }

constexpr int bits(Format f) {
  switch (f) {
    case Format::q4_0:
    case Format::q4_1:
    case Format::q4_k:
      return 4;
    case Format::q5_0:
    case Format::q5_1:
    case Format::q5_k:
      return 5;
    case Format::q6_k:
      return 6;
    case Format::q8_0:
      return 8;
    case Format::f32:
      return 32;
    default:
      return 16;
  }
}

// What the unsigned quants are biased by.
constexpr int zero_point(Format f) {
  switch (f) {
    case Format::q4_0:
      return 8;
    case Format::q5_0:
      return 16;
    case Format::q6_k:
      return 32;
    case Format::q8_0:
      return 128;
    default:
      return 0;
  }
}

// Bytes per group of 32 inputs and 16 outputs.
constexpr int quant_bytes(Format f) { return f == Format::q8_0 ? 512 : 256; }
constexpr int high_bytes(Format f) { return bits(f) == 5 ? 64 : bits(f) == 6 ? 128 : 0; }

// Inputs in a cell, and where its parts lie. A float cell is one input.
constexpr int cell_columns(Format f) { return is_float(f) ? 1 : is_k(f) ? kSuperBlock : kGroup; }
constexpr int high_offset(Format f) { return cell_columns(f) / kGroup * quant_bytes(f); }
constexpr int scale_offset(Format f) { return high_offset(f) + cell_columns(f) / kGroup * high_bytes(f); }
constexpr int scale_bytes(Format f) {
  if (f == Format::q6_k) return 256 + 32;
  if (is_k(f)) return 192 + 64;
  return has_min(f) ? 64 : 32;
}
constexpr int cell_bytes(Format f) {
  return is_float(f) ? kStrip * bits(f) / 8 : scale_offset(f) + scale_bytes(f);
}

struct TileMatrix {
  Format format = Format::f32;
  int64_t rows = 0, columns = 0;  // outputs N, inputs K
  int64_t strip_bytes = 0;        // a multiple of 64
  uint8_t* data = nullptr;        // [num_strips, strip_bytes], 64-byte aligned

  int64_t num_strips() const { return (rows + kStrip - 1) / kStrip; }
  int64_t padded_rows() const { return num_strips() * kStrip; }
  int64_t total_bytes() const { return num_strips() * strip_bytes; }
};

// The shape of a matrix in tiles, without memory.
inline TileMatrix tile_shape(Format format, int64_t rows, int64_t columns) {
  const int64_t bytes = columns / cell_columns(format) * cell_bytes(format);
  return {format, rows, columns, (bytes + 63) / 64 * 64, nullptr};
}

// Rows of activations as integers of 8 bits, with one scale for 32 of them (group formats) or for 256 (K
// formats).
//
// A scale that follows the largest activation loses the small ones where one is far larger than the
// rest. Such a cell is wide: its activations get 15 bits, as a high plane in its usual place and a low
// plane beside it, and the list of a row's wide cells says where a kernel has to add the low plane. On
// SmolLM2-135M, 7 % of the groups are wide and the KL divergence falls from 0.0028 to 0.0008 nats; on
// Qwen2.5-Coder-1.5B the first token of a text, which no single scale of 256 can hold, is right again.
struct Plane {
  int8_t* q = nullptr;     // [rows, stride], of which K
  int64_t stride = 0;      // from a row's q to the next one's
  float* scale = nullptr;  // [rows, K / cell]
  // Sums of q; per 32: [rows, K / 32]
  int32_t* sum = nullptr;
  float* scaled_sum = nullptr;  // scale x sum
  // Per 256:
  int16_t* pair_sum = nullptr;  // [rows, K / 32] a super-block's groups as 0 2 1 3 4 6 5 7
  // [rows, K / 16] minus Q6_K's zero point x the sum of a half of a group: where its products begin.
  int32_t* half_start = nullptr;
};

struct Quantized {
  Plane high, low;              // low: set for the wide cells only
  int32_t* num_wide = nullptr;  // [rows]
  int32_t* wide = nullptr;      // [rows, K / cell] the indices of a row's wide cells, ascending
};

// Largest magnitude over root mean square from which a cell is wide. Of 32 numbers the ratio is at
// most 5.7 (one alone is not zero).
constexpr float kWide32 = 5.0f, kWide256 = 14.0f;

// What a matmul reads: float weights `x`, the group formats `per_32`, the K formats `per_256`.
struct Activations {
  int64_t columns = 0;  // K
  float* x = nullptr;   // [rows, stride_x]
  int64_t stride_x = 0;
  Quantized per_32, per_256;
  const uint16_t* bf16 = nullptr;  // [rows, stride_bf16], for matmul_strip_bf16 alone
  int64_t stride_bf16 = 0;
};

// What matmul_strip_bf16 does at a time: some rows, and the inputs [first, last), both multiples of a cell's
// and of 32; the results take the products in, or become them.
struct Bf16Part {
  int64_t num_rows, first_input, last_input;
  bool add;
};

}  // namespace outpace
