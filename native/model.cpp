#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "api.h"
#include "cpu.h"
#include "draft_head.h"
#include "draft_tree.h"
#include "forward.h"
#include "product_probe.h"
#include "sampler.h"
#include "thread_pool.h"
#include "trace.h"
#include "weights.h"

namespace outpace {

namespace {

constexpr int64_t kLogitRows = 64;  // rows whose logits are held at once

void check_spec(const ModelSpec& spec) {
  const auto refuse = [](const std::string& what) {
    throw Error("the model's metadata is impossible: " + what);
  };
  if (spec.num_layers < 1 || spec.hidden_size < 1 || spec.vocab_size < 1 || spec.intermediate_size < 1)
    refuse("a size is zero");
  if (spec.num_kv_heads < 1 || spec.num_heads % spec.num_kv_heads != 0)
    refuse("the query heads are no multiple of the KV heads");
  if (spec.head_dim < 1 || spec.head_dim > kMaxHeadDim)
    refuse("head_dim is over " + std::to_string(kMaxHeadDim));
  if (2 * static_cast<int64_t>(spec.rope_inv_freq.size()) > spec.head_dim)
    refuse("more rotary dimensions than head_dim");
}

const Kernels& kernels_for(const Options& options) {
  const Kernels& kernels = select_kernels(options.isa);
  if (options.prefill == Prefill::fast && kernels.matmul_strip_bf16 == nullptr)
    throw Error(std::string("the tier ") + kernels.name + " has no fast prefill");
  return kernels;
}

// A row whose final hidden state a draft head may read, and its token's place in the KV cache.
struct KeptState {
  int64_t row, block, slot;
};

}  // namespace

struct Model::Impl {
  ModelSpec spec;
  Options options;
  const Kernels& kernels;
  const std::shared_ptr<ThreadPool> threads;
  ThreadPool& pool;
  Weights weights;
  KVCache cache;
  DraftTrees trees;
  Forward forward;
  std::vector<Row> rows;
  std::vector<int64_t> sampled_rows;
  std::vector<float> logits;
  std::vector<int32_t> chosen;  // [num_rows] what each sampled row picked
  std::atomic<bool> not_a_number{false};
  StepClock clock;
  bool tracing = false;
  std::unique_ptr<DraftHead> head;  // null: none
  std::vector<KeptState> kept;      // of the present step, for the head

  Impl(const ModelSpec& model, const std::vector<TensorRef>& tensors, const Options& opts,
       const Progress& progress, std::shared_ptr<ThreadPool> shared)
      : spec((check_spec(model), model)),
        options(opts),
        kernels(kernels_for(opts)),
        threads(shared ? std::move(shared)
                       : std::make_shared<ThreadPool>(std::max(1, opts.num_threads), opts.cores)),
        pool(*threads),
        weights(Weights::load(spec, tensors, opts, kernels, pool, progress)),
        cache(spec, opts),
        trees(cache),
        forward(spec, weights, cache, kernels, pool) {}

  void step(const StepBatch& batch, StepOutput& output);
  void mark(Op op) {
    if (tracing) clock.mark(op);
  }
  void place_rows(const StepBatch& batch, int64_t output_width);
  void sample_row(const StepBatch& batch, StepOutput& output, int64_t row, float* row_logits,
                  int64_t num_tokens);
  void accept(const StepBatch& batch, StepOutput& output);
  void keep_states(const StepBatch& batch);
  void copy_hidden(int64_t num_rows, float* hidden);
  static void move_choice(StepOutput& output, int64_t from, int64_t to);

