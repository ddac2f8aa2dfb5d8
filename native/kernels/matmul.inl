// Matrix products of strips of 16 outputs with rows of activations, written once for all tiers.
//
// Work per group of 32 inputs x 16 outputs (512 weights), with VNNI: 4 to 8 loads of weights and about
// 12 instructions to unpack them, shared by all rows; then per row 8 dot products (vpdpbusd), and 4
// float instructions for a group format (6 with minima) or 2 integer ones for a K format. Dot products and
// multiplications share ports: with one of them a cycle (Zen 4) a row costs 8 + 3 cycles (Q4_1) or 8 + 2
// (Q4_K), with two (Zen 5) half of that. On server Xeons all vector operations of 512 bits share two ports:
// 15 with a row's part of unpacking and of the super-block, 7.5 cycles. The bytes of the group (288 for 4.5
// bits) take about 50 to 60 cycles at 17 GB/s of DRAM bandwidth a core, so 5 to 8 rows hide behind the
// memory. Measured: 11.3 and 11.0 (Zen 4), 6.5 and 5.7 (Zen 5), 8.4 and 8.2 (Ice Lake, two strips at once).
//
// An Ice Lake starts two dot products a cycle, but hardly more than one that loads what it broadcasts, so
// AVX512 takes two strips at once, which share what is broadcast of the activations. Not for few rows: they
// wait for the memory, and one stream of it comes faster than two (Zen 5: by a quarter; LABLOG.md).
//
// Sums: the integers are exact. Floats are added group by group, super-block by super-block, in the
// order of the inputs, by a multiplication and an addition (no fused operation).

namespace outpace::OUTPACE_TIER {

// Of a tier: kRegisterSums sums (Ints) fit the registers beside weights and activations, of kStripsTogether
// strips; from kUnpackFrom rows on unpacking some formats once for all pays (unpacked_strips.inl), 0: never.
static_assert(kRegisterSums % kStripsTogether == 0);

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

// A group whose lines are unpacked already, for formats of less than 8 bits: [8][64]
struct UnpackedGroup {
  const uint8_t* lines;
};
template <Format F>
OUTPACE_INLINE Lines line_of(const UnpackedGroup& group, int q) {
  return load_lines(group.lines + 64 * q);
}

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

}  // namespace outpace::OUTPACE_TIER

#if defined(OUTPACE_SHORT_SUMS)
#include "short_sums.inl"
#else
#include "byte_products.inl"
#endif

namespace outpace::OUTPACE_TIER {

// Asks for lines, into the second level: the first one is too small to keep them while several rows' products
// run and activations stream through it, and the memory must be read meanwhile (8 rows of Q4_K: 13 GB/s with
// the first level, 22 with the second).
template <int Bytes>
OUTPACE_INLINE void prefetch(const uint8_t* first) {
  for (int at = 0; at < Bytes; at += 64) __builtin_prefetch(first + at, 0, 2);
}

// Bytes ahead in each of S strips.
template <int S>
constexpr int kPrefetchOf = S == 1 ? kPrefetch : 2 * kPrefetch;

// A part of the cell at a time, while it is multiplied: all at once fill the queue of misses, and the memory
// stands idle until the next cell (1 to 6 rows of Q4_K on a Xeon, a tenth). Of no cell nothing is asked.
template <Format F>
constexpr int kCellParts = is_k(F) ? 8 : 1;

// S strips that lie one after the other in memory and are read side by side: at their ends the next S begin.
template <Format F, int S>
struct PartAhead {
  const uint8_t* strip = nullptr;
  int64_t offset = 0, strip_bytes = 0;  // what is asked for, in each strip

  // Inlined early: as a function of its own it has no effect that gcc knows of, and is dropped.
  OUTPACE_INLINE_MEMBER void operator()(int part) const {
    constexpr int kBytes = cell_bytes(F) / kCellParts<F>;
    if (strip == nullptr) return;
    const int64_t at = offset + part * kBytes;
    const uint8_t* first = strip + (at < strip_bytes ? at : at + (S - 1) * strip_bytes);
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) prefetch<kBytes>(first + s * strip_bytes);
  }
};

