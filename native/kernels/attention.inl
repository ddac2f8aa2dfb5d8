// Attention of the query heads that share a KV head, over one chunk of the paged cache.
//
// K and V are read once for the whole group of heads. Tiles and chunks are cut by position, so a result
// depends on nothing but the query and the tokens it sees. The two formats are in files of their own.

namespace outpace::OUTPACE_TIER {

constexpr int kTileTokens = 16;
// Tiles whose softmax weights are computed together: as many chains as keep the processor busy and fit its
// registers.
constexpr int kTilesAtOnce = kRegisterSums > 8 ? kRegisterSums / 4 : kChains;

OUTPACE_INLINE const uint8_t* block_of(const AttentionTask& t, int64_t token) {
  return t.blocks + static_cast<int64_t>(t.block_table[token / kBlockTokens]) * t.block_stride;
}

// The largest of a row of scores; lanes outside [first, last) become -inf, up to the end of the last tile.
OUTPACE_INLINE float largest_score(float* scores, int64_t first, int64_t last, float cap) {
  for (int64_t i = 0; i < first; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = last; i < (last + 15) / 16 * 16; ++i) scores[i] = -__builtin_inff();
  if (cap > 0.0f) softcap_row(scores + first, cap, last - first);
  F16x largest = all16(-__builtin_inff());
  for (int64_t i = 0; i < last; i += 16) largest = max16(largest, load16(scores + i));
  return fold_max(largest);
}

// Scores of K tiles, in place, to softmax weights less than or equal to 1; 0 where the score is -inf.
template <int K>
OUTPACE_INLINE void weights_of(F16x (&scores)[K], float largest) {
  F16x x[K];
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
    // Below zero bits grow as the number falls, so one operation on integers clamps it.
    const F16x difference = scores[k] - largest;
    constexpr uint32_t kLowest = 0xc2ae0000;  // -87.0f
    x[k] = bits16<float>(min16(bits16<uint32_t>(difference), all16(kLowest)));
  }
  exp_within(x);
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
    scores[k] = each16(scores[k], x[k], []<class Piece>(const Piece& score, const Piece& weight) {
      return score > -__builtin_inff() ? weight : Piece{};
    });
  }
}

// Calls take<K>(place in the row, softmax weights of K tiles) for all tiles that begin before `last`; returns
// the weights' sum.
template <class Take>
OUTPACE_INLINE float weigh_tiles(const float* scores, int64_t last, float largest, Take take) {
  F16x total = {};
  const auto weigh = [&]<int K>(int64_t first) {
    F16x w[K];
    OUTPACE_UNROLL for (int k = 0; k < K; ++k) w[k] = load16(scores + first + k * kTileTokens);
    weights_of(w, largest);
    OUTPACE_UNROLL for (int k = 0; k < K; ++k) total = total + w[k];
    take.template operator()<K>(first, w);
  };
  int64_t i = 0;
  for (; i + (kTilesAtOnce - 1) * kTileTokens < last; i += kTilesAtOnce * kTileTokens) {
    weigh.template operator()<kTilesAtOnce>(i);
  }
  for (; i < last; i += kTileTokens) weigh.template operator()<1>(i);
  return fold_sum(total);
}

// What a result of the chunks before and one of this chunk are multiplied by before they are added.
struct Factors {
  float before, now;
};

// all_max and all_sum take in another chunk's.
OUTPACE_INLINE Factors take_in(float& all_max, float& all_sum, float max, float sum) {
  const float top = max > all_max ? max : all_max;
  F16x differences = {};
  differences.piece[0][0] = all_max - top;
  differences.piece[0][1] = max - top;
  const F16x before_and_now = exp16(differences);
  const Factors factors = {before_and_now[0], before_and_now[1]};
  all_sum = all_sum * factors.before + sum * factors.now;
  all_max = top;
  return factors;
}

OUTPACE_INLINE Factors save_sums(const AttentionTask& t, int64_t head, float max, float sum) {
  if (t.merge) return take_in(t.max[head], t.sum[head], max, sum);
  t.max[head] = max;
  t.sum[head] = sum;
  return {};
}

// 16 channels' sums of weight x value of this chunk, to where `out` has those of all.
OUTPACE_INLINE void save_values(const AttentionTask& t, float* out, const Factors& factors, Floats values) {
  if (t.merge) {
    values = add(mul(load_floats(out), set_floats(factors.before)), mul(values, set_floats(factors.now)));
  }
  store(out, values);
}

void merge_attention(float* acc, float* acc_max, float* acc_sum, const float* out, float max, float sum,
                     int64_t n) {
  const Factors factors = take_in(*acc_max, *acc_sum, max, sum);
  for (int64_t i = 0; i < n; i += 16) {
    store16(acc + i, load16(acc + i) * factors.before + load16(out + i) * factors.now);
  }
}

// Blocks lie far apart, so no hardware prefetcher follows a request's context: while a chunk is computed, the
// lines of the next one are asked for. Evenly, as a burst of them would fill the queue of misses, where this
// chunk's own loads then wait.
class FetchAhead {
 public:
  // `work`: of all calls of after() together, at least 1, in any unit.
  FetchAhead(const AttentionTask& t, int64_t work)
      : task_(t), lines_left_(t.num_next_blocks * lines_in_block()) {
    rate_ = (lines_left_ << kFraction) / work + 1;
  }

  OUTPACE_INLINE_MEMBER void after(int64_t work) {
    for (due_ += work * rate_; due_ >= kOne && lines_left_ > 0; due_ -= kOne, --lines_left_) {
      if (line_ == lines_in_block()) line_ = 0;
      if (line_ == 0) block_ = task_.blocks + *next_++ * task_.block_stride;
      __builtin_prefetch(block_ + 64 * line_++, 0, 2);
    }
  }

 private:
  static constexpr int kFraction = 16;
  static constexpr int64_t kOne = int64_t{1} << kFraction;
  int64_t lines_in_block() const { return (task_.layout->bytes + 63) / 64; }

  const AttentionTask& task_;
  const int32_t* next_ = task_.next_blocks;
  const uint8_t* block_ = nullptr;
  int64_t line_ = 0, lines_left_, rate_, due_ = 0;
};

// Where nothing is to be fetched.
struct NothingAhead {
  void after(int64_t /*work*/) {}
};

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

template <class Ahead>
void attend_with(const AttentionTask& t, Ahead ahead) {
  if (t.layout->int8) {
    alignas(64) float scales[kAttentionChunk];
    const float unit = scale_values(t, t.begin / kTileTokens * kTileTokens, scales);
    each_sub_group(t.num_heads, [&]<int H>(int64_t head) { attend_int8<H>(t, head, scales, unit, ahead); });
  } else {
    each_sub_group(t.num_heads, [&]<int H>(int64_t head) { attend_f16<H>(t, head, ahead); });
  }
}

void attend(const AttentionTask& t) {
  if (t.num_next_blocks == 0) return attend_with(t, NothingAhead{});
  const int64_t tiles = (t.end + kTileTokens - 1) / kTileTokens - t.begin / kTileTokens;
  attend_with(t, FetchAhead(t, t.num_heads * tiles * t.layout->head_dim * 2));
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