  // The first row of a request that yields a token: the one before its drafts.
  static int64_t first_sampled(const StepBatch& b, int64_t request) {
    return b.row_start[request + 1] - 1 - b.num_draft_tokens[request];
  }
};

// Checks everything that memory safety rests on, and notes where each row goes.
void Model::Impl::place_rows(const StepBatch& b, int64_t output_width) {
  const auto refuse = [](const std::string& what) { throw Error("bad step batch: " + what); };
  if (b.num_rows < 1 || b.num_rows > options.max_rows)
    refuse("num_rows is not in 1.." + std::to_string(options.max_rows));
  if (b.row_start[0] != 0 || b.row_start[b.num_requests] != b.num_rows)
    refuse("row_start does not cover the rows");
  rows.clear();
  for (int64_t i = 0; i < b.num_requests; ++i) {
    const int64_t count = b.row_start[i + 1] - b.row_start[i], start = b.num_computed_tokens[i];
    if (count < 1 || start < 0) refuse("a request without rows, or with negative positions");
    if (b.num_draft_tokens[i] < 0 || b.num_draft_tokens[i] >= count) refuse("more drafts than rows");
    if (b.num_draft_tokens[i] >= output_width) refuse("the output is too narrow for the drafts");
    const int64_t num_words = b.token_masks.empty() ? 0 : b.token_masks[static_cast<size_t>(i)].size;
    if (num_words != 0 && num_words != (b.num_draft_tokens[i] + 1) * mask_words(spec.vocab_size))
      refuse("a token mask has another size than its rows");
    const int32_t* table = b.block_tables + i * b.block_table_width;
    const int64_t num_blocks = (start + count + kBlockSize - 1) / kBlockSize;
    if (num_blocks > b.block_table_width) refuse("a block table is too short");
    for (int64_t k = 0; k < num_blocks; ++k) {
      if (table[k] < 0 || table[k] >= cache.num_blocks) refuse("a block id is out of range");
    }
    const int64_t num_rounded = options.prefill == Prefill::fast ? b.sampling[i].num_prompt_tokens : 0;
    for (int64_t r = 0; r < count; ++r) rows.push_back({i, start + r, table, {}, start + r < num_rounded});
  }
  if (b.num_output_tokens < 0 || b.num_output_tokens > spec.vocab_size)
    refuse("num_output_tokens is not in 0.." + std::to_string(spec.vocab_size));
  for (int64_t r = 0; r < b.num_rows; ++r) {
    if (b.token_ids[r] < 0 || b.token_ids[r] >= spec.vocab_size) refuse("a token id is out of range");
  }
  trees.place(b, rows);
}

void Model::Impl::step(const StepBatch& batch, StepOutput& output) {
  if (tracing) clock.start();
  place_rows(batch, output.width);
  forward.run(rows, batch.token_ids);
  sampled_rows.clear();
  for (int64_t i = 0; i < batch.num_requests; ++i) {
    const int64_t first = output.logits != nullptr ? batch.row_start[i] : first_sampled(batch, i);
    if (batch.sample[i] == 0 && output.logits == nullptr) continue;
    for (int64_t r = first; r < batch.row_start[i + 1]; ++r) sampled_rows.push_back(r);
  }
  chosen.assign(static_cast<size_t>(batch.num_rows), 0);
  const auto total = static_cast<int64_t>(sampled_rows.size());
  TileMatrix output_rows = weights.output;
  if (batch.num_output_tokens > 0) output_rows.rows = batch.num_output_tokens;
  const auto need = static_cast<size_t>(std::min(total, kLogitRows) * output_rows.padded_rows());
  if (logits.size() < need) logits.resize(need);
  for (int64_t at = 0; at < total; at += kLogitRows) {
    const int64_t count = std::min(kLogitRows, total - at);
    forward.logits(output_rows, sampled_rows.data() + at, count, logits.data());
    pool.run([&](int) {
      pool.parallel(count, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          sample_row(batch, output, sampled_rows[static_cast<size_t>(at + i)],
                     logits.data() + i * output_rows.padded_rows(), output_rows.rows);
        }
      });
    });
    mark(Op::sample);
  }
  if (not_a_number.exchange(false)) {
    throw Error(
        "the model's logits are not numbers; the weights are damaged or overflow: bring the file again");
  }
  accept(batch, output);
  if (head) keep_states(batch);
  if (output.hidden != nullptr) copy_hidden(batch.num_rows, output.hidden);
  mark(Op::other);
  if (tracing) count_work(spec, weights, output_rows, cache.layout, rows, total, clock.trace());
}

