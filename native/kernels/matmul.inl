// Matrix products of a strip of 16 outputs with rows of activations, written once for all tiers.
//
// Work per group of 32 inputs x 16 outputs (512 weights), with VNNI: 4 to 8 loads of weights and about
// 12 instructions to unpack them, shared by all rows; then per row 8 dot products (vpdpbusd), and 4
// float instructions for a group format or 2 integer ones for a K format. Dot products and multiplications
// share ports: with one of them a cycle (Zen 4) a row costs 8 + 3 cycles (Q4_1) or 8 + 2 (Q4_K), with two
// (Zen 5, server Xeons) half of that. The bytes of the group (288 for 4.5 bits) take about 60 cycles at
// 17 GB/s of DRAM bandwidth a core, so 5 or 10 rows hide behind the memory. Measured: 11.3 and 11.0
// (LABLOG.md).
//
// Sums: the integers are exact. Floats are added group by group, super-block by super-block, in the
// order of the inputs, by a multiplication and an addition (no fused operation).

namespace outpace::OUTPACE_TIER {

// Calls body<F>() with the format as a constant.
template <class Body>
OUTPACE_INLINE void with_format(Format format, const Body& body) {
  switch (format) {
    case Format::f32:
      return body.template operator()<Format::f32>();
    case Format::f16:
      return body.template operator()<Format::f16>();
    case Format::bf16:
      return body.template operator()<Format::bf16>();
    case Format::q4_0:
      return body.template operator()<Format::q4_0>();
    case Format::q4_1:
      return body.template operator()<Format::q4_1>();
    case Format::q5_0:
      return body.template operator()<Format::q5_0>();
    case Format::q5_1:
      return body.template operator()<Format::q5_1>();
    case Format::q8_0:
      return body.template operator()<Format::q8_0>();
    case Format::q4_k:
      return body.template operator()<Format::q4_k>();
    case Format::q5_k:
      return body.template operator()<Format::q5_k>();
    case Format::q6_k:
      return body.template operator()<Format::q6_k>();
  }
}

// A group's weights, and a cell's, as they lie in memory.
template <Format F>
struct PackedGroup {
  const uint8_t *quants, *high;
};
template <Format F>
struct PackedCell {
  const uint8_t* data;

  OUTPACE_INLINE_MEMBER PackedGroup<F> group(int g) const {
    return {data + g * quant_bytes(F), data + high_offset(F) + g * high_bytes(F)};
  }
  OUTPACE_INLINE_MEMBER const uint8_t* scales() const { return data + scale_offset(F); }
};

// Line q: 16 outputs x inputs 4q .. 4q + 3, one byte a weight, biased by the format's zero point.
template <Format F>
OUTPACE_INLINE Lines line_of(const PackedGroup<F>& group, int q) {
  if constexpr (bits(F) == 8) return load_lines(group.quants + 64 * q);
  const Lines both = load_lines(group.quants + 64 * (q % 4));
  Lines line = q < 4 ? low_nibbles(both) : high_nibbles(both);
  if constexpr (bits(F) == 5) line = set_bit4(line, group.high + 8 * q);
  if constexpr (bits(F) == 6) {
    const Lines fields = load_lines(group.high + 64 * (q / 4));
    if (q % 4 == 0) line = set_bits45<0>(line, fields);
    if (q % 4 == 1) line = set_bits45<1>(line, fields);
    if (q % 4 == 2) line = set_bits45<2>(line, fields);
    if (q % 4 == 3) line = set_bits45<3>(line, fields);
  }
  return line;
}

template <Format F>
OUTPACE_INLINE void unpack_group(const PackedGroup<F>& group, Lines (&w)[8]) {
  OUTPACE_UNROLL for (int q = 0; q < 8; ++q) w[q] = line_of<F>(group, q);
}

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

}  // namespace outpace::OUTPACE_TIER

#if defined(OUTPACE_SHORT_SUMS)
#include "short_sums.inl"
#else
#include "byte_products.inl"
#endif

