// The operations on rows: against float64, at every odd length, and bit by bit across tiers.
#include <algorithm>
#include <functional>
#include <limits>

#include "check.h"
#include "tiers.h"

namespace {

using outpace::Kernels;
using Row = check::Array<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<int64_t> lengths() {
  std::vector<int64_t> all;
  for (int64_t n = 1; n <= 40; ++n) all.push_back(n);
  for (const int64_t n : {63, 64, 96, 576, 897, 1536}) all.push_back(n);
  return all;
}

Row normal_row(int64_t n, float size, uint64_t seed) {
  check::Random random{seed};
  Row x(static_cast<size_t>(n));
  for (float& v : x) v = random.normal() * size;
  return x;
}

// Runs an operation on every tier, asks for the same bits, and returns them.
Row on_all_tiers(const char* what, const std::function<Row(const Kernels&)>& run) {
  const Row first = run(*check::tiers().front());
  check::record(first.data(), first.size());
  for (const Kernels* kernels : check::tiers()) {
    const Row out = run(*kernels);
    CHECK(check::same_bits(out.data(), first.data(), first.size()), "%s of %d on %s", what,
          static_cast<int>(first.size()), kernels->name);
  }
  return first;
}

// |got - expected| within relative x size + absolute, element by element.
void check_close(const char* what, const Row& got, const std::function<double(size_t)>& expected,
                 double relative, double absolute) {
  for (size_t i = 0; i < got.size(); ++i) {
    const double want = expected(i), error = std::fabs(static_cast<double>(got[i]) - want);
    CHECK(error <= relative * std::fabs(want) + absolute, "%s of %d at %d: %.9g, not %.9g", what,
          static_cast<int>(got.size()), static_cast<int>(i), static_cast<double>(got[i]), want);
  }
}

TEST(rms_norm) {
  for (const int64_t n : lengths()) {
    for (const float size : {1e-4f, 1.0f, 300.0f}) {
      const Row x = normal_row(n, size, static_cast<uint64_t>(n)), w = normal_row(n, 1.0f, 77);
      double squares = 0.0;
      for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(1e-5f));
      for (const bool in_place : {false, true}) {
        const Row out = on_all_tiers("rms_norm", [&](const Kernels& k) {
          Row y = x;
          Row other(x.size());
          k.rms_norm(in_place ? y.data() : x.data(), w.data(), n, 1e-5f, in_place ? y.data() : other.data());
          return in_place ? y : other;
        });
        check_close(
            "rms_norm", out,
            [&](size_t i) { return static_cast<double>(x[i]) * inverse * static_cast<double>(w[i]); }, 1e-6,
            0.0);
      }
    }
  }
}

TEST(add_and_scale_are_one_rounding) {
  for (const int64_t n : lengths()) {
    const Row x = normal_row(n, 1.0f, 1), y = normal_row(n, 100.0f, 2);
    const Row sum = on_all_tiers("add", [&](const Kernels& k) {
      Row z = x;
      k.add(z.data(), y.data(), n);
      return z;
    });
    const Row scaled = on_all_tiers("scale", [&](const Kernels& k) {
      Row z = x;
      k.scale(z.data(), 0.3f, n);
      return z;
    });
    for (size_t i = 0; i < x.size(); ++i) CHECK(sum[i] == x[i] + y[i] && scaled[i] == x[i] * 0.3f);
  }
}

// `interleaved` turns pairs (2i, 2i + 1), the other kind (i, i + num_pairs); what follows stays.
TEST(rope_turns_both_kinds_of_pairs) {
  check::Random random{9};
  for (int64_t pairs = 1; pairs <= 40; ++pairs) {
    for (const bool interleaved : {false, true}) {
      const Row x = normal_row(2 * pairs + 5, 2.0f, static_cast<uint64_t>(pairs));
      Row cos, sin;
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(random.normal()) * 10.0;
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
      const Row out = on_all_tiers("rope", [&](const Kernels& k) {
        Row y = x;
        k.rope(y.data(), cos.data(), sin.data(), pairs, interleaved);
        return y;
      });
      check_close(
          "rope", out,
          [&](size_t at) {
            const auto p = static_cast<size_t>(pairs);
            if (at >= 2 * p) return static_cast<double>(x[at]);
            const size_t i = interleaved ? at / 2 : at % p, second = interleaved ? at % 2 : at / p;
            const double a = x[interleaved ? 2 * i : i], b = x[interleaved ? 2 * i + 1 : i + p];
            return second ? a * static_cast<double>(sin[i]) + b * static_cast<double>(cos[i])
                          : a * static_cast<double>(cos[i]) - b * static_cast<double>(sin[i]);
          },
          0.0, 2e-6);
    }
  }
}

