#include "draft_head.h"

#include <algorithm>
#include <cmath>

#include "sampler.h"

namespace outpace {

namespace {

Options head_options(Options options, const HeadSpec& spec) {
  options.num_blocks = spec.num_blocks;
  options.max_tree_rows = 0;
  return options;
}

void check_head(const HeadSpec& head, const ModelSpec& model) {
  if (head.layers.hidden_size != model.hidden_size)
    throw Error("the draft head is for a model of hidden size " + std::to_string(head.layers.hidden_size) +
                ", and this one has " + std::to_string(model.hidden_size));
  if (static_cast<int64_t>(head.token_ids.size()) != head.layers.vocab_size || head.token_ids.empty())
    throw Error("the draft head's vocabulary has another size than its output");
  int64_t before = -1;
  for (const int32_t id : head.token_ids) {
    if (id <= before || id >= model.vocab_size)
      throw Error("the draft head's vocabulary is not ascending, or has tokens that the model lacks");
    before = id;
  }
}

}  // namespace

DraftHead::DraftHead(const HeadSpec& spec, const std::vector<TensorRef>& tensors, const ModelSpec& model,
                     const Options& options, const TileMatrix& embed, const Kernels& kernels,
                     ThreadPool& pool)
    : states((check_head(spec, model), options.num_blocks), model.hidden_size),
      model_(model),
      spec_(spec.layers),
      token_ids_(spec.token_ids),
      options_(head_options(options, spec)),
      embed_(embed),
      kernels_(kernels),
      pool_(pool),
      weights_(Weights::load_head(spec_, tensors, spec.weight_format, kernels, pool)),
      cache_(spec_, options_),
      forward_(spec_, weights_, cache_, kernels, pool),
      model_blocks_(options.num_blocks) {}

// Everything that memory safety rests on.
void DraftHead::check(const HeadBatch& b, const HeadOutput& output) const {
  const auto refuse = [](const std::string& what) { throw Error("bad draft head batch: " + what); };
  const auto check_table = [&](const int32_t* table, int64_t width, int64_t num_tokens, int64_t num_blocks) {
    const int64_t used = (num_tokens + kBlockSize - 1) / kBlockSize;
    if (used > width) refuse("a block table is too short");
    for (int64_t i = 0; i < used; ++i) {
      if (table[i] < 0 || table[i] >= num_blocks) refuse("a block id is out of range");
    }
  };
  if (b.row_start[0] != 0 || b.row_start[b.num_requests] != b.num_rows)
    refuse("row_start does not cover the rows");
  for (int64_t i = 0; i < b.num_requests; ++i) {
    const int64_t count = b.row_start[i + 1] - b.row_start[i], first = b.positions[i], most = b.max_tokens[i];
    if (count < 1 || b.starts[i] < 0 || first < b.starts[i])
      refuse("a request without rows, or from before it");
    if (most < 1 || most > output.width) refuse("max_tokens is not in 1.." + std::to_string(output.width));
    // The last guess has no entry, and the last token no state yet.
    check_table(b.head_tables + i * b.head_table_width, b.head_table_width,
                first - b.starts[i] + count + most - 1, cache_.num_blocks);
    check_table(b.block_tables + i * b.block_table_width, b.block_table_width, first + count - 1,
                model_blocks_);
  }
  for (int64_t r = 0; r < b.num_rows; ++r) {
    if (b.token_ids[r] < 0 || b.token_ids[r] >= model_.vocab_size) refuse("a token id is out of range");
  }
}

void DraftHead::guess(const HeadBatch& b, HeadOutput& output) {
  check(b, output);
  progress_.assign(static_cast<size_t>(b.num_requests), {});
  own_.resize(static_cast<size_t>(b.num_requests * spec_.hidden_size));
  std::fill_n(output.num_tokens, b.num_requests, 0);
  read(b, output);
  while (true) {
    entries_.clear();
    for (int64_t i = 0; i < b.num_requests; ++i) {
      const Progress& at = progress_[static_cast<size_t>(i)];
      if (at.open) entries_.push_back({i, at.position, at.token_id, true, true});
    }
    if (entries_.empty()) return;
    make_entries(b);
    pick(b, output);
  }
}

// The tokens that it has not read, and the first guess for each request.
void DraftHead::read(const HeadBatch& b, HeadOutput& output) {
  entries_.clear();
  for (int64_t i = 0; i < b.num_requests; ++i) {
    for (int64_t r = b.row_start[i]; r < b.row_start[i + 1]; ++r) {
      const bool last = r + 1 == b.row_start[i + 1];
      entries_.push_back({i, b.positions[i] + r - b.row_start[i], b.token_ids[r], false, last});
      if (static_cast<int64_t>(entries_.size()) < options_.max_rows && r + 1 < b.num_rows) continue;
      make_entries(b);
      pick(b, output);
      entries_.clear();
    }
  }
}

void DraftHead::fill_input(const HeadBatch& b, const Entry& entry, float* input) const {
  kernels_.dequantize_row(embed_, entry.token_id, input);
  if (model_.embedding_scale != 1.0f) kernels_.scale(input, model_.embedding_scale, spec_.hidden_size);
  float* before = input + spec_.hidden_size;
  const int64_t position = entry.position - 1;
  if (entry.guessed) {
    std::copy_n(state(entry.request), spec_.hidden_size, before);
  } else if (position < 0) {
    std::fill_n(before, spec_.hidden_size, 0.0f);
  } else {
    const int32_t* table = b.block_tables + entry.request * b.block_table_width;
    states.load(table[position / kBlockSize], position % kBlockSize, before);
  }
}

// Runs the layers over `entries_`.
void DraftHead::make_entries(const HeadBatch& b) {
  const size_t width = static_cast<size_t>(2 * spec_.hidden_size);
  if (inputs_.size() < entries_.size() * width) inputs_.resize(entries_.size() * width);
  rows_.clear();
  asked_.clear();
  for (size_t r = 0; r < entries_.size(); ++r) {
    const Entry& entry = entries_[r];
    fill_input(b, entry, inputs_.data() + r * width);
    rows_.push_back({entry.request, entry.position - b.starts[entry.request],
                     b.head_tables + entry.request * b.head_table_width});
    if (entry.last) asked_.push_back(static_cast<int64_t>(r));
  }
  forward_.run_head(rows_, inputs_.data());
}

// The next token of each request that asks for one.
void DraftHead::pick(const HeadBatch& b, HeadOutput& output) {
  const auto count = static_cast<int64_t>(asked_.size());
  if (count == 0) return;
  const auto need = static_cast<size_t>(count * weights_.output.padded_rows());
  if (logits_.size() < need) logits_.resize(need);
  forward_.logits(weights_.output, asked_.data(), count, logits_.data());
  const auto pick_some = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      pick_one(b, output, asked_[static_cast<size_t>(i)], logits_.data() + i * weights_.output.padded_rows());
    }
  };
  if (count == 1) return pick_some(0, 1);
  pool_.run([&](int) { pool_.parallel(count, 1, pick_some); });
}

