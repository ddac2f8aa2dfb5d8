// The paged KV cache and attention: against float64, and bit by bit whatever the tier, the pages, the
// grouping of heads and what lies in slots that do not belong to the context.
#include <algorithm>

#include "check.h"
#include "forward.h"
#include "tiers.h"

namespace {

using outpace::Kernels;
using outpace::KVLayout;

constexpr int64_t kBlock = outpace::kBlockTokens;
constexpr int64_t kKVHeads = 2;  // the tests look at head 1

float half_float(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return bits & 0x8000 ? -size : size;
}

float float_at(const uint8_t* p) {
  float f;
  std::memcpy(&f, p, 4);
  return f;
}

// One context: keys and values as written, and the cache that holds them.
struct Context {
  KVLayout layout;
  int64_t head_dim, begin, end;     // tokens [begin, end) are cached and seen
  std::vector<float> keys, values;  // [end, padded head_dim], zeros in the padding
  std::vector<int32_t> table;
  check::Array<uint8_t> cache;

  int64_t padded() const { return layout.head_dim; }
  int64_t stride() const { return kKVHeads * layout.bytes; }
  uint8_t* block(int64_t token) {
    return cache.data() + table[static_cast<size_t>(token / kBlock)] * stride() + layout.bytes;
  }
};

struct Shape {
  int64_t head_dim, begin, end;
  bool int8;
};

Context make_context(const Shape& shape, uint64_t seed) {
  outpace::ModelSpec spec;
  spec.head_dim = shape.head_dim;
  Context c{outpace::kv_layout(spec, shape.int8 ? outpace::KVFormat::int8 : outpace::KVFormat::f16),
            shape.head_dim,
            shape.begin,
            shape.end,
            {},
            {},
            {},
            {}};
  check::Random random{seed};
  for (std::vector<float>* rows : {&c.keys, &c.values}) {
    rows->assign(static_cast<size_t>(c.end * c.padded()), 0.0f);
    for (int64_t t = 0; t < c.end; ++t) {
      const float size = t % 37 == 5 ? 0.0f : std::ldexp(1.0f, static_cast<int>(random.between(-2, 2)));
      for (int64_t i = 0; i < c.head_dim; ++i)
        (*rows)[static_cast<size_t>(t * c.padded() + i)] = random.normal() * size;
    }
  }
  return c;
}

// Writes the context into blocks in a random order, over memory full of `garbage`. Blocks before the
// window have left the request: their table entries point nowhere.
void write_cache(Context& c, const Kernels& kernels, uint8_t garbage, uint64_t seed) {
  check::Random random{seed};
  const int64_t num_blocks = (c.end + kBlock - 1) / kBlock, spare = 3;
  std::vector<int32_t> ids(static_cast<size_t>(num_blocks + spare));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  for (size_t i = ids.size() - 1; i > 0; --i)
    std::swap(ids[i], ids[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
  c.table.assign(ids.begin(), ids.begin() + num_blocks);
  for (int64_t b = 0; b < c.begin / kBlock; ++b) c.table[static_cast<size_t>(b)] = 1 << 30;
  c.cache.assign(static_cast<size_t>((num_blocks + spare) * c.stride()), garbage);
  for (int64_t t = c.begin; t < c.end; ++t) {
    kernels.write_kv(c.layout, c.block(t), t % kBlock, c.keys.data() + t * c.padded(),
                     c.values.data() + t * c.padded());
  }
}

// Channel i of a token's key or value, read from the cache as kernels.h describes it.
float cached_key(Context& c, int64_t token, int64_t i) {
  const uint8_t* block = c.block(token);
  const int64_t slot = token % kBlock, half = slot / 16, lane = slot % 16;
  if (!c.layout.int8) return half_float(block + 2 * ((half * c.padded() + i) * 16 + lane));
  const uint8_t q = block[((half * (c.padded() / 4) + i / 4) * 16 + lane) * 4 + i % 4];
  return static_cast<float>(q - 128) * float_at(block + c.layout.key_scale_offset + 4 * slot);
}

float cached_value(Context& c, int64_t token, int64_t i) {
  const uint8_t* block = c.block(token);
  const int64_t slot = token % kBlock, at = slot * c.padded() + i;
  if (!c.layout.int8) return half_float(block + c.layout.value_offset + 2 * at);
  const auto q = static_cast<int8_t>(block[c.layout.value_offset + at]);
  return static_cast<float>(q) * float_at(block + c.layout.value_scale_offset + 4 * slot);
}

struct Query {
  int64_t heads;
  float softcap;
  check::Array<float> rows;  // [heads, padded head_dim]
};

Query make_query(const Context& c, int64_t heads, float softcap, uint64_t seed) {
  check::Random random{seed};
  Query q{heads, softcap, check::Array<float>(static_cast<size_t>(heads * c.padded()), 0.0f)};
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < c.head_dim && h != 4; ++i) {  // head 4 asks for nothing: all weights equal
      q.rows[static_cast<size_t>(h * c.padded() + i)] =
          random.normal() * scale * static_cast<float>(1 + h % 3);
    }
  }
  return q;
}

// What one chunk, or several merged, yields: not yet divided by the sum.
struct Result {
  check::Array<float> out, max, sum;
  Result(int64_t heads, int64_t width)
      : out(static_cast<size_t>(heads * width), 5.0f),
        max(static_cast<size_t>(heads)),
        sum(static_cast<size_t>(heads)) {}
  bool operator==(const Result& o) const {
    return check::same_bits(out.data(), o.out.data(), out.size()) &&
           check::same_bits(max.data(), o.max.data(), max.size()) &&
           check::same_bits(sum.data(), o.sum.data(), sum.size());
  }
};

Result attend_chunk(Context& c, const Kernels& kernels, const Query& q, int64_t begin, int64_t end,
                    int64_t first_head, int64_t heads) {
  Result r(heads, c.padded());
  outpace::AttentionTask task{};
  task.layout = &c.layout;
  task.blocks = c.cache.data() + c.layout.bytes;
  task.block_stride = c.stride();
  task.block_table = c.table.data();
  task.begin = begin;
  task.end = end;
  task.num_heads = heads;
  task.query = q.rows.data() + first_head * c.padded();
  task.softcap = q.softcap;
  task.out = r.out.data();
  task.max = r.max.data();
  task.sum = r.sum.data();
  kernels.attend(task);
  return r;
}

void merge(const Kernels& kernels, Result& into, const Result& from, int64_t width) {
  for (size_t h = 0; h < into.max.size(); ++h) {
    const size_t at = h * static_cast<size_t>(width);
    kernels.merge_attention(into.out.data() + at, &into.max[h], &into.sum[h], from.out.data() + at,
                            from.max[h], from.sum[h], width);
  }
}

// Chunk after chunk as one thread does it.
Result attend_all(Context& c, const Kernels& kernels, const Query& q) {
  constexpr int64_t chunk = outpace::kAttentionChunk;
  int64_t end = std::min(c.end, (c.begin / chunk + 1) * chunk);
  Result all = attend_chunk(c, kernels, q, c.begin, end, 0, q.heads);
  for (int64_t begin = end; begin < c.end; begin = end) {
    end = std::min(c.end, begin + chunk);
    merge(kernels, all, attend_chunk(c, kernels, q, begin, end, 0, q.heads), c.padded());
  }
  return all;
}

// The chunks in any order and the heads one by one, merged in their order afterwards.
Result attend_split(Context& c, const Kernels& kernels, const Query& q) {
  constexpr int64_t chunk = outpace::kAttentionChunk;
  Result all(q.heads, c.padded());
  for (int64_t h = 0; h < q.heads; ++h) {
    std::vector<Result> parts;
    for (int64_t i = (c.end - 1) / chunk; i >= c.begin / chunk; --i) {
      parts.push_back(
          attend_chunk(c, kernels, q, std::max(c.begin, i * chunk), std::min(c.end, (i + 1) * chunk), h, 1));
    }
    Result head = parts.back();
    for (size_t i = parts.size() - 1; i-- > 0;) merge(kernels, head, parts[i], c.padded());
    std::copy(head.out.begin(), head.out.end(), all.out.begin() + h * c.padded());
    all.max[static_cast<size_t>(h)] = head.max[0];
    all.sum[static_cast<size_t>(h)] = head.sum[0];
  }
  return all;
}

// An int8 cache is read with the query in 15 bits.
std::vector<double> query_as_read(const Context& c, const Query& q, int64_t head, bool rounded) {
  const float* row = q.rows.data() + head * c.padded();
  float largest = 0.0f;
  for (int64_t i = 0; i < c.padded(); ++i) largest = std::max(largest, std::fabs(row[i]));
  std::vector<double> out;
  for (int64_t i = 0; i < c.padded(); ++i) {
    const float steps = 127.0f * 128.0f / largest;
    const bool round = rounded && c.layout.int8 && largest > 0.0f;
    out.push_back(round ? static_cast<double>(std::nearbyintf(row[i] * steps)) *
                              static_cast<double>(largest) / (127.0 * 128.0)
                        : static_cast<double>(row[i]));
  }
  return out;
}

// Softmax attention of one head in float64.
template <class Key, class Value>
std::vector<double> reference(const Context& c, const std::vector<double>& query, float softcap,
                              const Key& key, const Value& value) {
  std::vector<double> scores, out(static_cast<size_t>(c.padded()), 0.0);
  double largest = -INFINITY, sum = 0.0;
  for (int64_t t = c.begin; t < c.end; ++t) {
    double s = 0.0;
    for (int64_t i = 0; i < c.head_dim; ++i)
      s += query[static_cast<size_t>(i)] * static_cast<double>(key(t, i));
    if (softcap > 0.0f) s = static_cast<double>(softcap) * std::tanh(s / static_cast<double>(softcap));
    scores.push_back(s);
    largest = std::max(largest, s);
  }
  for (double& s : scores) sum += s = std::exp(s - largest);
  for (int64_t t = c.begin; t < c.end; ++t) {
    const double w = scores[static_cast<size_t>(t - c.begin)] / sum;
    for (int64_t i = 0; i < c.head_dim; ++i)
      out[static_cast<size_t>(i)] += w * static_cast<double>(value(t, i));
  }
  return out;
}

double largest_of(const std::vector<float>& v) {
  double largest = 0.0;
  for (const float x : v) largest = std::max(largest, std::fabs(static_cast<double>(x)));
  return largest;
}

// How far quantization may move an output: five standard deviations of a score's error, which shifts
// weight between tokens, and half a step of the value.
double quantization_bound(const Context& c, const std::vector<double>& query) {
  const double step = c.layout.int8 ? 1.0 / 127.0 : 1.0 / 1024.0;  // of the largest
  double squares = 0.0;
  for (const double q : query) squares += q * q;
  const double score_error = 5.0 * std::sqrt(squares / 12.0) * largest_of(c.keys) * step;
  return (std::exp(2.0 * score_error) - 1.0 + step / 2.0) * largest_of(c.values);
}

void check_against_float64(Context& c, const Query& q, const Result& got) {
  for (int64_t h = 0; h < q.heads; ++h) {
    const std::vector<double> query = query_as_read(c, q, h, false);
    const auto cached = reference(
        c, query_as_read(c, q, h, true), q.softcap, [&](int64_t t, int64_t i) { return cached_key(c, t, i); },
        [&](int64_t t, int64_t i) { return cached_value(c, t, i); });
    const auto raw = reference(
        c, query, q.softcap,
        [&](int64_t t, int64_t i) { return c.keys[static_cast<size_t>(t * c.padded() + i)]; },
        [&](int64_t t, int64_t i) { return c.values[static_cast<size_t>(t * c.padded() + i)]; });
    const double rounding = 1e-5 * largest_of(c.values), bound = quantization_bound(c, query);
    for (int64_t i = 0; i < c.padded(); ++i) {
      const auto at = static_cast<size_t>(i);
      const double y = static_cast<double>(got.out[static_cast<size_t>(h * c.padded()) + at] /
                                           got.sum[static_cast<size_t>(h)]);
      CHECK(std::fabs(y - cached[at]) <= rounding, "%s d %d tokens %d..%d head %d: %.7g, not %.7g",
            c.layout.int8 ? "int8" : "f16", static_cast<int>(c.head_dim), static_cast<int>(c.begin),
            static_cast<int>(c.end), static_cast<int>(h), y, cached[at]);
      CHECK(std::fabs(y - raw[at]) <= bound, "%.7g, unquantized %.7g, bound %g", y, raw[at], bound);
      if (i >= c.head_dim) CHECK(y == 0.0);
    }
  }
}

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

// Scores so far apart that all weight falls on one token: the answer is its value.
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
      for (int64_t i = 0; i < 64; ++i) {
        CHECK(std::fabs(r.out[static_cast<size_t>(i)] / r.sum[0] - cached_value(c, winner, i)) <= 1e-5f);
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