// Values around zero, ordinary ones, and ones where e^x leaves the range of floats.
Row activation_row(int64_t n) {
  check::Random random{static_cast<uint64_t>(n) + 5};
  Row x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) {
    constexpr float sizes[] = {1e-6f, 0.1f, 1.0f, 8.0f, 40.0f, 500.0f};
    x[i] = random.normal() * sizes[random.below(6)];
  }
  return x;
}

TEST(silu_and_gelu) {
  for (const int64_t n : lengths()) {
    const Row gate = activation_row(n), up = normal_row(n, 2.0f, 3);
    const Row silu = on_all_tiers("silu", [&](const Kernels& k) {
      Row y(gate.size());
      k.silu_mul(gate.data(), up.data(), n, y.data());
      Row in_place = gate;
      k.silu_mul(in_place.data(), up.data(), n, in_place.data());
      CHECK(check::same_bits(y.data(), in_place.data(), y.size()));
      return y;
    });
    const Row gelu = on_all_tiers("gelu", [&](const Kernels& k) {
      Row y = gate;  // in place
      k.gelu_mul(y.data(), up.data(), n, y.data());
      return y;
    });
    check_close(
        "silu", silu,
        [&](size_t i) {
          const double g = gate[i];
          return g / (1.0 + std::exp(-g)) * static_cast<double>(up[i]);
        },
        1e-6, 1e-34);
    check_close(
        "gelu", gelu,
        [&](size_t i) {
          const double g = gate[i];
          // 0.5 g (1 + tanh z), in a form that does not cancel.
          const double z = std::sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g);
          return g / (1.0 + std::exp(-2.0 * z)) * static_cast<double>(up[i]);
        },
        1e-5, 1e-34);
  }
}

TEST(softcap) {
  for (const int64_t n : lengths()) {
    for (const float cap : {30.0f, 50.0f}) {
      const Row x = activation_row(n);
      const Row out = on_all_tiers("softcap", [&](const Kernels& k) {
        Row y = x;
        k.softcap(y.data(), cap, n);
        return y;
      });
      const double c = cap;
      check_close(
          "softcap", out, [&](size_t i) { return c * std::tanh(static_cast<double>(x[i]) / c); }, 1e-6,
          2e-7 * c);
      for (const float y : out) CHECK(std::fabs(y) <= cap);
    }
  }
}

TEST(exp_is_within_3_ulp) {
  double worst = 0.0;
  for (const float shift : {0.0f, 3.5f}) {
    Row x;
    for (double v = -87.0; v <= 88.0; v += 0.0171) x.push_back(static_cast<float>(v) + shift);
    for (double v = -1e-3; v <= 1e-3; v += 1.3e-6) x.push_back(static_cast<float>(v) + shift);
    const auto n = static_cast<int64_t>(x.size());
    const Row out = on_all_tiers("exp", [&](const Kernels& k) {
      Row y(x.size());
      k.exp(x.data(), shift, n, y.data());
      return y;
    });
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i] - shift));
      const float nearest = static_cast<float>(want);
      const double ulp =
          static_cast<double>(std::nextafterf(nearest, kInfinity)) - static_cast<double>(nearest);
      worst = std::fmax(worst, std::fabs(static_cast<double>(out[i]) - want) / ulp);
    }
  }
  CHECK(worst <= 3.0, "%g ulp", worst);
  for (const int64_t n : lengths()) {
    const Row x = normal_row(n, 10.0f, 1);
    const Row out = on_all_tiers("exp", [&](const Kernels& k) {
      Row y(x.size());
      k.exp(x.data(), 1.0f, n, y.data());
      return y;
    });
    check_close("exp", out, [&](size_t i) { return std::exp(static_cast<double>(x[i] - 1.0f)); }, 4e-7, 0.0);
  }
}

