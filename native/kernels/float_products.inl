// Products of float weights (F32, F16, BF16) and float activations.
//
// Bytes: 2 or 4 a weight, once for all rows of a pass; a line of 64 holds one or two inputs of 16 outputs.
// For an input and a row one multiplication and one addition of 16 lanes, which share no port on Zen 4: 16
// cycles for 16 rows, 19.0 measured (`matmul_bench bf16`, 6.2 GB/s at 3.67 GHz). One row waits for its own
// sum, 3 cycles an input: 39 GB/s, more than the memory gives a core.

namespace outpace::OUTPACE_TIER {

template <Format F>
OUTPACE_INLINE Floats load_weights(const uint8_t* p) {
  if constexpr (F == Format::f32) return load_floats(reinterpret_cast<const float*>(p));
  if constexpr (F == Format::f16) return load_halves(p);
  if constexpr (F == Format::bf16) return load_bf16(p);
}

// acc[r] += weights of N inputs from k on . activations of row r.
template <Format F, int R, int N>
OUTPACE_INLINE void add_inputs(const uint8_t* strip, const float* x, int64_t stride_x, int64_t k,
                               Floats (&acc)[R]) {
  Floats w[N];
  OUTPACE_UNROLL for (int i = 0; i < N; ++i) {
    w[i] = load_weights<F>(strip + (k + i) * kStrip * (bits(F) / 8));
  }
  OUTPACE_UNROLL for (int r = 0; r < R; ++r) {
    OUTPACE_UNROLL for (int i = 0; i < N; ++i) {
      acc[r] = add(acc[r], mul(w[i], set_floats(x[r * stride_x + k + i])));
    }
  }
}

template <Format F, int R>
void float_rows(const TileMatrix& m, const uint8_t* strip, const Activations& a, int64_t row0, float* out,
                int64_t out_stride) {
  constexpr int64_t kAtOnce = 32, kBytes = kStrip * (bits(F) / 8);
  // The pointers to many rows do not fit the registers: each is loaded once for some inputs (0.9 of the time;
  // F32, whose weights are no more than a load, and fewer rows lose by it).
  constexpr int kInputs = kRegisterSums > 8 && bits(F) == 16 ? 8 : 1;
  Floats acc[R];
  for (int r = 0; r < R; ++r) acc[r] = set_floats(0.0f);
  const float* x = a.x + row0 * a.stride_x;
  for (int64_t first = 0; first < m.columns; first += kAtOnce) {
    const int64_t end = first + kAtOnce < m.columns ? first + kAtOnce : m.columns;
    int64_t k = first;
    for (; k + kInputs <= end; k += kInputs) {
      // Whole lines, a few at a time: all at once fill the queue of misses (F32 took a quarter longer, 16
      // bits a tenth).
      if (row0 == 0 && k * kBytes % 64 == 0) prefetch<kInputs * kBytes>(strip + k * kBytes + kPrefetch);
      add_inputs<F, R, kInputs>(strip, x, a.stride_x, k, acc);
    }
    for (; k < end; ++k) add_inputs<F, R, 1>(strip, x, a.stride_x, k, acc);
  }
  for (int r = 0; r < R; ++r) store(out + r * out_stride, acc[r]);
}

}  // namespace outpace::OUTPACE_TIER
