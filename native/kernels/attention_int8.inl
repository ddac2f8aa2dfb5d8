// Attention over int8 keys and values: all products are exact integers.
//
// Queries and softmax weights have 14 or 15 bits in two planes of int8, value = 128 x high + low (AVX2
// without VNNI makes one number of them again: as many products of pairs of 16 bits as there would be of four
// bytes). Keys lie as dot-product lines of 16 tokens x 4 channels, values as lines of 16 channels x 4 tokens,
// both biased by 128 (u8). Per 16 tokens, query head and d channels: d / 2 dot products for the scores, d / 2
// for the values and about 40 float instructions for the softmax; d = 64 at one dot product a cycle: about 90
// cycles, at two (Zen 5): 50. Measured there: 62, and 95 for d = 128 (rows_bench). K and V of a chunk (128 x
// (2d + 8) bytes) stay in the first-level cache for all the rows and heads that see it.

namespace outpace::OUTPACE_TIER {

constexpr float kQuerySteps = 127.0f * 128.0f;
constexpr float kWeightSteps = 127.0f * 128.0f;

void quantize_query(const float* x, int64_t n, int8_t* high, int8_t* low, float* unit, int32_t* sum) {
  const float largest = largest_magnitude(x, n);
  const float inverse = inverse_step(kQuerySteps, largest);
  I16x total = {};
  for (int64_t i = 0; i < n; i += 16) {
    const I16x v = round16(load16(x + i) * inverse);
    narrow16(high + i, v >> 7);
    narrow16(low + i, v & 127);
    total = total + v;
  }
  *unit = largest / kQuerySteps;
  *sum = fold_ints(total);
}

// Takes off what the bytes' bias added to a dot product; sum: of the integers.
OUTPACE_INLINE Ints unbias(Ints total, int32_t sum) { return sub(total, shift_left<7>(set_ints(sum))); }

// Multipliers<N>: up to N integers of 15 bits as products take them. ProductSums: their products with 16
// columns of bytes. add_quad(sums, line, a, at): those of a line of 4 bytes x 16 with the integers at .. at
// + 3.
#if defined(OUTPACE_SHORT_SUMS)

// No instruction multiplies the planes' bytes, so both are one number, of which the pairs (0, 2) and (1, 3)
// of each four are taken.
static_assert(int64_t{kMaxHeadDim} * 255 * 127 * 128 <= INT32_MAX && kAttentionChunk <= kMaxHeadDim);
template <int N>
struct Multipliers {
  int16_t even[N / 2], odd[N / 2];
  int32_t sum;

  OUTPACE_INLINE_MEMBER void set(const int8_t* high, const int8_t* low, int32_t their_sum, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) join_planes(high + i, low + i, even + i / 2, odd + i / 2);
    sum = their_sum;
  }
};
struct ProductSums {
  Ints total = zero_ints();
};
struct SplitLine {
  Shorts even, odd;
};
OUTPACE_INLINE SplitLine split_line(Lines line) { return {even_bytes(line), odd_bytes(line)}; }
template <int N>
OUTPACE_INLINE void add_quad(ProductSums& sums, const SplitLine& line, const Multipliers<N>& a, int64_t at) {
  sums.total = dot_shorts(sums.total, line.even, a.even + at / 2);
  sums.total = dot_shorts(sums.total, line.odd, a.odd + at / 2);
  settle(sums.total);
}
OUTPACE_INLINE Ints total_of(const ProductSums& sums, int32_t sum) { return unbias(sums.total, sum); }

#else

template <int N>
struct Multipliers {
  const int8_t *high, *low;
  int32_t sum;

  OUTPACE_INLINE_MEMBER void set(const int8_t* high_plane, const int8_t* low_plane, int32_t their_sum,
                                 int64_t /*n*/) {
    high = high_plane;
    low = low_plane;
    sum = their_sum;
  }
};
struct ProductSums {
  Ints high = zero_ints(), low = zero_ints();
};
OUTPACE_INLINE Lines split_line(Lines line) { return line; }
OUTPACE_INLINE Ints planes_total(Ints high, Ints low, int32_t sum) {
  const Ints total = add(shift_left<7>(high), low);
  if constexpr (kByteZeroPoint == 0) return total;
  return unbias(total, sum);
}
template <int N>
OUTPACE_INLINE void add_quad(ProductSums& sums, const Lines& line, const Multipliers<N>& a, int64_t at) {
  sums.high = dot<false>(sums.high, line, a.high + at);
  sums.low = dot<false>(sums.low, line, a.low + at);
}
OUTPACE_INLINE Ints total_of(const ProductSums& sums, int32_t sum) {
  return planes_total(sums.high, sums.low, sum);
}

