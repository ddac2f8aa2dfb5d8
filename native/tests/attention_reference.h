// Softmax attention in float64: over the floats themselves, and over the cache with the integers that the
// kernels count in.
#pragma once

#include "attention_cache.h"

namespace attention {

inline constexpr double kPlanes = 127.0 * 128.0;  // the largest integer of a query, and of a softmax weight
inline constexpr double kRounding = 1e-5;         // float32 arithmetic, of the largest value

// An int8 cache is read with the query in 15 bits.
inline std::vector<double> query_as_read(const Context& c, const Query& q, int64_t head, bool rounded) {
  const float* row = q.rows.data() + head * c.padded();
  float largest = 0.0f;
  for (int64_t i = 0; i < c.padded(); ++i) largest = std::max(largest, std::fabs(row[i]));
  std::vector<double> out;
  for (int64_t i = 0; i < c.padded(); ++i) {
    const float steps = static_cast<float>(kPlanes) / largest;
    const bool round = rounded && c.layout.int8 && largest > 0.0f;
    out.push_back(round ? static_cast<double>(std::nearbyintf(row[i] * steps)) *
                              static_cast<double>(largest) / kPlanes
                        : static_cast<double>(row[i]));
  }
  return out;
}

// The attention of one head in float64. slack: how far float32 may bring it elsewhere by rounding an integer
// weight to the other side.
struct Expected {
  std::vector<double> out, slack;
};

// The scores of the tokens [begin, end).
template <class Key>
inline std::vector<double> reference_scores(const Context& c, const std::vector<double>& query, float softcap,
                                            const Key& key) {
  std::vector<double> scores;
  for (int64_t t = c.begin; t < c.end; ++t) {
    double s = 0.0;
    for (int64_t i = 0; i < c.head_dim; ++i)
      s += query[static_cast<size_t>(i)] * static_cast<double>(key(t, i));
    if (softcap > 0.0f) s = static_cast<double>(softcap) * std::tanh(s / static_cast<double>(softcap));
    scores.push_back(s);
  }
  return scores;
}

// A weight as it multiplies a value of an int8 cache: an integer that counts steps of the chunk's largest
// value scale, 14 bits. Returns the weight that remains; `other` becomes the distance to the next integer's
// where the weight is within float32's rounding of the middle.
inline double integer_weight(double weight, double scale, double largest_scale, double& other) {
  other = 0.0;
  if (scale == 0.0) return weight;  // of a value that is 0
  const double step = largest_scale / kPlanes / scale, exact = weight / step;
  if (std::fabs(exact - std::floor(exact) - 0.5) < kRounding * exact) other = step;
  return std::nearbyint(exact) * step;
}

// Softmax attention, chunk by chunk, the weights of each against its own largest score.
// scale: of a token's value if the weights become integers, else 0.
template <class Value, class Scale>
inline Expected reference(const Context& c, const std::vector<double>& scores, const Value& value,
                          const Scale& scale) {
  const auto width = static_cast<size_t>(c.padded());
  Expected expected{std::vector<double>(width, 0.0), std::vector<double>(width, 0.0)};
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (int64_t begin = c.begin, end; begin < c.end; begin = end) {
    end = std::min(c.end, (begin / outpace::kAttentionChunk + 1) * outpace::kAttentionChunk);
    double chunk_top = -INFINITY, largest_scale = 0.0;
    for (int64_t t = begin; t < end; ++t) {
      chunk_top = std::max(chunk_top, scores[static_cast<size_t>(t - c.begin)]);
      largest_scale = std::max(largest_scale, scale(t));
    }
    const double factor = std::exp(chunk_top - top);
    for (int64_t t = begin; t < end; ++t) {
      const double weight = std::exp(scores[static_cast<size_t>(t - c.begin)] - chunk_top);
      double other = 0.0;
      const double read = integer_weight(weight, scale(t), largest_scale, other);
      sum += weight * factor;
      for (size_t i = 0; i < width; ++i) {
        const auto v = static_cast<double>(value(t, static_cast<int64_t>(i)));
        expected.out[i] += read * factor * v;
        expected.slack[i] += other * factor * std::fabs(v);
      }
    }
  }
  for (double& x : expected.out) x /= sum;
  for (double& x : expected.slack) x /= sum;
  return expected;
}

inline double largest_of(const std::vector<float>& v) {
  double largest = 0.0;
  for (const float x : v) largest = std::max(largest, std::fabs(static_cast<double>(x)));
  return largest;
}

// How far quantization may move an output: five standard deviations of a score's error, which shifts
// weight between tokens, and half a step of the value. With int8 the weights are rounded too, and each brings
// at most 127 steps of the largest value's scale / kPlanes: five standard deviations of their sum, over a sum
// of weights of at least 1.
inline double quantization_bound(const Context& c, const std::vector<double>& query) {
  const double step = c.layout.int8 ? 1.0 / 127.0 : 1.0 / 1024.0;  // of the largest
  double squares = 0.0;
  for (const double q : query) squares += q * q;
  const double score_error = 5.0 * std::sqrt(squares / 12.0) * largest_of(c.keys) * step;
  const double weights_error =
      c.layout.int8 ? 5.0 * std::sqrt(static_cast<double>(c.end - c.begin) / 12.0) / kPlanes : 0.0;
  return (std::exp(2.0 * score_error) - 1.0 + step / 2.0 + weights_error) * largest_of(c.values);
}

inline Expected expected_as_cached(Context& c, const Query& q, int64_t head) {
  const auto scores = reference_scores(c, query_as_read(c, q, head, true), q.softcap,
                                       [&](int64_t t, int64_t i) { return cached_key(c, t, i); });
  return reference(
      c, scores, [&](int64_t t, int64_t i) { return cached_value(c, t, i); },
      [&](int64_t t) { return c.layout.int8 ? cached_value_scale(c, t) : 0.0; });
}

inline Expected expected_unquantized(const Context& c, const Query& q, int64_t head) {
  const auto at = [&](int64_t t, int64_t i) { return static_cast<size_t>(t * c.padded() + i); };
  const auto scores = reference_scores(c, query_as_read(c, q, head, false), q.softcap,
                                       [&](int64_t t, int64_t i) { return c.keys[at(t, i)]; });
  return reference(
      c, scores, [&](int64_t t, int64_t i) { return c.values[at(t, i)]; }, [](int64_t) { return 0.0; });
}

inline void check_against_float64(Context& c, const Query& q, const Result& got) {
  for (int64_t h = 0; h < q.heads; ++h) {
    const Expected cached = expected_as_cached(c, q, h), raw = expected_unquantized(c, q, h);
    const double rounding = kRounding * largest_of(c.values),
                 bound = quantization_bound(c, query_as_read(c, q, h, false));
    for (int64_t i = 0; i < c.padded(); ++i) {
      const auto at = static_cast<size_t>(i);
      const double y = static_cast<double>(got.out[static_cast<size_t>(h * c.padded()) + at] /
                                           got.sum[static_cast<size_t>(h)]);
      CHECK(std::fabs(y - cached.out[at]) <= rounding + cached.slack[at],
            "%s d %d tokens %d..%d head %d: %.7g, not %.7g", c.layout.int8 ? "int8" : "f16",
            static_cast<int>(c.head_dim), static_cast<int>(c.begin), static_cast<int>(c.end),
            static_cast<int>(h), y, cached.out[at]);
      CHECK(std::fabs(y - raw.out[at]) <= bound, "%.7g, unquantized %.7g, bound %g", y, raw.out[at], bound);
      if (i >= c.head_dim) CHECK(y == 0.0);
    }
  }
}

}  // namespace attention
