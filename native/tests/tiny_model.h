// A tiny random model in a file, loaded through api.h, and batches for it.
#pragma once

#include <unistd.h>

#include <cstdlib>

#include "api.h"
#include "check.h"

namespace tiny {

inline constexpr int64_t kBlocks = 8;

inline outpace::ModelSpec spec() {
  outpace::ModelSpec s;
  s.vocab_size = 500;
  s.hidden_size = 64;
  s.num_layers = 2;
  s.num_heads = 4;
  s.num_kv_heads = 2;
  s.head_dim = 16;
  s.intermediate_size = 96;
  s.max_context = kBlocks * outpace::kBlockSize;
  for (int i = 0; i < 8; ++i) s.rope_inv_freq.push_back(std::pow(1e4f, -static_cast<float>(i) / 8.0f));
  s.tied_embeddings = true;
  return s;
}

// A file of random floats, of a model or of a draft head, removed at the end.
class File {
 public:
  explicit File(const outpace::ModelSpec& s, bool is_head = false) : fd_(mkstemp(path_)) {
    const int64_t q = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
    if (is_head)
      add("fc", s.hidden_size, 2 * s.hidden_size);
    else
      add("embed", s.vocab_size, s.hidden_size);
    if (!s.tied_embeddings) add("output", s.vocab_size, s.hidden_size);
    add("output_norm", 1, s.hidden_size);
    for (int64_t i = 0; i < s.num_layers; ++i) {
      const std::string prefix = "layers." + std::to_string(i) + ".";
      for (const char* norm : {"attn_norm", "ffn_norm"}) add(prefix + norm, 1, s.hidden_size);
      add(prefix + "q", q, s.hidden_size);
      for (const char* name : {"k", "v"}) add(prefix + name, kv, s.hidden_size);
      add(prefix + "o", s.hidden_size, q);
      for (const char* name : {"gate", "up"}) add(prefix + name, s.intermediate_size, s.hidden_size);
      add(prefix + "down", s.hidden_size, s.intermediate_size);
    }
  }
  ~File() {
    close(fd_);
    unlink(path_);
  }
  const std::vector<outpace::TensorRef>& tensors() const { return tensors_; }

 private:
  void add(const std::string& name, int64_t rows, int64_t columns) {
    std::vector<float> values(static_cast<size_t>(rows * columns));
    for (float& v : values) v = random_.normal() * (rows == 1 ? 0.1f : 0.2f) + (rows == 1 ? 1.0f : 0.0f);
    const uint64_t bytes = values.size() * sizeof(float);
    if (pwrite(fd_, values.data(), bytes, static_cast<off_t>(size_)) != static_cast<ssize_t>(bytes))
      std::abort();
    tensors_.push_back({name, path_, size_, bytes, "F32", rows, columns});
    size_ += bytes;
  }

  char path_[32] = "/tmp/outpace_test_XXXXXX";
  const int fd_;
  uint64_t size_ = 0;
  check::Random random_{1};
  std::vector<outpace::TensorRef> tensors_;
};

// A batch that owns its arrays, so that the sanitizers see their ends. One draft-free row per request, until
// changed; link() after each change.
struct Batch {
  std::vector<int32_t> token_ids, row_start{0}, num_computed, num_drafts, tables;
  std::vector<uint8_t> sample;
  std::vector<outpace::Sampling> sampling;
  int64_t table_width = kBlocks, width = 1;
  std::vector<int32_t> out_token_ids, out_accepted;
  outpace::StepBatch batch;
  outpace::StepOutput output;

  // A request with these tokens after `computed` ones, in blocks from `first_block` on.
  void add(const std::vector<int32_t>& tokens, int32_t computed, int32_t drafts = 0,
           int32_t first_block = 0) {
    token_ids.insert(token_ids.end(), tokens.begin(), tokens.end());
    row_start.push_back(static_cast<int32_t>(token_ids.size()));
    num_computed.push_back(computed);
    num_drafts.push_back(drafts);
    sample.push_back(1);
    sampling.push_back({7, 0.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, -1, 0, 0});
    for (int32_t i = 0; i < table_width; ++i)
      tables.push_back((first_block + i) % static_cast<int32_t>(kBlocks));
    width = std::max<int64_t>(width, drafts + 1);
  }
  void link() {
    batch.num_rows = static_cast<int64_t>(token_ids.size());
    batch.num_requests = static_cast<int64_t>(num_computed.size());
    batch.block_table_width = table_width;
    batch.token_ids = token_ids.data();
    batch.row_start = row_start.data();
    batch.num_computed_tokens = num_computed.data();
    batch.num_draft_tokens = num_drafts.data();
    batch.sample = sample.data();
    batch.block_tables = tables.data();
    batch.sampling = sampling.data();
    out_token_ids.assign(static_cast<size_t>(batch.num_requests * width), -1);
    out_accepted.assign(static_cast<size_t>(batch.num_requests), -1);
    output.width = width;
    output.token_ids = out_token_ids.data();
    output.num_accepted = out_accepted.data();
  }
};

}  // namespace tiny
