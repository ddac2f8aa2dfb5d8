// The paged KV cache in memory.
#pragma once

#include "api.h"
#include "kernels/kernels.h"
#include "memory.h"

namespace outpace {

KVLayout kv_layout(const ModelSpec& spec, KVFormat format);

// Copies the entries of the slots [first, last) of one KV head's share of a block into the same slots of
// another block, byte by byte.
void copy_slots(const KVLayout& layout, const uint8_t* from, uint8_t* to, int64_t first, int64_t last);

// Slots [first, last) of one block, to be copied into the same slots of another.
struct KVCopy {
  int64_t from_block, to_block, first, last;
};

// A row's place: which request, which position, the blocks of all positions up to its own, and what else
// to copy once its own entry is in the cache.
struct Row {
  int64_t request, position;
  const int32_t* block_table;
  Span<KVCopy> copies = {};
  bool rounded = false;  // its products with weights may be in bf16
};

// For each block, the shares of all layers and KV heads. The blocks of a short text lie in one huge page or
// two; with the layers apart, its first tokens would touch, and zero, one for each layer. Block ids from
// num_blocks on are scratch, for drafts that branch; the memory is touched lazily, so they cost nothing
// before there is one.
struct KVCache {
  KVLayout layout;
  int64_t num_blocks = 0, num_scratch = 0, num_layers = 0, num_kv_heads = 0;
  HugeBuffer memory;

  KVCache(const ModelSpec& spec, const Options& options);
  int64_t block_stride() const { return num_layers * num_kv_heads * layout.bytes; }
  // Block 0 of a layer's KV head.
  uint8_t* head(int64_t layer, int64_t kv_head) const {
    return memory.data() + (layer * num_kv_heads + kv_head) * layout.bytes;
  }
  void copy(int64_t layer, int64_t kv_head, const KVCopy& what) const {
    uint8_t* blocks = head(layer, kv_head);
    copy_slots(layout, blocks + what.from_block * block_stride(), blocks + what.to_block * block_stride(),
               what.first, what.last);
  }
};

}  // namespace outpace