// One cell of a group format, of S strips: out[s][r] += weights . activations of the plane.
template <Format F, int S, int R, class Cell>
OUTPACE_INLINE void group_cells(const Cell (&cells)[S], const Plane& a, int64_t columns, int64_t row0,
                                int64_t g, Floats (&out)[S][R]) {
  decltype(cells[0].group(0)) groups[S];
  Ints sums[S][R];
  Floats d[S];
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    groups[s] = cells[s].group(0);
    d[s] = load_halves(cells[s].scales());
  }
  sum_products<F>(groups, a.q + row0 * a.stride + g * kGroup, a.stride, sums);
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
    const int64_t index = (row0 + r) * (columns / kGroup) + g;
    constexpr int zero = bits(F) == 8 ? kByteZeroPoint : zero_point(F);
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      Ints sum = sums[s][r];
      if constexpr (zero != 0) sum = sub(sum, shift_left<log2_of(zero)>(set_ints(a.sum[index])));
      Floats& to = out[s][r];
      to = add(to, mul(to_floats(sum), mul(d[s], set_floats(a.scale[index]))));
      if constexpr (has_min(F)) {
        to = add(to, mul(load_halves(cells[s].scales() + 32), set_floats(a.scaled_sum[index])));
      }
    }
  }
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

// One super-block of S strips. `ahead` is called before each of the eight groups.
template <Format F, int S, int R, class Cell, class Ahead>
OUTPACE_INLINE void k_super_blocks(const Cell (&cells)[S], const Plane& a, int64_t columns, int64_t row0,
                                   int64_t block, Floats (&out)[S][R], const Ahead& ahead) {
  Ints factor[8][S], min[S][2], acc[S][R];
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    Ints scale[2];
    unpack_scales(cells[s].scales(), scale, min[s]);
    OUTPACE_UNROLL for (int half = 0; half < 2; ++half) {
      factor[4 * half][s] = factor_of(byte_of<0>(scale[half]));
      factor[4 * half + 1][s] = factor_of(byte_of<1>(scale[half]));
      factor[4 * half + 2][s] = factor_of(byte_of<2>(scale[half]));
      factor[4 * half + 3][s] = factor_of(byte_of<3>(scale[half]));
    }
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) acc[s][r] = zero_ints();
  }
  // A loop on purpose: unrolled, the groups' lines and the rows' sums do not fit the registers together.
  for (int g = 0; g < 8; ++g) {
    ahead(g);
    decltype(cells[0].group(0)) groups[S];
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) groups[s] = cells[s].group(g);
    add_scaled<F>(groups, a.q + row0 * a.stride + block * kSuperBlock + g * kGroup, a.stride, factor[g], acc);
  }
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    const Floats d = load_halves(cells[s].scales() + 192), dmin = load_halves(cells[s].scales() + 224);
    // The minima of groups (0, 2), (1, 3), (4, 6), (5, 7) as pairs of 16-bit numbers.
    const Ints m02 = bit_and(min[s][0], 0x00ff00ff), m13 = bit_and(shift_right<8>(min[s][0]), 0x00ff00ff);
    const Ints m46 = bit_and(min[s][1], 0x00ff00ff), m57 = bit_and(shift_right<8>(min[s][1]), 0x00ff00ff);
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      const int64_t row = row0 + r;
      const int16_t* sum = a.pair_sum + row * (columns / kGroup) + block * 8;
      Ints lows = dot_pairs(dot_pairs(zero_ints(), m02, sum), m13, sum + 2);
      lows = dot_pairs(dot_pairs(lows, m46, sum + 4), m57, sum + 6);
      const Floats scale_a = set_floats(a.scale[row * (columns / kSuperBlock) + block]);
      Floats& to = out[s][r];
      to = add(to, mul(to_floats(acc[s][r]), mul(d, scale_a)));
      to = sub(to, mul(to_floats(lows), mul(dmin, scale_a)));
    }
  }
}

// The same for Q6_K: 16 signed scales of 8 bits, no minima.
template <Format F, int S, int R, class Cell, class Ahead>
  requires(F == Format::q6_k)
