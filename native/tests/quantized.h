// Rows of activations, quantized as the matmul kernels read them.
#pragma once

#include "aligned.h"
#include "check.h"
#include "tiers.h"

namespace quantized {

constexpr int64_t kCells[] = {outpace::kGroup, outpace::kSuperBlock};

struct PlaneMemory {
  check::Array<int8_t> q;
  check::Array<float> scale, scaled_sum;
  check::Array<int32_t> sum;
  check::Array<int16_t> pair_sum;
  check::Array<int32_t> half_start;
  bool operator==(const PlaneMemory&) const = default;
};

// One quantization (per 32 or per 256) of rows, in memory of exactly the documented sizes. What is not
// written keeps a mark, so that a kernel which reads it gives itself away.
struct Memory {
  int64_t columns, cell;
  PlaneMemory planes[2];
  check::Array<int32_t> num_wide, wide;

  Memory(int64_t rows, int64_t num_columns, int64_t cell_columns) : columns(num_columns), cell(cell_columns) {
    const auto elements = [&](int64_t per) { return static_cast<size_t>(rows * (columns / per)); };
    const bool whole = columns % cell == 0;
    for (PlaneMemory& p : planes) {
      if (!whole) continue;
      p.q.assign(static_cast<size_t>(rows * stride()), 99);
      p.scale.assign(elements(cell), 1e9f);
      if (cell == outpace::kGroup) {
        p.sum.assign(elements(32), 9999);
        p.scaled_sum.assign(elements(32), 1e9f);
      } else {
        p.pair_sum.assign(elements(32), 9999);
        p.half_start.assign(elements(16), 9999);
      }
    }
    num_wide.assign(static_cast<size_t>(rows), -1);
    wide.assign(whole ? elements(cell) : 0, -1);
  }

  int64_t stride() const { return outpace::row_stride<int8_t>(columns); }

  outpace::Quantized at(int64_t row) {
    const auto plane = [&](PlaneMemory& p) {
      return outpace::Plane{p.q.data() + row * stride(),
                            stride(),
                            p.scale.data() + row * (columns / cell),
                            p.sum.empty() ? nullptr : p.sum.data() + row * (columns / 32),
                            p.scaled_sum.empty() ? nullptr : p.scaled_sum.data() + row * (columns / 32),
                            p.pair_sum.empty() ? nullptr : p.pair_sum.data() + row * (columns / 32),
                            p.half_start.empty() ? nullptr : p.half_start.data() + row * (columns / 16)};
    };
    return {plane(planes[0]), plane(planes[1]), num_wide.data() + row, wide.data() + row * (columns / cell)};
  }

  bool operator==(const Memory& other) const {
    return planes[0] == other.planes[0] && planes[1] == other.planes[1] && num_wide == other.num_wide &&
           wide == other.wide;
  }
};

struct Rows {
  int64_t rows, columns;
  check::Array<float> x;
  Memory per_32, per_256;

  Rows(int64_t num_rows, int64_t num_columns)
      : rows(num_rows),
        columns(num_columns),
        x(static_cast<size_t>(rows * columns)),
        per_32(rows, columns, outpace::kGroup),
        per_256(rows, columns, outpace::kSuperBlock) {}

  // As the kernels see the rows from `row` on.
  outpace::Activations from(int64_t row) {
    return {columns, x.data() + row * columns, columns, per_32.at(row), per_256.at(row)};
  }

  void quantize(const outpace::Kernels& kernels) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = x.data() + r * columns;
      if (columns % outpace::kGroup == 0) kernels.quantize_32(row, columns, per_32.at(r));
      if (columns % outpace::kSuperBlock == 0) kernels.quantize_256(row, columns, per_256.at(r));
    }
  }
};

inline bool is_wide(const outpace::Quantized& row, int64_t cell) {
  for (int32_t i = 0; i < *row.num_wide; ++i) {
    if (row.wide[i] == cell) return true;
  }
  return false;
}

// A quantized activation's value, and the step it was rounded to.
struct Activation {
  double value, step;
};

inline Activation activation(const outpace::Quantized& row, int64_t k, int64_t cell_columns) {
  const int64_t cell = k / cell_columns;
  const double high = row.high.scale[cell];
  if (!is_wide(row, cell)) return {high * row.high.q[k], high};
  const double low = row.low.scale[cell];
  return {high * row.high.q[k] + low * row.low.q[k], low};
}

}  // namespace quantized
