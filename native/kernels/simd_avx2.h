// AVX2 with F16C: two registers hold 16 outputs. Where the compiler may use AVX-VNNI (tier_avxvnni.cpp), a
// dot product of bytes is one instruction; elsewhere products of pairs are added in 16 bits (short_sums.inl).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "tiles.h"

namespace outpace::OUTPACE_TIER {

struct Lines {
  __m256i lo, hi;
};
struct Ints {
  __m256i lo, hi;
};
struct Floats {
  __m256 lo, hi;
};

OUTPACE_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

OUTPACE_INLINE Lines load_lines(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
OUTPACE_INLINE Lines low_nibbles(Lines a) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
OUTPACE_INLINE Lines high_nibbles(Lines a) {
  return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)});
}
// 32 bits -> 16 in the bytes whose bit is set.
OUTPACE_INLINE __m256i spread_bit4(const uint8_t* mask) {
  int32_t m;
  std::memcpy(&m, mask, 4);
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i bytes = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(m), byte_of), bit_of);
  return _mm256_and_si256(_mm256_cmpeq_epi8(bytes, bit_of), _mm256_set1_epi8(16));
}
OUTPACE_INLINE Lines set_bit4(Lines a, const uint8_t* mask) {
  return {_mm256_or_si256(a.lo, spread_bit4(mask)), _mm256_or_si256(a.hi, spread_bit4(mask + 4))};
}
template <int Field>
OUTPACE_INLINE __m256i field45(__m256i high) {
  __m256i h = high;
  if constexpr (Field == 0) h = _mm256_slli_epi16(high, 4);
  if constexpr (Field == 1) h = _mm256_slli_epi16(high, 2);
  if constexpr (Field == 3) h = _mm256_srli_epi16(high, 2);
  return _mm256_and_si256(h, _mm256_set1_epi8(0x30));
}
template <int Field>
OUTPACE_INLINE Lines set_bits45(Lines a, Lines high) {
  return {_mm256_or_si256(a.lo, field45<Field>(high.lo)), _mm256_or_si256(a.hi, field45<Field>(high.hi))};
}

