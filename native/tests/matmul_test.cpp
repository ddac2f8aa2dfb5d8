// The matrix kernels of every tier: against float64, and bit by bit against each other.
#include <algorithm>

#include "check.h"
#include "gguf_blocks.h"
#include "quantized.h"

namespace {

using outpace::Format;
using quantized::Rows;

constexpr int64_t kMaxRows = 33;

struct Shape {
  int64_t outputs, columns;
};

std::vector<Shape> shapes_of(Format f) {
  if (outpace::is_float(f)) return {{1, 1}, {15, 32}, {17, 7}, {16, 96}, {33, 576}};
  if (outpace::is_k(f)) return {{1, 256}, {15, 768}, {16, 512}, {17, 256}, {73, 512}, {19, 768}, {16, 1536}};
  return {{1, 32},  {15, 96},  {16, 32},  {17, 64}, {16, 96},
          {33, 64}, {73, 160}, {19, 576}, {9, 896}, {16, 1536}};
}

// What real rows are like, and what could break: row r is of kind r % 11.
void fill_activations(Rows& a, uint64_t seed) {
  check::Random random{seed};
  for (int64_t r = 0; r < a.rows; ++r) {
    const float size = std::ldexp(1.0f, static_cast<int>(random.between(-6, 6)));
    const int64_t special = random.below(a.columns);
    for (int64_t k = 0; k < a.columns; ++k) {
      float v = random.normal() * size;
      switch (r % 11) {
        case 1:
          v = 0.0f;
          break;
        case 2:
          v = k == special ? -3000.0f * size : v;
          break;  // one outlier: a wide super-block
        case 3:
          v = k == special ? size : 0.0f;
          break;
        case 4:
          v = -size;
          break;  // every quant at its end
        case 5:
          v = k % 2 == 0 ? size : -size;
          break;
        case 6:
          v = k % 256 == 200 && k < 512 ? 40.0f * size : v;
          break;  // some super-blocks wide
        case 7:
          v *= 1e-22f;
          break;
        case 8:
          v *= 1e-39f;
          break;  // 127 / largest is infinite
        case 9:
          v *= 1e18f;
          break;
        default:
          break;
      }
      a.x[static_cast<size_t>(r * a.columns + k)] = v;
    }
  }
}

quantized::Activation activation(const outpace::Activations& a, Format f, int64_t k) {
  if (outpace::is_float(f)) return {static_cast<double>(a.x[k]), 0.0};
  if (outpace::is_k(f)) return quantized::activation(a.per_256, k, outpace::kSuperBlock);
  return quantized::activation(a.per_32, k, outpace::kGroup);
}

struct Case {
  Format format;
  Shape shape;
  gguf::Matrix matrix;
  Rows activations;
};

// One row's products against float64: rounding level for the quantized activations, half a step of each
// for those before quantization.
void check_row(Case& c, int64_t r, const float* out) {
  const outpace::Activations a = c.activations.from(r);
  for (int64_t o = 0; o < c.shape.outputs; ++o) {
    double exact = 0.0, raw = 0.0, size = 0.0, weights = 0.0, steps = 0.0;
    for (int64_t k = 0; k < c.shape.columns; ++k) {
      const gguf::Weight w = gguf::weight(c.format, c.matrix.row(o), k);
      const quantized::Activation q = activation(a, c.format, k);
      exact += w.value() * q.value;
      raw += w.value() * static_cast<double>(a.x[k]);
      size += (std::fabs(w.scaled) + std::fabs(w.offset)) * std::fabs(q.value);
      weights += std::fabs(w.scaled) + std::fabs(w.offset);
      steps += std::fabs(w.value()) * q.step / 2;
    }
    const double rounding = 1e-5 * size + 1e-28 * weights + 1e-40, got = static_cast<double>(out[o]);
    CHECK(std::fabs(got - exact) <= rounding, "%s [%d, %d] row %d output %d: %.9g, not %.9g (size %g)",
          gguf::name_of(c.format), static_cast<int>(c.shape.outputs), static_cast<int>(c.shape.columns),
          static_cast<int>(r), static_cast<int>(o), got, exact, size);
    CHECK(std::fabs(got - raw) <= 1.001 * steps + rounding, "%s row %d: %g, unquantized %g, steps %g",
          gguf::name_of(c.format), static_cast<int>(r), got, raw, steps);
  }
}

// So many strips a call.
std::vector<float> multiply(const outpace::Kernels& kernels, const outpace::TileMatrix& tiles,
                            const outpace::Activations& a, int64_t rows, int64_t together) {
  const int64_t stride = tiles.padded_rows() + 3;  // the gap must survive
  std::vector<float> out(static_cast<size_t>(rows * stride), -77.0f);
  for (int64_t s = 0; s < tiles.num_strips(); s += together) {
    const int64_t end = std::min(s + together, tiles.num_strips());
    kernels.matmul_strips(tiles, s, end, a, rows, out.data() + s * outpace::kStrip, stride);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = out.data() + r * stride;
      CHECK(std::all_of(row + end * outpace::kStrip, row + stride, [](float x) { return x == -77.0f; }));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = tiles.rows; i < stride; ++i) {
      CHECK(out[static_cast<size_t>(r * stride + i)] == (i < tiles.padded_rows() ? 0.0f : -77.0f));
    }
  }
  return out;
}

