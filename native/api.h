// The native core, on one page: what a model is, what one step takes and what it gives.
//
// api.h <- forward <- kernels: this header knows no kernel, and the kernels know no model.
// All arrays are owned by the caller unless a comment says otherwise.
#pragma once

#include <array>
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
enum class Prefill { exact, fast };  // fast: products of prompts' tokens with weights may be in bf16
enum class WeightFormat { keep, q8_0, q4_0 };  // q8_0, q4_0: what tensors of more bits become at load

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

// Raised by whoever changes the bytes of packed tiles, or their order (kernels/tiles.h, weights.cpp).
constexpr uint32_t kPackedLayout = 2;

// Where packed weights are kept between loads; native/packed_cache.h has the file's format.
struct PackedCache {
  std::string path;    // empty: nowhere
  std::string key;     // hexadecimal SHA-256 of all that decides the tiles' bytes
  std::string source;  // the model's path, noted in the file for whoever tidies up
  bool write = false;  // where there is none for this key
};

struct Options {
  int num_threads = 1;
  std::vector<std::vector<int>> cores;  // where to pin thread 1, 2, ... (the first is unused); empty: nowhere
  std::string isa = "auto";             // or a tier's name: "portable", "avx2", "avxvnni", "amx", "neon", ...
  WeightFormat weight_format = WeightFormat::keep;
  KVFormat kv_format = KVFormat::int8;
  Prefill prefill = Prefill::exact;  // fast where the tier has it alone
  int64_t num_blocks = 0;            // of the KV cache
  int64_t max_rows = 512;            // in one step
  int64_t max_tree_rows = 64;        // of them, in drafts that branch; each takes a block of address space
  PackedCache packed;
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
  const int32_t* draft_parents = nullptr;        // [num_rows] or null: all drafts are chains
  const uint8_t* sample = nullptr;               // [num_requests]
  const int32_t* block_tables = nullptr;         // [num_requests, block_table_width]
  const Sampling* sampling = nullptr;            // [num_requests]
  std::vector<Span<int32_t>> history;            // [num_requests] or empty
  std::vector<Span<int32_t>> bias_token_ids;     // [num_requests] or empty
  std::vector<Span<float>> bias_values;          // the same lengths as bias_token_ids
  // [num_requests] or empty: for the row before the drafts and for every draft, a bit for each token that may
  // follow, in mask_words() words; a span of none allows all.
  std::vector<Span<uint32_t>> token_masks;
  int64_t num_output_tokens = 0;  // that may be chosen, the first of the vocabulary; 0: all
};

// Words of one row of a token mask.
constexpr int64_t mask_words(int64_t vocab_size) { return (vocab_size + 31) / 32; }

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
  float* hidden = nullptr;           // [num_rows, hidden_size] or null
};

// A trained draft head (draft_head.h): its layers, as a model's whose vocabulary is `token_ids`, those of the
// model's tokens that it can guess, ascending; and the blocks of its own KV cache.
struct HeadSpec {
  ModelSpec layers;
  std::vector<int32_t> token_ids;  // [layers.vocab_size]
  WeightFormat weight_format = WeightFormat::q8_0;
  int64_t num_blocks = 0;
};

// Requests to guess for; outpace.types.HeadBatch explains every array.
struct HeadBatch {
  int64_t num_rows = 0, num_requests = 0, block_table_width = 0, head_table_width = 0;
  const int32_t* token_ids = nullptr;     // [num_rows]
  const int32_t* row_start = nullptr;     // [num_requests + 1]
  const int32_t* positions = nullptr;     // [num_requests]
  const int32_t* starts = nullptr;        // [num_requests]
  const int32_t* block_tables = nullptr;  // [num_requests, block_table_width]
  const int32_t* head_tables = nullptr;   // [num_requests, head_table_width]
  const int32_t* max_tokens = nullptr;    // [num_requests]
  const Sampling* sampling = nullptr;     // [num_requests]
  const float* least_chances = nullptr;   // [HeadOutput::width]
};

// The guesses; outpace.types.HeadOutput explains every array. The caller allocates.
struct HeadOutput {
  int64_t width = 1;              // at least the largest max_tokens
  int32_t* token_ids = nullptr;   // [num_requests, width]
  float* chances = nullptr;       // [num_requests, width]
  int32_t* num_tokens = nullptr;  // [num_requests]
};

