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
    const int64_t at_head = row * spec_.num_heads + h;
    if (balanced) {
      kernels_.quantize_query(out, padded, query_high_.data() + at_head * padded,
                              query_low_.data() + at_head * padded, query_unit_.data() + at_head,
                              query_sum_.data() + at_head);
    }
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

// What any step of so many rows needs, so that none asks for memory because its context has grown. What is
// not written takes none; but of addresses too there is an end, so very many rows of very long contexts grow
// into what they need.
void Forward::reserve_attention(int64_t num_rows) {
  const int64_t tokens = std::min(spec_.max_context, cache_.num_blocks * kBlockSize);
  const int64_t chunks = (tokens + kAttentionChunk - 1) / kAttentionChunk;
  const int64_t split_rows = std::min(num_rows, most_split_rows());
  // A place and a unit for each row, or for each of its chunks; of units less, where neighbours share them.
  constexpr int64_t kBytes = 128 << 20;
  const int64_t place_bytes = spec_.num_heads * padded_head_dim_ * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max(num_rows, std::min(split_rows * chunks, kBytes / place_bytes));
  const auto partials = static_cast<size_t>(most * spec_.num_heads);
  partial_.reserve(partials * static_cast<size_t>(padded_head_dim_));
  partial_max_.reserve(partials);
  partial_sum_.reserve(partials);
  sights_.reserve(static_cast<size_t>(num_rows));
  units_.reserve(static_cast<size_t>(most * spec_.num_kv_heads));
}

// A unit is a few rows and one KV head; with few rows one chunk too, so that all threads have work. Chunks
// are merged in their order either way: the same bits.
void Forward::plan_attention(const std::vector<Row>& rows) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  const bool split = splits_context(rows);
  units_.clear();
  sights_.clear();
  const int64_t most = unit_rows(num_rows);
  int64_t partials = 0;
  for (const Row& row : rows) {
    const int64_t end = row.position + 1;
    const int64_t begin = spec_.sliding_window > 0 ? std::max<int64_t>(0, end - spec_.sliding_window) : 0;
    Sight sight{begin, end, partials, 1};
    if (split) sight.num_partials = sight.last_chunk() - sight.first_chunk() + 1;
    partials += sight.num_partials;
    sights_.push_back(sight);
  }
  for (int64_t first = 0, last; first < num_rows; first = last + 1) {
    const auto request = [&](int64_t r) { return rows[static_cast<size_t>(r)].request; };
    const auto sight = [&](int64_t r) -> const Sight& { return sights_[static_cast<size_t>(r)]; };
    int64_t from = sight(first).first_chunk(), to = sight(first).last_chunk();
    for (last = first; last + 1 < std::min(num_rows, first + most); ++last) {
      if (request(last + 1) != request(first)) break;
      from = std::min(from, sight(last + 1).first_chunk());
      to = std::max(to, sight(last + 1).last_chunk());
    }
    const int64_t per_unit = split ? 1 : to - from + 1;
    for (int64_t c = from; c <= to; c += per_unit) {
      for (int64_t h = 0; h < spec_.num_kv_heads; ++h) {
        units_.push_back({first, last, h, c, c + per_unit - 1});
      }
    }
  }
  const auto need = static_cast<size_t>(partials * spec_.num_heads);
  if (partial_max_.size() < need) {
    partial_.resize(need * static_cast<size_t>(padded_head_dim_));
    partial_max_.resize(need);
    partial_sum_.resize(need);
  }
}

// Single chunks are taken some in a row: while one is computed the next is fetched, and a thread that does
// not go on with that one would have it fetched twice.
int64_t Forward::units_together(const std::vector<Row>& rows) const {
  if (!splits_context(rows)) return 1;
  return std::max<int64_t>(1, static_cast<int64_t>(units_.size()) / (pool_.num_threads() * kRangesPerThread));
}

void Forward::attend(int64_t index, const std::vector<Row>& rows) {
  const auto num_units = static_cast<int64_t>(units_.size());
  pool_.parallel(num_units, units_together(rows), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) attend_unit(index, units_[static_cast<size_t>(i)], rows);
  });
}

