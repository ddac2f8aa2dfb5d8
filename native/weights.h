// A model's weights as they lie in memory: tiles in one huge-page buffer, vectors as floats.
#pragma once

#include <string>
#include <vector>

#include "api.h"
#include "kernels/kernels.h"
#include "memory.h"
#include "thread_pool.h"

namespace outpace {

struct LayerWeights {
  TileMatrix q, k, v, o, gate, up, down;
  std::vector<float> attn_norm, ffn_norm;     // [hidden_size]
  std::vector<float> q_bias, k_bias, v_bias;  // [rows] or empty
  std::vector<float> q_norm, k_norm;          // [head_dim] or empty
  std::vector<float> key_balance;             // [num_kv_heads, head_dim], see balance_keys
};

struct Weights {
  TileMatrix embed, output;  // the same tiles where the embeddings are tied
  TileMatrix fc;             // of a draft head, which has it instead of embeddings, see draft_head.h
  std::vector<float> output_norm;
  std::vector<LayerWeights> layers;
  HugeBuffer tiles;
  uint64_t step_bytes = 0;  // read by one decode step

  std::string packed_state = "off";  // see Model::packed_state
  std::string packed_note;

  // Reads and repacks every tensor, or takes the tiles from the cache of packed weights. Throws Error that
  // names the tensor where one is missing, has another shape than the spec's, or cannot be read.
  static Weights load(const ModelSpec& spec, const std::vector<TensorRef>& tensors, const Options& options,
                      const Kernels& kernels, ThreadPool& pool, const Model::Progress& progress);

  // The same of a draft head.
  static Weights load_head(const ModelSpec& spec, const std::vector<TensorRef>& tensors,
                           WeightFormat weight_format, const Kernels& kernels, ThreadPool& pool);
};

}  // namespace outpace
