// The row-wise operations between the matrix products, written once for all tiers.
//
// Vectors are of 16 floats whatever the tier (vector16.h), and sums are 16 lanes that are folded in one fixed
// order, so every tier adds the same numbers in the same order.
//
// Bytes: each operand once, 4 a value; it all stays in the first level, so instructions decide. Cycles a
// value with 16 lanes, four instructions a cycle of which two are additions or multiplications (Zen 4, but
// one of each of 512 bits), by count and as `rows_bench` has it:
//
//   add, scale              0.13   0.13 to 0.16
//   rms_norm                0.25   0.29    two passes: squares, then two multiplications
//   quantize_32, _256       0.9    1.06, 0.74    largest and squares, then scale, round, sum, narrow
//   silu_mul, gelu_mul      0.9, 1.2    0.96, 1.30    e^x, 17 operations, and a division (0.6 alone)
//   argmax, exp             0.4, 0.8    0.56, 0.83    over a vocabulary, from the second level on
//   log_sum_exp             1.2    1.75    argmax, then e^x, and a fold of every 16

#include "vector16.h"

namespace outpace::OUTPACE_TIER {

// Added to |x| < 2^22, it leaves x rounded to the nearest integer, ties to even, in the lowest bits.
constexpr float kRound = 12582912.0f;
constexpr int32_t kRoundBits = 0x4b400000;

OUTPACE_INLINE I16x round16(const F16x& x) { return bits16<int32_t>(x + kRound) - kRoundBits; }

// e^x for x in [-87, 88] to about 2 ulp, in place: Cephes' expf polynomial, its terms in pairs that need not
// wait for each other. K vectors at once, operation by operation: each is a chain of 17 operations that do
// wait, and a processor looks ahead over about three chains, where four would keep it busy (Zen 5).
template <int K>
OUTPACE_INLINE void exp_within(F16x (&x)[K]) {
  F16x r[K], r2[K], power[K];
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
    const F16x shifted = x[k] * 1.44269504088896341f + kRound, n = shifted - kRound;
    power[k] = bits16<float>((bits16<int32_t>(shifted) - (kRoundBits - 127)) << 23);
    r[k] = (x[k] - n * 0.693359375f) - n * -2.12194440e-4f;
    r2[k] = r[k] * r[k];
  }
  F16x p[K], q[K];
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) p[k] = r[k] * 1.9875691500e-4f + 1.3981999507e-3f;
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) q[k] = r[k] * 8.3334519073e-3f + 4.1665795894e-2f;
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) p[k] = p[k] * r2[k] + q[k];
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) q[k] = r[k] * 1.6666665459e-1f + 5.0000001201e-1f;
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) p[k] = p[k] * r2[k] + q[k];
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) p[k] = p[k] * r2[k] + r[k];
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) x[k] = (p[k] + 1.0f) * power[k];
}

template <int K>
OUTPACE_INLINE void exp_each(F16x (&x)[K]) {
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) x[k] = min16(max16(x[k], all16(-87.0f)), all16(88.0f));
  exp_within(x);
}
OUTPACE_INLINE F16x exp16(const F16x& x) {
  F16x one[1] = {x};
  exp_each(one);
  return one[0];
}

// Calls op(load, store) semantics over n values: out[i] = op(in vectors).
template <class Op>
OUTPACE_INLINE void map1(const float* a, float* out, int64_t n, Op op) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store16(out + i, op(load16(a + i)));
  if (i < n) store_part(out + i, op(load_part(a + i, n - i)), n - i);
}
template <class Op>
OUTPACE_INLINE void map2(const float* a, const float* b, float* out, int64_t n, Op op) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store16(out + i, op(load16(a + i), load16(b + i)));
  if (i < n) store_part(out + i, op(load_part(a + i, n - i), load_part(b + i, n - i)), n - i);
}

OUTPACE_INLINE F16x sum_of_squares(const float* x, int64_t n) {
  F16x sum = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F16x v = load16(x + i);
    sum = sum + v * v;
  }
  if (i < n) {
    const F16x v = load_part(x + i, n - i);
    sum = sum + v * v;
  }
  return sum;
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const float mean = fold_sum(sum_of_squares(x, n)) / static_cast<float>(n);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  map2(x, weight, out, n, [&](const F16x& a, const F16x& w) { return (a * inverse) * w; });
}