namespace outpace::OUTPACE_TIER {

// Asks for the lines of a cell kPrefetch bytes ahead; the next strip follows this one in memory. Into the
// second level: the first one is too small to keep them while several rows' products run and activations
// stream through it, and the memory must be read meanwhile (8 rows of Q4_K: 13 GB/s with the first level, 22
// with the second).
template <int Bytes>
OUTPACE_INLINE void prefetch(const uint8_t* cell) {
  for (int at = 0; at < Bytes; at += 64) __builtin_prefetch(cell + kPrefetch + at, 0, 2);
}

// A part of the cell at a time, while it is multiplied: all at once fill the queue of misses, and the memory
// stands idle until the next cell (1 to 6 rows of Q4_K on a Xeon, a tenth). Of no cell nothing is asked.
template <Format F>
constexpr int kCellParts = is_k(F) ? 8 : 1;

template <Format F>
struct PartAhead {
  const uint8_t* cell = nullptr;

  // Inlined early: as a function of its own it has no effect that gcc knows of, and is dropped.
  OUTPACE_INLINE_MEMBER void operator()(int part) const {
    constexpr int kBytes = cell_bytes(F) / kCellParts<F>;
    if (cell != nullptr) prefetch<kBytes>(cell + part * kBytes);
  }
};

// One cell of a group format: out[r] += weights . activations of the plane.
template <Format F, int R, class Cell>
OUTPACE_INLINE void group_cell(const Cell& cell, const Plane& a, int64_t columns, int64_t row0, int64_t g,
                               Floats (&out)[R]) {
  const uint8_t* scales = cell.scales();
  const Floats d = load_halves(scales);
  const int8_t* q = a.q + row0 * a.stride + g * kGroup;
  sum_group<F, R>(cell.group(0), q, a.stride, [&](int r, Ints sum) {
    const int64_t index = (row0 + r) * (columns / kGroup) + g;
    constexpr int zero = bits(F) == 8 ? kByteZeroPoint : zero_point(F);
    if constexpr (zero != 0) {
      sum = sub(sum, shift_left<log2_of(zero)>(set_ints(a.sum[index])));
    }
    out[r] = add(out[r], mul(to_floats(sum), mul(d, set_floats(a.scale[index]))));
    if constexpr (has_min(F)) {
      out[r] = add(out[r], mul(load_halves(scales + 32), set_floats(a.scaled_sum[index])));
    }
  });
}

// ggml's 12 bytes of a super-block's eight 6-bit scales and minima, as bytes for groups 0-3 and 4-7.
OUTPACE_INLINE void unpack_scales(const uint8_t* words, Ints (&scale)[2], Ints (&min)[2]) {
  const Ints w0 = load_ints(words), w1 = load_ints(words + 64), w2 = load_ints(words + 128);
  scale[0] = bit_and(w0, 0x3f3f3f3f);
  min[0] = bit_and(w1, 0x3f3f3f3f);
  scale[1] = bit_or(bit_and(w2, 0x0f0f0f0f), bit_and(shift_right<2>(w0), 0x30303030));
  min[1] = bit_or(bit_and(shift_right<4>(w2), 0x0f0f0f0f), bit_and(shift_right<2>(w1), 0x30303030));
}

template <int Byte>
OUTPACE_INLINE Ints byte_of(Ints words) {
  return bit_and(shift_right<8 * Byte>(words), 0xff);
}

// `ahead` is called before each of the eight groups.
template <Format F, int R, class Cell, class Ahead>
OUTPACE_INLINE void k_super_block(const Cell& cell, const Plane& a, int64_t columns, int64_t row0,
                                  int64_t block, Floats (&out)[R], const Ahead& ahead) {
  const uint8_t* scales = cell.scales();
  Ints scale[2], min[2], acc[R];
  unpack_scales(scales, scale, min);
  const Ints scale_of[8] = {factor_of(byte_of<0>(scale[0])), factor_of(byte_of<1>(scale[0])),
                            factor_of(byte_of<2>(scale[0])), factor_of(byte_of<3>(scale[0])),
                            factor_of(byte_of<0>(scale[1])), factor_of(byte_of<1>(scale[1])),
                            factor_of(byte_of<2>(scale[1])), factor_of(byte_of<3>(scale[1]))};
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) acc[r] = zero_ints();
  // A loop on purpose: unrolled, the groups' lines and the rows' sums do not fit the registers together.
  for (int g = 0; g < 8; ++g) {
    ahead(g);
    const int8_t* q = a.q + row0 * a.stride + block * kSuperBlock + g * kGroup;
    add_group<F, R>(cell.group(g), q, a.stride, scale_of[g], acc);
  }
  const Floats d = load_halves(scales + 192), dmin = load_halves(scales + 224);
  // The minima of groups (0, 2), (1, 3), (4, 6), (5, 7) as pairs of 16-bit numbers.
  const Ints m02 = bit_and(min[0], 0x00ff00ff), m13 = bit_and(shift_right<8>(min[0]), 0x00ff00ff);
  const Ints m46 = bit_and(min[1], 0x00ff00ff), m57 = bit_and(shift_right<8>(min[1]), 0x00ff00ff);
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
    const int64_t row = row0 + r;
    const int16_t* sum = a.pair_sum + row * (columns / kGroup) + block * 8;
    Ints lows = dot_pairs(dot_pairs(zero_ints(), m02, sum), m13, sum + 2);
    lows = dot_pairs(dot_pairs(lows, m46, sum + 4), m57, sum + 6);
    const Floats scale_a = set_floats(a.scale[row * (columns / kSuperBlock) + block]);
    out[r] = add(out[r], mul(to_floats(acc[r]), mul(d, scale_a)));
    out[r] = sub(out[r], mul(to_floats(lows), mul(dmin, scale_a)));
  }
}

