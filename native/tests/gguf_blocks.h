// Rows of weights in GGUF's block layouts: made at random, and decoded in float64.
//
// Written from ggml's published layout (ggml-common.h and ggml-quants.c), not from pack.inl, so that the
// two can be held against each other.
#pragma once

#include "check.h"
#include "tiers.h"

namespace gguf {

using outpace::Format;

inline constexpr Format kFormats[] = {Format::f32,  Format::f16,  Format::bf16, Format::q4_0,
                                      Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0,
                                      Format::q4_k, Format::q5_k, Format::q6_k};

inline const char* name_of(Format f) {
  constexpr const char* names[] = {"f32",  "f16",  "bf16", "q4_0", "q4_1", "q5_0",
                                   "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"};
  return names[static_cast<int>(f)];
}

struct Block {
  int64_t columns, bytes;
};

inline Block block_of(Format f) {
  constexpr Block blocks[] = {{1, 4},   {1, 2},   {1, 2},     {32, 18},   {32, 20},  {32, 22},
                              {32, 24}, {32, 34}, {256, 144}, {256, 176}, {256, 210}};
  return blocks[static_cast<int>(f)];
}

inline int64_t row_bytes(Format f, int64_t columns) {
  return columns / block_of(f).columns * block_of(f).bytes;
}

inline double half(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -size : size;  // no infinities here
}

inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// weight = scaled + offset, apart because the kernels add them apart: rounding grows with both sizes.
struct Weight {
  double scaled, offset;
  double value() const { return scaled + offset; }
};

inline void k_scale(int j, const uint8_t* packed, int& scale, int& minimum) {  // get_scale_min_k4
  if (j < 4) {
    scale = packed[j] & 63;
    minimum = packed[j + 4] & 63;
  } else {
    scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    minimum = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
  }
}

inline Weight k_weight(Format f, const uint8_t* block, int i) {
  const int part = i / 64, high_half = i / 32 % 2, l = i % 32;
  int scale, minimum;
  k_scale(2 * part + high_half, block + 4, scale, minimum);
  const uint8_t byte = block[(f == Format::q5_k ? 48 : 16) + 32 * part + l];
  int q = high_half ? byte >> 4 : byte & 15;
  if (f == Format::q5_k && (block[16 + l] >> (2 * part + high_half) & 1)) q += 16;
  return {half(block) * scale * q, -half(block + 2) * minimum};
}

inline Weight q6_weight(const uint8_t* block, int i) {
  const int part = i / 128, quarter = i % 128 / 32, l = i % 32;
  const uint8_t low = block[64 * part + 32 * (quarter % 2) + l], high = block[128 + 32 * part + l];
  const int q = ((quarter < 2 ? low & 15 : low >> 4) | (high >> (2 * quarter) & 3) << 4) - 32;
  const auto scale = static_cast<int8_t>(block[192 + 8 * part + 2 * quarter + l / 16]);
  return {half(block + 208) * scale * q, 0.0};
}

inline Weight group_weight(Format f, const uint8_t* block, int i) {
  if (f == Format::q8_0) return {half(block) * static_cast<int8_t>(block[2 + i]), 0.0};
  const bool has_min = f == Format::q4_1 || f == Format::q5_1, five = f == Format::q5_0 || f == Format::q5_1;
  const uint8_t* at = block + (has_min ? 4 : 2);
  uint32_t high = 0;
  if (five) std::memcpy(&high, at, 4);
  const uint8_t byte = at[(five ? 4 : 0) + i % 16];
  const int q = static_cast<int>((i < 16 ? byte & 15u : byte >> 4) | (high >> i & 1) << 4);
  if (has_min) return {half(block) * q, half(block + 2)};
  return {half(block) * (q - (five ? 16 : 8)), 0.0};
}

// Weight k of a row.
inline Weight weight(Format f, const uint8_t* row, int64_t k) {
  const Block b = block_of(f);
  const uint8_t* block = row + k / b.columns * b.bytes;
  const auto i = static_cast<int>(k % b.columns);
  uint32_t bits = 0;
  switch (f) {
    case Format::f32:
      std::memcpy(&bits, block, 4);
      return {float_of(bits), 0.0};
    case Format::f16:
      return {half(block), 0.0};
    case Format::bf16:
      return {float_of(static_cast<uint32_t>(block[0] | block[1] << 8) << 16), 0.0};
    case Format::q4_k:
    case Format::q5_k:
      return k_weight(f, block, i);
    case Format::q6_k:
      return q6_weight(block, i);
    default:
      return group_weight(f, block, i);
  }
}

enum class Kind { random, zero, full, empty, negative, subnormal, largest };

inline void put_half(uint8_t* p, Kind kind, check::Random& random) {
  int bits = static_cast<int>(random.below(0x2400) | random.below(2) << 15);  // up to 2^-6, some subnormal
  if (kind == Kind::negative) bits |= 0x8000;
  if (kind == Kind::subnormal) bits = static_cast<int>(random.below(0x400));
  if (kind == Kind::largest) bits = 0x7bff | static_cast<int>(random.below(2) << 15);
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}

inline void put_float(Format f, uint8_t* p, Kind kind, check::Random& random) {
  if (f == Format::f16) return put_half(p, kind, random);
  float x = random.normal() * std::ldexp(1.0f, static_cast<int>(random.between(-12, 2)));
  if (kind == Kind::largest) x *= 1e6f;
  if (kind == Kind::subnormal) x *= 1e-36f;
  if (kind == Kind::negative) x = -std::fabs(x);
  if (kind == Kind::full) x = 1.0f;
  const int size = f == Format::f32 ? 4 : 2;
  std::memcpy(p, reinterpret_cast<const uint8_t*>(&x) + 4 - size, static_cast<size_t>(size));
}

// One row of random blocks; `full` and `empty` have every quant bit set or clear.
inline void fill_row(Format f, uint8_t* row, int64_t columns, Kind kind, check::Random& random) {
  const Block b = block_of(f);
  std::memset(row, 0, static_cast<size_t>(row_bytes(f, columns)));
  for (int64_t i = 0; kind != Kind::zero && i < columns / b.columns; ++i) {
    uint8_t* block = row + i * b.bytes;
    if (outpace::is_float(f)) {
      put_float(f, block, kind, random);
      continue;
    }
    for (int64_t k = 0; k < b.bytes; ++k) {
      const uint8_t full = f == Format::q8_0 ? 0x80 : 0xff, empty = f == Format::q8_0 ? 0x7f : 0;
      block[k] = kind == Kind::full    ? full
                 : kind == Kind::empty ? empty
                                       : static_cast<uint8_t>(random.bits());
    }
    if (f == Format::q6_k) {
      put_half(block + 208, kind, random);
      if (kind == Kind::full || kind == Kind::empty)
        std::memset(block + 192, kind == Kind::full ? 0x80 : 0x7f, 16);
      continue;
    }
    put_half(block, kind, random);
    if (outpace::has_min(f) || outpace::is_k(f)) put_half(block + 2, kind, random);
    if (outpace::is_k(f) && kind == Kind::empty) std::memset(block + 4, 0xff, 12);
  }
}

inline Kind kind_of_row(int64_t row) {
  constexpr Kind kinds[] = {Kind::random, Kind::full,      Kind::random,  Kind::zero,  Kind::negative,
                            Kind::empty,  Kind::subnormal, Kind::largest, Kind::random};
  return kinds[row % 9];
}

// A matrix in the file's layout.
struct Matrix {
  Format format;
  int64_t rows, columns;
  std::vector<uint8_t> bytes;
  const uint8_t* row(int64_t r) const { return bytes.data() + r * row_bytes(format, columns); }
};

inline Matrix random_matrix(Format f, int64_t rows, int64_t columns, uint64_t seed) {
  check::Random random{seed};
  Matrix m{f, rows, columns, std::vector<uint8_t>(static_cast<size_t>(rows * row_bytes(f, columns)))};
  for (int64_t r = 0; r < rows; ++r) {
    fill_row(f, m.bytes.data() + r * row_bytes(f, columns), columns, kind_of_row(r), random);
  }
  return m;
}

// The same matrix in tiles; `memory` holds them.
inline outpace::TileMatrix pack(const outpace::Kernels& kernels, const Matrix& m,
                                check::Array<uint8_t>& memory) {
  outpace::TileMatrix tiles = outpace::tile_shape(m.format, m.rows, m.columns);
  memory.assign(static_cast<size_t>(tiles.total_bytes()), 0xcd);
  tiles.data = memory.data();
  for (int64_t s = 0; s < tiles.num_strips(); ++s) {
    const uint8_t* rows[outpace::kStrip];
    for (int o = 0; o < outpace::kStrip; ++o) {
      const int64_t r = s * outpace::kStrip + o;
      rows[o] = r < m.rows ? m.row(r) : nullptr;
    }
    kernels.pack_strip(tiles, rows, tiles.data + s * tiles.strip_bytes);
  }
  return tiles;
}

}  // namespace gguf