void DraftHead::pick_one(const HeadBatch& b, HeadOutput& output, int64_t row, float* logits) {
  const Entry& entry = entries_[static_cast<size_t>(row)];
  const int64_t i = entry.request;
  std::copy_n(forward_.normalized(row), spec_.hidden_size, state(i));
  Sampling sampling = b.sampling[i];
  sampling.repetition_penalty = 1.0f;
  sampling.presence_penalty = sampling.frequency_penalty = 0.0f;
  sampling.num_logprobs = 0;
  SampleRequest request{&sampling, entry.position + 1};
  request.token_ids = token_ids_.data();
  const Sampled sampled = sample(kernels_, logits, spec_.vocab_size, request);
  const float chance = std::exp(sampled.logprob);
  Progress& at = progress_[static_cast<size_t>(i)];
  at.open = false;
  if (!(chance >= 0.0f && chance <= 1.0001f)) return;  // not a number: a damaged head has no guess
  int32_t& num_tokens = output.num_tokens[i];
  at.token_id = token_ids_[static_cast<size_t>(sampled.token_id)];
  at.position = entry.position + 1;
  at.chance *= chance;
  output.token_ids[i * output.width + num_tokens] = at.token_id;
  output.chances[i * output.width + num_tokens] = chance;
  ++num_tokens;
  at.open = num_tokens < b.max_tokens[i] && at.chance >= b.least_chances[num_tokens];
}

}  // namespace outpace