// The same for Q6_K: 16 signed scales of 8 bits, no minima.
template <Format F, int R, class Cell, class Ahead>
  requires(F == Format::q6_k)
OUTPACE_INLINE void k_super_block(const Cell& cell, const Plane& a, int64_t columns, int64_t row0,
                                  int64_t block, Floats (&out)[R], const Ahead& ahead) {
  const uint8_t* scales = cell.scales();
  Ints acc[R];
  for (int r = 0; r < R; ++r) acc[r] = zero_ints();
  for (int g = 0; g < 8; ++g) {
    ahead(g);
    const auto* s = reinterpret_cast<const int8_t*>(scales) + 32 * g;
    add_halves<F, R>(cell.group(g), a.q + row0 * a.stride + block * kSuperBlock + g * kGroup, a.stride,
                     a.sum + row0 * (columns / 16) + block * 16 + 2 * g, columns / 16, load_bytes(s),
                     load_bytes(s + 16), acc);
  }
  const Floats d = load_halves(scales + 256);
  for (int r = 0; r < R; ++r) {
    const Floats scale_a = set_floats(a.scale[(row0 + r) * (columns / kSuperBlock) + block]);
    out[r] = add(out[r], mul(to_floats(acc[r]), mul(d, scale_a)));
  }
}

// `ahead(part)` is called while the cell is multiplied, once for each of its kCellParts.
template <Format F, int R, class Cell, class Ahead>
OUTPACE_INLINE void quantized_cell(const Cell& cell, const Plane& a, int64_t columns, int64_t row0,
                                   int64_t index, Floats (&out)[R], const Ahead& ahead) {
  if constexpr (is_k(F)) {
    k_super_block<F, R>(cell, a, columns, row0, index, out, ahead);
  } else {
    ahead(0);
    group_cell<F, R>(cell, a, columns, row0, index, out);
  }
}

// The low plane of a row's wide cells, which comes after all cells of the high one.
template <Format F>
OUTPACE_INLINE void add_wide_cells(const uint8_t* strip, const Quantized& a, int64_t columns, int64_t row,
                                   Floats& out) {
  const int32_t* wide = a.wide + row * (columns / cell_columns(F));
  Floats one[1] = {out};
  for (int32_t k = 0; k < a.num_wide[row]; ++k) {
    const PackedCell<F> cell = {strip + wide[k] * cell_bytes(F)};
    quantized_cell<F, 1>(cell, a.low, columns, row, wide[k], one, PartAhead<F>{});
  }
  out = one[0];
}

