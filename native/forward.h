// The decoder's forward pass over the rows of one step, driven by a ModelSpec.
//
// All threads run it side by side; `ThreadPool::parallel` spreads each operation over them and ends
// with a barrier. Every operation is row-wise, so a row's result depends on that row alone.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "aligned.h"
#include "api.h"
#include "kernels/kernels.h"
#include "kv_cache.h"
#include "thread_pool.h"
#include "trace.h"
#include "weights.h"

namespace outpace {

// Memory for rows of quantized activations of any width up to the widest.
struct QuantizedRows {
  LineVector<int8_t> q[2];  // of the high and of the low plane
  LineVector<float> scale[2], scaled_sum[2];
  LineVector<int32_t> sum[2], num_wide, wide;
  LineVector<int16_t> pair_sum[2];
  LineVector<int32_t> half_start[2];

  void resize(int64_t num_rows, int64_t widest);
  // Where row `row` of `columns` activations lies; `cell` is 32 or 256.
  Quantized at(int64_t row, int64_t columns, int64_t cell);
};

// Memory for rows of activations rounded to bf16; none is taken where no row is.
struct RoundedRows {
  LineVector<uint16_t> values;

  void resize(int64_t num_rows, int64_t widest) {
    values.resize(static_cast<size_t>(num_rows * row_stride<uint16_t>(widest)));
  }
  uint16_t* at(int64_t row, int64_t columns) {
    return values.empty() ? nullptr : values.data() + row * row_stride<uint16_t>(columns);
  }
};

class Forward {
 public:
  Forward(const ModelSpec& spec, const Weights& weights, KVCache& cache, const Kernels& kernels,
          ThreadPool& pool);

  // Runs all layers over the rows; hidden() then holds their final states, before the output norm.
  void run(const std::vector<Row>& rows, const int32_t* token_ids);

  // The same for a draft head: `inputs`, [rows.size(), 2 * hidden_size], go through its `fc`.
  void run_head(const std::vector<Row>& rows, float* inputs);

  // A row's final state after the output norm, [hidden_size]; valid until the next call of another method.
  const float* normalized(int64_t row);

  // Logits of some of the rows of the last run(), by the first rows of the weights' `output`.
  // logits: [num_rows, output.padded_rows()]
  void logits(const TileMatrix& output, const int64_t* rows, int64_t num_rows, float* logits);

  // Strips whose products pass through a thread's scratch memory together.
  static constexpr int64_t kStripsAtOnce = 2;

  // Rows that go through a thread's strips together: so many as the second level of the cache holds.
  static int64_t rows_together(int64_t num_rows, int64_t row_bytes, int64_t cache_bytes = kRowBytes);

  // Where the times of the operations go from now on; null: nowhere.
  void set_clock(StepClock* clock) { clock_ = clock; }

 private:
  // Of the activations of rows that go through a thread's strips together. Rounded ones take more: each pass
  // unpacks all weights once more.
  static constexpr int64_t kRowBytes = 768 << 10, kRoundedBytes = 1536 << 10;
  // Inputs of rounded rows that go together where there are more of them.
  static constexpr int64_t kRoundedInputs = 1536;
  static constexpr int64_t kOutputsAtOnce = kStripsAtOnce * kStrip;
  // Rows of a unit of attention: all read a chunk while it is in the nearest caches, and a context that those
  // do not hold comes from memory once a unit. As many as leave each thread a few units, within these bounds.
  static constexpr int64_t kLeastUnitRows = 16, kMostUnitRows = 64, kUnitsPerThread = 4;

  // Neighbouring rows whose products with weights are of one kind.
  struct RowRun {
    int64_t first, count;
    bool rounded;
  };

  // The tokens that a row sees, and where its results lie among the partial ones.
  struct Sight {
    int64_t begin, end;  // tokens
    int64_t partial;     // of the first chunk that it sees
    int64_t num_partials;

    int64_t first_chunk() const { return begin / kAttentionChunk; }
    int64_t last_chunk() const { return (end - 1) / kAttentionChunk; }
  };
  // Neighbouring rows of one request, one KV head, and chunks: what one thread does at a time.
  struct AttentionUnit {
    int64_t first_row, last_row, kv_head, first_chunk, last_chunk;  // all inclusive
  };

  // What ran since the last mark was `op`; after its barrier.
  void mark(Op op) {
    if (clock_ != nullptr && pool_.thread_index() == 0) clock_->mark(op);
  }

