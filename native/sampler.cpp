#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

namespace outpace {

namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u, kToken = 0xD1B54A32D192ED03u;

// The finalizer of splitmix64 (Steele, Lea and Flood, 2014).
uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

uint64_t row_key(uint64_t seed, int64_t position) {
  return mix(seed + kGolden * (static_cast<uint64_t>(position) + 1));
}

// 24 random bits for a token.
uint32_t token_bits(uint64_t key, int64_t token_id) {
  return static_cast<uint32_t>(mix(key + kToken * (static_cast<uint64_t>(token_id) + 1)) >> 40);
}

float gumbel(uint32_t bits) {
  const double u = (static_cast<double>(bits) + 0.5) * 0x1p-24;
  return static_cast<float>(-std::log(-std::log(u)));
}

// At least gumbel(bits): -log(-log u) <= -log(1 - u), bounded by the leading zeros of 1 - u.
float gumbel_bound(uint32_t bits) {
  const uint32_t rest = (1u << 24) - 1 - bits;  // 1 - u = (rest + 0.5) / 2^24
  return 0.6931472f * static_cast<float>(std::countl_zero(rest | 1) - 7) + 0.7f;
}

void collect_logprobs(const float* logits, int64_t n, int num_top, Sampled& out,
                      double log_sum) {
  if (num_top == 0) return;
  std::vector<int32_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  const auto middle = ids.begin() + std::min<int64_t>(num_top, n);
  std::partial_sort(ids.begin(), middle, ids.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (auto it = ids.begin(); it != middle; ++it) {
    out.top.emplace_back(*it, static_cast<float>(logits[*it] - log_sum));
  }
}

void add_bias(float* logits, int64_t n, const SampleRequest& request) {
  for (int64_t i = 0; i < request.bias_token_ids.size; ++i) {
    const int32_t id = request.bias_token_ids.data[i];
    if (id >= 0 && id < n) logits[id] += request.bias_values.data[i];
  }
}

void penalize(float* logits, int64_t n, const SampleRequest& request) {
  const Sampling& s = *request.sampling;
  const bool repetition = s.repetition_penalty != 1.0f;
  if (!repetition && s.presence_penalty == 0.0f && s.frequency_penalty == 0.0f) return;
  struct Count {
    int output = 0;
  };
  std::unordered_map<int32_t, Count> counts;
  for (int64_t i = 0; i < request.history.size; ++i) {
    counts[request.history.data[i]].output += i >= s.num_prompt_tokens;
  }
  for (int64_t i = 0; i < request.drafts.size; ++i) ++counts[request.drafts.data[i]].output;
  for (const auto& [id, count] : counts) {
    if (id < 0 || id >= n) continue;
    float& x = logits[id];
    if (repetition) x = x > 0.0f ? x / s.repetition_penalty : x * s.repetition_penalty;
    if (count.output == 0) continue;
    x -= s.frequency_penalty * static_cast<float>(count.output);
    x -= s.presence_penalty;
  }
}

// The kept token ids, in no particular order; empty when nothing is cut off.
std::vector<int32_t> restrict(const Kernels& kernels, const float* z, int64_t n, const Sampling& s) {
  const bool top_k = s.top_k > 0 && s.top_k < n, top_p = s.top_p < 1.0f, min_p = s.min_p > 0.0f;
  if (!top_k && !top_p && !min_p) return {};
  const auto likelier = [&](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
  std::vector<int32_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  if (top_k) {
    std::nth_element(ids.begin(), ids.begin() + s.top_k - 1, ids.end(), likelier);
    ids.resize(static_cast<size_t>(s.top_k));
    std::sort(ids.begin(), ids.end());
  }
  if (!top_p && !min_p) return ids;
  const float largest = z[*std::min_element(ids.begin(), ids.end(), likelier)];
  std::vector<float> values(ids.size()), weights(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) values[i] = z[ids[i]];
  kernels.exp(values.data(), largest, static_cast<int64_t>(values.size()), weights.data());
  double total = 0.0;
  for (const float w : weights) total += static_cast<double>(w);
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  const auto heavier = [&](int32_t a, int32_t b) { return likelier(ids[static_cast<size_t>(a)], ids[static_cast<size_t>(b)]); };
  std::vector<int32_t> kept;
  double reached = 0.0;
  size_t sorted = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == sorted) {  // sort a few times more than last time: most of the vocabulary never matters
      sorted = std::min(order.size(), std::max<size_t>(64, sorted * 8));
      std::partial_sort(order.begin() + static_cast<std::ptrdiff_t>(i), order.begin() + static_cast<std::ptrdiff_t>(sorted),
                        order.end(), heavier);
    }
    const auto at = static_cast<size_t>(order[i]);
    // The largest weight is 1: min_p compares with it.
    if (min_p && weights[at] < s.min_p) break;
    kept.push_back(ids[at]);
    reached += static_cast<double>(weights[at]);
    if (top_p && reached >= static_cast<double>(s.top_p) * total) break;
  }
  return kept;
}

// argmax of z + noise, the lowest id winning ties.
struct Best {
  float key = -std::numeric_limits<float>::infinity();
  int32_t id = -1;
  void offer(float z, int32_t token_id, uint64_t row) {
    const uint32_t bits = token_bits(row, token_id);
    if (z + gumbel_bound(bits) < key) return;  // cannot win; spares two logarithms
    const float candidate = z + gumbel(bits);
    if (id < 0 || candidate > key || (candidate == key && token_id < id)) {
      key = candidate;
      id = token_id;
    }
  }
};

int32_t choose(const Kernels& kernels, float* logits, int64_t n, const SampleRequest& request) {
  const Sampling& s = *request.sampling;
  if (s.temperature <= 0.0f) return static_cast<int32_t>(kernels.argmax(logits, n));
  for (int64_t i = 0; i < n; ++i) logits[i] /= s.temperature;
  const uint64_t row = row_key(s.seed, request.position);
  const std::vector<int32_t> kept = restrict(kernels, logits, n, s);
  Best best;
  if (kept.empty()) {
    // The likeliest first: it sets a bar that spares most of the others their logarithms.
    const int64_t likeliest = kernels.argmax(logits, n);
    best.offer(logits[likeliest], static_cast<int32_t>(likeliest), row);
    for (int64_t i = 0; i < n; ++i) best.offer(logits[i], static_cast<int32_t>(i), row);
  } else {
    for (const int32_t id : kept) best.offer(logits[id], id, row);
  }
  return best.id;
}

}  // namespace

Sampled sample(const Kernels& kernels, float* logits, int64_t n, const SampleRequest& request) {
  Sampled out;
  const int32_t num_top = request.sampling->num_logprobs;
  if (num_top < 0) {
    add_bias(logits, n, request);
    penalize(logits, n, request);
    out.token_id = choose(kernels, logits, n, request);
    return out;
  }
  const double log_sum = kernels.log_sum_exp(logits, n);
  collect_logprobs(logits, n, num_top, out, log_sum);
  const std::vector<float> raw(logits, logits + n);
  add_bias(logits, n, request);
  penalize(logits, n, request);
  out.token_id = choose(kernels, logits, n, request);
  out.logprob = static_cast<float>(raw[static_cast<size_t>(out.token_id)] - log_sum);
  return out;
}

}  // namespace outpace
