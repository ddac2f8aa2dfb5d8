// The K formats with tiles: a super-block of 256 inputs is exact integer arithmetic from end to end.
//
// Sub-scale x quant is an integer that two planes of bytes hold, so that no sub-scale is needed any more:
// four products of depth 64 for each plane, and two tiles of sums to store and to rescale for a super-block
// instead of eight. Q4_K and Q5_K: a sub-scale is 8 x high + low of three bits each, and a part times a quant
// of at most 31 an unsigned byte, which one multiplication gives for two quants. Q6_K: -4064 to 4096, as 256
// x high + low, a signed and an unsigned byte. Each sum stays below 256 x 127 x 255 < 2^23, what they make
// below 2^29.
//
// Bytes: 2304 to 3360 of weights in, 8192 of planes out. Cycles for 16 rows and a super-block (4096
// weights), measured piece by piece on a Xeon with AMX or counted, two vector instructions a cycle:
//
//   eight tile products                     128   tile unit
//   load four activation, eight weight tiles 64   load ports (the weight tiles serve two blocks of rows)
//   store two tiles of sums                  29   store port
//   unpack to two planes             170 to 410   vector ports, once for all blocks of rows
//   rescale                           56 to 112   vector ports: 7 instructions a row, 14 with minima
//
// Products, stores and rescaling of two blocks of rows take 140 ns as a straight run of instructions from the
// first level (123 without rescaling), 1.9 cycles a group and row. The kernel takes 3.4 for 64 rows and
// more, 4.7 for 16 (LABLOG.md).

