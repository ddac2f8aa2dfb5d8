// Many rows with a strip whose weights are unpacked once for all of them, some cells at a time, into the
// first level of the cache. Only four rows' sums fit the registers of AVX2, and unpacking a group for each
// four of them takes 104 (5 bits) or 68 instructions (6 bits) beside the 144 to 160 of their products.
//
// Bytes: the strip's once in, 512 a group out and, from the first level, in again for every four rows: 16
// loads of 32, 8 cycles, beside the 40 to 48 of four rows' products (short_sums.inl).

namespace outpace::OUTPACE_TIER {

// Rows from which that pays, measured; 0: never. Bytes are used as they lie, and 4 bits take 24 instructions
// to unpack, fewer than it costs to write and read the lines.
constexpr int64_t unpack_from(Format f) { return bits(f) == 5 || bits(f) == 6 ? 8 : 0; }

// Groups that are unpacked together: 8 kB.
constexpr int kGroupsTogether = 16;

template <Format F>
struct UnpackedCell {
  const uint8_t *lines, *packed_scales;

  OUTPACE_INLINE_MEMBER UnpackedGroup group(int g) const { return {lines + g * kGroup * kStrip}; }
  OUTPACE_INLINE_MEMBER const uint8_t* scales() const { return packed_scales; }
};

template <Format F>
OUTPACE_INLINE void unpack_cell(const PackedCell<F>& cell, uint8_t* lines) {
  for (int g = 0; g < cell_columns(F) / kGroup; ++g) {
    OUTPACE_UNROLL for (int q = 0; q < 8; ++q) {
      store_lines(lines + (8 * g + q) * 64, line_of<F>(cell.group(g), q));
    }
  }
}

// out[r] += the products of row r with cells [first, end); `lines` has them unpacked.
template <Format F, int R>
void unpacked_rows(const uint8_t* strip, const uint8_t* lines, const Plane& a, int64_t columns, int64_t row0,
                   int64_t first, int64_t end, float* out, int64_t out_stride) {
  Floats acc[R];
  for (int r = 0; r < R; ++r) acc[r] = first == 0 ? set_floats(0.0f) : load_floats(out + r * out_stride);
  for (int64_t i = first; i < end; ++i, lines += cell_columns(F) * kStrip) {
    const UnpackedCell<F> cell = {lines, strip + i * cell_bytes(F) + scale_offset(F)};
    quantized_cell<F, R>(cell, a, columns, row0, i, acc, PartAhead<F>{});
  }
  for (int r = 0; r < R; ++r) store(out + r * out_stride, acc[r]);
}

template <Format F>
void unpacked_strip(const TileMatrix& m, const uint8_t* strip, const Activations& all, int64_t num_rows,
                    float* out, int64_t out_stride) {
  alignas(64) uint8_t lines[kGroupsTogether * kGroup * kStrip];
  const Quantized& a = is_k(F) ? all.per_256 : all.per_32;
  const int64_t cells = m.columns / cell_columns(F), together = kGroupsTogether * kGroup / cell_columns(F);
  for (int64_t first = 0; first < cells; first += together) {
    const int64_t end = first + together < cells ? first + together : cells;
    for (int64_t i = first; i < end; ++i) {
      const PackedCell<F> cell = {strip + i * cell_bytes(F)};
      prefetch<cell_bytes(F)>(cell.data);
      unpack_cell<F>(cell, lines + (i - first) * cell_columns(F) * kStrip);
    }
    each_row_tile(num_rows, [&]<int R>(int64_t row) {
      unpacked_rows<F, R>(strip, lines, a.high, m.columns, row, first, end, out + row * out_stride,
                          out_stride);
    });
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    Floats sum = load_floats(out + r * out_stride);
    add_wide_cells<F>(strip, a, m.columns, r, sum);
    store(out + r * out_stride, sum);
  }
}

}  // namespace outpace::OUTPACE_TIER