// All cells of the high plane in their order, then the row's wide cells of the low plane in theirs.
template <Format F, int R>
void quantized_rows(const TileMatrix& m, const uint8_t* strip, const Activations& all, int64_t row0,
                    float* out, int64_t out_stride) {
  const Quantized& a = is_k(F) ? all.per_256 : all.per_32;
  const int64_t cells = m.columns / cell_columns(F);
  Floats acc[R];
  for (int r = 0; r < R; ++r) acc[r] = set_floats(0.0f);
  PackedCell<F> cell = {strip};
  for (int64_t i = 0; i < cells; ++i, cell.data += cell_bytes(F)) {
    quantized_cell<F, R>(cell, a.high, m.columns, row0, i, acc,
                         PartAhead<F>{row0 == 0 ? cell.data : nullptr});
  }
  for (int r = 0; r < R; ++r) {
    add_wide_cells<F>(strip, a, m.columns, row0 + r, acc[r]);
    store(out + r * out_stride, acc[r]);
  }
}

}  // namespace outpace::OUTPACE_TIER

#include "float_products.inl"

namespace outpace::OUTPACE_TIER {

template <Format F, int R>
OUTPACE_INLINE void rows_of(const TileMatrix& m, const uint8_t* strip, const Activations& a, int64_t row0,
                            float* out, int64_t out_stride) {
  if constexpr (is_float(F)) {
    float_rows<F, R>(m, strip, a, row0, out, out_stride);
  } else {
    quantized_rows<F, R>(m, strip, a, row0, out, out_stride);
  }
}

// Calls take<R>(first row) for tiles of R rows.
template <class Take>
OUTPACE_INLINE void each_row_tile(int64_t num_rows, Take take) {
  int64_t row = 0;
  const auto next = [&]<int R>() {
    take.template operator()<R>(row);
    row += R;
  };
  while (num_rows - row >= kMaxRows) next.template operator()<kMaxRows>();
  // A second pass finds the strip in the cache, but unpacks it again: 7 rows as 6 and 1 take longer than 8.
  if constexpr (kMaxRows > 8) {
    if (num_rows - row >= 12) next.template operator()<12>();
    if (num_rows - row >= 8) next.template operator()<8>();
    if (num_rows - row >= 6) next.template operator()<6>();
  }
  if (num_rows - row >= 4) next.template operator()<4>();
  if (num_rows - row >= 3) next.template operator()<3>();
  if (num_rows - row >= 2) next.template operator()<2>();
  if (num_rows - row >= 1) next.template operator()<1>();
}

}  // namespace outpace::OUTPACE_TIER

#if defined(OUTPACE_SHORT_SUMS)
#include "unpacked_strips.inl"
#endif

namespace outpace::OUTPACE_TIER {

template <Format F>
void strip_of(const TileMatrix& m, int64_t s, const Activations& a, int64_t num_rows, float* out,
              int64_t out_stride) {
  const uint8_t* strip = m.data + s * m.strip_bytes;
#if defined(OUTPACE_SHORT_SUMS)
  if constexpr (unpack_from(F) > 0) {
    if (num_rows >= unpack_from(F)) return unpacked_strip<F>(m, strip, a, num_rows, out, out_stride);
  }
#endif
  each_row_tile(num_rows, [&]<int R>(int64_t row) {
    rows_of<F, R>(m, strip, a, row, out + row * out_stride, out_stride);
  });
}

void matmul_strip(const TileMatrix& m, int64_t strip, const Activations& a, int64_t num_rows, float* out,
                  int64_t out_stride) {
  with_format(m.format, [&]<Format F>() { strip_of<F>(m, strip, a, num_rows, out, out_stride); });
}

}  // namespace outpace::OUTPACE_TIER
