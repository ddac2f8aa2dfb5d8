// Attention over half-precision keys and values, in float.
//
// Keys lie as 16 tokens of one channel after the other, values as rows of channels. Bytes: 4 d a token and KV
// head of d channels, once for all its query heads. Per 16 tokens and query head: 2 d multiplications and as
// many additions of 16 lanes, with one multiplication a cycle (Zen 4) d / 8 cycles a token, 8 and 16 for 64
// and 128 channels. `rows_bench`: 10.4 and 20.6, softmax included; int8 takes 4.5 and 7.5.

namespace outpace::OUTPACE_TIER {

// Scores of 16 tokens for H heads. scores: [H] rows of kAttentionChunk
template <int H>
OUTPACE_INLINE void scores_f16(const AttentionTask& t, int64_t head, int64_t token, float* scores) {
  const KVLayout& kv = *t.layout;
  const float* query = t.query + head * kv.head_dim;
  const uint8_t* keys =
      block_of(t, token) + token % kBlockTokens / kTileTokens * kTileTokens * kv.head_dim * 2;
  Floats acc[H];
  for (int h = 0; h < H; ++h) acc[h] = set_floats(0.0f);
  for (int64_t c = 0; c < kv.head_dim; ++c) {
    const Floats k = load_halves(keys + 2 * kTileTokens * c);
    for (int h = 0; h < H; ++h) acc[h] = add(acc[h], mul(k, set_floats(query[h * kv.head_dim + c])));
  }
  for (int h = 0; h < H; ++h) store(scores + h * kAttentionChunk, acc[h]);
}

// out[h][channel ..] = sum over the tokens in their order of weight x value, S groups of 16 channels.
template <int H, int S, class Ahead>
OUTPACE_INLINE void values_f16(const AttentionTask& t, int64_t head, int64_t tile_begin, int64_t channel,
                               const float* weights, const Factors (&factors)[H], Ahead& ahead) {
  const KVLayout& kv = *t.layout;
  Floats acc[H][S];
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) acc[h][s] = set_floats(0.0f);
  }
  for (int64_t token = t.begin; token < t.end; ++token) {
    const uint8_t* row = block_of(t, token) + kv.value_offset + token % kBlockTokens * kv.head_dim * 2;
    Floats v[S];
    for (int s = 0; s < S; ++s) v[s] = load_halves(row + 2 * (channel + 16 * s));
    for (int h = 0; h < H; ++h) {
      const Floats w = set_floats(weights[h * kAttentionChunk + token - tile_begin]);
      for (int s = 0; s < S; ++s) acc[h][s] = add(acc[h][s], mul(w, v[s]));
    }
    ahead.after(H * S);
  }
  for (int h = 0; h < H; ++h) {
    for (int s = 0; s < S; ++s) {
      save_values(t, t.out + (head + h) * kv.head_dim + channel + 16 * s, factors[h], acc[h][s]);
    }
  }
}

// Scores to weights, in place; returns their sum.
OUTPACE_INLINE float weigh(float* scores, int64_t last, float largest) {
  return weigh_tiles(scores, last, largest, [&]<int K>(int64_t at, const F16x(&w)[K]) {
    OUTPACE_UNROLL for (int k = 0; k < K; ++k) store16(scores + at + k * kTileTokens, w[k]);
  });
}

template <int H, class Ahead>
void attend_f16(const AttentionTask& t, int64_t head, Ahead& ahead) {
  const int64_t tile_begin = t.begin / kTileTokens * kTileTokens, head_dim = t.layout->head_dim;
  alignas(64) float scores[H][kAttentionChunk];
  for (int64_t token = tile_begin; token < t.end; token += kTileTokens) {
    scores_f16<H>(t, head, token, &scores[0][token - tile_begin]);
    ahead.after(H * head_dim);
  }
  const int64_t last = t.end - tile_begin;
  float largest[H];
  Factors factors[H];
  for (int h = 0; h < H; ++h) largest[h] = largest_score(scores[h], t.begin - tile_begin, last, t.softcap);
  for (int h = 0; h < H; ++h) {
    factors[h] = save_sums(t, head + h, largest[h], weigh(scores[h], last, largest[h]));
  }
  int64_t channel = 0;
  for (; channel + 64 <= head_dim; channel += 64) {
    values_f16<H, 4>(t, head, tile_begin, channel, &scores[0][0], factors, ahead);
  }
  for (; channel < head_dim; channel += 16) {
    values_f16<H, 1>(t, head, tile_begin, channel, &scores[0][0], factors, ahead);
  }
}

OUTPACE_INLINE void write_kv_f16(const KVLayout& kv, uint8_t* block, int64_t slot, const float* k,
                                 const float* v) {
  auto* keys = reinterpret_cast<uint16_t*>(block) + slot / kTileTokens * kTileTokens * kv.head_dim;
  auto* values = reinterpret_cast<uint16_t*>(block + kv.value_offset) + slot * kv.head_dim;
  for (int64_t c = 0; c < kv.head_dim; ++c) {
    keys[c * kTileTokens + slot % kTileTokens] = f32_to_f16(k[c]);
    values[c] = f32_to_f16(v[c]);
  }
}

}  // namespace outpace::OUTPACE_TIER