// Later chunks are fetched while those before them are computed. For the first one of each KV head nobody
// does, and no hardware follows the blocks.
void Forward::fetch_first_chunks(int64_t index, const std::vector<Row>& rows) {
  if (!splits_context(rows)) return;
  const auto num_units = static_cast<int64_t>(units_.size());
  const ThreadPool::Part share = pool_.share(num_units, units_together(rows));
  for (int64_t i = share.first; i < std::min(share.last, share.first + spec_.num_kv_heads); ++i) {
    const AttentionUnit& unit = units_[static_cast<size_t>(i)];
    const Sight& sight = sights_[static_cast<size_t>(unit.last_row)];
    const int64_t begin = unit.first_chunk * kBlocksPerChunk;
    const int64_t end = std::min(begin + kBlocksPerChunk, (sight.end + kBlockSize - 1) / kBlockSize);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t block = rows[static_cast<size_t>(unit.last_row)].block_table[b];
      const uint8_t* bytes = cache_.head(index, unit.kv_head) + block * cache_.block_stride();
      for (int64_t at = 0; at < cache_.layout.bytes; at += 64) __builtin_prefetch(bytes + at, 0, 2);
    }
  }
}

// Chunk by chunk, and there all rows that see it: its keys and values are in the nearest cache for them.
void Forward::attend_unit(int64_t index, const AttentionUnit& unit, const std::vector<Row>& rows) {
  AttentionTask tasks[kMostUnitRows];
  for (int64_t chunk = unit.first_chunk; chunk <= unit.last_chunk; ++chunk) {
    int64_t count = 0;
    for (int64_t row = unit.first_row; row <= unit.last_row; ++row) {
      const Sight& sight = sights_[static_cast<size_t>(row)];
      if (chunk < sight.first_chunk() || chunk > sight.last_chunk()) continue;
      tasks[count] = chunk_task(index, unit.kv_head, rows[static_cast<size_t>(row)], row, chunk);
      if (row > unit.first_row) tasks[count].num_next_blocks = 0;  // they are fetched once
      ++count;
    }
    if (count > 0) kernels_.attend_rows(tasks, count);
  }
}

// What a row's heads of one KV head read of a chunk, and where their results go.
AttentionTask Forward::chunk_task(int64_t index, int64_t kv_head, const Row& at, int64_t row, int64_t chunk) {
  const Sight& sight = sights_[static_cast<size_t>(row)];
  const int64_t head = row * spec_.num_heads + kv_head * group_heads_;
  const int64_t blocks_left = (sight.end + kBlockSize - 1) / kBlockSize - (chunk + 1) * kBlocksPerChunk;
  AttentionTask task{};
  task.layout = &cache_.layout;
  task.blocks = cache_.head(index, kv_head);
  task.block_stride = cache_.block_stride();
  task.block_table = at.block_table;
  task.begin = std::max(sight.begin, chunk * kAttentionChunk);
  task.end = std::min(sight.end, (chunk + 1) * kAttentionChunk);
  task.next_blocks = task.block_table + (chunk + 1) * kBlocksPerChunk;
  task.num_next_blocks = std::clamp<int64_t>(blocks_left, 0, kBlocksPerChunk);
  task.num_heads = group_heads_;
  task.softcap = spec_.attention_softcap;
  task.query = query_.data() + head * padded_head_dim_;
  if (cache_.layout.int8) {
    task.query_high = query_high_.data() + head * padded_head_dim_;
    task.query_low = query_low_.data() + head * padded_head_dim_;
    task.query_unit = query_unit_.data() + head;
    task.query_sum = query_sum_.data() + head;
  }
  // Partial results have places of their own; else one place takes in chunk after chunk.
  const int64_t nth = chunk - sight.first_chunk(), partial = sight.num_partials == 1 ? 0 : nth;
  const int64_t result = (sight.partial + partial) * spec_.num_heads + kv_head * group_heads_;
  task.merge = partial != nth;
  task.out = partial_.data() + result * padded_head_dim_;
  task.max = partial_max_.data() + result;
  task.sum = partial_sum_.data() + result;
  return task;
}

// Merges a row's chunks in their order and divides by the sum of the weights.
void Forward::merge_row(int64_t row) {
  const Sight& sight = sights_[static_cast<size_t>(row)];
  for (int64_t h = 0; h < spec_.num_heads; ++h) {
    const auto at = [&](int64_t chunk) {
      return static_cast<size_t>((sight.partial + chunk) * spec_.num_heads + h);
    };
    float* acc = partial_.data() + at(0) * static_cast<size_t>(padded_head_dim_);
    for (int64_t c = 1; c < sight.num_partials; ++c) {
      kernels_.merge_attention(acc, &partial_max_[at(0)], &partial_sum_[at(0)],
                               partial_.data() + at(c) * static_cast<size_t>(padded_head_dim_),
                               partial_max_[at(c)], partial_sum_[at(c)], padded_head_dim_);
    }
    float* out = attended_.data() + row * attended_stride_ + h * spec_.head_dim;
    const float inverse = 1.0f / partial_sum_[at(0)];
    for (int64_t c = 0; c < spec_.head_dim; ++c) out[c] = acc[c] * inverse;
  }
}

}  // namespace outpace
