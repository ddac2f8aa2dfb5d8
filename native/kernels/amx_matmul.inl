// Matrix products with tiles (AMX-INT8): activations of up to 16 rows times the weights of a strip.
//
// A line of weights in memory (16 outputs x 4 inputs) is a row of a weight tile once its fields are
// bytes, so the strips of tiles.h serve this tier as they are. Sums are integers and exact, and become
// floats by the operations of matmul.inl in their order: the bits are those of every other tier.
//
// A strip's weights are unpacked to a buffer in the first-level cache, a few groups or one super-block
// at a time, and multiplied there with all blocks of rows; so unpacking costs many rows nothing. What
// the tiles cost is said in amx_groups.inl and amx_super_blocks.inl.
//
// Activations lie row by row, so a tile of them takes 16 lines from 16 places. That costs little where every
// row begins at a line (aligned.h) and all of them stay in the second level (Forward::by_row_blocks):
// products of depth 64 in L2 take 4.4 to 5.0 ns apart from everything else, and 10 where rows begin within a
// line.

namespace outpace::OUTPACE_TIER {

constexpr int kTileRows = 16;

// Rows from which tiles take less time than VNNI does, measured (LABLOG.md).
constexpr int64_t tiles_from(Format f) {
  switch (f) {
    case Format::q6_k:
    case Format::q5_0:
      return 6;
    case Format::q4_0:
    case Format::q4_k:
    case Format::q5_k:
      return 7;
    default:
      return 9;
  }
}

// Rows that pass through a strip together: their accumulators (16 kB), the unpacked weights and the
// tiles of sums fit the first-level cache.
constexpr int64_t kRowsAtOnce = 256;

// Rows in blocks of one height, so that one tile configuration serves them all. The last block may
// begin before the previous one ends; its rows before `begin` are done already.
struct RowBlocks {
  int64_t num_rows, count, height;

  explicit RowBlocks(int64_t n)
      : num_rows(n), count((n + kTileRows - 1) / kTileRows), height((n + count - 1) / count) {}
  int64_t first(int64_t block) const {
    const int64_t last = num_rows - height;
    return block * height < last ? block * height : last;
  }
  int64_t begin(int64_t block) const { return block * height - first(block); }
};

// Asks for the lines of cells kPrefetch bytes ahead, as `prefetch` does, but a few at a time: the queue of
// misses has some 16 places, and where a burst fills it, what the kernel itself reads waits. Between products
// and rows the memory is read all the time (16 rows of Q4_K from DRAM take 2.43 instead of 2.71 ns a group
// and row, 32 rows 1.78 instead of 2.23: LABLOG.md).
class CellsAhead {
 public:
  CellsAhead(const uint8_t* cells, int64_t bytes) : line_(cells + kPrefetch), left_((bytes + 63) / 64) {}

  OUTPACE_INLINE_MEMBER void next(int64_t lines) {
    for (; lines > 0 && left_ > 0; --lines, --left_, line_ += 64) __builtin_prefetch(line_, 0, 2);
  }
  OUTPACE_INLINE_MEMBER void rest() { next(left_); }

 private:
  const uint8_t* line_;
  int64_t left_;
};

template <Format F>
OUTPACE_INLINE void unpack_group(const PackedGroup<F>& group, Lines (&w)[8]) {
  OUTPACE_UNROLL for (int q = 0; q < 8; ++q) w[q] = line_of<F>(group, q);
}

}  // namespace outpace::OUTPACE_TIER

#include "amx_groups.inl"
#include "amx_super_blocks.inl"

namespace outpace::OUTPACE_TIER {

// The rows from row 0 of `a` on, at most kRowsAtOnce.
template <Format F>
void tile_rows(const TileMatrix& m, const uint8_t* strip, const Quantized& a, int64_t num_rows, float* out,
               int64_t out_stride) {
  alignas(64) float acc[kRowsAtOnce * kStrip];
  const RowBlocks rows(num_rows);
  for (int64_t r = 0; r < num_rows; ++r) store(acc + r * kStrip, set_floats(0.0f));
  if constexpr (is_k(F)) {
    configure_tiles(super_block_config(rows.height));
    add_super_blocks<F>(m, strip, a.high, rows, acc);
  } else {
    configure_tiles(group_config(rows.height));
    add_groups<F>(m, strip, a.high, rows, acc);
  }
  release_tiles();
  for (int64_t r = 0; r < num_rows; ++r) {
    store(out + r * out_stride, load_floats(acc + r * kStrip));
  }
  add_wide_cells<F, 1>(m, strip, a, 0, num_rows, out, out_stride);
}

// As `a`, from that row on.
template <Format F>
Quantized from_row(const Quantized& a, int64_t row, int64_t columns) {
  const auto plane = [&](Plane p) {
    p.q += row * p.stride;
    p.scale += row * (columns / cell_columns(F));
    if constexpr (is_k(F)) {
      p.pair_sum += row * (columns / kGroup);
      p.half_start += row * (columns / (kGroup / 2));
    } else {
      p.sum += row * (columns / kGroup);
      p.scaled_sum += row * (columns / kGroup);
    }
    return p;
  };
  return {plane(a.high), plane(a.low), a.num_wide + row, a.wide + row * (columns / cell_columns(F))};
}

template <Format F>
void tile_strip(const TileMatrix& m, const uint8_t* strip, const Activations& all, int64_t num_rows,
                float* out, int64_t out_stride) {
  const Quantized& a = is_k(F) ? all.per_256 : all.per_32;
  // Even passes: a last one of few rows would unpack the weights for little.
  const int64_t passes = (num_rows + kRowsAtOnce - 1) / kRowsAtOnce,
                at_once = (num_rows + passes - 1) / passes;
  for (int64_t row = 0; row < num_rows; row += at_once) {
    const int64_t rows = num_rows - row < at_once ? num_rows - row : at_once;
    tile_rows<F>(m, strip, from_row<F>(a, row, m.columns), rows, out + row * out_stride, out_stride);
  }
}

void matmul_strips_tiles(const TileMatrix& m, int64_t first, int64_t last, const Activations& a,
                         int64_t num_rows, float* out, int64_t out_stride) {
  with_format(m.format, [&]<Format F>() {
    if constexpr (!is_float(F)) {
      if (num_rows >= tiles_from(F)) {
        const uint8_t* strip = m.data + first * m.strip_bytes;
        for (int64_t s = first; s < last; ++s, strip += m.strip_bytes, out += kStrip)
          tile_strip<F>(m, strip, a, num_rows, out, out_stride);
        return;
      }
    }
    strips_of<F>(m, first, last, a, num_rows, out, out_stride);
  });
}

// The most that tiles can do: 16 rows x 64 inputs x 16 outputs a product, four sums that wait for nobody.
int64_t tile_peak(int64_t rounds) {
  TileConfig config;
  for (int tile = 0; tile < 6; ++tile) config.set(tile, kTileRows, 64);
  configure_tiles(config);
  for (int64_t i = 0; i < rounds; ++i) {
    dot_tiles_signed<2, 0, 1>();
    dot_tiles_signed<3, 0, 1>();
    dot_tiles_signed<4, 0, 1>();
    dot_tiles_signed<5, 0, 1>();
  }
  release_tiles();
  return rounds * 4 * kTileRows * 64 * kStrip;
}

}  // namespace outpace::OUTPACE_TIER