// Any number of rows and strips together, and each row alone, must give the bits of `all`.
void check_batches(const outpace::Kernels& kernels, Case& c, const std::vector<float>& all) {
  check::Array<uint8_t> memory;
  const outpace::TileMatrix tiles = gguf::pack(kernels, c.matrix, memory);
  const size_t stride = all.size() / kMaxRows;
  for (int64_t n = 1; n <= kMaxRows; ++n) {
    const std::vector<float> out = multiply(kernels, tiles, c.activations.from(0), n, n % 5 + 1);
    CHECK(check::same_bits(out.data(), all.data(), out.size()), "%s %s: %d rows together", kernels.name,
          gguf::name_of(c.format), static_cast<int>(n));
    const std::vector<float> alone = multiply(kernels, tiles, c.activations.from(n - 1), 1, n % 3 + 1);
    CHECK(check::same_bits(alone.data(), all.data() + static_cast<size_t>(n - 1) * stride, stride),
          "%s %s: row %d alone", kernels.name, gguf::name_of(c.format), static_cast<int>(n - 1));
  }
}

// On the fastest tier against float64, and on every tier and number of rows bit by bit.
void check_case(Case& c) {
  c.activations.quantize(outpace::select_kernels("portable"));
  check::Array<uint8_t> memory;
  const outpace::Kernels& fastest = *check::tiers().front();
  const outpace::TileMatrix tiles = gguf::pack(fastest, c.matrix, memory);
  const std::vector<float> all = multiply(fastest, tiles, c.activations.from(0), kMaxRows, 1);
  check::record(all.data(), all.size());
  const auto stride = static_cast<int64_t>(all.size()) / kMaxRows;
  for (int64_t r = 0; r < kMaxRows; ++r) check_row(c, r, all.data() + r * stride);
  for (const outpace::Kernels* kernels : check::tiers()) check_batches(*kernels, c, all);
}

void check_format(Format f) {
  for (const Shape shape : shapes_of(f)) {
    const auto seed = static_cast<uint64_t>(shape.outputs * 10000 + shape.columns);
    Case c{f, shape, gguf::random_matrix(f, shape.outputs, shape.columns, seed),
           Rows(kMaxRows, shape.columns)};
    fill_activations(c.activations, seed + 1);
    check_case(c);
  }
}

TEST(float_formats) {
  for (const Format f : {Format::f32, Format::f16, Format::bf16}) check_format(f);
}
TEST(group_formats) {
  for (const Format f : {Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0})
    check_format(f);
}
TEST(k_formats) {
  for (const Format f : {Format::q4_k, Format::q5_k, Format::q6_k}) check_format(f);
}