  void reserve(int64_t num_rows);
  void reserve_attention(int64_t num_rows);
  // Rows up to which there are too few for all threads, so that the context is shared out too.
  int64_t most_split_rows() const {
    return (kLeastUnitRows * kUnitsPerThread * pool_.num_threads() - 1) / spec_.num_kv_heads;
  }
  int64_t unit_rows(int64_t num_rows) const {
    const int64_t even = num_rows * spec_.num_kv_heads / (kUnitsPerThread * pool_.num_threads());
    return std::clamp(even, kLeastUnitRows, kMostUnitRows);
  }
  bool splits_context(const std::vector<Row>& rows) const {
    return static_cast<int64_t>(rows.size()) <= most_split_rows();
  }
  void start(const std::vector<Row>& rows);
  void turn(int64_t row, int64_t position);
  void plan_attention(const std::vector<Row>& rows);
  void layer(int64_t index, const std::vector<Row>& rows);
  void project_qkv(const LayerWeights& w);
  void rotate_and_cache(int64_t index, const LayerWeights& w, int64_t row, const Row& at);
  int64_t units_together(const std::vector<Row>& rows) const;
  void attend(int64_t index, const std::vector<Row>& rows);
  void fetch_first_chunks(int64_t index, const std::vector<Row>& rows);
  void attend_unit(int64_t index, const AttentionUnit& unit, const std::vector<Row>& rows);
  AttentionTask chunk_task(int64_t index, int64_t kv_head, const Row& at, int64_t row, int64_t chunk);
  void merge_row(int64_t row);
  void feed_forward(const LayerWeights& w, const std::vector<Row>& rows);

  // Which integers the matrices that read a row ask for.
  struct Needs {
    bool per_32 = false, per_256 = false;
  };
  static Needs needs(std::initializer_list<const TileMatrix*> matrices);
  void normalize(const std::vector<float>& weight, const std::vector<Row>& rows, Needs needs);
  void quantize(const float* x, int64_t row, int64_t columns, Needs needs, bool rounded = false);
  // From row `row` on; x: [rows, stride].
  Activations activations(float* x, int64_t stride, int64_t columns, int64_t row);
  // Calls body(first row, rows, rounded) for blocks of rows of one kind, of so many inputs each.
  template <class Body>
  static void by_row_blocks(const std::vector<RowRun>& runs, int64_t inputs, int64_t rounded_inputs,
                            const Body& body);
  // Products with strips of weights, of rows of one kind; out: of the first one.
  void multiply_strips(const TileMatrix& m, int64_t first, int64_t last, const Activations& a,
                       int64_t num_rows, bool rounded, float* out, int64_t stride) const;
  // The same of rounded rows, kRoundedInputs inputs at a time, each part through the strips [first, last).
  void multiply_rounded(const TileMatrix& m, const Activations& a, int64_t num_rows, int64_t first,
                        int64_t last, bool accumulate, float* out, int64_t stride) const;
  // out[row][..] = x W^T, or += where `accumulate` is set; strips spread over the threads.
  void multiply(const TileMatrix& m, float* x, int64_t x_stride, const std::vector<RowRun>& runs, float* out,
                int64_t stride, bool accumulate);
  static constexpr int64_t kRangesPerThread = 8;
  int64_t grain(int64_t num_strips) const;

  const ModelSpec& spec_;
  const Weights& weights_;
  KVCache& cache_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  StepClock* clock_ = nullptr;
  const int64_t padded_head_dim_, num_pairs_, group_heads_;
  const float attention_scale_;
  // Of norm_, attended_ and inner_, which matrices read.
  const int64_t norm_stride_, attended_stride_, inner_stride_;

  int64_t reserved_rows_ = 0, widest_ = 0;
  // Rows of floats, each [reserved_rows_, its width or stride].
  LineVector<float> x_, norm_, q_raw_, k_raw_, v_raw_, query_, attended_, inner_;
  std::vector<float> cos_, sin_;
  LineVector<int8_t> query_high_, query_low_;  // as query_: [reserved_rows_, num_heads, padded_head_dim]
  LineVector<float> query_unit_;               // [reserved_rows_, num_heads]
  LineVector<int32_t> query_sum_;
  QuantizedRows per_32_, per_256_;  // the activations of the current operation
  RoundedRows rounded_;
  std::vector<RowRun> runs_, exact_run_;  // of the step's rows, and all rows as one exact run
  std::vector<AttentionUnit> units_;
  std::vector<Sight> sights_;                              // per row
  LineVector<float> partial_, partial_max_, partial_sum_;  // [partials, num_heads, (padded_head_dim)]
  std::vector<LineVector<float>> scratch_;                 // per thread
};

}  // namespace outpace
