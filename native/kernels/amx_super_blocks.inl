// The K formats with tiles: a super-block of 256 inputs is exact integer arithmetic from end to end.
//
// Sub-scale x quant is an integer of at most 63 x 31 = 1953 (Q4_K, Q5_K) or, less the zero point, from
// -4064 to 4096 (Q6_K). As 256 x high + low, a signed and an unsigned byte, it makes two planes of weights
// that need no sub-scale any more: four products of depth 64 each, and two tiles of sums to store and to
// rescale for a super-block instead of eight. Each sum stays below 256 x 127 x 255 < 2^23.
//
// Bytes: 2304 to 3360 of weights in, 8192 of planes out. Cycles for 16 rows and a super-block (4096
// weights), from the pieces that amx_groups.inl names and by counting instructions, two vector ones a cycle:
//
//   eight tile products                     128   tile unit
//   load four activation, eight weight tiles 64   load ports (the weight tiles serve two blocks of rows)
//   store two tiles of sums                  29   store port
//   unpack to two planes             265 to 410   vector ports, once for all blocks of rows
//   rescale                           56 to 112   vector ports: 7 instructions a row, 14 with minima
//
// So 16 rows take 380 (Q4_K) to 470 cycles (Q6_K), where VNNI needs 830 and more, and each further block of
// 16 rows as long as its tile products: 128. A product waits 52 cycles for the one before it in the same tile
// of sums, so two blocks of rows are multiplied at once: four tiles of sums are what keeps the tile unit
// busy.

