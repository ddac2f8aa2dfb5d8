// The attention of a step: positions into queries and keys, the KV cache, and the work's cut into units.

#include <algorithm>
#include <cstring>

#include "forward.h"

namespace outpace {

void Forward::rotate_and_cache(int64_t index, const LayerWeights& w, int64_t row, const Row& at) {
  const int64_t d = spec_.head_dim, padded = padded_head_dim_;
  const bool interleaved = spec_.rope_kind == RopeKind::interleaved;
  const float *cos = cos_.data() + row * num_pairs_, *sin = sin_.data() + row * num_pairs_;
  const auto prepare = [&](float* head, const std::vector<float>& norm) {
    if (!norm.empty()) kernels_.rms_norm(head, norm.data(), d, spec_.norm_eps, head);
    if (spec_.rope_kind != RopeKind::none) kernels_.rope(head, cos, sin, num_pairs_, interleaved);
  };
  const bool balanced = cache_.layout.int8;
  for (int64_t h = 0; h < spec_.num_heads; ++h) {
    float* head = q_raw_.data() + row * w.q.padded_rows() + h * d;
    prepare(head, w.q_norm);
    float* out = query_.data() + (row * spec_.num_heads + h) * padded;
    const float* balance = w.key_balance.data() + h / group_heads_ * d;
    for (int64_t c = 0; c < d; ++c) out[c] = head[c] * attention_scale_ * (balanced ? balance[c] : 1.0f);
    std::fill(out + d, out + padded, 0.0f);
  }
  float* key = scratch_[static_cast<size_t>(pool_.thread_index())].data();
  float* value = key + padded;
  std::fill(key, key + 2 * padded, 0.0f);
  const int64_t block = at.block_table[at.position / kBlockSize], slot = at.position % kBlockSize;
  for (int64_t h = 0; h < spec_.num_kv_heads; ++h) {
    float* head = k_raw_.data() + row * w.k.padded_rows() + h * d;
    prepare(head, w.k_norm);
    const float* balance = w.key_balance.data() + h * d;
    for (int64_t c = 0; c < d; ++c) key[c] = balanced ? head[c] / balance[c] : head[c];
    std::memcpy(value, v_raw_.data() + row * w.v.padded_rows() + h * d,
                static_cast<size_t>(d) * sizeof(float));
    kernels_.write_kv(cache_.layout, cache_.head(index, h) + block * cache_.block_stride(), slot, key, value);
    for (int64_t i = 0; i < at.copies.size; ++i) cache_.copy(index, h, at.copies.data[i]);
  }
}

// One unit for each row and KV head; with few rows, one for each chunk of the context too, so that all
// threads have work. Chunks are merged in their order either way: the same bits.
void Forward::plan_attention(const std::vector<Row>& rows) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  const int64_t heads = spec_.num_kv_heads;
  const bool split = num_rows * heads < 8 * pool_.num_threads();
  units_.clear();
  num_chunks_.assign(rows.size(), 1);
  first_partial_.assign(rows.size(), 0);
  int64_t partials = 0;
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t end = rows[static_cast<size_t>(r)].position + 1;
    const int64_t begin = spec_.sliding_window > 0 ? std::max<int64_t>(0, end - spec_.sliding_window) : 0;
    const int64_t first = begin / kAttentionChunk, last = (end - 1) / kAttentionChunk;
    const int64_t chunks = split ? last - first + 1 : 1;
    num_chunks_[static_cast<size_t>(r)] = chunks;
    first_partial_[static_cast<size_t>(r)] = partials;
    for (int64_t h = 0; h < heads; ++h) {
      if (!split) {
        units_.push_back({r, h, begin, end, partials});
        continue;
      }
      for (int64_t c = first; c <= last; ++c) {
        units_.push_back({r, h, std::max(begin, c * kAttentionChunk),
                          std::min(end, (c + 1) * kAttentionChunk), partials + c - first});
      }
    }
    partials += chunks;
  }
  const auto need = static_cast<size_t>(partials * spec_.num_heads);
  if (partial_max_.size() < need) {
    partial_.resize(need * static_cast<size_t>(padded_head_dim_));
    partial_max_.resize(need);
    partial_sum_.resize(need);
  }
}

