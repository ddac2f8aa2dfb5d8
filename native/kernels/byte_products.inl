// The products of a group of 32 inputs where one instruction adds four products of bytes to a sum of 32 bits
// (`dot` of simd_*.h): a line of 16 outputs x 4 inputs at a time. short_sums.inl is for where none does.

namespace outpace::OUTPACE_TIER {

// sums[s][r] = the products of row r's activations with a group of strip s. a: 32 activations of each row,
// `stride` apart.
//
// Line by line for all rows, so that the sums stay in registers and the weights need few of them: two lines
// of each strip, from the same bytes where a byte holds two weights. What is broadcast of the activations
// serves all strips. Few sums get two chains each, so that they are not bound by the latency of the dot
// product.
template <Format F, int S, int R, class Group>
OUTPACE_INLINE void sum_products(const Group (&groups)[S], const int8_t* a, int64_t stride,
                                 Ints (&sums)[S][R]) {
  constexpr bool small = bits(F) < 8, two_chains = 2 * S * R <= kRegisterSums;
  Ints others[S][R];
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[s][r] = others[s][r] = zero_ints();
  }
  OUTPACE_UNROLL for (int line = 0; line < 4; ++line) {
    Lines low[S], high[S];
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      low[s] = line_of<F>(groups[s], line);
      high[s] = line_of<F>(groups[s], line + 4);
    }
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      const int8_t* quad = a + r * stride + 4 * line;
      OUTPACE_UNROLL for (int s = 0; s < S; ++s) sums[s][r] = dot<small>(sums[s][r], low[s], quad);
      OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
        Ints& sum = two_chains ? others[s][r] : sums[s][r];
        sum = dot<small>(sum, high[s], quad + 16);
      }
    }
  }
  if constexpr (two_chains) {
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[s][r] = add(sums[s][r], others[s][r]);
    }
  }
}

// A group's scale as add_scaled wants it.
OUTPACE_INLINE Ints factor_of(Ints scale) { return scale; }

// acc[s][r] += factor[s] x the sum of strip s and row r.
template <Format F, int S, int R, class Group>
OUTPACE_INLINE void add_scaled(const Group (&groups)[S], const int8_t* a, int64_t stride,
                               const Ints (&factor)[S], Ints (&acc)[S][R]) {
  Ints sums[S][R];
  sum_products<F>(groups, a, stride, sums);
  OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) acc[s][r] = add(acc[s][r], mul(sums[s][r], factor[s]));
  }
}

// acc[s][r] += each half of a group with a scale of its own. start: where row r's two sums begin, at
// r * start_stride.
template <Format F, int S, int R, class Group>
OUTPACE_INLINE void add_halves(const Group (&groups)[S], const int8_t* a, int64_t stride,
                               const int32_t* start, int64_t start_stride, const Ints (&scales)[2][S],
                               Ints (&acc)[S][R]) {
  OUTPACE_UNROLL for (int half = 0; half < 2; ++half) {
    Ints sums[S][R];
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      OUTPACE_UNROLL for (int r = 0; r < R; ++r) sums[s][r] = set_ints(start[r * start_stride + half]);
    }
    OUTPACE_UNROLL for (int line = 4 * half; line < 4 * half + 4; ++line) {
      Lines w[S];
      OUTPACE_UNROLL for (int s = 0; s < S; ++s) w[s] = line_of<F>(groups[s], line);
      OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
        OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
          sums[s][r] = dot<true>(sums[s][r], w[s], a + r * stride + 4 * line);
        }
      }
    }
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
        acc[s][r] = add(acc[s][r], mul(sums[s][r], scales[half][s]));
      }
    }
  }
}

// acc[s][r] += a group of unpacked weights of strip s, [S][8][64], times row r. a: [R][32]
template <int S, int R>
OUTPACE_INLINE void add_unpacked(const uint8_t* weights, const int8_t* a, Ints (&acc)[S][R]) {
  OUTPACE_UNROLL for (int q = 0; q < 8; ++q) {
    Lines w[S];
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) w[s] = load_lines(weights + 64 * (8 * s + q));
    OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
      OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
        acc[s][r] = dot<true>(acc[s][r], w[s], a + r * kGroup + 4 * q);
      }
    }
  }
}

}  // namespace outpace::OUTPACE_TIER
