// Sampling against a naive implementation of its stated semantics (outpace/engine/sampling.py), and the
// distribution of what it draws.
#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "check.h"
#include "sampler.h"
#include "tiers.h"

namespace {

using outpace::Kernels;
using outpace::Sampling;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A request with its arrays.
struct Ask {
  Sampling sampling{};
  int64_t position = 0;
  std::vector<int32_t> history, drafts, bias_ids;
  std::vector<float> bias;
  std::vector<uint32_t> mask;
  Ask() {
    sampling.top_p = sampling.repetition_penalty = 1.0f;
    sampling.num_logprobs = -1;
  }
};

template <class T>
outpace::Span<T> span(const std::vector<T>& v) {
  return {v.data(), static_cast<int64_t>(v.size())};
}

outpace::Sampled sample(const Kernels& kernels, std::vector<float> logits, const Ask& ask) {
  const outpace::SampleRequest request{&ask.sampling,
                                       ask.position,
                                       span(ask.history),
                                       span(ask.drafts),
                                       span(ask.bias_ids),
                                       span(ask.bias),
                                       ask.mask.empty() ? nullptr : ask.mask.data()};
  return outpace::sample(kernels, logits.data(), static_cast<int64_t>(logits.size()), request);
}

uint64_t mix(uint64_t z) {
  z ^= z >> 30;
  z *= 0xBF58476D1CE4E5B9u;
  z ^= z >> 27;
  z *= 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

float noise(uint64_t seed, int64_t position, int64_t id) {
  const uint64_t z = mix(seed + 0x9E3779B97F4A7C15u * (static_cast<uint64_t>(position) + 1));
  const uint64_t y = mix(z + 0xD1B54A32D192ED03u * (static_cast<uint64_t>(id) + 1));
  const double u = (static_cast<double>(y >> 40) + 0.5) * std::ldexp(1.0, -24);
  return static_cast<float>(-std::log(-std::log(u)));
}

void naive_penalties(std::vector<float>& l, const Ask& ask) {
  const Sampling& s = ask.sampling;
  std::set<int32_t> seen(ask.history.begin(), ask.history.end());
  std::map<int32_t, int> output;
  for (size_t i = static_cast<size_t>(s.num_prompt_tokens); i < ask.history.size(); ++i)
    ++output[ask.history[i]];
  for (const int32_t id : ask.drafts) {
    seen.insert(id);
    ++output[id];
  }
  for (const int32_t id : seen) {
    float& x = l[static_cast<size_t>(id)];
    if (s.repetition_penalty != 1.0f) x = x > 0.0f ? x / s.repetition_penalty : x * s.repetition_penalty;
  }
  for (const auto& [id, count] : output) {
    float& x = l[static_cast<size_t>(id)];
    x -= s.frequency_penalty * static_cast<float>(count);
    x -= s.presence_penalty;
  }
}

// The ids that top_k, top_p and min_p keep.
std::vector<int32_t> naive_kept(const std::vector<float>& z, const Sampling& s) {
  std::vector<int32_t> ids(z.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const auto at = [&](int32_t id) { return static_cast<double>(z[static_cast<size_t>(id)]); };
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return at(a) > at(b); });
  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < ids.size()) ids.resize(static_cast<size_t>(s.top_k));
  const double largest = at(ids[0]);
  double total = 0.0, before = 0.0;
  for (const int32_t id : ids) total += std::exp(at(id) - largest);
  std::vector<int32_t> kept;
  for (const int32_t id : ids) {
    if (s.top_p < 1.0f && !kept.empty() && before >= static_cast<double>(s.top_p) * total) break;
    before += std::exp(at(id) - largest);
    kept.push_back(id);
  }
  std::erase_if(kept, [&](int32_t id) {
    return s.min_p > 0.0f && std::exp(at(id) - largest) < static_cast<double>(s.min_p);
  });
  return kept;
}

