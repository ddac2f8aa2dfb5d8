// The check of byte-pair merges against their vocabulary, without a string made: 150,000 merges in some 10
// ms.
#pragma once

#include <cstdint>
#include <vector>

namespace outpace {

// A string as Python keeps it: code points of 1, 2 or 4 bytes, the caller's memory.
struct Text {
  const void* data = nullptr;
  int64_t length = 0;  // code points
  unsigned width = 1;  // bytes of each

  uint32_t operator[](int64_t i) const {
    if (width == 1) return static_cast<const uint8_t*>(data)[i];
    if (width == 2) return static_cast<const uint16_t*>(data)[i];
    return static_cast<const uint32_t*>(data)[i];
  }
};

// The first of `merges` ("left right", parted by the first space after the first code point) whose left half,
// right half or whole is none of `tokens`; -1 where there is none.
int64_t first_bad_merge(const std::vector<Text>& tokens, const std::vector<Text>& merges);

}  // namespace outpace
