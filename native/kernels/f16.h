// IEEE half precision, bit by bit, for code that must not depend on an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

namespace outpace {

OUTPACE_INLINE float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = 0x7f800000 | rest << 13;
  } else if (rest >= 0x400) {
    bits = (rest << 13) + 0x38000000;
  } else {  // subnormal: rest x 2^-24, exact
    const float f = static_cast<float>(rest) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &f, 4);
  }
  bits |= sign;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Rounds to nearest, ties to even; what is too large becomes infinite.
OUTPACE_INLINE uint16_t f32_to_f16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (bits < 0x38800000) {  // subnormal: the addition rounds at 2^-24
    float size;
    std::memcpy(&size, &bits, 4);
    const float shifted = size + 0.5f;
    uint32_t r;
    std::memcpy(&r, &shifted, 4);
    return static_cast<uint16_t>(sign | (r - 0x3f000000));
  }
  const uint32_t rounded = bits - 0x38000000 + 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

}  // namespace outpace
