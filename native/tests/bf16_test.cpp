// Products in bf16, where a tier has them: against float64, and the same bits for any rows beside a row.
#include "check.h"
#include "gguf_blocks.h"
#include "quantized.h"

namespace {

using outpace::Format;

constexpr Format kFormats[] = {Format::f32,  Format::f16,  Format::bf16, Format::q4_0,
                               Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0,
                               Format::q4_k, Format::q5_k, Format::q6_k};
constexpr int64_t kRows[] = {1, 3, 15, 16, 17, 33, 64, 70};  // together
constexpr int64_t kMostRows = 70;

// Rows of activations and what they are rounded to, in memory of exactly the size that is read.
struct RoundedRows {
  int64_t columns, stride;
  check::Array<float> x;
  check::Array<uint16_t> values;

  RoundedRows(const outpace::Kernels& kernels, int64_t num_columns, uint64_t seed)
      : columns(num_columns), stride(outpace::row_stride<uint16_t>(num_columns)) {
    check::Random random{seed};
    x.assign(static_cast<size_t>(kMostRows * columns), 0.0f);
    values.assign(static_cast<size_t>((kMostRows - 1) * stride + columns),
                  0x7fc0);  // what is not written: NaN
    for (int64_t r = 0; r < kMostRows; ++r) {
      const float size = std::ldexp(1.0f, static_cast<int>(random.between(-6, 6)));
      for (int64_t k = 0; k < columns; ++k) {
        float& v = x[static_cast<size_t>(r * columns + k)];
        if (r % 7 != 1) v = random.normal() * size;                         // row 1 is all zeros
        if (r % 7 == 2 && k == random.below(columns)) v = -3000.0f * size;  // an outlier
        if (r % 7 == 3) v *= 1e18f;
      }
      kernels.round_to_bf16(x.data() + r * columns, columns, values.data() + r * stride);
    }
  }

  outpace::Activations from(int64_t row) {
    outpace::Activations a;
    a.columns = columns;
    a.x = x.data() + row * columns;
    a.stride_x = columns;
    a.bf16 = values.data() + row * stride;
    a.stride_bf16 = stride;
    return a;
  }
};

std::vector<float> multiply(const outpace::Kernels& kernels, const outpace::TileMatrix& tiles,
                            const outpace::Activations& a, int64_t rows) {
  const int64_t stride = tiles.padded_rows() + 3;  // the gap must survive
  std::vector<float> out(static_cast<size_t>(rows * stride), -77.0f);
  for (int64_t s = 0; s < tiles.num_strips(); ++s) {
    kernels.matmul_strip_bf16(tiles, s, a, {rows, 0, tiles.columns, false}, out.data() + s * outpace::kStrip,
                              stride);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = tiles.padded_rows(); i < stride; ++i)
      CHECK(out[static_cast<size_t>(r * stride + i)] == -77.0f);
  }
  return out;
}

// A weight and an activation each have 8 bits left, so a product is off by at most 2^-8 of itself twice; and
// what is no normal number counts as zero.
void check_against_float64(const gguf::Matrix& matrix, Format f, int64_t outputs, RoundedRows& rows,
                           const std::vector<float>& out) {
  const auto stride = static_cast<int64_t>(out.size()) / kMostRows;
  for (int64_t r = 0; r < kMostRows; ++r) {
    for (int64_t o = 0; o < outputs; ++o) {
      double exact = 0.0, size = 0.0, inputs = 0.0;
      for (int64_t k = 0; k < rows.columns; ++k) {
        const double w = gguf::weight(f, matrix.row(o), k).value();
        const auto x = static_cast<double>(rows.x[static_cast<size_t>(r * rows.columns + k)]);
        exact += w * x;
        size += std::fabs(w * x);
        inputs += std::fabs(x);
      }
      const auto got = static_cast<double>(out[static_cast<size_t>(r * stride + o)]);
      CHECK(std::fabs(got - exact) <= 0.009 * size + 1.2e-38 * inputs + 1e-36,
            "%s row %d output %d: %g, not %g (size %g)", gguf::name_of(f), static_cast<int>(r),
            static_cast<int>(o), got, exact, size);
    }
  }
}

void check_kernels(const outpace::Kernels& kernels) {
  for (const Format f : kFormats) {
    for (const int64_t columns : {32, 96, 256, 576, 768, 1536}) {
      if (outpace::is_k(f) && columns % outpace::kSuperBlock != 0) continue;
      constexpr int64_t kOutputs = 19;
      const auto seed = static_cast<uint64_t>(columns);
      const gguf::Matrix matrix = gguf::random_matrix(f, kOutputs, columns, seed);
      check::Array<uint8_t> memory;
      const outpace::TileMatrix tiles = gguf::pack(kernels, matrix, memory);
      RoundedRows rows(kernels, columns, seed + 1);
      const std::vector<float> all = multiply(kernels, tiles, rows.from(0), kMostRows);
      check_against_float64(matrix, f, kOutputs, rows, all);
      const size_t stride = all.size() / kMostRows;
      for (const int64_t n : kRows) {
        const int64_t first = kMostRows - n;
        const std::vector<float> some = multiply(kernels, tiles, rows.from(first), n);
        CHECK(check::same_bits(some.data(), all.data() + static_cast<size_t>(first) * stride, some.size()),
              "%s %s: %d rows together", kernels.name, gguf::name_of(f), static_cast<int>(n));
      }
    }
  }
}