namespace outpace::OUTPACE_TIER {

constexpr int kDepth = 64;                 // inputs in a full tile
constexpr int kSums = kTileRows * kStrip;  // in a tile

// A weight is 2^kHighShift x its high byte + its low one.
template <Format F>
constexpr int kHighShift = F == Format::q6_k ? 8 : 3;

// One or two blocks of rows with a super-block: products that wait to be rescaled.
struct BlockStep {
  const uint8_t* cell = nullptr;
  int64_t super_block = 0, block = 0;  // blocks of rows: this one and, if there are two, the next
  int count = 0;
};

// A group's sub-scales of Q4_K or Q5_K in two parts of three bits, each output's twice as 16-bit numbers.
struct SplitScale {
  __m512i high, low;
};

// A group's byte of what unpack_scales gives, lowest in its word; the others are above it.
OUTPACE_INLINE __m512i scale_byte(const Ints (&scales)[2], int group) {
  return _mm512_srl_epi32(scales[group / 4].v, _mm_cvtsi32_si128(8 * (group % 4)));
}

OUTPACE_INLINE SplitScale split_scale(const Ints (&scales)[2], int group) {
  const __m512i scale = scale_byte(scales, group);
  const auto twice = [](Ints part) { return bit_or(part, shift_left<16>(part)).v; };
  return {twice(bit_and(shift_right<3>({scale}), 7)), twice(bit_and({scale}, 7))};
}

// A line of 16 outputs x 4 quants, times the sub-scales, in two planes. Two quants at a time: their products
// are at most 31 x 7, so the lower one carries nothing into the upper one.
OUTPACE_INLINE void store_planes(Lines w, const SplitScale& scale, uint8_t* high, uint8_t* low) {
  _mm512_store_si512(low, _mm512_mullo_epi16(w.v, scale.low));
  _mm512_store_si512(high, _mm512_mullo_epi16(w.v, scale.high));
}

// The sub-scales of Q6_K as bytes beside a zero, for an output's quants 0, 2 and 1, 3, and as 16-bit numbers
// times the zero point.
struct SignedScale {
  __m512i even, odd, zero;
};

OUTPACE_INLINE SignedScale signed_scale(Ints scale) {
  const Ints byte = bit_and(scale, 0xff);
  const __m512i even = bit_or(byte, shift_left<16>(byte)).v, odd = _mm512_slli_epi16(even, 8);
  return {even, odd, _mm512_srai_epi16(odd, 8 - log2_of(zero_point(Format::q6_k)))};
}

OUTPACE_INLINE void store_planes(Lines w, const SignedScale& scale, uint8_t* high, uint8_t* low) {
  const __m512i even = _mm512_sub_epi16(_mm512_maddubs_epi16(w.v, scale.even), scale.zero);
  const __m512i odd = _mm512_sub_epi16(_mm512_maddubs_epi16(w.v, scale.odd), scale.zero);
  const __m512i low_half = _mm512_set1_epi16(0x00ff);
  // (low_half ? a : b), bit by bit.
  const auto merge = [&](__m512i a, __m512i b) { return _mm512_ternarylogic_epi32(low_half, a, b, 0xca); };
  _mm512_store_si512(low, merge(even, _mm512_slli_epi16(odd, 8)));
  _mm512_store_si512(high, merge(_mm512_srli_epi16(even, 8), odd));
}

// A super-block's weights in two planes of [64 lines][16 outputs][4 inputs].
template <Format F>
OUTPACE_INLINE void unpack_planes(const uint8_t* cell, uint8_t* high, uint8_t* low, CellsAhead& ahead) {
  const uint8_t* scales = PackedCell<F>{cell}.scales();
  Ints scale[2], min[2];
  if constexpr (F != Format::q6_k) unpack_scales(scales, scale, min);
  for (int g = 0; g < 8; ++g) {
    ahead.next(1);
    Lines w[8];
    unpack_group<F>(PackedCell<F>{cell}.group(g), w);
    const auto store_group = [&](const auto& first, const auto& second) {
      for (int q = 0; q < 8; ++q) {
        const int at = 64 * (8 * g + q);
        store_planes(w[q], q < 4 ? first : second, high + at, low + at);
      }
    };
    if constexpr (F == Format::q6_k) {
      const auto* s = reinterpret_cast<const int8_t*>(scales) + 32 * g;
      store_group(signed_scale(load_bytes(s)), signed_scale(load_bytes(s + 16)));
    } else {
      const SplitScale split = split_scale(scale, g);
      store_group(split, split);
    }
  }
}

// The floats of k_super_blocks in matmul.inl, in its order, for rows [begin, end) of a block of rows. The
// minima are a small integer product of their own, as there. sums: [high, low][16 rows][16 outputs]
template <Format F>
OUTPACE_INLINE void rescale_rows(const BlockStep& step, int64_t first_row, int64_t begin, int64_t end,
                                 const int32_t* sums, const Plane& a, int64_t columns, float* acc,
                                 CellsAhead& ahead) {
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
    ahead.next(2);
    const int64_t row = first_row + r;
    const Ints high = load_ints(sums + r * kStrip), low = load_ints(sums + kSums + r * kStrip);
    const Floats scale_a = set_floats(a.scale[row * (columns / kSuperBlock) + step.super_block]);
    Floats out = load_floats(acc + row * kStrip);
    out = add(out, mul(to_floats(add(shift_left<kHighShift<F>>(high), low)), mul(d, scale_a)));
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
                                 const Plane& a, int64_t columns, float* acc, CellsAhead& ahead) {
  for (int64_t i = 0; i < step.count; ++i) {
    const int64_t b = step.block + i;
    rescale_rows<F>(step, rows.first(b), rows.begin(b), rows.height, sums + i * 2 * kSums, a, columns, acc,
                    ahead);
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

// The high plane's product: its bytes are signed in Q6_K alone.
template <Format F, int Sum, int A>
OUTPACE_INLINE void dot_high() {
  if constexpr (F == Format::q6_k)
    dot_tiles_signed<Sum, A, 2>();
  else
    dot_tiles_unsigned<Sum, A, 2>();
}

// A super-block times one block of rows, or two. activations: where each block's first row has it
template <Format F, int Blocks>
OUTPACE_INLINE void start_super_block(const int8_t* const (&activations)[2], int64_t stride,
                                      const uint8_t* high, const uint8_t* low, CellsAhead& ahead) {
  zero_tile<4>(), zero_tile<5>();
  if constexpr (Blocks == 2) zero_tile<6>(), zero_tile<7>();
  for (int at = 0; at < kSuperBlock; at += kDepth) {
    ahead.next(3);
    // All loads first: a product among them waits for its own and holds up the others.
    load_tile<0>(activations[0] + at, stride);
    load_tile<2>(high + at * kStrip, 4 * kStrip);
    load_tile<3>(low + at * kStrip, 4 * kStrip);
    if constexpr (Blocks == 2) load_tile<1>(activations[1] + at, stride);
    dot_high<F, 4, 0>();
    dot_tiles_unsigned<5, 0, 3>();
    if constexpr (Blocks == 2) {
      dot_high<F, 6, 1>();
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
  BlockStep waiting;
  int turn = 0;
  for (int64_t i = 0; i < m.columns / kSuperBlock; ++i) {
    const uint8_t* cell = strip + i * cell_bytes(F);
    CellsAhead ahead(cell, cell_bytes(F));
    unpack_planes<F>(cell, high, low, ahead);
    for (int64_t b = 0; b < rows.count; b += 2, turn ^= 1) {
      const bool pair = b + 1 < rows.count;
      const int8_t* q = a.q + i * kSuperBlock;
      const int8_t* activations[2] = {q + rows.first(b) * a.stride,
                                      q + rows.first(pair ? b + 1 : b) * a.stride};
      if (pair)
        start_super_block<F, 2>(activations, a.stride, high, low, ahead);
      else
        start_super_block<F, 1>(activations, a.stride, high, low, ahead);
      rescale_step<F>(waiting, rows, sums[turn ^ 1], a, m.columns, acc, ahead);
      ahead.rest();
      int32_t* out = sums[turn];
      store_tile<4>(out, 4 * kStrip), store_tile<5>(out + kSums, 4 * kStrip);
      if (pair) store_tile<6>(out + 2 * kSums, 4 * kStrip), store_tile<7>(out + 3 * kSums, 4 * kStrip);
      waiting = {cell, i, b, pair ? 2 : 1};
    }
  }
  CellsAhead none(strip, 0);
  rescale_step<F>(waiting, rows, sums[turn ^ 1], a, m.columns, acc, none);
}

}  // namespace outpace::OUTPACE_TIER
