// Attention over int8 keys and values: all products are exact integers.
//
// Queries and softmax weights have 14 or 15 bits in two planes of int8, value = 128 x high + low. Keys lie as
// dot-product lines of 16 tokens x 4 channels, values as lines of 16 channels x 4 tokens, both biased by 128
// (u8). Per 16 tokens, query head and d channels: d / 2 dot products for the scores, d / 2 for the values and
// about 40 float instructions for the softmax; d = 64 at one dot product a cycle: about 90 cycles, at two
// (Zen 5): 50. Measured there: 62, and 95 for d = 128 (rows_bench). K and V of a chunk (128 x (2d + 8) bytes)
// stay in the first-level cache for all the rows and heads that see it.

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
    total += v;
  }
  *unit = largest / kQuerySteps;
  *sum = fold_ints(total);
}

// The dot product with both planes, less what the bytes' bias added; sum: of the two-plane integers.
OUTPACE_INLINE Ints planes_total(Ints high, Ints low, int32_t sum) {
  const Ints total = add(shift_left<7>(high), low);
  if constexpr (kByteZeroPoint == 0) return total;
  return sub(total, shift_left<7>(set_ints(sum)));
}

// Scores of H heads and T tiles of 16 tokens from `token` on. scores: [H] rows of kAttentionChunk
template <int H, int T>
OUTPACE_INLINE void scores_int8(const AttentionTask& t, int64_t head, int64_t token, float* scores) {
  const KVLayout& kv = *t.layout;
  const uint8_t* keys[T];
  const float* scales[T];
  Ints high[H][T], low[H][T];
  for (int i = 0; i < T; ++i) {
    const int64_t first = token + i * kTileTokens, half = first % kBlockTokens / kTileTokens;
    const uint8_t* block = block_of(t, first);
    keys[i] = block + half * kTileTokens * kv.head_dim;
    scales[i] = reinterpret_cast<const float*>(block + kv.key_scale_offset) + half * kTileTokens;
    for (int h = 0; h < H; ++h) high[h][i] = low[h][i] = zero_ints();
  }
  const int8_t* query_high = t.query_high + head * kv.head_dim;
  const int8_t* query_low = t.query_low + head * kv.head_dim;
  OUTPACE_UNROLL_SOME for (int64_t quad = 0; quad < kv.head_dim / 4; ++quad) {
    for (int i = 0; i < T; ++i) {
      const Lines line = load_lines(keys[i] + 64 * quad);
      for (int h = 0; h < H; ++h) {
        high[h][i] = dot<false>(high[h][i], line, query_high + h * kv.head_dim + 4 * quad);
        low[h][i] = dot<false>(low[h][i], line, query_low + h * kv.head_dim + 4 * quad);
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int i = 0; i < T; ++i) {
      const Ints total = planes_total(high[h][i], low[h][i], t.query_sum[head + h]);
      store(scores + h * kAttentionChunk + i * kTileTokens,
            mul(to_floats(total), mul(load_floats(scales[i]), set_floats(t.query_unit[head + h]))));
    }
  }
}

// The softmax weights of one head as integers, each multiplied by its token's value scale.
struct IntegerWeights {
  alignas(64) int8_t high[kAttentionChunk], low[kAttentionChunk];
  int32_t sum;
};

// out[h][channel ..] = sum over tokens of weight x value, S groups of 16 channels.
template <int H, int S, class Ahead>
OUTPACE_INLINE void values_int8(const AttentionTask& t, int64_t head, int64_t tile_begin, int64_t channel,
                                const IntegerWeights* weights, float unit, const Factors (&factors)[H],
                                Ahead& ahead) {
  const KVLayout& kv = *t.layout;
  Ints high[H][S], low[H][S];
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) high[h][s] = low[h][s] = zero_ints();
  }
  for (int64_t token = tile_begin; token < t.end; token += kTileTokens) {
    const uint8_t* values = block_of(t, token) + kv.value_offset + token % kBlockTokens * kv.head_dim;
    OUTPACE_UNROLL_SOME for (int quad = 0; quad < kTileTokens / 4; ++quad) {
      const int64_t at = token - tile_begin + 4 * quad;
      for (int s = 0; s < S; ++s) {
        const Lines line = load_lines(values + 4 * (quad * kv.head_dim + channel + 16 * s));
        for (int h = 0; h < H; ++h) {
          high[h][s] = dot<false>(high[h][s], line, weights[h].high + at);
          low[h][s] = dot<false>(low[h][s], line, weights[h].low + at);
        }
      }
    }
    ahead.after(H * S * 16);
  }
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) {
      const Ints total = planes_total(high[h][s], low[h][s], weights[h].sum);
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

// Scores to integer weights; returns the sum of the weights as floats.
OUTPACE_INLINE float weigh(const float* scores, const float* scales, int64_t last, float largest,
                           IntegerWeights& out) {
  I16x sum = {};
  const float total = weigh_tiles(scores, last, largest, [&](int64_t at, const F16x& w) {
    const I16x v = round16(w * load16(scales + at));
    narrow16(out.high + at, v >> 7);
    narrow16(out.low + at, v & 127);
    sum += v;
  });
  out.sum = fold_ints(sum);
  return total;
}

// H heads at once share the loads of keys and values; few heads take more tiles or channels at once, so
// that there are as many independent sums as fit the registers. All heads' largest scores are found before
// any of their weights, which wait for them.
template <int H, class Ahead>
void attend_int8(const AttentionTask& t, int64_t head, const float* scales, float unit, Ahead& ahead) {
  constexpr int sums = kMaxRows > 8 ? kMaxRows : 8, wide = sums / (2 * H);
  const int64_t tile_begin = t.begin / kTileTokens * kTileTokens, head_dim = t.layout->head_dim;
  alignas(64) float scores[H][kAttentionChunk];
  int64_t token = tile_begin;
  for (; token + wide * kTileTokens <= t.end; token += wide * kTileTokens) {
    scores_int8<H, wide>(t, head, token, &scores[0][token - tile_begin]);
    ahead.after(H * wide * head_dim);
  }
  for (; token < t.end; token += kTileTokens) {
    scores_int8<H, 1>(t, head, token, &scores[0][token - tile_begin]);
    ahead.after(H * head_dim);
  }
  const int64_t last = t.end - tile_begin;
  IntegerWeights weights[H];
  float largest[H];
  Factors factors[H];
  for (int h = 0; h < H; ++h) largest[h] = largest_score(scores[h], t.begin - tile_begin, last, t.softcap);
  for (int h = 0; h < H; ++h) {
    const float sum = weigh(scores[h], scales, last, largest[h], weights[h]);
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