// Quants at their ends, of weights and activations, where sums of few bits would overflow first: all ones,
// all zeros, and what bytes begin and end with. Scales of a few bits are at an end of theirs.
TEST(the_largest_integers) {
  struct Part {
    Format format;
    int64_t quants, scales, end;  // of a block: quants up to the scales, scales up to the end
  };
  constexpr Part kParts[] = {{Format::q4_0, 2, 18, 18},    {Format::q4_1, 4, 20, 20},
                             {Format::q5_0, 2, 22, 22},    {Format::q5_1, 4, 24, 24},
                             {Format::q8_0, 2, 34, 34},    {Format::q4_k, 16, 144, 144},
                             {Format::q5_k, 16, 176, 176}, {Format::q6_k, 0, 192, 208}};
  constexpr uint8_t kEnds[] = {0xff, 0x00, 0x7f, 0x80};
  constexpr int64_t kColumns = 512, kOutputs = 19;
  for (const auto& [format, quants, scales, end] : kParts) {
    Case c{format,
           {kOutputs, kColumns},
           gguf::random_matrix(format, kOutputs, kColumns, 3),
           Rows(kMaxRows, kColumns)};
    const int64_t block = gguf::block_of(format).bytes, row = gguf::row_bytes(format, kColumns);
    for (size_t i = 0; i < c.matrix.bytes.size(); ++i) {
      const auto at = static_cast<int64_t>(i), output = at / row;
      uint8_t& byte = c.matrix.bytes[i];
      if (at % block >= quants && at % block < scales) byte = kEnds[output % 4];
      if (at % block >= scales && at % block < end) byte = output / 4 % 2 == 0 ? 0x80 : 0x7f;
      if (outpace::is_k(format) && quants == 16 && at % block >= 4 && at % block < 16) byte = 0xff;
    }
    for (int64_t r = 0; r < kMaxRows; ++r) {
      for (int64_t k = 0; k < kColumns; ++k) {
        const float ends[] = {1.0f, -1.0f, k % 2 == 0 ? 1.0f : -1.0f, k % 4 < 2 ? 1.0f : -1.0f};
        // In some rows one of each cell dwarfs the rest, whose low planes are then as large as they get.
        const bool outlier = r % 8 > 3 && k % 32 == 0;
        c.activations.x[static_cast<size_t>(r * kColumns + k)] = (outlier ? 127.99f : 1.0f) * ends[r % 4];
      }
    }
    check_case(c);
  }
}

// As many rows as a prefill has: more than a kernel takes in one pass, and odd remainders.
TEST(many_rows_together) {
  constexpr int64_t kRows = 530, kColumns = 512;
  Rows activations(kRows, kColumns);
  fill_activations(activations, 8);
  activations.quantize(outpace::select_kernels("portable"));
  for (const Format f : {Format::bf16, Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0,
                         Format::q4_k, Format::q5_k, Format::q6_k}) {
    const gguf::Matrix matrix = gguf::random_matrix(f, 17, kColumns, 9);
    std::vector<float> alone;
    for (const outpace::Kernels* kernels : check::tiers()) {
      check::Array<uint8_t> memory;
      const outpace::TileMatrix tiles = gguf::pack(*kernels, matrix, memory);
      for (int64_t r = 0; r < kRows && kernels == check::tiers().front(); ++r) {
        const std::vector<float> row = multiply(*kernels, tiles, activations.from(r), 1, 1);
        alone.insert(alone.end(), row.begin(), row.end());
      }
      for (const int64_t n : {kRows, kRows - 17, int64_t{257}, int64_t{256}}) {
        const std::vector<float> out = multiply(*kernels, tiles, activations.from(kRows - n), n, 2);
        CHECK(check::same_bits(out.data(), alone.data() + alone.size() - out.size(), out.size()),
              "%s %s: %d rows together", kernels->name, gguf::name_of(f), static_cast<int>(n));
      }
    }
  }
}

