// A context in the paged KV cache, read back as kernels.h describes it, and attended to in several ways.
#pragma once

#include <algorithm>

#include "check.h"
#include "forward.h"
#include "tiers.h"

namespace attention {

using outpace::Kernels;
using outpace::KVLayout;

inline constexpr int64_t kBlock = outpace::kBlockTokens;
inline constexpr int64_t kBlocksPerChunk = outpace::kAttentionChunk / kBlock;
inline constexpr int64_t kKVHeads = 2;  // the tests look at head 1

inline float half_float(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return bits & 0x8000 ? -size : size;
}

inline float float_at(const uint8_t* p) {
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

inline Context make_context(const Shape& shape, uint64_t seed) {
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
inline void write_cache(Context& c, const Kernels& kernels, uint8_t garbage, uint64_t seed) {
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
inline float cached_key(Context& c, int64_t token, int64_t i) {
  const uint8_t* block = c.block(token);
  const int64_t slot = token % kBlock, half = slot / 16, lane = slot % 16;
  if (!c.layout.int8) return half_float(block + 2 * ((half * c.padded() + i) * 16 + lane));
  const uint8_t q = block[((half * (c.padded() / 4) + i / 4) * 16 + lane) * 4 + i % 4];
  return static_cast<float>(q - 128) * float_at(block + c.layout.key_scale_offset + 4 * slot);
}

inline float cached_value(Context& c, int64_t token, int64_t i) {
  const uint8_t* block = c.block(token);
  const int64_t slot = token % kBlock;
  if (!c.layout.int8) return half_float(block + c.layout.value_offset + 2 * (slot * c.padded() + i));
  const uint8_t q = block[c.layout.value_offset + (slot / 4 * c.padded() + i) * 4 + slot % 4];
  return static_cast<float>(q - 128) * float_at(block + c.layout.value_scale_offset + 4 * slot);
}

// What a value is counted in: a token's scale, or the number itself.
inline double cached_value_scale(Context& c, int64_t token) {
  return static_cast<double>(float_at(c.block(token) + c.layout.value_scale_offset + 4 * (token % kBlock)));
}

struct Query {
  int64_t heads;
  float softcap;
  check::Array<float> rows;  // [heads, padded head_dim]
};

inline Query make_query(const Context& c, int64_t heads, float softcap, uint64_t seed) {
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

// Queries as an int8 cache is read with.
struct IntegerQuery {
  check::Array<int8_t> high, low;
  std::vector<float> unit;
  std::vector<int32_t> sum;
};

inline IntegerQuery quantize(const Kernels& kernels, const float* rows, int64_t heads, int64_t width) {
  const auto n = static_cast<size_t>(heads * width), count = static_cast<size_t>(heads);
  IntegerQuery q{check::Array<int8_t>(n), check::Array<int8_t>(n), std::vector<float>(count),
                 std::vector<int32_t>(count)};
  for (size_t h = 0, at = 0; h < count; ++h, at += static_cast<size_t>(width)) {
    kernels.quantize_query(rows + at, width, &q.high[at], &q.low[at], &q.unit[h], &q.sum[h]);
  }
  return q;
}

// The query is given in the cache's own format alone.
inline outpace::AttentionTask task_of(Context& c, const float* rows, IntegerQuery& integers, int64_t begin,
                                      int64_t end, Result& r) {
  outpace::AttentionTask task{};
  task.layout = &c.layout;
  task.blocks = c.cache.data() + c.layout.bytes;
  task.block_stride = c.stride();
  task.block_table = c.table.data();
  task.begin = begin;
  task.end = end;
  task.next_blocks = task.block_table + (begin / outpace::kAttentionChunk + 1) * kBlocksPerChunk;
  task.num_next_blocks =
      std::clamp<int64_t>(c.table.data() + c.table.size() - task.next_blocks, 0, kBlocksPerChunk);
  task.num_heads = static_cast<int64_t>(r.max.size());
  if (c.layout.int8) {
    task.query_high = integers.high.data();
    task.query_low = integers.low.data();
    task.query_unit = integers.unit.data();
    task.query_sum = integers.sum.data();
  } else {
    task.query = rows;
  }
  task.out = r.out.data();
  task.max = r.max.data();
  task.sum = r.sum.data();
  return task;
}

inline void attend_chunk(Context& c, const Kernels& kernels, const Query& q, int64_t begin, int64_t end,
                         int64_t first_head, bool merge, Result& r) {
  const auto heads = static_cast<int64_t>(r.max.size());
  const float* rows = q.rows.data() + first_head * c.padded();
  IntegerQuery integers = quantize(kernels, rows, heads, c.padded());
  outpace::AttentionTask task = task_of(c, rows, integers, begin, end, r);
  task.softcap = q.softcap;
  task.merge = merge;
  kernels.attend(task);
}

inline void merge(const Kernels& kernels, Result& into, const Result& from, int64_t width) {
  for (size_t h = 0; h < into.max.size(); ++h) {
    const size_t at = h * static_cast<size_t>(width);
    kernels.merge_attention(into.out.data() + at, &into.max[h], &into.sum[h], from.out.data() + at,
                            from.max[h], from.sum[h], width);
  }
}

// Chunk after chunk as one thread does it: the results take them in as they come.
inline Result attend_all(Context& c, const Kernels& kernels, const Query& q) {
  constexpr int64_t chunk = outpace::kAttentionChunk;
  int64_t end = std::min(c.end, (c.begin / chunk + 1) * chunk);
  Result all(q.heads, c.padded());
  attend_chunk(c, kernels, q, c.begin, end, 0, false, all);
  for (int64_t begin = end; begin < c.end; begin = end) {
    end = std::min(c.end, begin + chunk);
    attend_chunk(c, kernels, q, begin, end, 0, true, all);
  }
  return all;
}

// The chunks in any order and the heads one by one, merged in their order afterwards.
inline Result attend_split(Context& c, const Kernels& kernels, const Query& q) {
  constexpr int64_t chunk = outpace::kAttentionChunk;
  Result all(q.heads, c.padded());
  for (int64_t h = 0; h < q.heads; ++h) {
    std::vector<Result> parts;
    for (int64_t i = (c.end - 1) / chunk; i >= c.begin / chunk; --i) {
      const int64_t begin = std::max(c.begin, i * chunk), end = std::min(c.end, (i + 1) * chunk);
      attend_chunk(c, kernels, q, begin, end, h, false, parts.emplace_back(1, c.padded()));
    }
    Result head = parts.back();
    for (size_t i = parts.size() - 1; i-- > 0;) merge(kernels, head, parts[i], c.padded());
    std::copy(head.out.begin(), head.out.end(), all.out.begin() + h * c.padded());
    all.max[static_cast<size_t>(h)] = head.max[0];
    all.sum[static_cast<size_t>(h)] = head.sum[0];
  }
  return all;
}

}  // namespace attention