#endif

// Scores of H heads and T tiles of 16 tokens from `token` on. scores: [H] rows of kAttentionChunk
template <int H, int T>
OUTPACE_INLINE void scores_int8(const AttentionTask& t, int64_t head, int64_t token,
                                const Multipliers<kMaxHeadDim> (&query)[H], float* scores) {
  const KVLayout& kv = *t.layout;
  const uint8_t* keys[T];
  const float* scales[T];
  ProductSums sums[H][T];
  for (int i = 0; i < T; ++i) {
    const int64_t first = token + i * kTileTokens, half = first % kBlockTokens / kTileTokens;
    const uint8_t* block = block_of(t, first);
    keys[i] = block + half * kTileTokens * kv.head_dim;
    scales[i] = reinterpret_cast<const float*>(block + kv.key_scale_offset) + half * kTileTokens;
  }
  OUTPACE_UNROLL_SOME for (int64_t quad = 0; quad < kv.head_dim / 4; ++quad) {
    for (int i = 0; i < T; ++i) {
      const auto line = split_line(load_lines(keys[i] + 64 * quad));
      for (int h = 0; h < H; ++h) add_quad(sums[h][i], line, query[h], 4 * quad);
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int i = 0; i < T; ++i) {
      const Ints total = total_of(sums[h][i], query[h].sum);
      store(scores + h * kAttentionChunk + i * kTileTokens,
            mul(to_floats(total), mul(load_floats(scales[i]), set_floats(t.query_unit[head + h]))));
    }
  }
}

// out[h][channel ..] = sum over tokens of weight x value, S groups of 16 channels.
template <int H, int S, class Ahead>
OUTPACE_INLINE void values_int8(const AttentionTask& t, int64_t head, int64_t tile_begin, int64_t channel,
                                const Multipliers<kAttentionChunk> (&weights)[H], float unit,
                                const Factors (&factors)[H], Ahead& ahead) {
  const KVLayout& kv = *t.layout;
  ProductSums sums[H][S];
  for (int64_t token = tile_begin; token < t.end; token += kTileTokens) {
    const uint8_t* values = block_of(t, token) + kv.value_offset + token % kBlockTokens * kv.head_dim;
    OUTPACE_UNROLL_SOME for (int quad = 0; quad < kTileTokens / 4; ++quad) {
      const int64_t at = token - tile_begin + 4 * quad;
      for (int s = 0; s < S; ++s) {
        const auto line = split_line(load_lines(values + 4 * (quad * kv.head_dim + channel + 16 * s)));
        for (int h = 0; h < H; ++h) add_quad(sums[h][s], line, weights[h], at);
      }
    }
    ahead.after(H * S * 16);
  }
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) {
      const Ints total = total_of(sums[h][s], weights[h].sum);
      save_values(t, t.out + (head + h) * kv.head_dim + channel + 16 * s, factors[h],
                  mul(to_floats(total), set_floats(unit)));
    }
  }
}

// The value scales of the tokens that are seen, 0 for the others, in steps of the integer weights. scales:
// [padded to 16], the first belonging to token tile_begin. Returns the unit of the integer weights.
OUTPACE_INLINE float scale_values(const AttentionTask& t, int64_t tile_begin, float* scales) {
  const int64_t first = t.begin - tile_begin, last = t.end - tile_begin;
  F16x largest = {};
  for (int64_t at = 0; at < last; at += kTileTokens) {
    const int64_t token = tile_begin + at;
    const auto* from = reinterpret_cast<const float*>(block_of(t, token) + t.layout->value_scale_offset);
    store16(scales + at, load16(from + token % kBlockTokens));
    for (int64_t i = at; i < first; ++i) scales[i] = 0.0f;
    for (int64_t i = last; i < at + kTileTokens; ++i) scales[i] = 0.0f;
    largest = max16(largest, load16(scales + at));
  }
  const float top = fold_max(largest), inverse = inverse_step(kWeightSteps, top);
  for (int64_t at = 0; at < last; at += kTileTokens) store16(scales + at, load16(scales + at) * inverse);
  return top / kWeightSteps;
}

// The softmax weights of one head as integers, each multiplied by its token's value scale.
struct IntegerWeights {
  alignas(64) int8_t high[kAttentionChunk], low[kAttentionChunk];
  int32_t sum;
};