namespace outpace::OUTPACE_TIER {

constexpr int kDepth = 64;                 // inputs in a full tile
constexpr int kSums = kTileRows * kStrip;  // in a tile

// One or two blocks of rows with a super-block: products that wait to be rescaled.
struct BlockStep {
  const uint8_t* cell = nullptr;
  int64_t super_block = 0, block = 0;  // blocks of rows: this one and, if there are two, the next
  int count = 0;
};

// The sub-scales of 16 outputs as bytes beside a zero, for an output's quants 0, 2 and 1, 3, and as 16-bit
// numbers times the zero point.
struct LineScale {
  __m512i even, odd, zero;
};

template <Format F>
OUTPACE_INLINE LineScale line_scale(Ints scale) {
  const Ints byte = bit_and(scale, 0xff);
  const __m512i even = bit_or(byte, shift_left<16>(byte)).v, odd = _mm512_slli_epi16(even, 8);
  return {even, odd, _mm512_srai_epi16(odd, 8 - log2_of(zero_point(F)))};
}

// A line of 16 outputs x 4 quants, times the sub-scales, in two planes.
template <Format F>
OUTPACE_INLINE void store_planes(Lines w, const LineScale& scale, uint8_t* high, uint8_t* low) {
  __m512i even = _mm512_maddubs_epi16(w.v, scale.even), odd = _mm512_maddubs_epi16(w.v, scale.odd);
  if constexpr (zero_point(F) != 0) {
    even = _mm512_sub_epi16(even, scale.zero);
    odd = _mm512_sub_epi16(odd, scale.zero);
  }
  const __m512i low_half = _mm512_set1_epi16(0x00ff);
  // (low_half ? a : b), bit by bit.
  const auto merge = [&](__m512i a, __m512i b) { return _mm512_ternarylogic_epi32(low_half, a, b, 0xca); };
  _mm512_store_si512(low, merge(even, _mm512_slli_epi16(odd, 8)));
  _mm512_store_si512(high, merge(_mm512_srli_epi16(even, 8), odd));
}

// The sub-scales of a group of Q4_K or Q5_K, from the bytes that unpack_scales gives.
OUTPACE_INLINE Ints sub_scale(const Ints (&scale)[2], int group) {
  const Ints words = group < 4 ? scale[0] : scale[1];
  return bit_and({_mm512_srl_epi32(words.v, _mm_cvtsi32_si128(8 * (group % 4)))}, 0xff);
}

// A super-block's weights in two planes of [64 lines][16 outputs][4 inputs].
template <Format F>
void unpack_planes(const uint8_t* cell, uint8_t* high, uint8_t* low) {
  prefetch<cell_bytes(F)>(cell);
  const uint8_t *quants = cell, *top = cell + high_offset(F), *scales = cell + scale_offset(F);
  Ints scale[2], min[2];
  if constexpr (F != Format::q6_k) unpack_scales(scales, scale, min);
  for (int g = 0; g < 8; ++g) {
    Lines w[8];
    unpack_group<F>(quants + g * quant_bytes(F), top + g * high_bytes(F), w);
    LineScale first, second;
    if constexpr (F == Format::q6_k) {
      const auto* s = reinterpret_cast<const int8_t*>(scales) + 32 * g;
      first = line_scale<F>(load_bytes(s));
      second = line_scale<F>(load_bytes(s + 16));
    } else {
      first = second = line_scale<F>(sub_scale(scale, g));
    }
    for (int q = 0; q < 8; ++q) {
      const int at = 64 * (8 * g + q);
      store_planes<F>(w[q], q < 4 ? first : second, high + at, low + at);
    }
  }
}

// The floats of k_super_block in matmul.inl, in its order, for rows [begin, end) of a block of rows. The
// minima are a small integer product of their own, as there. sums: [high, low][16 rows][16 outputs]
template <Format F>
OUTPACE_INLINE void rescale_rows(const BlockStep& step, int64_t first_row, int64_t begin, int64_t end,
                                 const int32_t* sums, const Plane& a, int64_t columns, float* acc) {
  const uint8_t* scales = step.cell + scale_offset(F);
  const Floats d = load_halves(scales + (F == Format::q6_k ? 256 : 192));
  Floats dmin;
  Ints scale[2], min[2], odd_min[2];
  if constexpr (F != Format::q6_k) {
    dmin = load_halves(scales + 224);
    unpack_scales(scales, scale, min);
    for (int i = 0; i < 2; ++i) {
      odd_min[i] = bit_and(shift_right<8>(min[i]), 0x00ff00ff);
      min[i] = bit_and(min[i], 0x00ff00ff);
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    const int64_t row = first_row + r;
    const Ints high = load_ints(sums + r * kStrip), low = load_ints(sums + kSums + r * kStrip);
    const Floats scale_a = set_floats(a.scale[row * (columns / kSuperBlock) + step.super_block]);
    Floats out = load_floats(acc + row * kStrip);
    out = add(out, mul(to_floats(add(shift_left<8>(high), low)), mul(d, scale_a)));
    if constexpr (F != Format::q6_k) {
      const int16_t* sum = a.pair_sum + row * (columns / kGroup) + step.super_block * 8;
      Ints lows = dot_pairs(dot_pairs(zero_ints(), min[0], sum), odd_min[0], sum + 2);
      lows = dot_pairs(dot_pairs(lows, min[1], sum + 4), odd_min[1], sum + 6);
      out = sub(out, mul(to_floats(lows), mul(dmin, scale_a)));
    }
    store(acc + row * kStrip, out);
  }
}

template <Format F>
OUTPACE_INLINE void rescale_step(const BlockStep& step, const RowBlocks& rows, const int32_t* sums,
                                 const Plane& a, int64_t columns, float* acc) {
  for (int64_t i = 0; i < step.count; ++i) {
    const int64_t b = step.block + i;
    rescale_rows<F>(step, rows.first(b), rows.begin(b), rows.height, sums + i * 2 * kSums, a, columns, acc);
  }
}

// Tiles 0, 1: activations of two blocks of rows; 2, 3: weights, high and low; 4 to 7: sums, high and low
// of the first block, then of the second.
inline TileConfig super_block_config(int64_t rows) {
  TileConfig config;
  for (int i = 0; i < 2; ++i) {
    config.set(i, rows, kDepth);
    config.set(2 + i, kDepth / 4, 4 * kStrip);
    config.set(4 + i, rows, 4 * kStrip);
    config.set(6 + i, rows, 4 * kStrip);
  }
  return config;
}

// A super-block times one block of rows, or two. activations: where each block's first row has it
template <int Blocks>
OUTPACE_INLINE void start_super_block(const int8_t* const (&activations)[2], int64_t stride,
                                      const uint8_t* high, const uint8_t* low) {
  zero_tile<4>(), zero_tile<5>();
  if constexpr (Blocks == 2) zero_tile<6>(), zero_tile<7>();
  for (int at = 0; at < kSuperBlock; at += kDepth) {
    load_tile<0>(activations[0] + at, stride);
    load_tile<2>(high + at * kStrip, 4 * kStrip);
    dot_tiles_signed<4, 0, 2>();
    load_tile<3>(low + at * kStrip, 4 * kStrip);
    dot_tiles_unsigned<5, 0, 3>();
    if constexpr (Blocks == 2) {
      load_tile<1>(activations[1] + at, stride);
      dot_tiles_signed<6, 1, 2>();
      dot_tiles_unsigned<7, 1, 3>();
    }
  }
}

// acc[r] += weights of the strip . activations of row r, for all rows. acc: [rows][16]
template <Format F>
void add_super_blocks(const TileMatrix& m, const uint8_t* strip, const Plane& a, const RowBlocks& rows,
                      float* acc) {
  alignas(64) uint8_t high[kSuperBlock * kStrip], low[kSuperBlock * kStrip];
  alignas(64) int32_t sums[2][2 * 2 * kSums];
  const int64_t stride = m.columns;
  BlockStep waiting;
  int turn = 0;
  for (int64_t i = 0; i < m.columns / kSuperBlock; ++i) {
    const uint8_t* cell = strip + i * cell_bytes(F);
    unpack_planes<F>(cell, high, low);
    for (int64_t b = 0; b < rows.count; b += 2, turn ^= 1) {
      const bool pair = b + 1 < rows.count;
      const int8_t* q = a.q + i * kSuperBlock;
      const int8_t* activations[2] = {q + rows.first(b) * stride, q + rows.first(pair ? b + 1 : b) * stride};
      if (pair)
        start_super_block<2>(activations, stride, high, low);
      else
        start_super_block<1>(activations, stride, high, low);
      rescale_step<F>(waiting, rows, sums[turn ^ 1], a, stride, acc);
      int32_t* out = sums[turn];
      store_tile<4>(out, 4 * kStrip), store_tile<5>(out + kSums, 4 * kStrip);
      if (pair) store_tile<6>(out + 2 * kSums, 4 * kStrip), store_tile<7>(out + 3 * kSums, 4 * kStrip);
      waiting = {cell, i, b, pair ? 2 : 1};
    }
  }
  rescale_step<F>(waiting, rows, sums[turn ^ 1], a, stride, acc);
}

}  // namespace outpace::OUTPACE_TIER