void add_rows(float* x, const float* y, int64_t n) {
  map2(x, y, x, n, [](const F16x& a, const F16x& b) { return a + b; });
}
void scale_row(float* x, float factor, int64_t n) {
  map1(x, x, n, [&](const F16x& a) { return a * factor; });
}
OUTPACE_INLINE F16x sigmoid16(const F16x& x) { return 1.0f / (1.0f + exp16(-x)); }
OUTPACE_INLINE F16x tanh16(const F16x& x) { return 2.0f * sigmoid16(2.0f * x) - 1.0f; }
void softcap_row(float* x, float cap, int64_t n) {
  map1(x, x, n, [&](const F16x& a) { return cap * tanh16(a / cap); });
}
void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  constexpr int K = kChains;
  int64_t i = 0;
  for (; i + 16 * K <= n; i += 16 * K) {
    F16x g[K], x[K];
    OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
      g[k] = load16(gate + i + 16 * k);
      x[k] = -g[k];
    }
    exp_each(x);
    OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
      store16(out + i + 16 * k, g[k] / (1.0f + x[k]) * load16(up + i + 16 * k));
    }
  }
  map2(gate + i, up + i, out + i, n - i,
       [](const F16x& g, const F16x& u) { return g / (1.0f + exp16(-g)) * u; });
}
// The tanh form: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
void gelu_mul(const float* gate, const float* up, int64_t n, float* out) {
  map2(gate, up, out, n, [](const F16x& g, const F16x& u) {
    return (g * sigmoid16(1.5957691216057308f * (g + 0.044715f * (g * g * g)))) * u;
  });
}

void rope(float* head, const float* cos, const float* sin, int64_t num_pairs, bool interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < num_pairs; ++i) {
      const float x = head[2 * i], y = head[2 * i + 1];
      head[2 * i] = x * cos[i] - y * sin[i];
      head[2 * i + 1] = x * sin[i] + y * cos[i];
    }
    return;
  }
  float* other = head + num_pairs;
  for (int64_t i = 0; i < num_pairs; i += 16) {
    const bool whole = i + 16 <= num_pairs;
    const auto load = [&](const float* p) { return whole ? load16(p + i) : load_part(p + i, num_pairs - i); };
    const auto save = [&](float* p, const F16x& v) {
      whole ? store16(p + i, v) : store_part(p + i, v, num_pairs - i);
    };
    const F16x x = load(head), y = load(other), c = load(cos), s = load(sin);
    save(head, x * c - y * s);
    save(other, x * s + y * c);
  }
}

OUTPACE_INLINE float largest_magnitude(const float* x, int64_t n) {
  F16x largest = {};
  for (int64_t i = 0; i < n; i += 16) largest = max16(largest, abs16(load16(x + i)));
  return fold_max(largest);
}
// Integers per unit where `largest` becomes `steps`. What is so small that the quotient would overflow
// counts as zero.
OUTPACE_INLINE float inverse_step(float steps, float largest) {
  return largest > 1e-30f ? steps / largest : 0.0f;
}

// How a cell of N activations becomes integers.
struct Steps {
  bool wide;
  float inverse, unit;  // integers per activation and back
};
template <int N>
OUTPACE_INLINE Steps steps_of(const float* x, float wide_ratio) {
  const float largest = largest_magnitude(x, N);
  const float mean_square = fold_sum(sum_of_squares(x, N)) / N;
  const bool wide = largest * largest > (wide_ratio * wide_ratio) * mean_square;
  const float steps = wide ? 127.0f * 128.0f : 127.0f;
  return {wide, inverse_step(steps, largest), largest / steps};
}

