// The native core, on one page: what a model is, what one step takes and what it gives.
//
// api.h <- forward <- kernels: this header knows no kernel, and the kernels know no model.
// All arrays are owned by the caller unless a comment says otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace outpace {

constexpr int kBlockSize = 32;  // tokens in one block of the paged KV cache

// A failure that the user can mend; the message names the cause and the remedy.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The machine has too little memory for what was asked.
struct MemoryError : Error {
  using Error::Error;
};

enum class RopeKind { none, interleaved, half };
enum class Activation { silu, gelu_tanh };
enum class KVFormat { int8, f16 };
enum class WeightFormat { keep, q8_0, q4_0 };

// Mirrors outpace.types.ModelSpec, which explains every field.
struct ModelSpec {
  int64_t vocab_size = 0, hidden_size = 0, num_layers = 0, num_heads = 0, num_kv_heads = 0;
  int64_t head_dim = 0, intermediate_size = 0, max_context = 0;
  float norm_eps = 1e-5f;
  bool qk_norm = false;
  RopeKind rope_kind = RopeKind::half;
  std::vector<float> rope_inv_freq;  // [rotary_dim / 2], radians per token
  float rope_attention_factor = 1.0f;
  float attention_scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  Activation activation = Activation::silu;
  bool tied_embeddings = false;
  int64_t sliding_window = 0;
  float attention_softcap = 0.0f, logit_softcap = 0.0f, embedding_scale = 1.0f;
};

// Where one tensor's bytes lie on disk.
struct TensorRef {
  std::string name;  // canonical: "embed", "layers.0.q", ...
  std::string path;
  uint64_t offset = 0, num_bytes = 0;
  std::string dtype;              // ggml's name: "F32", "Q4_K", ...
  int64_t rows = 0, columns = 0;  // (outputs, inputs); a vector has rows = 1
};

struct Options {
  int num_threads = 1;
  std::string isa = "auto";  // or a tier's name: "portable", "avx2", "avx512vnni", "amx"
  WeightFormat weight_format = WeightFormat::keep;
  KVFormat kv_format = KVFormat::int8;
  int64_t num_blocks = 0;  // of the KV cache
  int64_t max_rows = 512;  // in one step
};

// One request's sampling parameters; the layout of outpace.types.SAMPLING_DTYPE.
struct Sampling {
  uint64_t seed;
  float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  int32_t top_k, num_logprobs, num_prompt_tokens, padding;
};
static_assert(sizeof(Sampling) == 48);

template <class T>
struct Span {
  const T* data = nullptr;
  int64_t size = 0;
};

// One step's rows; outpace.types.StepBatch explains every array.
struct StepBatch {
  int64_t num_rows = 0, num_requests = 0, block_table_width = 0;
  const int32_t* token_ids = nullptr;            // [num_rows]
  const int32_t* row_start = nullptr;            // [num_requests + 1]
  const int32_t* num_computed_tokens = nullptr;  // [num_requests]
  const int32_t* num_draft_tokens = nullptr;     // [num_requests]
  const uint8_t* sample = nullptr;               // [num_requests]
  const int32_t* block_tables = nullptr;         // [num_requests, block_table_width]
  const Sampling* sampling = nullptr;            // [num_requests]
  std::vector<Span<int32_t>> history;            // [num_requests] or empty
  std::vector<Span<int32_t>> bias_token_ids;     // [num_requests] or empty
  std::vector<Span<float>> bias_values;          // the same lengths as bias_token_ids
};

// What a step chose; outpace.types.StepOutput explains every array. The caller allocates.
struct StepOutput {
  int64_t width = 1;                 // 1 + the largest num_draft_tokens
  int64_t num_top = 0;               // rivals kept for each token
  int32_t* token_ids = nullptr;      // [num_requests, width]
  int32_t* num_accepted = nullptr;   // [num_requests]
  float* logprobs = nullptr;         // [num_requests, width] or null
  int32_t* top_token_ids = nullptr;  // [num_requests, width, num_top] or null
  float* top_logprobs = nullptr;     // [num_requests, width, num_top] or null
  float* logits = nullptr;           // [num_rows, vocab_size] or null
};

// A loaded model with its KV cache. step() is not reentrant.
class Model {
 public:
  // Called now and then with the bytes read so far; may throw to stop the load.
  using Progress = std::function<void(uint64_t)>;

  Model(const ModelSpec& spec, const std::vector<TensorRef>& tensors, const Options& options,
        const Progress& progress);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Runs the forward pass of all rows, verifies the drafts and picks the next tokens. Throws Error
  // on a batch that breaks the contract, before anything is computed.
  void step(const StepBatch& batch, StepOutput& output);

  uint64_t weight_bytes() const;  // read by one decode step
  uint64_t memory_bytes() const;  // of weights as they lie in memory, embeddings included
  std::string isa() const;
  int num_threads() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Bytes that one block of the KV cache takes, all layers together.
uint64_t kv_bytes_per_block(const ModelSpec& spec, KVFormat format);

// GB/s of a streaming read of a huge-page buffer, the best of `repeats` passes.
double read_bandwidth(uint64_t num_bytes, int num_threads, int repeats);

// Compiler and flags of this build.
std::string compiler();

// Tiers that this machine can run, the fastest first.
std::vector<std::string> available_isas();

}  // namespace outpace