OUTPACE_INLINE void k_super_blocks(const Cell (&cells)[S], const Plane& a, int64_t columns, int64_t row0,
                                   int64_t block, Floats (&out)[S][R], const Ahead& ahead) {
  Ints acc[S][R];
  const int64_t halves = columns / 16;
  const int32_t* start = a.half_start + row0 * halves + block * 16;
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) acc[s][r] = zero_ints();
  }
  for (int g = 0; g < 8; ++g) {
    ahead(g);
    decltype(cells[0].group(0)) groups[S];
    Ints scales[2][S];
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      const auto* bytes = reinterpret_cast<const int8_t*>(cells[s].scales()) + 32 * g;
      groups[s] = cells[s].group(g);
      scales[0][s] = load_bytes(bytes);
      scales[1][s] = load_bytes(bytes + 16);
    }
    add_halves<F>(groups, a.q + row0 * a.stride + block * kSuperBlock + g * kGroup, a.stride, start + 2 * g,
                  halves, scales, acc);
  }
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    const Floats d = load_halves(cells[s].scales() + 256);
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      const int64_t row = row0 + r;
      const Floats scale_a = set_floats(a.scale[row * (columns / kSuperBlock) + block]);
      out[s][r] = add(out[s][r], mul(to_floats(acc[s][r]), mul(d, scale_a)));
    }
  }
}

// `ahead(part)` is called while the cells are multiplied, once for each of their kCellParts.
template <Format F, int S, int R, class Cell, class Ahead>
OUTPACE_INLINE void quantized_cells(const Cell (&cells)[S], const Plane& a, int64_t columns, int64_t row0,
                                    int64_t index, Floats (&out)[S][R], const Ahead& ahead) {
  if constexpr (is_k(F)) {
    k_super_blocks<F>(cells, a, columns, row0, index, out, ahead);
  } else {
    ahead(0);
    group_cells<F>(cells, a, columns, row0, index, out);
  }
}

// Cell `index` of each of S strips beside each other.
template <Format F, int S>
struct CellsAt {
  PackedCell<F> cells[S];

  OUTPACE_INLINE_MEMBER CellsAt(const TileMatrix& m, const uint8_t* strip, int64_t index) {
    const uint8_t* first = strip + index * cell_bytes(F);
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) cells[s].data = first + s * m.strip_bytes;
  }
};

// out[r * out_stride + i] += the low plane of each row's wide cells, which comes after all cells of the high
// one.
template <Format F, int S>
__attribute__((noinline)) void add_wide_cells(const TileMatrix& m, const uint8_t* strip, const Quantized& a,
                                              int64_t row0, int64_t num_rows, float* out,
                                              int64_t out_stride) {
  for (int64_t row = row0; row < row0 + num_rows; ++row, out += out_stride) {
    if (a.num_wide[row] == 0) continue;
    const int32_t* wide = a.wide + row * (m.columns / cell_columns(F));
    Floats sum[S][1];
    for (int s = 0; s < S; ++s) sum[s][0] = load_floats(out + s * kStrip);
    for (int32_t k = 0; k < a.num_wide[row]; ++k) {
      const CellsAt<F, S> at(m, strip, wide[k]);
      quantized_cells<F>(at.cells, a.low, m.columns, row, wide[k], sum, PartAhead<F, S>{});
    }
    for (int s = 0; s < S; ++s) store(out + s * kStrip, sum[s][0]);
  }
}

// acc[s][r] += the products of the high plane of row r with cells [first, end) of strip s, which
// cells_at(index) returns. The first row's pass through the strips asks for what comes `distance` bytes later
// in each.
template <Format F, int S, int R, class At>
OUTPACE_INLINE void add_cells(const TileMatrix& m, const uint8_t* strip, const Quantized& a, int64_t row0,
                              int64_t first, int64_t end, int distance, const At& cells_at,
                              Floats (&acc)[S][R]) {
  for (int64_t i = first; i < end; ++i) {
    PartAhead<F, S> ahead;
    if (row0 == 0) ahead = {strip, i * cell_bytes(F) + distance, m.strip_bytes};
    const auto at = cells_at(i);
    quantized_cells<F>(at.cells, a.high, m.columns, row0, i, acc, ahead);
  }
}