void Model::Impl::sample_row(const StepBatch& b, StepOutput& output, int64_t row, float* row_logits,
                             int64_t num_tokens) {
  if (output.logits != nullptr) {
    float* to = output.logits + row * spec.vocab_size;
    std::copy_n(row_logits, num_tokens, to);
    std::fill(to + num_tokens, to + spec.vocab_size, -std::numeric_limits<float>::infinity());
  }
  const int64_t request = rows[static_cast<size_t>(row)].request, first = first_sampled(b, request);
  if (b.sample[request] == 0 || row < first) return;
  const auto i = static_cast<size_t>(request);
  SampleRequest what{&b.sampling[request], rows[static_cast<size_t>(row)].position + 1};
  what.drafts = trees.path(b, first, row);
  if (!b.history.empty()) what.history = b.history[i];
  if (!b.bias_token_ids.empty()) {
    what.bias_token_ids = b.bias_token_ids[i];
    what.bias_values = b.bias_values[i];
  }
  if (!b.token_masks.empty() && b.token_masks[i].size != 0) {
    what.token_mask = b.token_masks[i].data + (row - first) * mask_words(spec.vocab_size);
  }
  const Sampled sampled = sample(kernels, row_logits, num_tokens, what);
  if (std::isnan(row_logits[sampled.token_id])) not_a_number = true;
  chosen[static_cast<size_t>(row)] = sampled.token_id;
  const int64_t at = request * output.width + row - first;
  output.token_ids[at] = sampled.token_id;
  if (output.logprobs != nullptr) output.logprobs[at] = sampled.logprob;
  if (output.top_token_ids == nullptr) return;
  for (size_t k = 0; k < sampled.top.size() && k < static_cast<size_t>(output.num_top); ++k) {
    output.top_token_ids[at * output.num_top + static_cast<int64_t>(k)] = sampled.top[k].first;
    output.top_logprobs[at * output.num_top + static_cast<int64_t>(k)] = sampled.top[k].second;
  }
}

// A draft is accepted exactly when it is the token that plain decoding picks. In a tree the accepted rows
// may lie anywhere; what they and the last one picked moves to the front.
void Model::Impl::accept(const StepBatch& b, StepOutput& output) {
  for (int64_t i = 0; i < b.num_requests; ++i) {
    output.num_accepted[i] = 0;
    if (b.sample[i] == 0) continue;
    const int64_t first = first_sampled(b, i);
    int64_t row = first, next = 0;
    while ((next = trees.child(b, i, row, chosen[static_cast<size_t>(row)])) >= 0) {
      row = next;
      const int64_t to = i * output.width + ++output.num_accepted[i], from = i * output.width + row - first;
      if (from != to) move_choice(output, from, to);
    }
    trees.accept(b, first, row, rows);
  }
}

void Model::Impl::move_choice(StepOutput& output, int64_t from, int64_t to) {
  output.token_ids[to] = output.token_ids[from];
  if (output.logprobs != nullptr) output.logprobs[to] = output.logprobs[from];
  if (output.top_token_ids == nullptr) return;
  std::copy_n(output.top_token_ids + from * output.num_top, output.num_top,
              output.top_token_ids + to * output.num_top);
  std::copy_n(output.top_logprobs + from * output.num_top, output.num_top,
              output.top_logprobs + to * output.num_top);
}