int32_t naive_sample(std::vector<float> l, const Ask& ask) {
  for (size_t i = 0; i < l.size() && !ask.mask.empty(); ++i)
    if ((ask.mask[i / 32] >> i % 32 & 1u) == 0) l[i] = -kInfinity;
  for (size_t i = 0; i < ask.bias_ids.size(); ++i) l[static_cast<size_t>(ask.bias_ids[i])] += ask.bias[i];
  naive_penalties(l, ask);
  const bool greedy = ask.sampling.temperature == 0.0f;
  for (float& x : l) x = greedy ? x : x / ask.sampling.temperature;
  std::vector<int32_t> kept = naive_kept(l, ask.sampling);
  std::sort(kept.begin(), kept.end());
  if (greedy) return static_cast<int32_t>(std::max_element(l.begin(), l.end()) - l.begin());
  int32_t best = -1;
  float best_key = -kInfinity;
  for (const int32_t id : kept) {
    const float key = l[static_cast<size_t>(id)] + noise(ask.sampling.seed, ask.position, id);
    if (best < 0 || key > best_key) {
      best = id;
      best_key = key;
    }
  }
  return best;
}

std::vector<float> random_logits(int64_t n, float size, check::Random& random) {
  std::vector<float> l(static_cast<size_t>(n));
  for (float& x : l) x = random.normal() * size;
  return l;
}

void check_equal(const std::vector<float>& logits, const Ask& ask, const char* what) {
  const int32_t expected = naive_sample(logits, ask);
  check::record(&expected, 1);
  for (const Kernels* kernels : check::tiers()) {
    const int32_t got = sample(*kernels, logits, ask).token_id;
    CHECK(got == expected, "%s on %s: token %d, not %d; T %g k %d p %g min %g of %d", what, kernels->name,
          got, expected, static_cast<double>(ask.sampling.temperature), ask.sampling.top_k,
          static_cast<double>(ask.sampling.top_p), static_cast<double>(ask.sampling.min_p),
          static_cast<int>(logits.size()));
  }
}

TEST(greedy_takes_the_lowest_of_equals) {
  check::Random random{1};
  for (int64_t n = 1; n < 300; n += 7) {
    std::vector<float> logits = random_logits(n, 1.0f, random);
    const int64_t first = random.below(n), second = random.below(n);
    logits[static_cast<size_t>(first)] = logits[static_cast<size_t>(second)] = 9.0f;
    for (const Kernels* kernels : check::tiers()) {
      Ask ask;
      ask.sampling.top_k = 1 + static_cast<int32_t>(random.below(3));  // greedy ignores them
      ask.sampling.seed = random.bits();
      CHECK(sample(*kernels, logits, ask).token_id == std::min(first, second));
    }
  }
}

// The bound spares logarithms, and nothing else: many rows in which the noise decides.
TEST(noise_bound_never_changes_the_token) {
  check::Random random{2};
  for (const float size : {0.0f, 0.01f, 1.0f, 5.0f, 30.0f}) {
    for (int i = 0; i < 25; ++i) {
      Ask ask;
      ask.sampling.temperature = 0.2f + 2.0f * random.uniform();
      ask.sampling.seed = random.bits();
      ask.position = random.below(100000);
      check_equal(random_logits(random.between(1, 3000), size, random), ask, "noise");
    }
  }
}

// Token 1 leads token 0 by a hair, thanks to its noise alone: a bound below the noise would pass it over.
void check_narrow_lead(uint64_t seed, int64_t position) {
  Ask ask;
  ask.sampling.temperature = 1.0f;
  ask.sampling.seed = seed;
  ask.position = position;
  const float key = noise(seed, position, 1);
  const std::vector<float> logits = {key - 1e-3f - noise(seed, position, 0), 0.0f};
  CHECK(naive_sample(logits, ask) == 1);
  CHECK(sample(*check::tiers().front(), logits, ask).token_id == 1, "noise %g", static_cast<double>(key));
}

TEST(noise_bound_is_never_below_the_noise) {
  for (int64_t position = 0; position < 20000; ++position) check_narrow_lead(3, position);
  // The largest noises: 24 random bits that are all ones, or all but the last.
  int found = 0;
  for (int64_t position = 0; found < 2 && position < (1 << 28); ++position) {
    const uint64_t z = mix(3 + 0x9E3779B97F4A7C15u * (static_cast<uint64_t>(position) + 1));
    if (mix(z + 2 * 0xD1B54A32D192ED03u) >> 40 < 0xfffffeu + static_cast<uint64_t>(found)) continue;
    check_narrow_lead(3, position);
    ++found;
  }
  CHECK(found == 2);
}

