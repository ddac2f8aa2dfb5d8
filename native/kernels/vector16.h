// 16 numbers of 32 bits, as registers of the machine's own width.
//
// Compilers split a vector that is wider than a register, but gcc then keeps it in memory between one
// operation and the next, and takes comparisons and narrowing conversions apart into single numbers. An array
// of vectors of the right width stays in registers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "inline.h"

namespace outpace::OUTPACE_TIER {

#if defined(__AVX512F__)
constexpr int kPieceBytes = 64;
#elif defined(__AVX2__)
constexpr int kPieceBytes = 32;
#else
constexpr int kPieceBytes = 16;
#endif

// Vectors that a chain of operations which wait for each other takes at once, where the registers hold no
// more.
constexpr int kChains = kPieceBytes == 16 ? 1 : 2;

template <class T>
struct Vector16 {
  typedef T Piece __attribute__((vector_size(kPieceBytes)));
  static constexpr int kPieces = 64 / kPieceBytes, kLanes = 16 / kPieces;
  using Number = T;  // for parameters that are not to be deduced
  Piece piece[kPieces];

  OUTPACE_INLINE_MEMBER T operator[](int64_t lane) const { return piece[lane / kLanes][lane % kLanes]; }
};
using F16x = Vector16<float>;
using I16x = Vector16<int32_t>;

template <class T>
OUTPACE_INLINE Vector16<T> all16(T x) {
  Vector16<T> r;
  OUTPACE_UNROLL for (auto& piece : r.piece) piece = typename Vector16<T>::Piece{} + x;
  return r;
}
// The same bits as numbers of another type.
template <class To, class From>
OUTPACE_INLINE Vector16<To> bits16(const Vector16<From>& a) {
  Vector16<To> r;
  OUTPACE_UNROLL for (int i = 0; i < r.kPieces; ++i) {
    r.piece[i] = reinterpret_cast<typename Vector16<To>::Piece>(a.piece[i]);
  }
  return r;
}

// op of each piece of one vector, or of two.
template <class T, class Op>
OUTPACE_INLINE Vector16<T> each16(Vector16<T> a, Op op) {
  OUTPACE_UNROLL for (int i = 0; i < a.kPieces; ++i) a.piece[i] = op(a.piece[i]);
  return a;
}
template <class T, class Op>
OUTPACE_INLINE Vector16<T> each16(Vector16<T> a, const Vector16<T>& b, Op op) {
  OUTPACE_UNROLL for (int i = 0; i < a.kPieces; ++i) a.piece[i] = op(a.piece[i], b.piece[i]);
  return a;
}

#define OUTPACE_OPERATOR(op)                                                                     \
  template <class T>                                                                             \
  OUTPACE_INLINE Vector16<T> operator op(const Vector16<T>& a, const Vector16<T>& b) {           \
    return each16(a, b, [](const auto& x, const auto& y) { return x op y; });                    \
  }                                                                                              \
  template <class T>                                                                             \
  OUTPACE_INLINE Vector16<T> operator op(const Vector16<T>& a, typename Vector16<T>::Number b) { \
    return each16(a, [b](const auto& x) { return x op b; });                                     \
  }                                                                                              \
  template <class T>                                                                             \
  OUTPACE_INLINE Vector16<T> operator op(typename Vector16<T>::Number a, const Vector16<T>& b) { \
    return each16(b, [a](const auto& x) { return a op x; });                                     \
  }
OUTPACE_OPERATOR(+)
OUTPACE_OPERATOR(-)
OUTPACE_OPERATOR(*)
OUTPACE_OPERATOR(/)
#undef OUTPACE_OPERATOR
template <class T>
OUTPACE_INLINE Vector16<T> operator-(const Vector16<T>& a) {
  return each16(a, [](const auto& x) { return -x; });
}
OUTPACE_INLINE I16x operator>>(const I16x& a, int bits) {
  return each16(a, [bits](const auto& x) { return x >> bits; });
}
OUTPACE_INLINE I16x operator<<(const I16x& a, int bits) {
  return each16(a, [bits](const auto& x) { return x << bits; });
}
OUTPACE_INLINE I16x operator&(const I16x& a, int32_t mask) {
  return each16(a, [mask](const auto& x) { return x & mask; });
}

// x > y ? x : y and x < y ? x : y.
template <class Piece>
OUTPACE_INLINE Piece larger(const Piece& x, const Piece& y) {
  return x > y ? x : y;
}
template <class Piece>
OUTPACE_INLINE Piece smaller(const Piece& x, const Piece& y) {
  return x < y ? x : y;
}
// The instructions are exactly these expressions, also for NaNs and zeros of both signs, where the second
// operand wins; gcc does not see that and takes two.
#if defined(__AVX512F__)
OUTPACE_INLINE __m512 larger(__m512 x, __m512 y) { return _mm512_max_ps(x, y); }
OUTPACE_INLINE __m512 smaller(__m512 x, __m512 y) { return _mm512_min_ps(x, y); }
#elif defined(__AVX2__)
OUTPACE_INLINE __m256 larger(__m256 x, __m256 y) { return _mm256_max_ps(x, y); }
OUTPACE_INLINE __m256 smaller(__m256 x, __m256 y) { return _mm256_min_ps(x, y); }
#endif
template <class T>
OUTPACE_INLINE Vector16<T> max16(const Vector16<T>& a, const Vector16<T>& b) {
  return each16(a, b, [](const auto& x, const auto& y) { return larger(x, y); });
}
template <class T>
OUTPACE_INLINE Vector16<T> min16(const Vector16<T>& a, const Vector16<T>& b) {
  return each16(a, b, [](const auto& x, const auto& y) { return smaller(x, y); });
}
OUTPACE_INLINE F16x abs16(const F16x& a) { return max16(a, -a); }

// Piece by piece: gcc copies 64 bytes at once by 16, and a load of 32 then waits for two stores of 16.
OUTPACE_INLINE F16x load16(const float* p) {
  F16x v;
  OUTPACE_UNROLL for (int i = 0; i < v.kPieces; ++i) std::memcpy(&v.piece[i], p + i * v.kLanes, kPieceBytes);
  return v;
}
OUTPACE_INLINE void store16(float* p, const F16x& v) {
  OUTPACE_UNROLL for (int i = 0; i < v.kPieces; ++i) std::memcpy(p + i * v.kLanes, &v.piece[i], kPieceBytes);
}
// The first n < 16 values, the other lanes 0.
OUTPACE_INLINE F16x load_part(const float* p, int64_t n) {
  float all[16] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = p[i];
  return load16(all);
}
OUTPACE_INLINE void store_part(float* p, const F16x& v, int64_t n) {
  float all[16];
  store16(all, v);
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

// Folds 16 lanes in halves: lane i meets lane i + 8, then i + 4, i + 2 and i + 1.
template <class Piece, class Op>
OUTPACE_INLINE auto fold_piece(const Piece& v, Op op) {
  if constexpr (sizeof(Piece) == 64) {
    return fold_piece(op(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                         __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)),
                      op);
  } else if constexpr (sizeof(Piece) == 32) {
    return fold_piece(
        op(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7)), op);
  } else {
    const auto c = op(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
    return op(c, __builtin_shufflevector(c, c, 1, 0, 3, 2))[0];
  }
}
template <class T, class Op>
OUTPACE_INLINE T fold16(Vector16<T> v, Op op) {
  OUTPACE_UNROLL for (int n = v.kPieces / 2; n > 0; n /= 2) {
    OUTPACE_UNROLL for (int i = 0; i < n; ++i) v.piece[i] = op(v.piece[i], v.piece[i + n]);
  }
  return fold_piece(v.piece[0], op);
}
OUTPACE_INLINE float fold_sum(const F16x& v) {
  return fold16(v, [](const auto& a, const auto& b) { return a + b; });
}
OUTPACE_INLINE int32_t fold_ints(const I16x& v) {
  return fold16(v, [](const auto& a, const auto& b) { return a + b; });
}
OUTPACE_INLINE float fold_max(const F16x& v) {
  return fold16(v, [](const auto& a, const auto& b) { return a > b ? a : b; });
}

// The lowest byte of each number.
OUTPACE_INLINE void narrow16(int8_t* out, const I16x& v) {
#if defined(__AVX512F__)
  typedef int8_t Bytes __attribute__((vector_size(16)));
  const Bytes b = __builtin_convertvector(v.piece[0], Bytes);
  std::memcpy(out, &b, 16);
#elif defined(__AVX2__)
  const I16x low = v & 255;
  const auto lo = reinterpret_cast<__m256i>(low.piece[0]), hi = reinterpret_cast<__m256i>(low.piece[1]);
  const __m256i words = _mm256_packus_epi32(lo, hi);  // of each half 4 of lo, then 4 of hi
  const __m256i bytes = _mm256_packus_epi16(words, words);
  const __m256i in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(in_order));
#else
  typedef int8_t Bytes __attribute__((vector_size(16)));
  OUTPACE_UNROLL for (int i = 0; i < 4; ++i) {
    const auto q = reinterpret_cast<Bytes>(v.piece[i]);
    const Bytes lowest = __builtin_shufflevector(q, q, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    std::memcpy(out + 4 * i, &lowest, 4);
  }
#endif
}

// Numbers of 15 bits, 16 K of them, as 128 x high + low.
template <int K>
OUTPACE_INLINE void split_planes(int8_t* high, int8_t* low, const I16x (&v)[K]) {
#if defined(__AVX512F__)
  // 64 bytes at a time: a third of the instructions, and a load of 64 bytes waits for no smaller store.
  if constexpr (K == 4) {
    __m512i pair[2], byte[2];
    for (int i = 0; i < 2; ++i) {
      pair[i] = _mm512_packs_epi32(reinterpret_cast<__m512i>(v[2 * i].piece[0]),
                                   reinterpret_cast<__m512i>(v[2 * i + 1].piece[0]));
    }
    // Each quarter has now 4 numbers of each vector.
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i below_128 = _mm512_set1_epi16(127);
    byte[0] = _mm512_packus_epi16(_mm512_srli_epi16(pair[0], 7), _mm512_srli_epi16(pair[1], 7));
    byte[1] = _mm512_packus_epi16(_mm512_and_si512(pair[0], below_128), _mm512_and_si512(pair[1], below_128));
    _mm512_storeu_si512(high, _mm512_permutexvar_epi32(in_order, byte[0]));
    _mm512_storeu_si512(low, _mm512_permutexvar_epi32(in_order, byte[1]));
    return;
  }
#endif
  OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
    narrow16(high + 16 * k, v[k] >> 7);
    narrow16(low + 16 * k, v[k] & 127);
  }
}

}  // namespace outpace::OUTPACE_TIER
