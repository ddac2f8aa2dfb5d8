// NEON (ASIMD), with or without the dot product instructions of Armv8.2 and Armv8.6: four registers hold
// 16 outputs.
//
// No intrinsic here multiplies and adds floats in one operation: the bits are those of the other tiers.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "tiles.h"

namespace outpace::OUTPACE_TIER {

struct Lines {
  uint8x16_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
struct Floats {
  float32x4_t v[4];
};

#define OUTPACE_EACH for (int i = 0; i < 4; ++i)

OUTPACE_INLINE Lines load_lines(const uint8_t* p) {
  Lines r;
  OUTPACE_EACH r.v[i] = vld1q_u8(p + 16 * i);
  return r;
}
OUTPACE_INLINE Lines low_nibbles(Lines a) {
  OUTPACE_EACH a.v[i] = vandq_u8(a.v[i], vdupq_n_u8(15));
  return a;
}
OUTPACE_INLINE Lines high_nibbles(Lines a) {
  OUTPACE_EACH a.v[i] = vshrq_n_u8(a.v[i], 4);
  return a;
}
OUTPACE_INLINE Lines set_bit4(Lines a, const uint8_t* mask) {
  const uint8x16_t masks = vcombine_u8(vld1_u8(mask), vdup_n_u8(0));
  const uint8x16_t bit_of = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const uint8x16_t byte_of = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
  OUTPACE_EACH {
    const uint8x16_t bytes = vqtbl1q_u8(masks, vaddq_u8(byte_of, vdupq_n_u8(static_cast<uint8_t>(2 * i))));
    a.v[i] = vorrq_u8(a.v[i], vandq_u8(vtstq_u8(bytes, bit_of), vdupq_n_u8(16)));
  }
  return a;
}
template <int Field>
OUTPACE_INLINE Lines set_bits45(Lines a, Lines high) {
  OUTPACE_EACH {
    uint8x16_t h = high.v[i];
    if constexpr (Field == 0) h = vshlq_n_u8(h, 4);
    if constexpr (Field == 1) h = vshlq_n_u8(h, 2);
    if constexpr (Field == 3) h = vshrq_n_u8(h, 2);
    a.v[i] = vorrq_u8(a.v[i], vandq_u8(h, vdupq_n_u8(0x30)));
  }
  return a;
}

OUTPACE_INLINE Ints set_ints(int32_t x) {
  Ints r;
  OUTPACE_EACH r.v[i] = vdupq_n_s32(x);
  return r;
}
OUTPACE_INLINE Ints zero_ints() { return set_ints(0); }
OUTPACE_INLINE Ints load_ints(const void* p) {
  const Lines bytes = load_lines(static_cast<const uint8_t*>(p));
  Ints r;
  OUTPACE_EACH r.v[i] = vreinterpretq_s32_u8(bytes.v[i]);
  return r;
}
OUTPACE_INLINE Ints load_bytes(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
           vmovl_high_s16(high)}};
}
OUTPACE_INLINE Ints add(Ints a, Ints b) {
  OUTPACE_EACH a.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return a;
}
OUTPACE_INLINE Ints sub(Ints a, Ints b) {
  OUTPACE_EACH a.v[i] = vsubq_s32(a.v[i], b.v[i]);
  return a;
}
OUTPACE_INLINE Ints mul(Ints a, Ints b) {
  OUTPACE_EACH a.v[i] = vmulq_s32(a.v[i], b.v[i]);
  return a;
}
OUTPACE_INLINE Ints bit_and(Ints a, uint32_t m) {
  OUTPACE_EACH a.v[i] = vandq_s32(a.v[i], vdupq_n_s32(static_cast<int32_t>(m)));
  return a;
}
OUTPACE_INLINE Ints bit_or(Ints a, Ints b) {
  OUTPACE_EACH a.v[i] = vorrq_s32(a.v[i], b.v[i]);
  return a;
}
template <int N>
OUTPACE_INLINE Ints shift_right(Ints a) {
  if constexpr (N > 0) {  // the instruction cannot shift by 0
    OUTPACE_EACH a.v[i] = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), N));
  }
  return a;
}
template <int N>
OUTPACE_INLINE Ints shift_left(Ints a) {
  OUTPACE_EACH a.v[i] = vshlq_n_s32(a.v[i], N);
  return a;
}

