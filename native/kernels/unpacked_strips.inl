// Many rows with strips whose weights are unpacked once for all of them, some cells at a time, into the first
// level of the cache. Only four rows' sums fit the registers of AVX2, and unpacking a group for each four of
// them takes 104 (5 bits) or 68 instructions (6 bits) beside the 144 to 160 of their products; on AVX512, for
// eight rows and two strips, 56 or 52 beside 240 to 300 (LABLOG.md).
//
// Bytes: the strip's once in, 512 a group out and, from the first level, in again for every four rows: 16
// loads of 32, 8 cycles, beside the 40 to 48 of four rows' products (short_sums.inl).

namespace outpace::OUTPACE_TIER {

// Bytes are used as they lie, and of 4 bits it costs more to write and read the lines.
template <Format F>
constexpr bool kUnpacksOnce = kUnpackFrom > 0 && (bits(F) == 5 || bits(F) == 6);

// Groups that are unpacked together: 8 kB of each strip.
constexpr int kGroupsTogether = 16;

template <Format F>
struct UnpackedCell {
  const uint8_t *lines, *packed_scales;

  OUTPACE_INLINE_MEMBER UnpackedGroup group(int g) const { return {lines + g * kGroup * kStrip}; }
  OUTPACE_INLINE_MEMBER const uint8_t* scales() const { return packed_scales; }
};

// Some cells of S strips, unpacked; which, unpack says.
template <Format F, int S>
class UnpackedCells {
 public:
  struct At {
    UnpackedCell<F> cells[S];
  };

  OUTPACE_INLINE_MEMBER UnpackedCells(const TileMatrix& m, const uint8_t* strip)
      : matrix_(m), strip_(strip) {}

  OUTPACE_INLINE_MEMBER void unpack(int64_t first, int64_t end) {
    first_ = first;
    for (int64_t i = first; i < end; ++i) {
      const CellsAt<F, S> at(matrix_, strip_, i);
      for (int s = 0; s < S; ++s) {
        uint8_t* lines = lines_[s] + (i - first) * cell_columns(F) * kStrip;
        for (int g = 0; g < cell_columns(F) / kGroup; ++g, lines += kGroup * kStrip) {
          OUTPACE_UNROLL for (int q = 0; q < 8; ++q)
              store_lines(lines + q * 64, line_of<F>(at.cells[s].group(g), q));
        }
      }
    }
  }
  OUTPACE_INLINE_MEMBER At operator()(int64_t index) const {
    const CellsAt<F, S> packed(matrix_, strip_, index);
    At at;
    OUTPACE_UNROLL for (int s = 0; s < S; ++s) {
      at.cells[s] = {lines_[s] + (index - first_) * cell_columns(F) * kStrip, packed.cells[s].scales()};
    }
    return at;
  }

 private:
  alignas(64) uint8_t lines_[S][kGroupsTogether * kGroup * kStrip];
  const TileMatrix& matrix_;
  const uint8_t* strip_;
  int64_t first_ = 0;
};

template <Format F, int S, int R>
void unpacked_rows(const TileMatrix& m, const uint8_t* strip, const UnpackedCells<F, S>& cells,
                   const Quantized& a, int64_t row0, int64_t first, int64_t end, float* out,
                   int64_t out_stride) {
  Floats acc[S][R];
  for (int s = 0; s < S; ++s) {
    for (int r = 0; r < R; ++r)
      acc[s][r] = first == 0 ? set_floats(0.0f) : load_floats(out + r * out_stride + s * kStrip);
  }
  // The block that is unpacked next must have come by then.
  static_assert(kGroupsTogether * kGroup / cell_columns(F) * cell_bytes(F) <= kPrefetchOf<S>);
  add_cells<F>(m, strip, a, row0, first, end, kPrefetchOf<S>, cells, acc);
  for (int s = 0; s < S; ++s) {
    for (int r = 0; r < R; ++r) store(out + r * out_stride + s * kStrip, acc[s][r]);
  }
}

template <Format F, int S>
void unpacked_strips(const TileMatrix& m, const uint8_t* strip, const Quantized& a, int64_t num_rows,
                     float* out, int64_t out_stride) {
  UnpackedCells<F, S> unpacked(m, strip);
  const int64_t cells = m.columns / cell_columns(F), together = kGroupsTogether * kGroup / cell_columns(F);
  for (int64_t first = 0; first < cells; first += together) {
    const int64_t end = first + together < cells ? first + together : cells;
    unpacked.unpack(first, end);
    each_row_tile<kRegisterSums / S>(num_rows, [&]<int R>(int64_t row) {
      unpacked_rows<F, S, R>(m, strip, unpacked, a, row, first, end, out + row * out_stride, out_stride);
    });
  }
  add_wide_cells<F, S>(m, strip, a, 0, num_rows, out, out_stride);
}

}  // namespace outpace::OUTPACE_TIER
