// The products of a group of 32 inputs where no instruction adds four products of bytes to a sum of 32 bits
// (AVX2 before VNNI): pairs of products are added in 16 bits as long as they fit, then widened and multiplied
// by the group's scale in one instruction.
//
// A pair of products of b bits with 8 is at most 2 x (2^b - 1) x 127, so 8, 4 and 2 pairs fit for 4, 5 and 6
// bits, and one of signed bytes. Instructions for a row, a group and 16 outputs (two registers each):
//
//                           4 bits  5 bits  6 bits  8 bits
//   multiply                    16      16      16      16
//   give the weights' signs      -       -       -      16
//   add in 16 bits              14      12       8       -
//   widen and scale              2       4       8      16
//   add in 32 bits               2       4       8      16
//   broadcast activations        8       8       8       8
//   the zero point of halves     -       -      10       -
//
// Bytes: a group's 288 to 544 of weights, once for all rows of a pass, and 32 of activations a row.
//
// With two multiplications and four vector operations a cycle (Zen 3) that would be 9, 10, 14 and 16 cycles.
// Bare loops of a broadcast, two products and two sums reach 0.8 of that, and unpacking comes on top.
//
// Activations are in [-127, 127], and their sums are of the same bytes, as long as they are finite.
// Of what is not a number tiers may make different numbers.

namespace outpace::OUTPACE_TIER {

// Lines whose pairs of products fit 16 bits together: 8, 4 and 2.
template <Format F>
constexpr int kLinesTogether = 32767 / (2 * 127 * ((1 << bits(F)) - 1));

// acc[r] += factor x the products of lines [first, first + kLinesTogether). factor: pairs of 16 bits
template <Format F, int R, class Group>
OUTPACE_INLINE void add_lines(const Group& group, const int8_t* a, int64_t stride, int first, Ints factor,
                              Ints (&acc)[R]) {
  static_assert(8 % kLinesTogether<F> == 0);
  Shorts sums[R];
  OUTPACE_UNROLL for (int q = first; q < first + kLinesTogether<F>; ++q) {
    const Lines w = line_of<F>(group, q);
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      const Shorts pairs = multiply_bytes(w, a + r * stride + 4 * q);
      sums[r] = q == first ? pairs : add(sums[r], pairs);
      settle(sums[r]);
    }
  }
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) acc[r] = dot_shorts(acc[r], sums[r], factor);
}

// A scale of 16 bits twice, for both numbers that a short sum consists of.
OUTPACE_INLINE Ints factor_of(Ints scale) { return bit_or(bit_and(scale, 0xffff), shift_left<16>(scale)); }

// What byte_products.inl says of these, for one strip: with two, half as many rows would fit the registers.
static_assert(kStripsTogether == 1);

template <Format F, int R, class Group>
OUTPACE_INLINE void add_scaled(const Group (&group)[1], const int8_t* a, int64_t stride,
                               const Ints (&factor)[1], Ints (&acc)[1][R]) {
  OUTPACE_UNROLL for (int q = 0; q < 8; q += kLinesTogether<F>) {
    add_lines<F, R>(group[0], a, stride, q, factor[0], acc[0]);
  }
}

template <Format F, int R, class Group>
OUTPACE_INLINE void add_halves(const Group (&group)[1], const int8_t* a, int64_t stride, const int32_t* start,
                               int64_t start_stride, const Ints (&scales)[2][1], Ints (&acc)[1][R]) {
  OUTPACE_UNROLL for (int half = 0; half < 2; ++half) {
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      const Ints from = set_ints(start[r * start_stride + half]);
      acc[0][r] = add(acc[0][r], mul(from, scales[half][0]));
    }
  }
  const Ints first = factor_of(scales[0][0]), second = factor_of(scales[1][0]);
  OUTPACE_UNROLL for (int q = 0; q < 8; q += kLinesTogether<F>) {
    add_lines<F, R>(group[0], a, stride, q, q < 4 ? first : second, acc[0]);
  }
}

template <Format F, int R, class Group>
OUTPACE_INLINE void sum_products(const Group (&group)[1], const int8_t* a, int64_t stride,
                                 Ints (&sums)[1][R]) {
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[0][r] = zero_ints();
  add_scaled<F>(group, a, stride, {factor_of(set_ints(1))}, sums);
}

// Of 8 bits no second pair fits.
template <Format F, int R, class Group>
  requires(bits(F) == 8)
OUTPACE_INLINE void sum_products(const Group (&group)[1], const int8_t* a, int64_t stride,
                                 Ints (&sums)[1][R]) {
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[0][r] = zero_ints();
  OUTPACE_UNROLL for (int q = 0; q < 8; ++q) {
    const SignedLines w = unbias_bytes(load_lines(group[0].quants + 64 * q));
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      Ints& sum = sums[0][r];
      sum = dot_shorts(sum, multiply_bytes(w, a + r * stride + 4 * q), factor_of(set_ints(1)));
      settle(sum);
    }
  }
}

// acc[0][r] += a group of unpacked weights of 4 bits, [8][64], times row r. a: [R][32]
template <int R>
OUTPACE_INLINE void add_unpacked(const uint8_t* weights, const int8_t* a, Ints (&acc)[1][R]) {
  add_scaled<Format::q4_0>({UnpackedGroup{weights}}, a, kGroup, {factor_of(set_ints(1))}, acc);
}

}  // namespace outpace::OUTPACE_TIER
