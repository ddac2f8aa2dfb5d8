// The tier for any machine: plain loops that a compiler can vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "f16.h"
#include "inline.h"
#include "tiles.h"

namespace outpace::OUTPACE_TIER {

struct Lines {
  uint8_t v[64];
};
struct Ints {
  int32_t v[16];
};
struct Floats {
  float v[16];
};

#define OUTPACE_EACH(n) for (int i = 0; i < (n); ++i)

OUTPACE_INLINE Lines load_lines(const uint8_t* p) {
  Lines r;
  std::memcpy(r.v, p, 64);
  return r;
}
OUTPACE_INLINE Lines low_nibbles(Lines a) {
  OUTPACE_EACH(64) a.v[i] &= 15;
  return a;
}
OUTPACE_INLINE Lines high_nibbles(Lines a) {
  OUTPACE_EACH(64) a.v[i] >>= 4;
  return a;
}
// Adds 16 to the bytes whose bit is set.
OUTPACE_INLINE Lines set_bit4(Lines a, const uint8_t* mask) {
  OUTPACE_EACH(64) a.v[i] |= (mask[i / 8] >> (i % 8) & 1) << 4;
  return a;
}
// Adds the 2-bit field as bits 4 and 5.
template <int Field>
OUTPACE_INLINE Lines set_bits45(Lines a, Lines high) {
  OUTPACE_EACH(64) a.v[i] |= (high.v[i] >> (2 * Field) & 3) << 4;
  return a;
}

OUTPACE_INLINE Ints zero_ints() {
  Ints r;
  OUTPACE_EACH(16) r.v[i] = 0;
  return r;
}
OUTPACE_INLINE Ints set_ints(int32_t x) {
  Ints r;
  OUTPACE_EACH(16) r.v[i] = x;
  return r;
}
OUTPACE_INLINE Ints load_ints(const void* p) {
  Ints r;
  std::memcpy(r.v, p, 64);
  return r;
}
OUTPACE_INLINE Ints load_bytes(const int8_t* p) {
  Ints r;
  OUTPACE_EACH(16) r.v[i] = p[i];
  return r;
}
OUTPACE_INLINE Ints add(Ints a, Ints b) {
  OUTPACE_EACH(16) a.v[i] += b.v[i];
  return a;
}
OUTPACE_INLINE Ints sub(Ints a, Ints b) {
  OUTPACE_EACH(16) a.v[i] -= b.v[i];
  return a;
}
OUTPACE_INLINE Ints mul(Ints a, Ints b) {
  OUTPACE_EACH(16) a.v[i] *= b.v[i];
  return a;
}
OUTPACE_INLINE Ints bit_and(Ints a, uint32_t m) {
  OUTPACE_EACH(16) a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) & m);
  return a;
}
OUTPACE_INLINE Ints bit_or(Ints a, Ints b) {
  OUTPACE_EACH(16) a.v[i] |= b.v[i];
  return a;
}
template <int N>
OUTPACE_INLINE Ints shift_right(Ints a) {
  OUTPACE_EACH(16) a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> N);
  return a;
}
template <int N>
OUTPACE_INLINE Ints shift_left(Ints a) {
  OUTPACE_EACH(16) a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N);
  return a;
}

// What bytes that are biased by 128 (q8_0, int8 keys) are still biased by in the sums of dot<false>.
constexpr int kByteZeroPoint = 128;

// acc[o] += sum over 4 of w[4o + i] x a[i]; w unsigned, a signed. `Small`: w is below 64.
template <bool Small>
OUTPACE_INLINE Ints dot(Ints acc, Lines w, const int8_t* a) {
  OUTPACE_EACH(16) {
    const uint8_t* p = w.v + 4 * i;
    acc.v[i] += p[0] * a[0] + p[1] * a[1] + p[2] * a[2] + p[3] * a[3];
  }
  return acc;
}
// acc[o] += the two 16-bit products of w[o] with the pair at a.
OUTPACE_INLINE Ints dot_pairs(Ints acc, Ints w, const int16_t* a) {
  OUTPACE_EACH(16) {
    const auto u = static_cast<uint32_t>(w.v[i]);
    acc.v[i] += static_cast<int16_t>(u) * a[0] + static_cast<int16_t>(u >> 16) * a[1];
  }
  return acc;
}

OUTPACE_INLINE Floats load_floats(const float* p) {
  Floats r;
  std::memcpy(r.v, p, 64);
  return r;
}
OUTPACE_INLINE Floats load_halves(const void* p) {
  uint16_t h[16];
  std::memcpy(h, p, 32);
  Floats r;
  OUTPACE_EACH(16) r.v[i] = f16_to_f32(h[i]);
  return r;
}
OUTPACE_INLINE Floats load_bf16(const void* p) {
  uint16_t h[16];
  std::memcpy(h, p, 32);
  uint32_t bits[16];
  OUTPACE_EACH(16) bits[i] = static_cast<uint32_t>(h[i]) << 16;
  Floats r;
  std::memcpy(r.v, bits, 64);
  return r;
}
OUTPACE_INLINE Floats set_floats(float x) {
  Floats r;
  OUTPACE_EACH(16) r.v[i] = x;
  return r;
}
OUTPACE_INLINE Floats to_floats(Ints a) {
  Floats r;
  OUTPACE_EACH(16) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
OUTPACE_INLINE Floats add(Floats a, Floats b) {
  OUTPACE_EACH(16) a.v[i] += b.v[i];
  return a;
}
OUTPACE_INLINE Floats sub(Floats a, Floats b) {
  OUTPACE_EACH(16) a.v[i] -= b.v[i];
  return a;
}
OUTPACE_INLINE Floats mul(Floats a, Floats b) {
  OUTPACE_EACH(16) a.v[i] *= b.v[i];
  return a;
}
OUTPACE_INLINE void store(float* p, Floats a) { std::memcpy(p, a.v, 64); }

#undef OUTPACE_EACH

}  // namespace outpace::OUTPACE_TIER
