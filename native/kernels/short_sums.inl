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
//
// Bytes: a group's 288 to 544 of weights, once for all rows of a pass, and 32 of activations a row.
//
// With two multiplications and four vector operations a cycle (Zen 3) that would be 9, 10, 12 and 16 cycles.
// Bare loops of a broadcast, two products and two sums reach 0.8 of that, and unpacking comes on top.
//
// Activations are in [-127, 127], and their sums in a.sum are of the same bytes, as long as they are finite.
// Of what is not a number tiers may make different numbers.

namespace outpace::OUTPACE_TIER {

// A group whose lines are unpacked already, for formats of less than 8 bits: [8][64]
struct UnpackedGroup {
  const uint8_t* lines;
};
template <Format F>
OUTPACE_INLINE Lines line_of(const UnpackedGroup& group, int q) {
  return load_lines(group.lines + 64 * q);
}

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

template <Format F, int R, class Group>
OUTPACE_INLINE void add_group(const Group& group, const int8_t* a, int64_t stride, Ints factor,
                              Ints (&acc)[R]) {
  OUTPACE_UNROLL for (int q = 0; q < 8; q += kLinesTogether<F>) {
    add_lines<F, R>(group, a, stride, q, factor, acc);
  }
}

template <Format F, int R, class Group>
OUTPACE_INLINE void add_halves(const Group& group, const int8_t* a, int64_t stride, const int32_t* sums,
                               int64_t sum_stride, Ints scale0, Ints scale1, Ints (&acc)[R]) {
  const Ints first = factor_of(scale0), second = factor_of(scale1);
  OUTPACE_UNROLL for (int q = 0; q < 8; q += kLinesTogether<F>) {
    add_lines<F, R>(group, a, stride, q, q < 4 ? first : second, acc);
  }
  // The zero point takes off zero x scale x sum: both halves in one product of pairs.
  const Ints both = bit_or(bit_and(scale0, 0xffff), shift_left<16>(scale1));
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
    const int32_t* sum = sums + r * sum_stride;
    const int16_t pair[2] = {static_cast<int16_t>(sum[0]), static_cast<int16_t>(sum[1])};
    acc[r] = sub(acc[r], shift_left<log2_of(zero_point(F))>(dot_pairs(zero_ints(), both, pair)));
  }
}

template <Format F, int R, class Group, class Take>
OUTPACE_INLINE void sum_group(const Group& group, const int8_t* a, int64_t stride, Take take) {
  Ints sums[R];
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[r] = zero_ints();
  add_group<F, R>(group, a, stride, factor_of(set_ints(1)), sums);
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) take(r, sums[r]);
}

// Of 8 bits no second pair fits.
template <Format F, int R, class Group, class Take>
  requires(bits(F) == 8)
OUTPACE_INLINE void sum_group(const Group& group, const int8_t* a, int64_t stride, Take take) {
  Ints sums[R];
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[r] = zero_ints();
  OUTPACE_UNROLL for (int q = 0; q < 8; ++q) {
    const SignedLines w = unbias_bytes(load_lines(group.quants + 64 * q));
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      sums[r] = dot_shorts(sums[r], multiply_bytes(w, a + r * stride + 4 * q), factor_of(set_ints(1)));
      settle(sums[r]);
    }
  }
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) take(r, sums[r]);
}

// acc[r] += a group of unpacked weights of 4 bits, [8][64], times row r. a: [R][32]
template <int R>
OUTPACE_INLINE void add_unpacked(const uint8_t* weights, const int8_t* a, Ints (&acc)[R]) {
  add_group<Format::q4_0, R>(UnpackedGroup{weights}, a, kGroup, factor_of(set_ints(1)), acc);
}

}  // namespace outpace::OUTPACE_TIER