// Says so where none has.
TEST(every_tier_that_has_them) {
  int found = 0;
  for (const outpace::Kernels* kernels : check::tiers()) {
    if (kernels->matmul_strip_bf16 == nullptr) continue;
    ++found;
    check_kernels(*kernels);
  }
  if (found == 0) std::printf("no tier with products in bf16 on this machine: not tested\n");
}

// The emulation and the hardware, where both are.
TEST(tiers_agree) {
  std::vector<float> first;
  for (const outpace::Kernels* kernels : check::tiers()) {
    if (kernels->matmul_strip_bf16 == nullptr) continue;
    const gguf::Matrix matrix = gguf::random_matrix(Format::q4_k, 33, 768, 5);
    check::Array<uint8_t> memory;
    const outpace::TileMatrix tiles = gguf::pack(*kernels, matrix, memory);
    RoundedRows rows(*kernels, 768, 6);
    const std::vector<float> out = multiply(*kernels, tiles, rows.from(0), kMostRows);
    if (first.empty()) first = out;
    CHECK(check::same_bits(out.data(), first.data(), out.size()), "%s", kernels->name);
  }
}

// Inputs in parts, the later ones added to what the first ones left.
TEST(parts_add_up) {
  for (const outpace::Kernels* kernels : check::tiers()) {
    if (kernels->matmul_strip_bf16 == nullptr) continue;
    for (const Format f : {Format::q5_0, Format::q6_k, Format::bf16}) {
      const gguf::Matrix matrix = gguf::random_matrix(f, 16, 768, 7);
      check::Array<uint8_t> memory;
      const outpace::TileMatrix tiles = gguf::pack(*kernels, matrix, memory);
      RoundedRows rows(*kernels, 768, 8);
      std::vector<float> out(static_cast<size_t>(kMostRows * outpace::kStrip), 2.0f);
      kernels->matmul_strip_bf16(tiles, 0, rows.from(0), {kMostRows, 0, 512, false}, out.data(),
                                 outpace::kStrip);
      kernels->matmul_strip_bf16(tiles, 0, rows.from(0), {kMostRows, 512, 768, true}, out.data(),
                                 outpace::kStrip);
      check_against_float64(matrix, f, 16, rows, out);
    }
  }
}

TEST(rounding_is_to_the_nearest) {
  for (const outpace::Kernels* kernels : check::tiers()) {
    if (kernels->round_to_bf16 == nullptr) continue;
    check::Random random{9};
    for (const int64_t n : {1, 15, 16, 17, 576}) {
      std::vector<float> x(static_cast<size_t>(n));
      for (float& v : x) v = random.normal() * std::ldexp(1.0f, static_cast<int>(random.between(-60, 60)));
      x[0] = n == 1 ? 0.0f : 1.0f;
      std::vector<uint16_t> out(x.size() + 1, 0x1234);
      kernels->round_to_bf16(x.data(), n, out.data());
      CHECK(out.back() == 0x1234);
      for (size_t i = 0; i < x.size(); ++i) {
        const uint32_t bits = static_cast<uint32_t>(out[i]) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        CHECK(std::fabs(value - x[i]) <= std::ldexp(std::fabs(x[i]), -8), "%g, not %g",
              static_cast<double>(value), static_cast<double>(x[i]));
      }
    }
  }
}

// Damaged numbers are noticed at the end, so they must get there: NaNs whose bits rounding would overflow.
TEST(what_is_no_number_stays_none) {
  for (const outpace::Kernels* kernels : check::tiers()) {
    if (kernels->round_to_bf16 == nullptr) continue;
    std::vector<float> x(19, 1.0f);
    for (const size_t at : {size_t{3}, size_t{18}}) {
      const uint32_t bits = at == 3 ? 0xffffe000 : 0x7fffffff;
      std::memcpy(&x[at], &bits, sizeof bits);
    }
    std::vector<uint16_t> out(x.size());
    kernels->round_to_bf16(x.data(), static_cast<int64_t>(x.size()), out.data());
    for (size_t i = 0; i < x.size(); ++i) CHECK(((out[i] & 0x7fff) > 0x7f80) == (x[i] != x[i]));
    // A scale of 0xffff in a weight.
    gguf::Matrix matrix = gguf::random_matrix(Format::q8_0, 16, 64, 3);
    matrix.bytes[0] = matrix.bytes[1] = 0xff;
    check::Array<uint8_t> memory;
    const outpace::TileMatrix tiles = gguf::pack(*kernels, matrix, memory);
    RoundedRows rows(*kernels, 64, 4);
    const std::vector<float> products = multiply(*kernels, tiles, rows.from(0), 1);
    CHECK(std::isnan(products[0]) && !std::isnan(products[1]));
  }
}

}  // namespace
