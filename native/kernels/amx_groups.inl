// The group formats with tiles: a product of depth 32 for each group of weights and block of rows.
//
// Bytes: 288 to 544 of weights a group in, 512 unpacked. Cycles for 16 rows and two groups (1024 weights),
// measured piece by piece on a Xeon with AMX; only the rescaling is counted: 4 float instructions a row and
// group (convert, d x scale, times, add; 6 with a minimum), two a cycle.
//
//   two tile products                        32   tile unit
//   load two activation and two weight tiles 24   load ports
//   store two tiles of sums                  29   store port
//   unpack two groups to the first level     19   vector ports, once for all blocks of rows
//   rescale                             64 (96)   vector ports
//
// Measured beside each other they hardly overlap (LABLOG.md): products and stores of 64 groups and rows take
// 33 ns, their rescaling 40 (56 with a minimum), both 65 to 72 (89), however they are ordered. While tiles
// work, multiplications and conversions of 512 bits start once a cycle instead of twice. So this is at
// most 1.9 TOPS (1.5 with minima) for two cores at 3.5 GHz; kernels in cache reach 5.0 (6.5) cycles a group
// and row of the 3.7 (4.9) that this would be.

namespace outpace::OUTPACE_TIER {

constexpr int kGroupsAtOnce = 8;  // that are unpacked together, for all blocks of rows: 4 kB

// A pair of groups (the last may be alone) with a block of rows: products that wait to be rescaled.
struct GroupStep {
  const uint8_t* cell = nullptr;
  int64_t group = 0, first_row = 0, begin = 0, end = 0;  // rows [begin, end) of the block are new
  int count = 0;
};

// The weights of `count` groups as signed bytes: value - zero point. weights: [count][8 lines][64]
template <Format F>
OUTPACE_INLINE void unpack_groups(const uint8_t* cell, int64_t count, uint8_t* weights) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(zero_point(F)));
  for (int64_t g = 0; g < count; ++g, cell += cell_bytes(F), weights += kGroup * kStrip) {
    prefetch<cell_bytes(F)>(cell + kPrefetch);
    Lines w[8];
    unpack_group<F>(PackedCell<F>{cell}.group(0), w);
    for (int q = 0; q < 8; ++q) {
      if constexpr (zero_point(F) != 0) w[q].v = _mm512_sub_epi8(w[q].v, zero);
      _mm512_store_si512(weights + 64 * q, w[q].v);
    }
  }
}

// The floats of group_cells in matmul.inl, in its order. sums: [Count][16 rows][16 outputs]
template <Format F, int Count>
OUTPACE_INLINE void rescale_groups(const GroupStep& step, const int32_t* sums, const Plane& a,
                                   int64_t num_groups, float* acc) {
  Floats d[Count], m[Count];
  for (int i = 0; i < Count; ++i) {
    const uint8_t* scales = step.cell + i * cell_bytes(F) + scale_offset(F);
    d[i] = load_halves(scales);
    if constexpr (has_min(F)) m[i] = load_halves(scales + 32);
  }
  for (int64_t r = step.begin; r < step.end; ++r) {
    const int64_t row = step.first_row + r, index = row * num_groups + step.group;
    Floats out = load_floats(acc + row * kStrip);
    for (int i = 0; i < Count; ++i) {
      const Ints sum = load_ints(sums + (i * kTileRows + r) * kStrip);
      out = add(out, mul(to_floats(sum), mul(d[i], set_floats(a.scale[index + i]))));
      if constexpr (has_min(F)) out = add(out, mul(m[i], set_floats(a.scaled_sum[index + i])));
    }
    store(acc + row * kStrip, out);
  }
}

template <Format F>
OUTPACE_INLINE void rescale_step(const GroupStep& step, const int32_t* sums, const Plane& a,
                                 int64_t num_groups, float* acc) {
  if (step.count == 2) rescale_groups<F, 2>(step, sums, a, num_groups, acc);
  if (step.count == 1) rescale_groups<F, 1>(step, sums, a, num_groups, acc);
}

// Tiles 0, 1: activations; 2, 3: weights; 4, 5: sums.
inline TileConfig group_config(int64_t rows) {
  TileConfig config;
  for (int i = 0; i < 2; ++i) {
    config.set(i, rows, kGroup);
    config.set(2 + i, kGroup / 4, 4 * kStrip);
    config.set(4 + i, rows, 4 * kStrip);
  }
  return config;
}

template <int I>
OUTPACE_INLINE void start_group(const int8_t* activations, int64_t stride, const uint8_t* weights) {
  load_tile<I>(activations + I * kGroup, stride);
  load_tile<2 + I>(weights + I * kGroup * kStrip, 4 * kStrip);
  zero_tile<4 + I>();
  dot_tiles_signed<4 + I, I, 2 + I>();
}

// acc[r] += weights of the strip . activations of row r, for all rows. acc: [rows][16]
template <Format F>
void add_groups(const TileMatrix& m, const uint8_t* strip, const Plane& a, const RowBlocks& rows,
                float* acc) {
  alignas(64) uint8_t weights[kGroupsAtOnce * kGroup * kStrip];
  alignas(64) int32_t sums[2][2 * kTileRows * kStrip];
  const int64_t num_groups = m.columns / kGroup;
  GroupStep waiting;
  int turn = 0;
  for (int64_t first = 0; first < num_groups; first += kGroupsAtOnce) {
    const int64_t end = first + kGroupsAtOnce < num_groups ? first + kGroupsAtOnce : num_groups;
    unpack_groups<F>(strip + first * cell_bytes(F), end - first, weights);
    for (int64_t b = 0; b < rows.count; ++b) {
      for (int64_t g = first; g < end; g += 2, turn ^= 1) {
        const bool pair = g + 1 < end;
        const int8_t* activations = a.q + rows.first(b) * a.stride + g * kGroup;
        const uint8_t* tiles = weights + (g - first) * kGroup * kStrip;
        start_group<0>(activations, a.stride, tiles);
        if (pair) start_group<1>(activations, a.stride, tiles);
        rescale_step<F>(waiting, sums[turn ^ 1], a, num_groups, acc);
        store_tile<4>(sums[turn], 4 * kStrip);
        if (pair) store_tile<5>(sums[turn] + kTileRows * kStrip, 4 * kStrip);
        waiting = {strip + g * cell_bytes(F), g, rows.first(b), rows.begin(b), rows.height, pair ? 2 : 1};
      }
    }
  }
  rescale_step<F>(waiting, sums[turn ^ 1], a, num_groups, acc);
}

}  // namespace outpace::OUTPACE_TIER