// 16 activations -> the high plane, and the low one of a wide cell. Returns the planes' sums.
struct Sums {
  int32_t high, low;
};
OUTPACE_INLINE Sums quantize16(const float* x, const Steps& steps, int8_t* high, int8_t* low) {
  const I16x v = round16(load16(x) * steps.inverse);
  if (!steps.wide) {
    narrow16(high, v);
    return {fold_ints(v), 0};
  }
  const I16x h = v >> 7, l = v & 127;
  narrow16(high, h);
  narrow16(low, l);
  return {fold_ints(h), fold_ints(l)};
}

void quantize_32(const float* x, int64_t n, const Quantized& out) {
  int32_t num_wide = 0;
  for (int64_t g = 0; g < n / kGroup; ++g) {
    const int64_t at = g * kGroup;
    const Steps steps = steps_of<kGroup>(x + at, kWide32);
    const Sums a = quantize16(x + at, steps, out.high.q + at, out.low.q + at);
    const Sums b = quantize16(x + at + 16, steps, out.high.q + at + 16, out.low.q + at + 16);
    const auto set = [&](const Plane& plane, float scale, int32_t sum) {
      plane.scale[g] = scale;
      plane.sum[g] = sum;
      plane.scaled_sum[g] = scale * static_cast<float>(sum);
    };
    set(out.high, steps.wide ? steps.unit * 128.0f : steps.unit, a.high + b.high);
    if (!steps.wide) continue;
    set(out.low, steps.unit, a.low + b.low);
    out.wide[num_wide++] = static_cast<int32_t>(g);
  }
  *out.num_wide = num_wide;
}

// Where group g of a super-block keeps its sum: pairs (0, 2), (1, 3), (4, 6), (5, 7).
constexpr int kSumOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};

// Where the products of Q6_K begin. Of what is not a number the sum may be any.
OUTPACE_INLINE int32_t start_of(int32_t sum) {
  return static_cast<int32_t>(0u -
                              static_cast<uint32_t>(zero_point(Format::q6_k)) * static_cast<uint32_t>(sum));
}

void quantize_256(const float* x, int64_t n, const Quantized& out) {
  int32_t num_wide = 0;
  for (int64_t block = 0; block < n / kSuperBlock; ++block) {
    const Steps steps = steps_of<kSuperBlock>(x + block * kSuperBlock, kWide256);
    Sums sums[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t at = block * kSuperBlock + 16 * i;
      sums[i] = quantize16(x + at, steps, out.high.q + at, out.low.q + at);
      out.high.half_start[block * 16 + i] = start_of(sums[i].high);
      if (steps.wide) out.low.half_start[block * 16 + i] = start_of(sums[i].low);
    }
    out.high.scale[block] = steps.wide ? steps.unit * 128.0f : steps.unit;
    for (int g = 0; g < 8; ++g) {
      const Sums a = sums[2 * g], b = sums[2 * g + 1];
      out.high.pair_sum[block * 8 + kSumOrder[g]] = static_cast<int16_t>(a.high + b.high);
      if (steps.wide) out.low.pair_sum[block * 8 + kSumOrder[g]] = static_cast<int16_t>(a.low + b.low);
    }
    if (!steps.wide) continue;
    out.low.scale[block] = steps.unit;
    out.wide[num_wide++] = static_cast<int32_t>(block);
  }
  *out.num_wide = num_wide;
}

int64_t argmax(const float* x, int64_t n) {
  F16x best = all16(-__builtin_inff());
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) best = max16(load16(x + i), best);  // in this order a NaN is passed over
  float largest = fold_max(best);
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  for (i = 0; i < n; ++i) {
    if (x[i] == largest) return i;
  }
  return 0;  // only where every value is not a number
}

void exp_row(const float* x, float shift, int64_t n, float* out) {
  map1(x, out, n, [&](const F16x& a) { return exp16(a - shift); });
}

double log_sum_exp(const float* x, int64_t n) {
  const float largest = x[argmax(x, n)];
  double sum = 0.0;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) sum += static_cast<double>(fold_sum(exp16(load16(x + i) - largest)));
  for (; i < n; ++i) {
    const F16x v = all16(x[i] - largest);
    sum += static_cast<double>(exp16(v)[0]);
  }
  return static_cast<double>(largest) + __builtin_log(sum);
}

}  // namespace outpace::OUTPACE_TIER