void Forward::attend(int64_t index, const std::vector<Row>& rows) {
  const auto size = static_cast<int64_t>(units_.size());
  pool_.parallel(size, std::max<int64_t>(1, size / (pool_.num_threads() * 16)),
                 [&](int64_t first, int64_t last) {
                   for (int64_t i = first; i < last; ++i) {
                     const AttentionUnit& unit = units_[static_cast<size_t>(i)];
                     attend_unit(index, unit, rows[static_cast<size_t>(unit.row)]);
                   }
                 });
}

void Forward::attend_unit(int64_t index, const AttentionUnit& unit, const Row& row) {
  const int64_t first_head = unit.kv_head * group_heads_;
  const int64_t at = unit.partial * spec_.num_heads + first_head;
  float* out = partial_.data() + at * padded_head_dim_;
  std::vector<float>& scratch = scratch_[static_cast<size_t>(pool_.thread_index())];
  const auto more = static_cast<size_t>(group_heads_ * (padded_head_dim_ + 2));
  if (scratch.size() < more) scratch.resize(more);
  AttentionTask task{};
  task.layout = &cache_.layout;
  task.blocks = cache_.head(index, unit.kv_head);
  task.block_stride = cache_.block_stride();
  task.block_table = row.block_table;
  task.num_heads = group_heads_;
  task.query = query_.data() + (unit.row * spec_.num_heads + first_head) * padded_head_dim_;
  task.softcap = spec_.attention_softcap;
  for (int64_t begin = unit.begin; begin < unit.end;) {
    const int64_t end = std::min(unit.end, (begin / kAttentionChunk + 1) * kAttentionChunk);
    const bool first = begin == unit.begin;
    task.begin = begin;
    task.end = end;
    task.out = first ? out : scratch.data();
    task.max = first ? partial_max_.data() + at : scratch.data() + group_heads_ * padded_head_dim_;
    task.sum = first ? partial_sum_.data() + at : task.max + group_heads_;
    kernels_.attend(task);
    for (int64_t h = 0; !first && h < group_heads_; ++h) {
      kernels_.merge_attention(out + h * padded_head_dim_, &partial_max_[static_cast<size_t>(at + h)],
                               &partial_sum_[static_cast<size_t>(at + h)], task.out + h * padded_head_dim_,
                               task.max[h], task.sum[h], padded_head_dim_);
    }
    begin = end;
  }
}

// Merges a row's chunks in their order and divides by the sum of the weights.
void Forward::merge_row(int64_t row) {
  const auto first = first_partial_[static_cast<size_t>(row)];
  for (int64_t h = 0; h < spec_.num_heads; ++h) {
    const auto at = [&](int64_t chunk) { return static_cast<size_t>((first + chunk) * spec_.num_heads + h); };
    float* acc = partial_.data() + at(0) * static_cast<size_t>(padded_head_dim_);
    for (int64_t c = 1; c < num_chunks_[static_cast<size_t>(row)]; ++c) {
      kernels_.merge_attention(acc, &partial_max_[at(0)], &partial_sum_[at(0)],
                               partial_.data() + at(c) * static_cast<size_t>(padded_head_dim_),
                               partial_max_[at(c)], partial_sum_[at(c)], padded_head_dim_);
    }
    float* out = attended_.data() + (row * spec_.num_heads + h) * spec_.head_dim;
    const float inverse = 1.0f / partial_sum_[at(0)];
    for (int64_t c = 0; c < spec_.head_dim; ++c) out[c] = acc[c] * inverse;
  }
}

}  // namespace outpace
