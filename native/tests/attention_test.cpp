// The paged KV cache and attention: against float64, and bit by bit whatever the tier, the pages, the
// grouping of heads and what lies in slots that do not belong to the context.
#include "attention_reference.h"

namespace {

using namespace attention;

// Every way to the same answer must give the same bits.
void check_bits(Context& c, const Query& q, const Result& expected, uint64_t seed) {
  for (const Kernels* kernels : check::tiers()) {
    for (const uint8_t garbage : {uint8_t{0xff}, uint8_t{0}}) {  // 0xff: NaN in every float
      write_cache(c, *kernels, garbage, seed + garbage);
      CHECK(attend_all(c, *kernels, q) == expected, "%s, %s, d %d, %d tokens, %d heads, garbage %d",
            kernels->name, c.layout.int8 ? "int8" : "f16", static_cast<int>(c.head_dim),
            static_cast<int>(c.end), static_cast<int>(q.heads), garbage);
    }
    CHECK(attend_split(c, *kernels, q) == expected, "%s: split", kernels->name);
  }
}

void check_shape(const Shape& shape, int64_t heads, float softcap, uint64_t seed) {
  Context c = make_context(shape, seed);
  const Query q = make_query(c, heads, softcap, seed + 1);
  const Kernels& fastest = *check::tiers().front();
  write_cache(c, fastest, 0xff, seed + 2);
  const Result result = attend_all(c, fastest, q);
  check::record(result.out.data(), result.out.size());
  check::record(result.sum.data(), result.sum.size());
  check_against_float64(c, q, result);
  check_bits(c, q, result, seed + 3);
}

TEST(write_kv_is_within_half_a_step) {
  for (const bool int8 : {true, false}) {
    Context c = make_context({80, 0, 70, int8}, 1);
    for (const Kernels* kernels : check::tiers()) {
      write_cache(c, *kernels, 0xff, 2);
      for (int64_t t = 0; t < c.end; ++t) {
        const float *k = c.keys.data() + t * c.padded(), *v = c.values.data() + t * c.padded();
        float key_size = 0.0f, value_size = 0.0f;
        for (int64_t i = 0; i < c.padded(); ++i) {
          key_size = std::max(key_size, std::fabs(k[i]));
          value_size = std::max(value_size, std::fabs(v[i]));
        }
        for (int64_t i = 0; i < c.padded(); ++i) {
          const float key_step = int8 ? key_size / 127.0f : std::fabs(k[i]) / 1024.0f + 6e-8f;
          const float value_step = int8 ? value_size / 127.0f : std::fabs(v[i]) / 1024.0f + 6e-8f;
          CHECK(std::fabs(cached_key(c, t, i) - k[i]) <= 0.501f * key_step);
          CHECK(std::fabs(cached_value(c, t, i) - v[i]) <= 0.501f * value_step);
        }
      }
    }
  }
}

// The planes are within their bytes, together within half a step, and the same whatever the tier.
TEST(quantize_query_is_within_half_a_step) {
  for (const int64_t n : {16, 32, 80, 128, 256}) {
    for (const float size : {1.0f, 1e-20f, 1e20f, 0.0f}) {
      check::Random random{static_cast<uint64_t>(n)};
      std::vector<float> x(static_cast<size_t>(n));
      for (float& f : x) f = random.normal() * size;
      x[3] = x[4] = 4.0f * size;  // the largest, and its opposite
      x[5] = -x[3];
      for (const Kernels* kernels : check::tiers()) {
        const IntegerQuery q = quantize(*kernels, x.data(), 1, n);
        int32_t sum = 0;
        for (size_t i = 0; i < x.size(); ++i) {
          const int32_t integer = 128 * q.high[i] + q.low[i];
          sum += integer;
          CHECK(q.low[i] >= 0 && std::abs(integer) <= 127 * 128);
          CHECK(std::fabs(static_cast<float>(integer) * q.unit[0] - x[i]) <= 0.501f * q.unit[0], "%s: %g",
                kernels->name, static_cast<double>(x[i]));
        }
        CHECK(q.sum[0] == sum && q.unit[0] == x[3] / static_cast<float>(kPlanes), "%s", kernels->name);
      }
    }
  }
}

// A copy has the entry's bytes and touches no other slot, and attention over copies gives the same bits.
TEST(copied_slots_are_as_written) {
  constexpr int64_t ranges[][2] = {{0, 1}, {15, 16}, {15, 17}, {16, 32}, {31, 32}, {3, 29}, {0, 32}, {7, 7}};
  for (const int64_t head_dim : {16, 72, 128}) {
    for (const bool int8 : {true, false}) {
      Context c = make_context({head_dim, 0, 64, int8}, 4);
      for (const Kernels* kernels : check::tiers()) {
        for (const auto& range : ranges) {
          write_cache(c, *kernels, 0xff, 5);
          check::Array<uint8_t> expected(static_cast<size_t>(c.layout.bytes), 0x5a), copy = expected;
          for (int64_t t = range[0]; t < range[1]; ++t) {
            kernels->write_kv(c.layout, expected.data(), t, c.keys.data() + t * c.padded(),
                              c.values.data() + t * c.padded());
          }
          outpace::copy_slots(c.layout, c.block(0), copy.data(), range[0], range[1]);
          CHECK(copy == expected, "%s, %s, d %d, slots %d..%d", kernels->name, int8 ? "int8" : "f16",
                static_cast<int>(head_dim), static_cast<int>(range[0]), static_cast<int>(range[1]));
        }
      }
    }
  }
}

TEST(attention_over_copies) {
  for (const bool int8 : {true, false}) {
    Context c = make_context({64, 0, 57, int8}, 6);
    const Query q = make_query(c, 3, 0.0f, 7);
    for (const Kernels* kernels : check::tiers()) {
      write_cache(c, *kernels, 0xff, 8);
      const Result expected = attend_all(c, *kernels, q);
      // The second block again, in a spare one: token by token and in ranges, over garbage.
      const uint8_t* from = c.block(32);
      int32_t spare = 0;
      while (spare == c.table[0] || spare == c.table[1]) ++spare;
      c.table[1] = spare;
      outpace::copy_slots(c.layout, from, c.block(32), 0, 13);
      for (int64_t slot = 13; slot < 17; ++slot)
        outpace::copy_slots(c.layout, from, c.block(32), slot, slot + 1);
      outpace::copy_slots(c.layout, from, c.block(32), 17, 25);
      CHECK(attend_all(c, *kernels, q) == expected, "%s, %s", kernels->name, int8 ? "int8" : "f16");
    }
  }
}

TEST(head_sizes_and_groups) {
  int64_t heads = 0;
  for (const int64_t head_dim : {16, 32, 48, 64, 72, 80, 96, 128, 192, 256}) {  // 72 is padded to 80
    for (const bool int8 : {true, false}) {
      heads = heads % 9 + 1;
      check_shape({head_dim, 0, 45 + head_dim % 23, int8}, heads, 0.0f, static_cast<uint64_t>(head_dim));
      check_shape({head_dim, 0, 33, int8}, 10 - heads, 20.0f, static_cast<uint64_t>(head_dim) + 1);
    }
  }
}

// Every number of heads that share a KV head, around the borders of tiles, blocks and chunks.
TEST(groups_at_the_borders) {
  for (const bool int8 : {true, false}) {
    for (int64_t heads = 1; heads <= 9; ++heads) {
      for (const int64_t end : {1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 300})
        check_shape({32, 0, end, int8}, heads, 0.0f, static_cast<uint64_t>(1000 * heads + end));
    }
  }
}

TEST(context_lengths) {
  for (const bool int8 : {true, false}) {
    for (const int64_t end : {1,   2,   15,  16,  17,  31,  32,  33,  47,   64,   65,
                              127, 128, 129, 257, 511, 512, 513, 544, 1023, 1025, 1500}) {
      check_shape({end < 100 ? 64 : 32, 0, end, int8}, 3, end % 2 == 0 ? 0.0f : 30.0f,
                  static_cast<uint64_t>(end));
    }
  }
}

TEST(sliding_windows) {
  constexpr int64_t windows[][2] = {{1, 2},     {15, 17},   {31, 32},    {5, 60},    {33, 64},    {127, 129},
                                    {128, 200}, {511, 513}, {500, 1030}, {512, 700}, {1023, 1500}};
  for (const bool int8 : {true, false}) {
    for (const auto& w : windows) check_shape({48, w[0], w[1], int8}, 4, 0.0f, static_cast<uint64_t>(w[0]));
  }
}

// Scores so far apart that all weight falls on one token: the answer is its value, to half a step of the
// integer weight if there is one.
TEST(one_token_takes_all) {
  for (const bool int8 : {true, false}) {
    Context c = make_context({64, 0, 700, int8}, 8);
    const Kernels& fastest = *check::tiers().front();
    for (const int64_t winner : {0, 127, 128, 512, 699}) {
      Query q = make_query(c, 1, 0.0f, 9);
      for (int64_t i = 0; i < 64; ++i) {
        c.keys[static_cast<size_t>(winner * 64 + i)] = i % 2 == 0 ? 30.0f : -30.0f;
        q.rows[static_cast<size_t>(i)] = i % 2 == 0 ? 1.0f : -1.0f;
      }
      write_cache(c, fastest, 0xff, 10);
      const Result r = attend_all(c, fastest, q);
      const double half_step = int8 ? largest_of(c.values) / kPlanes / 2.0 : 0.0;
      for (int64_t i = 0; i < 64; ++i) {
        const float y = r.out[static_cast<size_t>(i)] / r.sum[0];
        CHECK(std::fabs(static_cast<double>(y - cached_value(c, winner, i))) <= 1e-5 + half_step);
        c.keys[static_cast<size_t>(winner * 64 + i)] = 0.0f;
      }
      check_bits(
          c, q,
          [&] {
            write_cache(c, fastest, 0xff, 10);
            return attend_all(c, fastest, q);
          }(),
          11);
    }
  }
}

}  // namespace