// The kernel's sums of a cell's quants, in the orders that tiles.h states.
void check_sums(const outpace::Plane& p, int64_t cell_columns, int64_t cell) {
  if (cell_columns == outpace::kGroup) {
    int32_t sum = 0;
    for (int64_t i = 32 * cell; i < 32 * cell + 32; ++i) sum += p.q[i];
    CHECK(p.sum[cell] == sum && p.scaled_sum[cell] == p.scale[cell] * static_cast<float>(sum));
    return;
  }
  constexpr int kPlaces[8] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (int64_t g = 0; g < 16; g += 2) {
    int32_t sums[2] = {0, 0};
    for (int64_t i = 0; i < 32; ++i) sums[i / 16] += p.q[cell * 256 + g * 16 + i];
    CHECK(p.half_start[cell * 16 + g] == -32 * sums[0] && p.half_start[cell * 16 + g + 1] == -32 * sums[1]);
    CHECK(p.pair_sum[cell * 8 + kPlaces[g / 2]] == sums[0] + sums[1]);
  }
}

// 8 bits, or 15 where one activation towers over the others, to half a step either way. Returns whether
// the cell is wide.
bool check_cell(const float* x, const outpace::Quantized& q, int64_t cell_columns, int64_t cell) {
  double largest = 0.0, squares = 0.0;
  const int64_t first = cell * cell_columns;
  for (int64_t i = first; i < first + cell_columns; ++i) {
    largest = std::fmax(largest, std::fabs(x[i]));
    squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  const double ratio =
      squares > 0.0 ? std::sqrt(largest * largest * static_cast<double>(cell_columns) / squares) : 0.0;
  const double from = cell_columns == outpace::kGroup ? outpace::kWide32 : outpace::kWide256;
  const bool wide = quantized::is_wide(q, cell);
  const bool clear =
      largest > 1e-15 && largest < 1e15 && std::fabs(ratio - from) > 1e-4;  // else squares are no guide
  CHECK(!clear || wide == (ratio > from), "%g of %g", ratio, from);
  check_sums(q.high, cell_columns, cell);
  if (wide) check_sums(q.low, cell_columns, cell);
  const double step = largest / (wide ? 127.0 * 128.0 : 127.0);
  for (int64_t i = first; i < first + cell_columns; ++i) {
    const quantized::Activation a = quantized::activation(q, i, cell_columns);
    CHECK(q.high.q[i] != -128 && std::fabs(a.step - step) <= 1e-6 * step + 1e-43);
    CHECK(std::fabs(a.value - static_cast<double>(x[i])) <= 0.502 * step + 1e-29, "%g as %g, step %g",
          static_cast<double>(x[i]), a.value, step);
  }
  return wide;
}

TEST(quantization_is_within_half_a_step) {
  Rows a(kMaxRows, 1536);
  fill_activations(a, 6);
  for (const outpace::Kernels* kernels : check::tiers()) {
    a.quantize(*kernels);
    for (const int64_t cell_columns : quantized::kCells) {
      int64_t num_wide = 0, num_cells = 0;
      for (int64_t r = 0; r < kMaxRows; ++r) {
        const outpace::Activations row = a.from(r);
        const outpace::Quantized& q = cell_columns == outpace::kGroup ? row.per_32 : row.per_256;
        int64_t wide = 0;
        for (int64_t c = 0; c < a.columns / cell_columns; ++c) wide += check_cell(row.x, q, cell_columns, c);
        CHECK(wide == *q.num_wide);
        for (int64_t i = 1; i < wide; ++i) CHECK(q.wide[i] > q.wide[i - 1]);
        num_wide += wide;
        num_cells += a.columns / cell_columns;
      }
      CHECK(num_wide > 10 && num_wide < num_cells / 2, "%d wide cells", static_cast<int>(num_wide));
    }
  }
}

TEST(tiers_quantize_to_the_same_bits) {
  Rows first(kMaxRows, 768);
  fill_activations(first, 7);
  Rows fresh = first;
  first.quantize(*check::tiers().front());
  for (const outpace::Kernels* kernels : check::tiers()) {
    Rows other = fresh;
    other.quantize(*kernels);
    CHECK(other.per_32 == first.per_32, "%s", kernels->name);
    CHECK(other.per_256 == first.per_256, "%s", kernels->name);
  }
}

}  // namespace