// Without a product of unsigned and signed bytes, dot<false> takes the 128 off.
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kByteZeroPoint = 128;
#else
constexpr int kByteZeroPoint = 0;
#endif

// acc[o] += the four products of w[o] with the four of a; both signed.
OUTPACE_INLINE int32x4_t dot_signed(int32x4_t acc, int8x16_t w, int8x16_t a) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, w, a);
#else  // a pair's sum fits 16 bits: activations are above -128, so it is at most 2 x 128 x 127
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_high_s8(w, a);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
template <bool Small>
OUTPACE_INLINE Ints dot(Ints acc, Lines w, const int8_t* a) {
  int32_t quad;
  std::memcpy(&quad, a, 4);
  const int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(quad));
#if defined(__ARM_FEATURE_MATMUL_INT8)
  OUTPACE_EACH acc.v[i] = vusdotq_s32(acc.v[i], w.v[i], v);
#else
  OUTPACE_EACH {
    const uint8x16_t bytes = Small ? w.v[i] : veorq_u8(w.v[i], vdupq_n_u8(0x80));
    acc.v[i] = dot_signed(acc.v[i], vreinterpretq_s8_u8(bytes), v);
  }
#endif
  return acc;
}
OUTPACE_INLINE Ints dot_pairs(Ints acc, Ints w, const int16_t* a) {
  int32_t pair;
  std::memcpy(&pair, a, 4);
  const int16x8_t v = vreinterpretq_s16_s32(vdupq_n_s32(pair));
  OUTPACE_EACH {
    const int16x8_t pairs = vreinterpretq_s16_s32(w.v[i]);
    const int32x4_t low = vmull_s16(vget_low_s16(pairs), vget_low_s16(v)), high = vmull_high_s16(pairs, v);
    acc.v[i] = vaddq_s32(acc.v[i], vpaddq_s32(low, high));
  }
  return acc;
}

OUTPACE_INLINE Floats load_floats(const float* p) {
  Floats r;
  OUTPACE_EACH r.v[i] = vld1q_f32(p + 4 * i);
  return r;
}
// Four 16-bit numbers of 16.
OUTPACE_INLINE uint16x4_t load_quarter(const void* p, int i) {
  return vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t*>(p) + 8 * i));
}
OUTPACE_INLINE Floats load_halves(const void* p) {
  Floats r;
  OUTPACE_EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(load_quarter(p, i)));
  return r;
}
OUTPACE_INLINE Floats load_bf16(const void* p) {
  Floats r;
  OUTPACE_EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(load_quarter(p, i), 16));
  return r;
}
OUTPACE_INLINE Floats set_floats(float x) {
  Floats r;
  OUTPACE_EACH r.v[i] = vdupq_n_f32(x);
  return r;
}
OUTPACE_INLINE Floats to_floats(Ints a) {
  Floats r;
  OUTPACE_EACH r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
OUTPACE_INLINE Floats add(Floats a, Floats b) {
  OUTPACE_EACH a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}
OUTPACE_INLINE Floats sub(Floats a, Floats b) {
  OUTPACE_EACH a.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return a;
}
OUTPACE_INLINE Floats mul(Floats a, Floats b) {
  OUTPACE_EACH a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}
OUTPACE_INLINE void store(float* p, Floats a) { OUTPACE_EACH vst1q_f32(p + 4 * i, a.v[i]); }

#undef OUTPACE_EACH

}  // namespace outpace::OUTPACE_TIER
