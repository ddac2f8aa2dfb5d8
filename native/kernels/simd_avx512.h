// AVX-512 with VNNI: one register holds 16 outputs.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "tiles.h"

namespace outpace::OUTPACE_TIER {

// Thin wrappers, so that integer and float overloads differ in type.
struct Lines {
  __m512i v;
};
struct Ints {
  __m512i v;
};
struct Floats {
  __m512 v;
};

OUTPACE_INLINE Lines load_lines(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
OUTPACE_INLINE void store_lines(uint8_t* p, Lines a) { _mm512_storeu_si512(p, a.v); }
OUTPACE_INLINE Lines low_nibbles(Lines a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
OUTPACE_INLINE Lines high_nibbles(Lines a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
OUTPACE_INLINE Lines set_bit4(Lines a, const uint8_t* mask) {
  uint64_t m;
  std::memcpy(&m, mask, 8);
  return {_mm512_mask_add_epi8(a.v, _cvtu64_mask64(m), a.v, _mm512_set1_epi8(16))};
}
template <int Field>
OUTPACE_INLINE Lines set_bits45(Lines a, Lines high) {
  __m512i h;
  if constexpr (Field == 0) h = _mm512_slli_epi16(high.v, 4);
  if constexpr (Field == 1) h = _mm512_slli_epi16(high.v, 2);
  if constexpr (Field == 2) h = high.v;
  if constexpr (Field == 3) h = _mm512_srli_epi16(high.v, 2);
  // a | (h & 0x30)
  return {_mm512_ternarylogic_epi32(a.v, h, _mm512_set1_epi8(0x30), 0xf8)};
}

OUTPACE_INLINE Ints zero_ints() { return {_mm512_setzero_si512()}; }
OUTPACE_INLINE Ints set_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
OUTPACE_INLINE Ints load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
OUTPACE_INLINE Ints load_bytes(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
OUTPACE_INLINE Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
OUTPACE_INLINE Ints sub(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
OUTPACE_INLINE Ints mul(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
OUTPACE_INLINE Ints bit_and(Ints a, uint32_t m) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int32_t>(m)))};
}
OUTPACE_INLINE Ints bit_or(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int N>
OUTPACE_INLINE Ints shift_right(Ints a) {
  return {_mm512_srli_epi32(a.v, N)};
}
template <int N>
OUTPACE_INLINE Ints shift_left(Ints a) {
  return {_mm512_slli_epi32(a.v, N)};
}

constexpr int kByteZeroPoint = 128;
template <bool Small>
OUTPACE_INLINE Ints dot(Ints acc, Lines w, const int8_t* a) {
  int32_t quad;
  std::memcpy(&quad, a, 4);
  return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(quad))};
}
OUTPACE_INLINE Ints dot_pairs(Ints acc, Ints w, const int16_t* a) {
  int32_t pair;
  std::memcpy(&pair, a, 4);
  return {_mm512_dpwssd_epi32(acc.v, w.v, _mm512_set1_epi32(pair))};
}

OUTPACE_INLINE Floats load_floats(const float* p) { return {_mm512_loadu_ps(p)}; }
OUTPACE_INLINE Floats load_halves(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
OUTPACE_INLINE Floats load_bf16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
OUTPACE_INLINE Floats set_floats(float x) { return {_mm512_set1_ps(x)}; }
OUTPACE_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
OUTPACE_INLINE Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
OUTPACE_INLINE Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
OUTPACE_INLINE Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
OUTPACE_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }

}  // namespace outpace::OUTPACE_TIER
