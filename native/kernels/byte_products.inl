// The products of a group of 32 inputs where one instruction adds four products of bytes to a sum of 32 bits
// (`dot` of simd_*.h): a line of 16 outputs x 4 inputs at a time. short_sums.inl is for where none does.

namespace outpace::OUTPACE_TIER {

// Two chains of four, so that few rows are not bound by the latency of the dot product.
template <Format F>
OUTPACE_INLINE Ints dot_group(const Lines (&w)[8], const int8_t* a) {
  constexpr bool small = bits(F) < 8;
  Ints even = zero_ints(), odd = zero_ints();
  for (int q = 0; q < 8; q += 2) {
    even = dot<small>(even, w[q], a + 4 * q);
    odd = dot<small>(odd, w[q + 1], a + 4 * q + 4);
  }
  return add(even, odd);
}

// Calls take(r, sum) for each of R rows with the products of its activations with the group's weights. a: 32
// activations of each row, `stride` apart.
template <Format F, int R, class Take>
OUTPACE_INLINE void sum_group(const PackedGroup<F>& group, const int8_t* a, int64_t stride, Take take) {
  Lines w[8];
  unpack_group<F>(group, w);
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) take(r, dot_group<F>(w, a + r * stride));
}

// A group's scales as add_group and add_halves want them.
OUTPACE_INLINE Ints factor_of(Ints scale) { return scale; }

// acc[r] += factor x the sum of row r.
template <Format F, int R>
OUTPACE_INLINE void add_group(const PackedGroup<F>& group, const int8_t* a, int64_t stride, Ints factor,
                              Ints (&acc)[R]) {
  sum_group<F, R>(group, a, stride, [&](int r, Ints sum) { acc[r] = add(acc[r], mul(sum, factor)); });
}

// The same with a scale for each half of the group, and the format's zero point. sums: of each half's
// activations, a row's `sum_stride` after those of the one before.
template <Format F, int R>
OUTPACE_INLINE void add_halves(const PackedGroup<F>& group, const int8_t* a, int64_t stride,
                               const int32_t* sums, int64_t sum_stride, Ints scale0, Ints scale1,
                               Ints (&acc)[R]) {
  Lines w[8];
  unpack_group<F>(group, w);
  for (int r = 0; r < R; ++r) {
    const int8_t* q = a + r * stride;
    const int32_t* sum = sums + r * sum_stride;
    Ints first = zero_ints(), second = zero_ints();
    for (int i = 0; i < 4; ++i) {
      first = dot<true>(first, w[i], q + 4 * i);
      second = dot<true>(second, w[i + 4], q + 16 + 4 * i);
    }
    first = sub(first, shift_left<log2_of(zero_point(F))>(set_ints(sum[0])));
    second = sub(second, shift_left<log2_of(zero_point(F))>(set_ints(sum[1])));
    acc[r] = add(acc[r], add(mul(first, scale0), mul(second, scale1)));
  }
}

// acc[r] += a group of unpacked weights of 4 bits, [8][64], times row r. a: [R][32]
template <int R>
OUTPACE_INLINE void add_unpacked(const uint8_t* weights, const int8_t* a, Ints (&acc)[R]) {
  OUTPACE_UNROLL for (int q = 0; q < 8; ++q) {
    const Lines w = load_lines(weights + 64 * q);
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) acc[r] = dot<true>(acc[r], w, a + r * kGroup + 4 * q);
  }
}

}  // namespace outpace::OUTPACE_TIER
