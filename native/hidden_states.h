// The final hidden states, after the output norm, of the tokens in the KV cache: what a draft head reads.
//
// A token's lies where its keys do, so it is valid exactly as long as they are, whoever shares the block. It
// is zeros where the keys were brought from elsewhere (Model::state_blocks). The norm bounds it, so bfloat16,
// two bytes for an element, is enough for guesses.
#pragma once

#include <cstring>

#include "api.h"
#include "memory.h"

namespace outpace {

class HiddenStates {
 public:
  HiddenStates(int64_t num_blocks, int64_t hidden_size)
      : hidden_size_(hidden_size),
        memory_(hidden_bytes_per_block(hidden_size) * static_cast<uint64_t>(num_blocks),
                "the hidden states that the draft head reads") {}

  // state: [hidden_size]
  void store(int64_t block, int64_t slot, const float* state) {
    uint16_t* to = at(block, slot);
    for (int64_t i = 0; i < hidden_size_; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, state + i, sizeof bits);
      to[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
  }
  void load(int64_t block, int64_t slot, float* state) const {
    const uint16_t* from = at(block, slot);
    for (int64_t i = 0; i < hidden_size_; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      std::memcpy(state + i, &bits, sizeof bits);
    }
  }

  uint8_t* data() const { return memory_.data(); }

 private:
  uint16_t* at(int64_t block, int64_t slot) const {
    return reinterpret_cast<uint16_t*>(memory_.data()) + (block * kBlockSize + slot) * hidden_size_;
  }

  const int64_t hidden_size_;
  const HugeBuffer memory_;
};

}  // namespace outpace