// For the head: of all tokens that are in the KV cache for good, hence not of drafts that were refused.
void Model::Impl::keep_states(const StepBatch& b) {
  kept.clear();
  for (int64_t i = 0; i < b.num_requests; ++i) {
    int64_t position = b.num_computed_tokens[i], row = b.row_start[i];
    const int64_t root = first_sampled(b, i);
    const auto keep = [&] {
      const int32_t* table = b.block_tables + i * b.block_table_width;
      kept.push_back({row, table[position / kBlockSize], position % kBlockSize});
      ++position;
    };
    for (; row <= root; ++row) keep();
    if (b.sample[i] == 0) continue;
    row = root;
    while ((row = trees.child(b, i, row, chosen[static_cast<size_t>(row)])) >= 0) keep();
  }
  pool.run([&](int) {
    pool.parallel(static_cast<int64_t>(kept.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const KeptState& at = kept[static_cast<size_t>(k)];
        head->states.store(at.block, at.slot, forward.normalized(at.row));
      }
    });
  });
}

// hidden: [num_rows, hidden_size], the final states after the output norm.
void Model::Impl::copy_hidden(int64_t num_rows, float* hidden) {
  pool.run([&](int) {
    pool.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r)
        std::copy_n(forward.normalized(r), spec.hidden_size, hidden + r * spec.hidden_size);
    });
  });
}

Model::Model(const ModelSpec& spec, const std::vector<TensorRef>& tensors, const Options& options,
             const Progress& progress, const Model* threads_of)
    : impl_(std::make_unique<Impl>(spec, tensors, options, progress,
                                   threads_of == nullptr ? nullptr : threads_of->impl_->threads)) {}
Model::~Model() = default;
void Model::step(const StepBatch& batch, StepOutput& output) { impl_->step(batch, output); }
void Model::attach_head(const HeadSpec& spec, const std::vector<TensorRef>& tensors) {
  check_spec(spec.layers);
  impl_->head = std::make_unique<DraftHead>(spec, tensors, impl_->spec, impl_->options, impl_->weights.embed,
                                            impl_->kernels, impl_->pool);
}
uint64_t Model::head_bytes() const { return impl_->head ? impl_->head->weight_bytes() : 0; }
void Model::guess(const HeadBatch& batch, HeadOutput& output) {
  if (!impl_->head) throw Error("there is no draft head");
  impl_->head->guess(batch, output);
}
void Model::set_trace(bool on) {
  impl_->tracing = on;
  impl_->forward.set_clock(on ? &impl_->clock : nullptr);
}
const StepTrace& Model::trace() const { return impl_->clock.trace(); }
std::array<double, kNumOps> Model::product_seconds() const {
  return outpace::product_seconds(impl_->weights, trace(), impl_->kernels, impl_->pool);
}
uint8_t* Model::kv_blocks() const { return impl_->cache.memory.data(); }
int64_t Model::num_kv_blocks() const { return impl_->cache.num_blocks; }
int64_t Model::kv_block_bytes() const { return impl_->cache.block_stride(); }
uint8_t* Model::state_blocks() const { return impl_->head ? impl_->head->states.data() : nullptr; }
int64_t Model::state_block_bytes() const {
  return static_cast<int64_t>(hidden_bytes_per_block(impl_->spec.hidden_size));
}
uint64_t Model::weight_bytes() const { return impl_->weights.step_bytes; }
uint64_t Model::memory_bytes() const { return impl_->weights.tiles.size(); }
std::string Model::packed_state() const { return impl_->weights.packed_state; }
std::string Model::packed_note() const { return impl_->weights.packed_note; }
std::string Model::isa() const { return impl_->kernels.name; }
int Model::num_threads() const { return impl_->pool.num_threads(); }

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__ " " OUTPACE_FLAGS;
#else
  return "gcc " __VERSION__ " " OUTPACE_FLAGS;
#endif
}

std::vector<std::string> available_isas() { return available_tiers(); }

bool has_fast_prefill(const std::string& isa) { return select_kernels(isa).matmul_strip_bf16 != nullptr; }

}  // namespace outpace