// Beyond the range of floats: tiny or huge, never infinite or not a number.
TEST(extreme_values_stay_finite) {
  for (const Kernels* kernels : check::tiers()) {
    Row x = {-kInfinity, -1e38f, -1e5f, -88.0f, 88.0f, 1e5f, 1e38f, kInfinity}, out(x.size());
    const auto n = static_cast<int64_t>(x.size());
    kernels->exp(x.data(), 0.0f, n, out.data());
    for (size_t i = 0; i < 3; ++i)
      CHECK(out[i] >= 0.0f && out[i] < 1e-37f && out[i + 5] > 1e38f && std::isfinite(out[i + 5]));
    x = {-1e12f, -1e5f, -0.0f, 0.0f, 1e5f, 1e12f, -90.0f, 90.0f};
    const Row up(x.size(), 1.0f);
    for (const auto op : {kernels->silu_mul, kernels->gelu_mul}) {
      op(x.data(), up.data(), n, out.data());
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK(x[i] > 0.0f ? out[i] == x[i] : std::fabs(out[i]) < 1e-25f, "%g -> %g",
              static_cast<double>(x[i]), static_cast<double>(out[i]));
      }
    }
    Row zeros(33, 0.0f), normed(33, 9.0f);
    kernels->rms_norm(zeros.data(), up.data(), 8, 1e-6f, normed.data());
    for (size_t i = 0; i < 33; ++i) CHECK(normed[i] == (i < 8 ? 0.0f : 9.0f));
  }
}

TEST(log_sum_exp) {
  std::vector<int64_t> sizes = lengths();
  sizes.push_back(32003);
  for (const int64_t n : sizes) {
    for (const float size : {0.0f, 3.0f, 30.0f, 300.0f}) {
      Row x = normal_row(n, size, static_cast<uint64_t>(n));
      if (n > 3) x[1] = -kInfinity;
      const double largest = *std::max_element(x.begin(), x.end());
      double sum = 0.0;
      for (const float v : x) sum += std::exp(static_cast<double>(v) - largest);
      const double want = largest + std::log(sum), first = check::tiers().front()->log_sum_exp(x.data(), n);
      CHECK(std::fabs(first - want) <= 1e-6, "n %d size %g: %.9g, not %.9g", static_cast<int>(n),
            static_cast<double>(size), first, want);
      for (const Kernels* kernels : check::tiers()) CHECK(kernels->log_sum_exp(x.data(), n) == first);
    }
  }
}

TEST(argmax_takes_the_lowest_of_equals) {
  check::Random random{11};
  for (const Kernels* kernels : check::tiers()) {
    for (int64_t n = 1; n <= 70; ++n) {
      for (int64_t at = 0; at < n; ++at) {
        Row x = normal_row(n, 1.0f, static_cast<uint64_t>(n * 100 + at));
        x[static_cast<size_t>(at)] = 50.0f;
        for (int64_t again = at + 1 + random.below(20); again < n; again += 7)
          x[static_cast<size_t>(again)] = 50.0f;
        CHECK(kernels->argmax(x.data(), n) == at);
      }
      CHECK(kernels->argmax(Row(static_cast<size_t>(n), -kInfinity).data(), n) == 0);
      Row zeros(static_cast<size_t>(n), 0.0f);
      zeros[0] = -0.0f;  // equal to 0
      CHECK(kernels->argmax(zeros.data(), n) == 0);
    }
  }
}

// A broken model may hand over numbers that are none: the answer is then the largest of the others.
TEST(argmax_passes_over_nan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Kernels* kernels : check::tiers()) {
    for (int64_t n = 2; n <= 70; ++n) {
      for (int64_t at = 0; at < n; ++at) {
        Row x = normal_row(n, 1.0f, 4);
        x[static_cast<size_t>(at)] = 50.0f;
        for (int64_t bad = (at + 1) % 16; bad < n; bad += 16) {
          if (bad != at) x[static_cast<size_t>(bad)] = nan;
        }
        const int64_t same_lane = at + 16;
        if (same_lane < n) x[static_cast<size_t>(same_lane)] = nan;
        CHECK(kernels->argmax(x.data(), n) == at, "%s: %d of %d", kernels->name, static_cast<int>(at),
              static_cast<int>(n));
      }
      CHECK(kernels->argmax(Row(static_cast<size_t>(n), nan).data(), n) == 0);
    }
  }
}

}  // namespace
