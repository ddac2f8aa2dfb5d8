// Matrix products in bf16 with tiles, for prompts that the user lets be read with other roundings.
//
// Weights become bf16 numbers with all their scales in them, activations are rounded to bf16, and the tile
// unit adds in float: no sums to rescale, for twice the bytes of activations. A sum's order is that of the
// inputs, so a row's result depends on nothing but the row; but it is not the integer path's.
//
// Per 32 inputs, 16 outputs and 16 rows. Bytes: 1 kB of activations from the second level, 1 kB of weights
// from the first. Cycles: a product of 16 in the tile unit beside 16 for loads, of which the activations'
// take 20 as they come from the second level: 1.3 a row, where integers take 4 to 8. Unpacking takes about
// 190, once for all rows, so few rows wait for little else. Measured (LABLOG.md): 2.7 a row for 256
// rows with one thread, 3.4 to 4.4 with two.

namespace outpace::OUTPACE_TIER {

constexpr int kBf16Depth = 32;          // inputs in a tile of bf16
constexpr int64_t kInputsAtOnce = 512;  // that are unpacked together, for all rows: 16 kB

// The nearest bf16, in the upper half of each lane; halves go away from zero. A NaN stays one, so that
// damaged weights are noticed: its bits would overflow, and are left as they are but for that of a quiet one.
OUTPACE_INLINE __m512i rounded_up(Floats x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  return _mm512_mask_mov_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), is_nan, quiet);
}
// Two inputs of 16 outputs as a row of a weight tile.
OUTPACE_INLINE void store_pair(Floats even, Floats odd, uint32_t* row) {
  const __m512i low = _mm512_srli_epi32(rounded_up(even), 16);
  // The upper half of `odd`, the lower one of `even`.
  _mm512_store_si512(row, _mm512_mask_blend_epi16(0xaaaaaaaa, low, rounded_up(odd)));
}

void round_to_bf16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i upper = _mm512_srli_epi32(rounded_up(load_floats(x + i)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi32_epi16(upper));
  }
  for (; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    out[i] = static_cast<uint16_t>((x[i] != x[i] ? bits | 0x00400000 : bits + 0x8000) >> 16);
  }
}

// Four inputs of 16 outputs, quants as they are stored, times `scale` plus `offset`. rows: two of a weight
// tile
OUTPACE_INLINE void store_line(Lines line, Floats scale, Floats offset, uint32_t* rows) {
  const auto value = [&](Ints quant) {
    return Floats{_mm512_fmadd_ps(to_floats(quant).v, scale.v, offset.v)};
  };
  const Ints w = {line.v};
  store_pair(value(bit_and(w, 0xff)), value(bit_and(shift_right<8>(w), 0xff)), rows);
  store_pair(value(bit_and(shift_right<16>(w), 0xff)), value(shift_right<24>(w)), rows + kStrip);
}

// The inputs of a cell, or 32 of a float format, as weight tiles. tiles: [inputs / 2][16 outputs][2]
template <Format F>
OUTPACE_INLINE void unpack_to_bf16(const uint8_t* cell, uint32_t* tiles) {
  if constexpr (is_float(F)) {
    constexpr int64_t kBytes = cell_bytes(F);
    for (int k = 0; k < kBf16Depth; k += 2, tiles += kStrip)
      store_pair(load_weights<F>(cell + k * kBytes), load_weights<F>(cell + (k + 1) * kBytes), tiles);
  } else {
    const Floats zero = set_floats(-static_cast<float>(zero_point(F)));
    const uint8_t* scales = PackedCell<F>{cell}.scales();
    Ints scale[2], min[2];
    if constexpr (F == Format::q4_k || F == Format::q5_k) unpack_scales(scales, scale, min);
    for (int g = 0; g < cell_columns(F) / kGroup; ++g, tiles += kGroup / 2 * kStrip) {
      Lines w[8];
      unpack_group<F>(PackedCell<F>{cell}.group(g), w);
      Floats d[2], offset[2];  // of the first and the second 16 inputs
      if constexpr (F == Format::q6_k) {
        for (int i = 0; i < 2; ++i) {
          const auto* s = reinterpret_cast<const int8_t*>(scales) + 32 * g + 16 * i;
          d[i] = mul(to_floats(load_bytes(s)), load_halves(scales + 256));
          offset[i] = mul(zero, d[i]);
        }
      } else if constexpr (is_k(F)) {
        const auto part = [&](const auto& of) { return to_floats(bit_and({scale_byte(of, g)}, 0xff)); };
        d[0] = d[1] = mul(part(scale), load_halves(scales + 192));
        offset[0] = offset[1] = sub(set_floats(0.0f), mul(part(min), load_halves(scales + 224)));
      } else {
        d[0] = d[1] = load_halves(scales);
        offset[0] = offset[1] = has_min(F) ? load_halves(scales + 32) : mul(zero, d[0]);
      }
      for (int q = 0; q < 8; ++q) store_line(w[q], d[q / 4], offset[q / 4], tiles + 2 * q * kStrip);
    }
  }
}

