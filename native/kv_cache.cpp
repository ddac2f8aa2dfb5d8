#include "kv_cache.h"

#include <algorithm>
#include <cstring>

namespace outpace {

KVLayout kv_layout(const ModelSpec& spec, KVFormat format) {
  KVLayout kv;
  kv.int8 = format == KVFormat::int8;
  kv.head_dim = (spec.head_dim + 15) / 16 * 16;
  const int64_t plane = kBlockSize * kv.head_dim * (kv.int8 ? 1 : 2);
  kv.value_offset = plane;
  kv.key_scale_offset = 2 * plane;
  kv.value_scale_offset = kv.key_scale_offset + kBlockSize * static_cast<int64_t>(sizeof(float));
  kv.bytes = kv.int8 ? kv.value_scale_offset + kBlockSize * static_cast<int64_t>(sizeof(float)) : 2 * plane;
  return kv;
}

void copy_slots(const KVLayout& kv, const uint8_t* from, uint8_t* to, int64_t first, int64_t last) {
  const auto copy = [&](int64_t offset, int64_t bytes) {
    std::memcpy(to + offset, from + offset, static_cast<size_t>(bytes));
  };
  // `tokens` entries of `bytes` lie side by side in each of `num_lines` lines.
  const auto copy_lines = [&](int64_t offset, int64_t tokens, int64_t num_lines, int64_t bytes) {
    for (int64_t slot = first, end = 0; slot < last; slot = end) {
      end = std::min(last, (slot / tokens + 1) * tokens);
      for (int64_t line = slot / tokens * num_lines, i = 0; i < num_lines; ++i) {
        copy(offset + ((line + i) * tokens + slot % tokens) * bytes, (end - slot) * bytes);
      }
    }
  };
  if (kv.int8) {
    copy_lines(0, 16, kv.head_dim / 4, 4);
    copy_lines(kv.value_offset, 4, kv.head_dim, 1);
  } else {
    copy_lines(0, 16, kv.head_dim, 2);
    copy_lines(kv.value_offset, 1, 1, 2 * kv.head_dim);
  }
  if (!kv.int8) return;
  constexpr auto kScale = static_cast<int64_t>(sizeof(float));
  const int64_t count = last - first;
  copy(kv.key_scale_offset + first * kScale, count * kScale);
  copy(kv.value_scale_offset + first * kScale, count * kScale);
}

uint64_t kv_bytes_per_block(const ModelSpec& spec, KVFormat format) {
  return static_cast<uint64_t>(spec.num_layers * spec.num_kv_heads * kv_layout(spec, format).bytes);
}

KVCache::KVCache(const ModelSpec& spec, const Options& options)
    : layout(kv_layout(spec, options.kv_format)),
      num_blocks(options.num_blocks),
      num_scratch(options.max_tree_rows),
      num_layers(spec.num_layers),
      num_kv_heads(spec.num_kv_heads),
      memory(kv_bytes_per_block(spec, options.kv_format) * static_cast<uint64_t>(num_blocks + num_scratch),
             "the KV cache") {}

}  // namespace outpace