// All cells of the high plane in their order, then the rows' wide cells of the low plane in theirs.
template <Format F, int S, int R>
void quantized_rows(const TileMatrix& m, const uint8_t* strip, const Quantized& a, int64_t row0, float* out,
                    int64_t out_stride) {
  Floats acc[S][R];
  for (int s = 0; s < S; ++s) {
    for (int r = 0; r < R; ++r) acc[s][r] = set_floats(0.0f);
  }
  add_cells<F>(
      m, strip, a, row0, 0, m.columns / cell_columns(F), kPrefetchOf<S>,
      [&](int64_t i) { return CellsAt<F, S>(m, strip, i); }, acc);
  for (int s = 0; s < S; ++s) {
    for (int r = 0; r < R; ++r) store(out + r * out_stride + s * kStrip, acc[s][r]);
  }
  add_wide_cells<F, S>(m, strip, a, row0, R, out, out_stride);
}

// Calls take<R>(first row) for tiles of R rows, at most `Most`.
template <int Most, class Take>
OUTPACE_INLINE void each_row_tile(int64_t num_rows, Take take) {
  int64_t row = 0;
  const auto next = [&]<int R>() {
    take.template operator()<R>(row);
    row += R;
  };
  while (num_rows - row >= Most) next.template operator()<Most>();
  // A second pass finds the strip in the cache, but unpacks it again: 7 rows as 6 and 1 take longer than 8.
  if constexpr (Most > 8) {
    if (num_rows - row >= 12) next.template operator()<12>();
    if (num_rows - row >= 8) next.template operator()<8>();
  }
  if constexpr (Most > 4) {
    if (num_rows - row >= 6) next.template operator()<6>();
    if (num_rows - row >= 4) next.template operator()<4>();
  }
  if (num_rows - row >= 3) next.template operator()<3>();
  if (num_rows - row >= 2) next.template operator()<2>();
  if (num_rows - row >= 1) next.template operator()<1>();
}

}  // namespace outpace::OUTPACE_TIER

#include "float_products.inl"
#include "unpacked_strips.inl"

namespace outpace::OUTPACE_TIER {

// S strips beside each other, which share what is loaded of the activations.
template <Format F, int S>
OUTPACE_INLINE void quantized_strips(const TileMatrix& m, const uint8_t* strip, const Activations& all,
                                     int64_t num_rows, float* out, int64_t out_stride) {
  const Quantized& a = is_k(F) ? all.per_256 : all.per_32;
  if constexpr (kUnpacksOnce<F>) {
    if (num_rows >= kUnpackFrom) return unpacked_strips<F, S>(m, strip, a, num_rows, out, out_stride);
  }
  each_row_tile<kRegisterSums / S>(num_rows, [&]<int R>(int64_t row) {
    quantized_rows<F, S, R>(m, strip, a, row, out + row * out_stride, out_stride);
  });
}

template <Format F>
void strips_of(const TileMatrix& m, int64_t first, int64_t last, const Activations& a, int64_t num_rows,
               float* out, int64_t out_stride) {
  const auto next = [&]<int S>() {
    const uint8_t* strip = m.data + first * m.strip_bytes;
    if constexpr (is_float(F)) {
      each_row_tile<kRegisterSums>(num_rows, [&]<int R>(int64_t row) {
        float_rows<F, R>(m, strip, a, row, out + row * out_stride, out_stride);
      });
    } else {
      quantized_strips<F, S>(m, strip, a, num_rows, out, out_stride);
    }
    first += S;
    out += S * kStrip;
  };
  constexpr int together = is_float(F) ? 1 : kStripsTogether;
  if constexpr (together > 1) {
    // Fewer rows wait for the memory, which gives one stream faster than two.
    if (num_rows > kRegisterSums / together) {
      while (last - first >= together) next.template operator()<together>();
    }
  }
  while (last > first) next.template operator()<1>();
}

void matmul_strips(const TileMatrix& m, int64_t first, int64_t last, const Activations& a, int64_t num_rows,
                   float* out, int64_t out_stride) {
  with_format(m.format, [&]<Format F>() { strips_of<F>(m, first, last, a, num_rows, out, out_stride); });
}

}  // namespace outpace::OUTPACE_TIER