// Flat logits over millions of tokens: the winner is one of the largest noises there are, where the
// bound is tightest.
TEST(noise_bound_holds_in_the_tail) {
  constexpr int64_t n = 1 << 21;
  const std::vector<float> flat(n, 0.25f);
  for (int64_t position = 0; position < 3; ++position) {
    Ask ask;
    ask.sampling.temperature = 1.0f;
    ask.sampling.seed = 99;
    ask.position = position;
    int32_t best = 0;
    for (int32_t id = 1; id < n; ++id) {
      if (noise(99, position, id) + 0.25f > noise(99, position, best) + 0.25f) best = id;
    }
    CHECK(sample(*check::tiers().front(), flat, ask).token_id == best);
  }
}

TEST(restrictions_agree_with_naive) {
  check::Random random{3};
  for (int i = 0; i < 1500; ++i) {
    Ask ask;
    ask.sampling.temperature = 0.3f + 2.0f * random.uniform();
    ask.sampling.seed = random.bits();
    ask.position = random.below(5000);
    const int64_t n = random.between(1, i % 10 == 0 ? 2000 : 150);
    if (random.below(2) == 0) ask.sampling.top_k = static_cast<int32_t>(random.below(n + 5));
    if (random.below(2) == 0) ask.sampling.top_p = random.below(10) == 0 ? 1e-6f : random.uniform();
    if (random.below(3) == 0) ask.sampling.min_p = random.below(10) == 0 ? 1.0f : random.uniform() * 0.3f;
    std::vector<float> logits = random_logits(n, random.below(2) == 0 ? 1.0f : 6.0f, random);
    if (i % 5 == 0) {
      for (float& x : logits) x = std::nearbyintf(x);  // many ties
    }
    check_equal(logits, ask, "restricted");
  }
}

// With a restriction, only what it keeps may be drawn, and all of it is.
TEST(restrictions_keep_the_right_tokens) {
  std::vector<float> logits(500, -20.0f);
  for (const int id : {100, 200, 300, 400})
    logits[static_cast<size_t>(id)] = std::log(static_cast<float>(id));  // 10 to 40 %
  const struct {
    int32_t top_k;
    float top_p, min_p;
    std::set<int32_t> kept;
  } cases[] = {{1, 1.0f, 0.0f, {400}},
               {2, 1.0f, 0.0f, {300, 400}},
               {0, 0.39f, 0.0f, {400}},
               {0, 0.41f, 0.0f, {300, 400}},
               {0, 0.71f, 0.0f, {200, 300, 400}},
               {0, 0.0001f, 0.0f, {400}},
               {0, 1.0f, 0.6f, {300, 400}},
               {0, 1.0f, 1.0f, {400}},
               {3, 0.5f, 0.1f, {300, 400}},
               {3, 1.0f, 0.4f, {200, 300, 400}}};
  for (const auto& c : cases) {
    std::set<int32_t> drawn;
    for (int64_t position = 0; position < 300; ++position) {
      Ask ask;
      ask.sampling.temperature = 1.0f;
      ask.sampling.top_k = c.top_k;
      ask.sampling.top_p = c.top_p;
      ask.sampling.min_p = c.min_p;
      ask.position = position;
      drawn.insert(sample(*check::tiers().front(), logits, ask).token_id);
    }
    CHECK(drawn == c.kept, "k %d p %g min %g: %d tokens", c.top_k, static_cast<double>(c.top_p),
          static_cast<double>(c.min_p), static_cast<int>(drawn.size()));
  }
}

