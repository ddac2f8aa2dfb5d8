#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

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
constexpr float gumbel_bound(uint32_t bits) {
  const uint32_t rest = (1u << 24) - 1 - bits;  // 1 - u = (rest + 0.5) / 2^24
  return 0.6931472f * static_cast<float>(std::countl_zero(rest | 1) - 7) + 0.7f;
}

constexpr float kLargestBound = gumbel_bound((1u << 24) - 1);

// Memory of [vocab] elements that each thread keeps, so that choosing a token allocates nothing.
struct Scratch {
  std::vector<int32_t> ids, counts;
  std::vector<float> weights, raw;
};
thread_local Scratch scratch;

// Tokens from the likeliest down, the lowest id first among equals.
struct Order {
  const float* z;
  bool likelier(int64_t a, int64_t b) const { return z[a] != z[b] ? z[a] > z[b] : a < b; }
};

void collect_logprobs(const float* logits, int64_t n, int num_top, Sampled& out, double log_sum) {
  if (num_top == 0) return;
  const Order order{logits};
  std::vector<int32_t>& ids = scratch.ids;
  ids.resize(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  const auto middle = ids.begin() + std::min<int64_t>(num_top, n);
  std::partial_sort(ids.begin(), middle, ids.end(),
                    [&](int32_t a, int32_t b) { return order.likelier(a, b); });
  for (auto it = ids.begin(); it != middle; ++it) {
    out.top.emplace_back(*it, static_cast<float>(logits[*it] - log_sum));
  }
}

void forbid(float* logits, int64_t n, const uint32_t* mask) {
  constexpr float never = -std::numeric_limits<float>::infinity();
  for (int64_t at = 0; at < n; at += 32, ++mask) {
    if (*mask == ~0u) continue;
    const int64_t count = std::min<int64_t>(32, n - at);
    for (int64_t i = 0; i < count; ++i) logits[at + i] = *mask >> i & 1u ? logits[at + i] : never;
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
  std::vector<int32_t>& counts = scratch.counts;  // in the output, -1: not even in the prompt
  counts.assign(static_cast<size_t>(n), -1);
  const auto count = [&](int32_t id, bool output) {
    if (id < 0 || id >= n) return;
    int32_t& c = counts[static_cast<size_t>(id)];
    c = std::max(c, 0) + output;
  };
  for (int64_t i = 0; i < request.history.size; ++i) count(request.history.data[i], i >= s.num_prompt_tokens);
  for (int64_t i = 0; i < request.drafts.size; ++i) count(request.drafts.data[i], true);
  for (int64_t id = 0; id < n; ++id) {
    const int32_t num_output = counts[static_cast<size_t>(id)];
    if (num_output < 0) continue;
    float& x = logits[id];
    if (repetition) x = x > 0.0f ? x / s.repetition_penalty : x * s.repetition_penalty;
    if (num_output == 0) continue;
    x -= s.frequency_penalty * static_cast<float>(num_output);
    x -= s.presence_penalty;
  }
}

// top_k, top_p and min_p each keep a beginning of that order, so whether they keep a token needs no
// sorting: only the number of the likelier ones, or the sum of their weights.
class Restriction {
 public:
  Restriction(const Kernels& kernels, const float* z, int64_t n, int64_t likeliest, const Sampling& s)
      : order_{z},
        n_(n),
        sampling_(s),
        top_k_(s.top_k > 0 && s.top_k < n),
        top_p_(s.top_p < 1.0f),
        weights_(scratch.weights) {
    if (!top_p_ && s.min_p <= 0.0f) return;
    weights_.resize(static_cast<size_t>(n));
    kernels.exp(z, z[likeliest], n, weights_.data());
    if (!top_p_) return;
    if (top_k_) {  // the weights of the top_k tokens alone count
      std::vector<int32_t>& ids = scratch.ids;
      ids.resize(static_cast<size_t>(n));
      std::iota(ids.begin(), ids.end(), 0);
      const auto last = ids.begin() + s.top_k - 1;
      std::nth_element(ids.begin(), last, ids.end(),
                       [&](int32_t a, int32_t b) { return order_.likelier(a, b); });
      for (auto it = last + 1; it != ids.end(); ++it) weights_[static_cast<size_t>(*it)] = 0.0f;
    }
    for (const float w : weights_) total_ += static_cast<double>(w);
  }

  bool keeps(int64_t id) const {
    // The largest weight is 1: min_p compares with it.
    if (sampling_.min_p > 0.0f && weights_[static_cast<size_t>(id)] < sampling_.min_p) return false;
    if (!top_k_ && !top_p_) return true;
    int64_t rank = 0;
    double before = 0.0;
    for (int64_t i = 0; i < n_; ++i) {
      if (!order_.likelier(i, id)) continue;
      ++rank;
      if (top_p_) before += static_cast<double>(weights_[static_cast<size_t>(i)]);
    }
    if (top_k_ && rank >= sampling_.top_k) return false;
    return !top_p_ || rank == 0 || before < static_cast<double>(sampling_.top_p) * total_;
  }

 private:
  const Order order_;
  const int64_t n_;
  const Sampling& sampling_;
  const bool top_k_, top_p_;
  std::vector<float>& weights_;  // [n] e^(z - max z), where top_p or min_p asks
  double total_ = 0.0;
};

// argmax of z + noise, the lowest id winning ties.
struct Best {
  float key = -std::numeric_limits<float>::infinity();
  int64_t id = -1;
  void offer(float z, int64_t index, int64_t token_id, uint64_t row) {
    const uint32_t bits = token_bits(row, token_id);
    if (z + gumbel_bound(bits) < key) return;  // cannot win; spares two logarithms
    const float candidate = z + gumbel(bits);
    if (id < 0 || candidate > key || (candidate == key && index < id)) {
      key = candidate;
      id = index;
    }
  }
  // Whether one of z[0 .. count) could win with the largest noise that there is. Of most blocks none can.
  bool may_change(const float* z, int64_t count) const {
    int any = 0;
    for (int64_t i = 0; i < count; ++i) any |= static_cast<int>(!(z[i] + kLargestBound < key));
    return any != 0;
  }
};

constexpr int64_t kBlock = 32;  // tokens that are passed over at once

int64_t choose(const Kernels& kernels, float* logits, int64_t n, const SampleRequest& request) {
  const Sampling& s = *request.sampling;
  if (s.temperature <= 0.0f) return kernels.argmax(logits, n);
  for (int64_t i = 0; i < n; ++i) logits[i] /= s.temperature;
  const uint64_t row = row_key(s.seed, request.position);
  const int64_t likeliest = kernels.argmax(logits, n);
  const Restriction restriction(kernels, logits, n, likeliest, s);
  const Order order{logits};
  const auto token = [&](int64_t i) { return request.token_ids == nullptr ? i : request.token_ids[i]; };
  int64_t refused = -1;  // and so is whatever is less likely
  while (true) {
    Best best;
    // The likeliest first: it sets a bar that spares most of the others their logarithms.
    best.offer(logits[likeliest], likeliest, token(likeliest), row);
    for (int64_t first = 0; first < n; first += kBlock) {
      const int64_t end = std::min(first + kBlock, n);
      if (!best.may_change(logits + first, end - first)) continue;
      for (int64_t i = first; i < end; ++i) {
        if (refused < 0 || order.likelier(i, refused)) best.offer(logits[i], i, token(i), row);
      }
    }
    if (best.id == likeliest || restriction.keeps(best.id)) return best.id;
    refused = best.id;
  }
}

}  // namespace

Sampled sample(const Kernels& kernels, float* logits, int64_t n, const SampleRequest& request) {
  Sampled out;
  const int32_t num_top = request.sampling->num_logprobs;
  const bool want_logprobs = num_top >= 0;
  double log_sum = 0.0;
  std::vector<float>& raw = scratch.raw;  // what the bias and the penalties change
  if (want_logprobs) {
    log_sum = kernels.log_sum_exp(logits, n);
    collect_logprobs(logits, n, num_top, out, log_sum);
    raw.assign(logits, logits + n);
  }
  if (request.token_mask != nullptr) forbid(logits, n, request.token_mask);
  add_bias(logits, n, request);
  penalize(logits, n, request);
  out.token_id = static_cast<int32_t>(choose(kernels, logits, n, request));
  if (want_logprobs) out.logprob = static_cast<float>(raw[static_cast<size_t>(out.token_id)] - log_sum);
  return out;
}

}  // namespace outpace