// Scores to integer weights; returns the sum of the weights as floats.
OUTPACE_INLINE float weigh(const float* scores, const float* scales, int64_t last, float largest,
                           IntegerWeights& out) {
  I16x sum = {};
  const float total = weigh_tiles(scores, last, largest, [&]<int K>(int64_t at, const F16x(&w)[K]) {
    I16x v[K];
    OUTPACE_UNROLL for (int k = 0; k < K; ++k) {
      v[k] = round16(w[k] * load16(scales + at + k * kTileTokens));
      sum = sum + v[k];
    }
    split_planes(out.high + at, out.low + at, v);
  });
  out.sum = fold_ints(sum);
  return total;
}

// H heads at once share the loads of keys and values; few heads take more tiles or channels at once, so
// that there are as many independent sums as fit the registers. All heads' largest scores are found before
// any of their weights, which wait for them.
template <int H, class Ahead>
void attend_int8(const AttentionTask& t, int64_t head, const float* scales, float unit, Ahead& ahead) {
  constexpr int sums = kRegisterSums > 8 ? kRegisterSums : 8, wide = sums / (2 * H);
  const int64_t tile_begin = t.begin / kTileTokens * kTileTokens, head_dim = t.layout->head_dim;
  alignas(64) float scores[H][kAttentionChunk];
  Multipliers<kMaxHeadDim> query[H];
  for (int h = 0; h < H; ++h) {
    const int64_t at = (head + h) * head_dim;
    query[h].set(t.query_high + at, t.query_low + at, t.query_sum[head + h], head_dim);
  }
  int64_t token = tile_begin;
  for (; token + wide * kTileTokens <= t.end; token += wide * kTileTokens) {
    scores_int8<H, wide>(t, head, token, query, &scores[0][token - tile_begin]);
    ahead.after(H * wide * head_dim);
  }
  for (; token < t.end; token += kTileTokens) {
    scores_int8<H, 1>(t, head, token, query, &scores[0][token - tile_begin]);
    ahead.after(H * head_dim);
  }
  const int64_t last = t.end - tile_begin;
  IntegerWeights planes[H];
  Multipliers<kAttentionChunk> weights[H];
  float largest[H];
  Factors factors[H];
  for (int h = 0; h < H; ++h) largest[h] = largest_score(scores[h], t.begin - tile_begin, last, t.softcap);
  for (int h = 0; h < H; ++h) {
    const float sum = weigh(scores[h], scales, last, largest[h], planes[h]);
    weights[h].set(planes[h].high, planes[h].low, planes[h].sum, (last + 15) / 16 * 16);
    factors[h] = save_sums(t, head + h, largest[h], sum);
  }
  int64_t channel = 0;
  for (; channel + 16 * wide <= head_dim; channel += 16 * wide) {
    values_int8<H, wide>(t, head, tile_begin, channel, weights, unit, factors, ahead);
  }
  for (; channel < head_dim; channel += 16) {
    values_int8<H, 1>(t, head, tile_begin, channel, weights, unit, factors, ahead);
  }
}

// Both biased by 128: the byte of x - 128 is that of x + 128.
OUTPACE_INLINE void write_kv_int8(const KVLayout& kv, uint8_t* block, int64_t slot, const float* k,
                                  const float* v) {
  const float largest_k = largest_magnitude(k, kv.head_dim), largest_v = largest_magnitude(v, kv.head_dim);
  const float inverse_k = inverse_step(127.0f, largest_k), inverse_v = inverse_step(127.0f, largest_v);
  uint8_t* keys = block + slot / kTileTokens * kTileTokens * kv.head_dim + slot % kTileTokens * 4;
  uint8_t* values = block + kv.value_offset + slot / 4 * 4 * kv.head_dim + slot % 4;
  for (int64_t c = 0; c < kv.head_dim; c += 16) {
    int8_t q[16];
    narrow16(q, round16(load16(k + c) * inverse_k) - 128);
    for (int i = 0; i < 4; ++i) std::memcpy(keys + (c / 4 + i) * 64, q + 4 * i, 4);
    narrow16(q, round16(load16(v + c) * inverse_v) - 128);
    for (int i = 0; i < 16; ++i) values[4 * (c + i)] = static_cast<uint8_t>(q[i]);
  }
  reinterpret_cast<float*>(block + kv.key_scale_offset)[slot] = largest_k / 127.0f;
  reinterpret_cast<float*>(block + kv.value_scale_offset)[slot] = largest_v / 127.0f;
}

}  // namespace outpace::OUTPACE_TIER