TEST(penalties_and_bias_agree_with_naive) {
  check::Random random{4};
  for (int i = 0; i < 800; ++i) {
    Ask ask;
    const int64_t n = random.between(5, 60);
    ask.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    ask.sampling.seed = random.bits();
    if (random.below(2) == 0) ask.sampling.repetition_penalty = 0.5f + 1.5f * random.uniform();
    if (random.below(2) == 0) ask.sampling.frequency_penalty = random.normal();
    if (random.below(2) == 0) ask.sampling.presence_penalty = random.normal();
    for (int64_t k = random.below(40); k > 0; --k)
      ask.history.push_back(static_cast<int32_t>(random.below(n)));
    for (int64_t k = random.below(4); k > 0; --k) ask.drafts.push_back(static_cast<int32_t>(random.below(n)));
    ask.sampling.num_prompt_tokens =
        static_cast<int32_t>(random.below(static_cast<int64_t>(ask.history.size()) + 1));
    for (int64_t k = random.below(4); k > 0; --k) {
      ask.bias_ids.push_back(static_cast<int32_t>(random.below(n)));
      ask.bias.push_back(random.normal() * 3.0f);
    }
    check_equal(random_logits(n, 1.0f, random), ask, "penalties");
  }
}

TEST(masks_agree_with_naive) {
  check::Random random{6};
  for (int i = 0; i < 800; ++i) {
    Ask ask;
    const int64_t n = random.between(5, 200);
    ask.sampling.temperature = i % 2 == 0 ? 0.0f : 1.2f;
    ask.sampling.seed = random.bits();
    if (random.below(3) == 0) ask.sampling.top_k = static_cast<int32_t>(random.between(1, 20));
    if (random.below(3) == 0) ask.sampling.top_p = 0.1f + 0.8f * random.uniform();
    if (random.below(3) == 0) ask.sampling.repetition_penalty = 0.5f + 1.5f * random.uniform();
    for (int64_t k = random.below(9); k > 0; --k)
      ask.history.push_back(static_cast<int32_t>(random.below(n)));
    ask.mask.resize(static_cast<size_t>(outpace::mask_words(n)));
    const auto allow = [&](int64_t id) { ask.mask[static_cast<size_t>(id / 32)] |= 1u << id % 32; };
    allow(random.below(n));
    for (int64_t k = i % 3 == 0 ? 0 : random.below(n); k > 0; --k) allow(random.below(n));
    check_equal(random_logits(n, 1.0f, random), ask, "masks");
    const int32_t id = sample(*check::tiers().front(), random_logits(n, 4.0f, random), ask).token_id;
    CHECK((ask.mask[static_cast<size_t>(id) / 32] >> id % 32 & 1u) == 1);
  }
}

TEST(bias_forces_and_bans) {
  check::Random random{5};
  for (int i = 0; i < 50; ++i) {
    const std::vector<float> logits = random_logits(200, 2.0f, random);
    Ask ask;
    ask.sampling.temperature = i % 2 == 0 ? 0.0f : 1.5f;
    ask.sampling.seed = random.bits();
    ask.bias_ids = {static_cast<int32_t>(random.below(200))};
    ask.bias = {100.0f};
    CHECK(sample(*check::tiers().front(), logits, ask).token_id == ask.bias_ids[0]);
    ask.bias_ids = {sample(*check::tiers().front(), logits, Ask()).token_id, -1,
                    200};  // the last two are no tokens
    ask.bias = {-kInfinity, 1000.0f, 1000.0f};
    const int32_t other = sample(*check::tiers().front(), logits, ask).token_id;
    CHECK(other != ask.bias_ids[0] && other >= 0 && other < 200);
  }
}

double chi_square(const std::vector<int64_t>& counts, const std::vector<double>& expected) {
  double sum = 0.0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double d = static_cast<double>(counts[i]) - expected[i];
    sum += d * d / expected[i];
  }
  return sum;
}