// Tile 0: activations of 16 rows; 1: weights; 2: their sums; 3, 4: activations and sums of the last rows,
// fewer than 16.
inline TileConfig bf16_config(int64_t rows) {
  TileConfig config;
  config.set(1, kBf16Depth / 2, 4 * kStrip);
  const auto shape = [&](int a, int sum, int64_t height) {
    if (height == 0) return;
    config.set(a, height, 2 * kBf16Depth);
    config.set(sum, height, 4 * kStrip);
  };
  shape(0, 2, rows >= kTileRows ? kTileRows : 0);
  shape(3, 4, rows % kTileRows);
  return config;
}

// One block of rows at a time: 16 lines side by side are followed by the processor's own prefetch, 64 are not
// (0.8 instead of 1.0 ns a group and row). out: takes the sums in where `add` is set
template <int A, int Sum>
OUTPACE_INLINE void multiply_bf16(const uint32_t* tiles, int64_t inputs, const uint16_t* rows, int64_t stride,
                                  bool add, float* out, int64_t out_stride) {
  const auto out_bytes = out_stride * static_cast<int64_t>(sizeof(float));
  if (add)
    load_tile<Sum>(out, out_bytes);
  else
    zero_tile<Sum>();
  for (int64_t k = 0; k < inputs; k += kBf16Depth) {
    load_tile<1>(tiles + k / 2 * kStrip, 4 * kStrip);
    load_tile<A>(rows + k, stride * static_cast<int64_t>(sizeof(uint16_t)));
    dot_tiles_bf16<Sum, A, 1>();
  }
  store_tile<Sum>(out, out_bytes);
}

template <Format F>
void bf16_strip(const TileMatrix& m, int64_t s, const Activations& a, const Bf16Part& part, float* out,
                int64_t out_stride) {
  constexpr int64_t kCell = is_float(F) ? kBf16Depth : cell_columns(F);  // inputs
  constexpr int64_t kBytes = is_float(F) ? kBf16Depth * cell_bytes(F) : cell_bytes(F);
  alignas(64) uint32_t tiles[kInputsAtOnce / 2 * kStrip];
  const uint8_t* cell = m.data + s * m.strip_bytes + part.first_input / kCell * kBytes;
  configure_tiles(bf16_config(part.num_rows));
  for (int64_t first = part.first_input; first < part.last_input; first += kInputsAtOnce) {
    const int64_t left = part.last_input - first, inputs = left < kInputsAtOnce ? left : kInputsAtOnce;
    for (int64_t k = 0; k < inputs; k += kCell, cell += kBytes) {
      prefetch<kBytes>(cell + kPrefetch);
      unpack_to_bf16<F>(cell, tiles + k / 2 * kStrip);
    }
    const bool add = part.add || first > part.first_input;
    const uint16_t* rows = a.bf16 + first;
    float* to = out;
    int64_t row = 0;
    for (; row + kTileRows <= part.num_rows; row += kTileRows) {
      multiply_bf16<0, 2>(tiles, inputs, rows, a.stride_bf16, add, to, out_stride);
      rows += kTileRows * a.stride_bf16;
      to += kTileRows * out_stride;
    }
    if (row < part.num_rows) multiply_bf16<3, 4>(tiles, inputs, rows, a.stride_bf16, add, to, out_stride);
  }
  release_tiles();
}

void matmul_strip_bf16(const TileMatrix& m, int64_t strip, const Activations& a, const Bf16Part& part,
                       float* out, int64_t out_stride) {
  with_format(m.format, [&]<Format F>() { bf16_strip<F>(m, strip, a, part, out, out_stride); });
}

}  // namespace outpace::OUTPACE_TIER
