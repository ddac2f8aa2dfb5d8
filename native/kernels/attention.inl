// Attention of the query heads that share a KV head, over one chunk of the paged cache.
//
// K and V are read once for the whole group of heads. Tiles and chunks are cut by position, so a result
// depends on nothing but the query and the tokens it sees. The two formats are in files of their own.

namespace outpace::OUTPACE_TIER {

constexpr int kTileTokens = 16;

OUTPACE_INLINE const uint8_t* block_of(const AttentionTask& t, int64_t token) {
  return t.blocks + static_cast<int64_t>(t.block_table[token / kBlockTokens]) * t.block_stride;
}

// Scores to weights: subtracts the largest and exponentiates; lanes outside [begin, end) become 0.
// scores: [(end - tile_begin) padded to 16], the first belonging to token tile_begin.
OUTPACE_INLINE void softmax_chunk(float* scores, int64_t first, int64_t last, float cap, float& max,
                                  float& sum) {
  const int64_t padded = (last + 15) / 16 * 16;
  for (int64_t i = 0; i < first; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = last; i < padded; ++i) scores[i] = -__builtin_inff();
  if (cap > 0.0f) softcap_row(scores + first, cap, last - first);
  F16x largest = F16x{} - __builtin_inff();
  for (int64_t i = 0; i < padded; i += 16) largest = max16(largest, load16(scores + i));
  max = fold_max(largest);
  F16x total = {};
  for (int64_t i = 0; i < padded; i += 16) {
    const F16x s = load16(scores + i);
    const F16x e = exp16(s - max);
    const F16x w = s > F16x{} - __builtin_inff() ? e : F16x{};
    store16(scores + i, w);
    total = total + w;
  }
  sum = fold_sum(total);
}

void merge_attention(float* acc, float* acc_max, float* acc_sum, const float* out, float max, float sum,
                     int64_t n) {
  const float top = max > *acc_max ? max : *acc_max;
  const F16x old_and_new = {*acc_max - top, max - top};
  const F16x factors = exp16(old_and_new);
  const float a = factors[0], b = factors[1];
  for (int64_t i = 0; i < n; i += 16) store16(acc + i, load16(acc + i) * a + load16(out + i) * b);
  *acc_sum = *acc_sum * a + sum * b;
  *acc_max = top;
}

// Blocks lie far apart, so no hardware prefetcher follows a request's context: while a chunk is computed,
// the lines of the next one are asked for, each tile of 16 tokens in its turn.
OUTPACE_INLINE void fetch_next_tile(const AttentionTask& t, int64_t token) {
  const int64_t in_chunk = token % kAttentionChunk / kBlockTokens;
  if (in_chunk >= t.num_next_blocks) return;
  const KVLayout& kv = *t.layout;
  const int64_t tile = token % kBlockTokens / kTileTokens,
                bytes = kTileTokens * kv.head_dim * (kv.int8 ? 1 : 2);
  const uint8_t* block = t.blocks + t.next_blocks[in_chunk] * t.block_stride;
  for (int64_t at = tile * bytes; at < (tile + 1) * bytes; at += 64) {
    __builtin_prefetch(block + at, 0, 2);
    __builtin_prefetch(block + kv.value_offset + at, 0, 2);
  }
  if (!kv.int8) return;
  __builtin_prefetch(block + kv.key_scale_offset + 64 * tile, 0, 2);
  __builtin_prefetch(block + kv.value_scale_offset + 64 * tile, 0, 2);
}

}  // namespace outpace::OUTPACE_TIER

#include "attention_f16.inl"
#include "attention_int8.inl"

namespace outpace::OUTPACE_TIER {

// Sub-groups of at most 4 heads keep their sums in registers.
template <class Attend>
OUTPACE_INLINE void each_sub_group(int64_t num_heads, Attend attend_heads) {
  int64_t head = 0;
  for (; num_heads - head >= 4; head += 4) attend_heads.template operator()<4>(head);
  if (num_heads - head == 3) attend_heads.template operator()<3>(head);
  if (num_heads - head == 2) attend_heads.template operator()<2>(head);
  if (num_heads - head == 1) attend_heads.template operator()<1>(head);
}

void attend(const AttentionTask& t) {
  if (t.layout->int8) {
    alignas(64) float scales[kAttentionChunk];
    const float unit = scale_values(t, t.begin / kTileTokens * kTileTokens, scales);
    each_sub_group(t.num_heads, [&]<int H>(int64_t head) { attend_int8<H>(t, head, scales, unit); });
  } else {
    each_sub_group(t.num_heads, [&]<int H>(int64_t head) { attend_f16<H>(t, head); });
  }
}

void attend_rows(const AttentionTask* tasks, int64_t num_tasks) {
  for (int64_t i = 0; i < num_tasks; ++i) attend(tasks[i]);
}

void write_kv(const KVLayout& kv, uint8_t* block, int64_t slot, const float* k, const float* v) {
  if (kv.int8) {
    write_kv_int8(kv, block, slot, k, v);
  } else {
    write_kv_f16(kv, block, slot, k, v);
  }
}

}  // namespace outpace::OUTPACE_TIER