// Draws follow softmax(logits / T) over positions and over seeds, and neighbours know nothing of each
// other. The limits are the 99.9 % points of chi-square with 7 and 63 degrees of freedom.
TEST(draws_follow_the_distribution) {
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, -0.5f, 1.5f, -2.0f};
  constexpr int64_t draws = 40000;
  for (const float temperature : {0.7f, 1.0f, 1.8f}) {
    double total = 0.0;
    std::vector<double> p;
    for (const float l : logits) total += p.emplace_back(std::exp(static_cast<double>(l / temperature)));
    for (const bool over_seeds : {false, true}) {
      std::vector<int64_t> counts(8), pairs(64);
      int32_t last = -1;
      for (int64_t i = 0; i < draws; ++i) {
        Ask ask;
        ask.sampling.temperature = temperature;
        ask.sampling.seed = over_seeds ? static_cast<uint64_t>(i) : 7;
        ask.position = over_seeds ? 12 : i;
        const int32_t id = sample(*check::tiers().front(), logits, ask).token_id;
        ++counts[static_cast<size_t>(id)];
        if (last >= 0) ++pairs[static_cast<size_t>(last * 8 + id)];
        last = id;
      }
      std::vector<double> expected, expected_pairs;
      for (const double a : p) expected.push_back(a / total * draws);
      for (const double a : p) {
        for (const double b : p) expected_pairs.push_back(a / total * b / total * (draws - 1));
      }
      CHECK(chi_square(counts, expected) < 24.3, "T %g: %g", static_cast<double>(temperature),
            chi_square(counts, expected));
      CHECK(chi_square(pairs, expected_pairs) < 103.4, "T %g: %g", static_cast<double>(temperature),
            chi_square(pairs, expected_pairs));
    }
  }
}

TEST(logprobs_are_of_the_raw_logits) {
  check::Random random{6};
  for (int i = 0; i < 60; ++i) {
    const int64_t n = random.between(1, 700);
    std::vector<float> logits = random_logits(n, 4.0f, random);
    if (i % 3 == 0) {
      for (float& x : logits) x = std::nearbyintf(x);
    }
    Ask ask;
    ask.sampling.temperature = i % 2 == 0 ? 0.0f : 1.3f;
    ask.sampling.seed = random.bits();
    ask.bias_ids = {static_cast<int32_t>(random.below(n))};
    ask.bias = {3.0f};
    const int32_t without = sample(*check::tiers().front(), logits, ask).token_id;
    ask.sampling.num_logprobs = static_cast<int32_t>(random.below(21));
    double sum = 0.0;
    for (const float l : logits) sum += std::exp(static_cast<double>(l));
    std::vector<int32_t> order(logits.size());
    for (size_t k = 0; k < order.size(); ++k) order[k] = static_cast<int32_t>(k);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const auto logprob = [&](int32_t id) {
      return static_cast<double>(logits[static_cast<size_t>(id)]) - std::log(sum);
    };
    for (const Kernels* kernels : check::tiers()) {
      const outpace::Sampled got = sample(*kernels, logits, ask);
      CHECK(got.token_id == without && std::fabs(got.logprob - logprob(got.token_id)) < 2e-6);
      CHECK(got.top.size() == std::min(logits.size(), static_cast<size_t>(ask.sampling.num_logprobs)));
      for (size_t k = 0; k < got.top.size(); ++k) {
        CHECK(got.top[k].first == order[k] && std::fabs(got.top[k].second - logprob(order[k])) < 2e-6);
      }
    }
  }
}

// A broken model's numbers must not break the sampler: any token will do, but one of the vocabulary.
TEST(nan_logits_give_some_token) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  check::Random random{7};
  for (int i = 0; i < 400; ++i) {
    const int64_t n = random.between(2, 300);
    std::vector<float> logits = random_logits(n, 3.0f, random);
    for (float& x : logits) {
      if (random.below(i % 3 + 1) == 0) x = i % 2 == 0 ? nan : random.below(2) == 0 ? kInfinity : nan;
    }
    Ask ask;
    ask.sampling.temperature = i % 4 == 0 ? 0.0f : 1.0f;
    if (i % 4 == 1) ask.sampling.top_k = 20;
    if (i % 4 == 2) ask.sampling.top_p = 0.5f;
    ask.sampling.num_logprobs = i % 5 == 0 ? 10 : -1;
    const outpace::Sampled got = sample(*check::tiers().front(), logits, ask);
    CHECK(got.token_id >= 0 && got.token_id < n, "%d", got.token_id);
  }
}

}  // namespace
