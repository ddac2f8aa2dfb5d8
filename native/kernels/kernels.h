// What a tier offers to the forward pass: one table of functions for each instruction set.
//
// Every function works on rows that know nothing of each other, adds in one fixed order and uses no
// fused multiply-add, so all tiers give the same bits. (The tiers are compiled from the same sources
// with -ffp-contract=off and without -ffast-math: the compiler may not reorder a sum.)
#pragma once

#include <cstdint>

#include "tiles.h"

namespace outpace {

// One KV head's share of one block of 32 tokens, in bytes from its start. head_dim is padded to 16.
//   int8: keys u8 [2][head_dim / 4][16 tokens][4 channels], values u8 [8][head_dim][4 tokens], both biased
//         by 128; key scales f32 [32]; value scales f32 [32]
//   f16:  keys [2][head_dim][16 tokens]; values [32][head_dim]
struct KVLayout {
  bool int8 = true;
  int64_t head_dim = 0;  // padded to a multiple of 16
  int64_t value_offset = 0, key_scale_offset = 0, value_scale_offset = 0, bytes = 0;
};

constexpr int kAttentionChunk = 128;  // tokens whose scores are normalised together
constexpr int kBlockTokens = 32;      // as kBlockSize in api.h
constexpr int kBlocksPerChunk = kAttentionChunk / kBlockTokens;
constexpr int kMaxHeadDim = 256;

// The attention of `num_heads` query heads of one row over the tokens [begin, end) of one KV head.
struct AttentionTask {
  const KVLayout* layout;
  const uint8_t* blocks;       // block 0 of this KV head
  int64_t block_stride;        // bytes from one block to the next
  const int32_t* block_table;  // [end / 32 + 1] block ids of the request
  int64_t begin, end;          // tokens; all within one chunk of kAttentionChunk
  const int32_t* next_blocks;  // [num_next_blocks] of the chunk that comes next, to be fetched ahead
  int64_t num_next_blocks;     // 0 to 4
  int64_t num_heads;
  const float* query;  // [num_heads, head_dim], rotated and scaled; read for f16
  // The same, balanced and quantized, read for int8: 128 x high + low, in units of query_unit.
  const int8_t *query_high, *query_low;  // [num_heads, head_dim]
  const float* query_unit;               // [num_heads]
  const int32_t* query_sum;              // [num_heads] of the integers
  float softcap;
  // The results; with `merge` they hold those of the chunks before, and take this one's in as merge_attention
  // does.
  bool merge;
  float* out;  // [num_heads, head_dim] sum of weight x value, not normalised
  float* max;  // [num_heads] the largest score
  float* sum;  // [num_heads] sum of the weights
};

struct Kernels {
  const char* name;

  // Of strips [first, last): out[r * out_stride + i] = sum over k of weight[16 first + i][k] x
  // activation[r][k]. Two at once may take less time than one by one.
  void (*matmul_strips)(const TileMatrix& weights, int64_t first, int64_t last,
                        const Activations& activations, int64_t num_rows, float* out, int64_t out_stride);
  // The same of one strip with weights and activations rounded to bf16, for inputs that are a multiple of 32:
  // a row's sum is the same whatever rows go with it. And a row of activations for it, n numbers. Null where
  // the machine has no instructions that gain by it.
  void (*matmul_strip_bf16)(const TileMatrix& weights, int64_t strip, const Activations& activations,
                            const Bf16Part& part, float* out, int64_t out_stride);
  void (*round_to_bf16)(const float* x, int64_t n, uint16_t* out);
  // Runs the dot product instruction of matmul_strips and nothing else; returns the multiply-accumulates
  // done.
  int64_t (*dot_peak)(int64_t rounds);
  // One output's weights, as floats. out: [columns]
  void (*dequantize_row)(const TileMatrix& weights, int64_t row, float* out);
  // Rows in the file's layout -> one strip. rows[i] points to the bytes of output i, or is null.
  void (*pack_strip)(const TileMatrix& weights, const uint8_t* const rows[kStrip], uint8_t* strip);
  // A row of floats -> blocks of q8_0 or q4_0 as in a GGUF file.
  void (*quantize_weights)(Format to, const float* row, int64_t columns, uint8_t* out);

  // One row of activations; n is a multiple of 32 or of 256, the pointers of `out` are those of the row.
  void (*quantize_32)(const float* x, int64_t n, const Quantized& out);
  void (*quantize_256)(const float* x, int64_t n, const Quantized& out);

  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*add)(float* x, const float* y, int64_t n);  // x += y
  void (*scale)(float* x, float factor, int64_t n);  // x *= factor
  void (*softcap)(float* x, float cap, int64_t n);   // x = cap tanh(x / cap)
  // out may be gate.
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, int64_t n, float* out);
  // Rotates one head in place; cos and sin: [num_pairs].
  void (*rope)(float* head, const float* cos, const float* sin, int64_t num_pairs, bool interleaved);

  // Writes one token's key and value; k and v: [head_dim].
  void (*write_kv)(const KVLayout& layout, uint8_t* block, int64_t slot, const float* k, const float* v);
  // One query head as AttentionTask wants it; n: head_dim.
  void (*quantize_query)(const float* x, int64_t n, int8_t* high, int8_t* low, float* unit, int32_t* sum);
  void (*attend)(const AttentionTask& task);
  // The same for rows (at least one) whose tasks are of one KV head and one chunk: they differ in begin, end,
  // block_table, query and results alone. The next chunk is fetched for the first of them.
  void (*attend_rows)(const AttentionTask* tasks, int64_t num_tasks);
  // acc, acc_max, acc_sum take in another chunk's result; n: head_dim.
  void (*merge_attention)(float* acc, float* acc_max, float* acc_sum, const float* out, float max, float sum,
                          int64_t n);

  int64_t (*argmax)(const float* x, int64_t n);                     // the lowest index wins ties
  double (*log_sum_exp)(const float* x, int64_t n);                 // nats
  void (*exp)(const float* x, float shift, int64_t n, float* out);  // e^(x - shift)
};

const Kernels& portable_kernels();
#if defined(OUTPACE_X86)
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512vnni_kernels();
const Kernels& amx_kernels();
#elif defined(OUTPACE_AARCH64)
const Kernels& neon_kernels();
const Kernels& neon_dotprod_kernels();
const Kernels& neon_i8mm_kernels();
#endif

}  // namespace outpace