OUTPACE_INLINE Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
OUTPACE_INLINE Ints set_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
OUTPACE_INLINE Ints load_ints(const void* p) {
  return {load256(p), load256(static_cast<const char*>(p) + 32)};
}
OUTPACE_INLINE Ints load_bytes(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
OUTPACE_INLINE Ints add(Ints a, Ints b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
OUTPACE_INLINE Ints sub(Ints a, Ints b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
OUTPACE_INLINE Ints mul(Ints a, Ints b) {
  return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
OUTPACE_INLINE Ints bit_and(Ints a, uint32_t m) {
  const __m256i v = _mm256_set1_epi32(static_cast<int32_t>(m));
  return {_mm256_and_si256(a.lo, v), _mm256_and_si256(a.hi, v)};
}
OUTPACE_INLINE Ints bit_or(Ints a, Ints b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
template <int N>
OUTPACE_INLINE Ints shift_right(Ints a) {
  return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)};
}
template <int N>
OUTPACE_INLINE Ints shift_left(Ints a) {
  return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
}

// Four bytes, and two numbers of 16 bits, for every output.
OUTPACE_INLINE __m256i set_quad(const int8_t* a) {
  int32_t quad;
  std::memcpy(&quad, a, 4);
  return _mm256_set1_epi32(quad);
}
OUTPACE_INLINE __m256i set_pair(const int16_t* a) {
  int32_t pair;
  std::memcpy(&pair, a, 4);
  return _mm256_set1_epi32(pair);
}
#if defined(__AVXVNNI__)
constexpr int kByteZeroPoint = 128;
template <bool Small>
OUTPACE_INLINE Ints dot(Ints acc, Lines w, const int8_t* a) {
  const __m256i v = set_quad(a);
  return {_mm256_dpbusd_avx_epi32(acc.lo, w.lo, v), _mm256_dpbusd_avx_epi32(acc.hi, w.hi, v)};
}
#endif
OUTPACE_INLINE __m256i dot_pairs256(__m256i acc, __m256i w, __m256i a) {
#if defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(acc, w, a);
#else
  return _mm256_add_epi32(acc, _mm256_madd_epi16(w, a));
#endif
}
OUTPACE_INLINE Ints dot_pairs(Ints acc, Ints w, const int16_t* a) {
  const __m256i v = set_pair(a);
  return {dot_pairs256(acc.lo, w.lo, v), dot_pairs256(acc.hi, w.hi, v)};
}

#if !defined(__AVXVNNI__)
// 16 outputs x 2 numbers of 16 bits, for sums that are widened later (short_sums.inl).
#define OUTPACE_SHORT_SUMS
constexpr int kByteZeroPoint = 0;  // of q8_0's sums; attention takes its bias off itself
struct Shorts {
  __m256i lo, hi;
};
OUTPACE_INLINE Shorts add(Shorts a, Shorts b) {
  return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}
// A sum so far, as a value that compilers may not take apart: gcc reorders the terms of whole sums and then
// keeps them all in memory.
template <class T>
OUTPACE_INLINE void settle(T& a) {
  asm("" : "+x"(a.lo), "+x"(a.hi));
}
// w[4o] a[0] + w[4o + 1] a[1] and w[4o + 2] a[2] + w[4o + 3] a[3]; w: below 64.
OUTPACE_INLINE Shorts multiply_bytes(Lines w, const int8_t* a) {
  const __m256i v = set_quad(a);
  return {_mm256_maddubs_epi16(w.lo, v), _mm256_maddubs_epi16(w.hi, v)};
}
// The same of bytes that are biased by 128, as |w - 128| times a with the sign of w - 128; a: above -128.
struct SignedLines {
  Lines value, magnitude;
};
OUTPACE_INLINE SignedLines unbias_bytes(Lines w) {
  const __m256i bias = _mm256_set1_epi8(-128);
  const Lines value = {_mm256_xor_si256(w.lo, bias), _mm256_xor_si256(w.hi, bias)};
  return {value, {_mm256_abs_epi8(value.lo), _mm256_abs_epi8(value.hi)}};
}
OUTPACE_INLINE Shorts multiply_bytes(const SignedLines& w, const int8_t* a) {
  const __m256i v = set_quad(a);
  return {_mm256_maddubs_epi16(w.magnitude.lo, _mm256_sign_epi8(v, w.value.lo)),
          _mm256_maddubs_epi16(w.magnitude.hi, _mm256_sign_epi8(v, w.value.hi))};
}
// acc[o] += a[2o] b[2o] + a[2o + 1] b[2o + 1]
OUTPACE_INLINE Ints dot_shorts(Ints acc, Shorts a, Ints b) {
  return {dot_pairs256(acc.lo, a.lo, b.lo), dot_pairs256(acc.hi, a.hi, b.hi)};
}
OUTPACE_INLINE Ints dot_shorts(Ints acc, Shorts a, const int16_t* b) {
  const __m256i v = set_pair(b);
  return {dot_pairs256(acc.lo, a.lo, v), dot_pairs256(acc.hi, a.hi, v)};
}
OUTPACE_INLINE void store_lines(uint8_t* p, Lines a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}
// Bytes 0 and 2 of each four as numbers of 16 bits, and bytes 1 and 3.
OUTPACE_INLINE Shorts even_bytes(Lines w) {
  const __m256i m = _mm256_set1_epi16(255);
  return {_mm256_and_si256(w.lo, m), _mm256_and_si256(w.hi, m)};
}
OUTPACE_INLINE Shorts odd_bytes(Lines w) { return {_mm256_srli_epi16(w.lo, 8), _mm256_srli_epi16(w.hi, 8)}; }
// The same of 16 numbers 128 x high + low. even, odd: [8]
OUTPACE_INLINE void join_planes(const int8_t* high, const int8_t* low, int16_t* even, int16_t* odd) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
  const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  const __m128i h_even = _mm_srai_epi16(_mm_slli_epi16(h, 8), 1),
                l_even = _mm_srai_epi16(_mm_slli_epi16(l, 8), 8);
  const __m128i h_odd = _mm_slli_epi16(_mm_srai_epi16(h, 8), 7), l_odd = _mm_srai_epi16(l, 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(even), _mm_add_epi16(h_even, l_even));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(odd), _mm_add_epi16(h_odd, l_odd));
}
#endif

OUTPACE_INLINE Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OUTPACE_INLINE Floats load_halves(const void* p) {
  const auto* h = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
OUTPACE_INLINE Floats load_bf16(const void* p) {
  const auto* h = static_cast<const __m128i*>(p);
  const __m256i lo = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(h)), 16);
  const __m256i hi = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(h + 1)), 16);
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}
OUTPACE_INLINE Floats set_floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OUTPACE_INLINE Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
OUTPACE_INLINE Floats add(Floats a, Floats b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
OUTPACE_INLINE Floats sub(Floats a, Floats b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
OUTPACE_INLINE Floats mul(Floats a, Floats b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
OUTPACE_INLINE void store(float* p, Floats a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}

}  // namespace outpace::OUTPACE_TIER