// The operations of a step, in their order; `other` is what lies outside them.
enum class Op {
  embed,      // and the angles of the positions
  attn_norm,  // and its quantization, as the other norms
  qkv,
  rope,       // and what is written to the KV cache
  attention,  // and the quantization of its result
  o,
  ffn_norm,
  gate_up,   // and the activation
  quantize,  // what `down` reads
  down,
  output_norm,
  output,
  sample,
  other,
};
constexpr int kNumOps = static_cast<int>(Op::other) + 1;
const char* op_name(Op op);

// One operation, all layers together. Bytes and multiply-accumulates are what it cannot do without: weights
// and, in attention, keys and values once; the second plane of wide activations is not counted.
struct OpTrace {
  double seconds = 0.0;
  uint64_t num_bytes = 0, num_macs = 0;
};

struct StepTrace {
  double seconds = 0.0;  // of the whole step: the sum of its operations
  OpTrace ops[kNumOps];
  OpTrace& at(Op op) { return ops[static_cast<int>(op)]; }
};

// A loaded model with its KV cache. step() is not reentrant.
class Model {
 public:
  // Called now and then with the bytes read so far; may throw to stop the load.
  using Progress = std::function<void(uint64_t)>;

  // With `threads_of` it runs on that model's threads (`num_threads` and `cores` of the options count for
  // nothing) and keeps them when that model goes. Steps of such models wait for each other.
  Model(const ModelSpec& spec, const std::vector<TensorRef>& tensors, const Options& options,
        const Progress& progress, const Model* threads_of = nullptr);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Runs the forward pass of all rows, verifies the drafts and picks the next tokens. Throws Error
  // on a batch that breaks the contract, before anything is computed.
  void step(const StepBatch& batch, StepOutput& output);

  // Loads a draft head; every step keeps its tokens' hidden states for it from then on. Call it before the
  // first step, once. Throws Error where the head is not one for this model.
  void attach_head(const HeadSpec& head, const std::vector<TensorRef>& tensors);
  uint64_t head_bytes() const;  // that one guess of the head reads; 0: no head

  // Lets the head read what it has not read of each request, and guess on. Throws Error on a batch that
  // breaks the contract, before anything is computed, or where there is no head. Touches nothing that step()
  // reads.
  void guess(const HeadBatch& batch, HeadOutput& output);

  // While it is on, each step() leaves a trace.
  void set_trace(bool on);
  const StepTrace& trace() const;  // of the last such step
  // Seconds that the matrix products of each operation of that step take where weights and activations are in
  // the nearest caches, measured now; 0: it has none.
  std::array<double, kNumOps> product_seconds() const;

  // The memory of the KV cache: blocks one after the other, each all layers' keys and values of kBlockSize
  // tokens. A full block stays as it is until a step is told to write to it.
  uint8_t* kv_blocks() const;
  int64_t num_kv_blocks() const;
  int64_t kv_block_bytes() const;
  // The hidden states that the draft head reads, hidden_bytes_per_block for each of these blocks; nullptr
  // without a head. Whoever writes a block into the KV cache sets its states to zeros.
  uint8_t* state_blocks() const;
  int64_t state_block_bytes() const;

  uint64_t weight_bytes() const;  // read by one decode step
  uint64_t memory_bytes() const;  // of weights as they lie in memory, embeddings included
  // What the cache of packed weights did: "off", "hit", "written" or "missed"; the note, if there is one,
  // says what was wrong with the file or kept it from being written.
  std::string packed_state() const;
  std::string packed_note() const;
  std::string isa() const;
  int num_threads() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Bytes that one block of the KV cache takes, all layers together.
uint64_t kv_bytes_per_block(const ModelSpec& spec, KVFormat format);

// Bytes that the hidden states of one block's tokens take, where there is a draft head.
constexpr uint64_t hidden_bytes_per_block(int64_t hidden_size) {
  return static_cast<uint64_t>(hidden_size) * sizeof(uint16_t) * kBlockSize;
}

// GB/s of a streaming read of a huge-page buffer, the best of `repeats` passes.
double read_bandwidth(uint64_t num_bytes, int num_threads, int repeats);

// Multiply-accumulates of bytes per second, all threads together, of a tier's dot product alone: no kernel of
// that tier can do more. The best of `repeats` passes. Throws Error where the machine cannot run the tier.
double int8_peak(const std::string& isa, int num_threads, int repeats);

// Cycles per second of one core while all threads work, the best of `repeats` passes.
double clock_rate(int num_threads, int repeats);

// Compiler and flags of this build.
std::string compiler();

// Tiers that this machine can run, the fastest first.
std::vector<std::string> available_isas();
// Whether a tier that this machine runs, or "auto", has Prefill::fast.
bool has_fast_prefill(const std::string& isa);

}  // namespace outpace
