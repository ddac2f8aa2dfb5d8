#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace outpace {

namespace {
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
}  // namespace

Forward::Forward(const ModelSpec& spec, const Weights& weights, KVCache& cache, const Kernels& kernels,
                 ThreadPool& pool)
    : spec_(spec),
      weights_(weights),
      cache_(cache),
      kernels_(kernels),
      pool_(pool),
      padded_head_dim_(cache.layout.head_dim),
      num_pairs_(static_cast<int64_t>(spec.rope_inv_freq.size())),
      group_heads_(spec.num_heads / spec.num_kv_heads),
      attention_scale_(spec.attention_scale > 0.0f ? spec.attention_scale
                                                   : 1.0f / std::sqrt(static_cast<float>(spec.head_dim))),
      norm_stride_(row_stride<float>(spec.hidden_size)),
      attended_stride_(row_stride<float>(spec.num_heads * spec.head_dim)),
      inner_stride_(row_stride<float>(spec.intermediate_size)),
      scratch_(static_cast<size_t>(pool.num_threads())) {}

void Forward::reserve(int64_t num_rows) {
  if (num_rows <= reserved_rows_) return;
  const auto resize = [&](auto& v, int64_t width) { v.resize(static_cast<size_t>(num_rows * width)); };
  const LayerWeights& w = weights_.layers.front();
  widest_ = std::max({spec_.hidden_size, w.q.rows, spec_.intermediate_size, weights_.fc.columns});
  resize(x_, spec_.hidden_size);
  resize(norm_, norm_stride_);
  resize(q_raw_, w.q.padded_rows());
  resize(k_raw_, w.k.padded_rows());
  resize(v_raw_, w.v.padded_rows());
  resize(query_, spec_.num_heads * padded_head_dim_);
  if (cache_.layout.int8) {
    resize(query_high_, spec_.num_heads * padded_head_dim_);
    resize(query_low_, spec_.num_heads * padded_head_dim_);
    resize(query_unit_, spec_.num_heads);
    resize(query_sum_, spec_.num_heads);
  }
  resize(attended_, attended_stride_);
  resize(inner_, inner_stride_);
  resize(cos_, num_pairs_);
  resize(sin_, num_pairs_);
  per_32_.resize(num_rows, widest_);
  per_256_.resize(num_rows, widest_);
  const int64_t scratch = std::max(2 * num_rows * kOutputsAtOnce, 2 * padded_head_dim_);
  for (auto& v : scratch_) v.resize(static_cast<size_t>(scratch));
  runs_.reserve(static_cast<size_t>(num_rows));
  exact_run_.reserve(1);
  reserve_attention(num_rows);
  reserved_rows_ = num_rows;
}

void QuantizedRows::resize(int64_t num_rows, int64_t widest) {
  const auto elements = [&](int64_t per) { return static_cast<size_t>(num_rows * (widest / per + 1)); };
  for (int plane = 0; plane < 2; ++plane) {
    q[plane].resize(static_cast<size_t>(num_rows * row_stride<int8_t>(widest)));
    scale[plane].resize(elements(kGroup));
    scaled_sum[plane].resize(elements(kGroup));
    sum[plane].resize(elements(kGroup));
    pair_sum[plane].resize(elements(kGroup));
    half_start[plane].resize(elements(kGroup / 2));
  }
  num_wide.resize(static_cast<size_t>(num_rows));
  wide.resize(elements(kGroup));
}

Quantized QuantizedRows::at(int64_t row, int64_t columns, int64_t cell) {
  const auto plane = [&](int i) {
    const int64_t stride = row_stride<int8_t>(columns);
    return Plane{q[i].data() + row * stride,
                 stride,
                 scale[i].data() + row * (columns / cell),
                 sum[i].data() + row * (columns / kGroup),
                 scaled_sum[i].data() + row * (columns / kGroup),
                 pair_sum[i].data() + row * (columns / kGroup),
                 half_start[i].data() + row * (columns / (kGroup / 2))};
  };
  return {plane(0), plane(1), num_wide.data() + row, wide.data() + row * (columns / cell)};
}

Activations Forward::activations(float* x, int64_t stride, int64_t columns, int64_t row) {
  return {columns,
          x + row * stride,
          stride,
          per_32_.at(row, columns, kGroup),
          per_256_.at(row, columns, kSuperBlock),
          rounded_.at(row, columns),
          row_stride<uint16_t>(columns)};
}

// Each strip, or two at a time, asks for all activations once more. Where they do not fit the second level of
// the cache, rows go in blocks that do, each through all strips of a thread, whose weights come round once a
// block instead. Even blocks, of whole tiles: few rows would pay for all weights.
int64_t Forward::rows_together(int64_t num_rows, int64_t row_bytes, int64_t cache_bytes) {
  constexpr int64_t kTile = 16;
  const int64_t fitting = std::max(2 * kTile, cache_bytes / row_bytes / kTile * kTile);
  const int64_t blocks = (num_rows + fitting - 1) / fitting;
  return round_up((num_rows + blocks - 1) / blocks, kTile);
}

template <class Body>
void Forward::by_row_blocks(const std::vector<RowRun>& runs, int64_t inputs, int64_t rounded_inputs,
                            const Body& body) {
  for (const RowRun& run : runs) {
    const int64_t together = run.rounded ? rows_together(run.count, 2 * rounded_inputs, kRoundedBytes)
                                         : rows_together(run.count, inputs);
    for (int64_t row = 0; row < run.count; row += together)
      body(run.first + row, std::min(together, run.count - row), run.rounded);
  }
}

void Forward::multiply_strips(const TileMatrix& m, int64_t first, int64_t last, const Activations& a,
                              int64_t num_rows, bool rounded, float* out, int64_t stride) const {
  // Float weights of another width are rare, and not worth a padded copy.
  if (!rounded || m.columns % kGroup != 0)
    return kernels_.matmul_strips(m, first, last, a, num_rows, out, stride);
  for (int64_t s = first; s < last; ++s, out += kStrip)
    kernels_.matmul_strip_bf16(m, s, a, {num_rows, 0, m.columns, false}, out, stride);
}

void Forward::multiply_rounded(const TileMatrix& m, const Activations& a, int64_t num_rows, int64_t first,
                               int64_t last, bool accumulate, float* out, int64_t stride) const {
  const int64_t parts = (m.columns + kRoundedInputs - 1) / kRoundedInputs;
  const int64_t inputs =
      round_up((m.columns + parts - 1) / parts, m.columns % kSuperBlock == 0 ? kSuperBlock : kGroup);
  for (int64_t k = 0; k < m.columns; k += inputs) {
    const Bf16Part part = {num_rows, k, std::min(k + inputs, m.columns), accumulate || k > 0};
    for (int64_t s = first; s < last; ++s)
      kernels_.matmul_strip_bf16(m, s, a, part, out + s * kStrip, stride);
  }
}

Forward::Needs Forward::needs(std::initializer_list<const TileMatrix*> matrices) {
  Needs needs;
  for (const TileMatrix* m : matrices) {
    needs.per_32 |= !is_float(m->format) && !is_k(m->format);
    needs.per_256 |= is_k(m->format);
  }
  return needs;
}

void Forward::quantize(const float* x, int64_t row, int64_t columns, Needs needs, bool rounded) {
  if (rounded) return kernels_.round_to_bf16(x, columns, rounded_.at(row, columns));
  if (needs.per_32) kernels_.quantize_32(x, columns, per_32_.at(row, columns, kGroup));
  if (needs.per_256) kernels_.quantize_256(x, columns, per_256_.at(row, columns, kSuperBlock));
}

// Whole pairs: two strips at once may take less time than one by one.
int64_t Forward::grain(int64_t num_strips) const {
  return std::max<int64_t>(1, num_strips / (pool_.num_threads() * kRangesPerThread) / 2 * 2);
}

void Forward::multiply(const TileMatrix& m, float* x, int64_t x_stride, const std::vector<RowRun>& runs,
                       float* out, int64_t stride, bool accumulate) {
  // The last strip's results may be fewer than it has places for.
  const bool whole = !accumulate || m.rows % kStrip == 0, in_parts = whole && m.columns % kGroup == 0;
  pool_.parallel(m.num_strips(), grain(m.num_strips()), [&](int64_t first, int64_t last) {
    LineVector<float>& scratch = scratch_[static_cast<size_t>(pool_.thread_index())];
    const auto block = [&](int64_t row, int64_t rows, bool rounded) {
      const Activations a = activations(x, x_stride, m.columns, row);
      if (rounded && in_parts)
        return multiply_rounded(m, a, rows, first, last, accumulate, out + row * stride, stride);
      if (!accumulate)
        return multiply_strips(m, first, last, a, rows, rounded, out + row * stride + first * kStrip, stride);
      for (int64_t s = first; s < last; s += kStripsAtOnce) {
        const int64_t end = std::min(s + kStripsAtOnce, last), column = s * kStrip;
        const int64_t width = std::min(end * kStrip, m.rows) - column;
        multiply_strips(m, s, end, a, rows, rounded, scratch.data(), kOutputsAtOnce);
        for (int64_t r = 0; r < rows; ++r)
          kernels_.add(out + (row + r) * stride + column, scratch.data() + r * kOutputsAtOnce, width);
      }
    };
    by_row_blocks(runs, m.columns, std::min(m.columns, kRoundedInputs), block);
  });
}

void Forward::start(const std::vector<Row>& rows) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  reserve(num_rows);
  runs_.clear();
  for (int64_t r = 0; r < num_rows; ++r) {
    const bool rounded = rows[static_cast<size_t>(r)].rounded;
    if (runs_.empty() || runs_.back().rounded != rounded) runs_.push_back({r, 0, rounded});
    ++runs_.back().count;
  }
  const bool any = std::any_of(runs_.begin(), runs_.end(), [](const RowRun& run) { return run.rounded; });
  if (any) rounded_.resize(reserved_rows_, widest_);
  plan_attention(rows);
  mark(Op::other);
}

// Sine and cosine of a row's angles.
void Forward::turn(int64_t row, int64_t position) {
  for (int64_t i = 0; i < num_pairs_; ++i) {
    // As transformers: the angle is a float product; its sine and cosine are exact to a float.
    const float angle = static_cast<float>(position) * spec_.rope_inv_freq[static_cast<size_t>(i)];
    const double factor = spec_.rope_attention_factor;
    cos_[static_cast<size_t>(row * num_pairs_ + i)] =
        static_cast<float>(std::cos(static_cast<double>(angle)) * factor);
    sin_[static_cast<size_t>(row * num_pairs_ + i)] =
        static_cast<float>(std::sin(static_cast<double>(angle)) * factor);
  }
}

void Forward::run(const std::vector<Row>& rows, const int32_t* token_ids) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  start(rows);
  pool_.run([&](int) {
    pool_.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        float* x = x_.data() + r * spec_.hidden_size;
        kernels_.dequantize_row(weights_.embed, token_ids[r], x);
        if (spec_.embedding_scale != 1.0f) kernels_.scale(x, spec_.embedding_scale, spec_.hidden_size);
        turn(r, rows[static_cast<size_t>(r)].position);
      }
    });
    mark(Op::embed);
    for (int64_t i = 0; i < spec_.num_layers; ++i) layer(i, rows);
  });
}

void Forward::run_head(const std::vector<Row>& rows, float* inputs) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  const int64_t hidden = spec_.hidden_size;
  const Needs need = needs({&weights_.fc});
  start(rows);
  pool_.run([&](int) {
    pool_.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        quantize(inputs + r * 2 * hidden, r, 2 * hidden, need);
        std::fill_n(x_.data() + r * hidden, hidden, 0.0f);
        turn(r, rows[static_cast<size_t>(r)].position);
      }
    });
    multiply(weights_.fc, inputs, 2 * hidden, runs_, x_.data(), hidden, true);
    for (int64_t i = 0; i < spec_.num_layers; ++i) layer(i, rows);
  });
}

const float* Forward::normalized(int64_t row) {
  float* norm = norm_.data() + row * norm_stride_;
  kernels_.rms_norm(x_.data() + row * spec_.hidden_size, weights_.output_norm.data(), spec_.hidden_size,
                    spec_.norm_eps, norm);
  return norm;
}

// Norm of every row, quantized as the matrices that read it need it.
void Forward::normalize(const std::vector<float>& weight, const std::vector<Row>& rows, Needs needs) {
  const int64_t hidden = spec_.hidden_size;
  pool_.parallel(static_cast<int64_t>(rows.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      float* norm = norm_.data() + r * norm_stride_;
      kernels_.rms_norm(x_.data() + r * hidden, weight.data(), hidden, spec_.norm_eps, norm);
      quantize(norm, r, hidden, needs, rows[static_cast<size_t>(r)].rounded);
    }
  });
}

void Forward::layer(int64_t index, const std::vector<Row>& rows) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(index)];
  const auto num_rows = static_cast<int64_t>(rows.size());
  const Needs out = needs({&w.o});
  normalize(w.attn_norm, rows, needs({&w.q, &w.k, &w.v}));
  mark(Op::attn_norm);
  project_qkv(w);
  mark(Op::qkv);
  fetch_first_chunks(index, rows);
  pool_.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) rotate_and_cache(index, w, r, rows[static_cast<size_t>(r)]);
  });
  mark(Op::rope);
  attend(index, rows);
  pool_.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      merge_row(r);
      quantize(attended_.data() + r * attended_stride_, r, w.o.columns, out,
               rows[static_cast<size_t>(r)].rounded);
    }
  });
  mark(Op::attention);
  multiply(w.o, attended_.data(), attended_stride_, runs_, x_.data(), spec_.hidden_size, true);
  mark(Op::o);
  feed_forward(w, rows);
}

// The strips of the three matrices form one list, so that threads meet once.
void Forward::project_qkv(const LayerWeights& w) {
  const int64_t hidden = spec_.hidden_size;
  const struct {
    const TileMatrix& m;
    const std::vector<float>& bias;
    float* out;
  } parts[] = {
      {w.q, w.q_bias, q_raw_.data()}, {w.k, w.k_bias, k_raw_.data()}, {w.v, w.v_bias, v_raw_.data()}};
  const int64_t total = w.q.num_strips() + w.k.num_strips() + w.v.num_strips();
  pool_.parallel(total, grain(total), [&](int64_t first, int64_t last) {
    by_row_blocks(runs_, hidden, hidden, [&](int64_t row, int64_t rows, bool rounded) {
      const Activations a = activations(norm_.data(), norm_stride_, hidden, row);
      int64_t before = 0;
      for (const auto& part : parts) {
        const int64_t begin = std::max<int64_t>(first - before, 0),
                      end = std::min(last - before, part.m.num_strips());
        before += part.m.num_strips();
        if (begin >= end) continue;
        const int64_t column = begin * kStrip, stride = part.m.padded_rows();
        float* to = part.out + row * stride + column;
        multiply_strips(part.m, begin, end, a, rows, rounded, to, stride);
        if (part.bias.empty()) continue;
        const int64_t width = std::min(end * kStrip, part.m.rows) - column;
        for (int64_t r = 0; r < rows; ++r) kernels_.add(to + r * stride, part.bias.data() + column, width);
      }
    });
  });
}

void Forward::feed_forward(const LayerWeights& w, const std::vector<Row>& rows) {
  const int64_t hidden = spec_.hidden_size;
  const Needs mid = needs({&w.down});
  normalize(w.ffn_norm, rows, needs({&w.gate, &w.up}));
  mark(Op::ffn_norm);
  const auto activate = spec_.activation == Activation::silu ? kernels_.silu_mul : kernels_.gelu_mul;
  pool_.parallel(w.gate.num_strips(), grain(w.gate.num_strips()), [&](int64_t first, int64_t last) {
    float* gate = scratch_[static_cast<size_t>(pool_.thread_index())].data();
    by_row_blocks(runs_, hidden, hidden, [&](int64_t row, int64_t together, bool rounded) {
      const Activations a = activations(norm_.data(), norm_stride_, hidden, row);
      for (int64_t s = first; s < last; s += kStripsAtOnce) {
        const int64_t end = std::min(s + kStripsAtOnce, last), width = (end - s) * kStrip;
        float* up = gate + together * width;
        multiply_strips(w.gate, s, end, a, together, rounded, gate, width);
        multiply_strips(w.up, s, end, a, together, rounded, up, width);
        activate(gate, up, together * width, gate);
        for (int64_t r = 0; r < together; ++r) {
          std::memcpy(inner_.data() + (row + r) * inner_stride_ + s * kStrip, gate + r * width,
                      static_cast<size_t>(width) * sizeof(float));
        }
      }
    });
  });
  mark(Op::gate_up);
  pool_.parallel(static_cast<int64_t>(rows.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      quantize(inner_.data() + r * inner_stride_, r, w.down.columns, mid,
               rows[static_cast<size_t>(r)].rounded);
    }
  });
  mark(Op::quantize);
  multiply(w.down, inner_.data(), inner_stride_, runs_, x_.data(), hidden, true);
  mark(Op::down);
}

void Forward::logits(const TileMatrix& output, const int64_t* rows, int64_t num_rows, float* logits) {
  const int64_t hidden = spec_.hidden_size;
  const Needs need = needs({&output});
  exact_run_.assign(1, {0, num_rows, false});
  pool_.run([&](int) {
    pool_.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        float* norm = norm_.data() + i * norm_stride_;
        kernels_.rms_norm(x_.data() + rows[i] * hidden, weights_.output_norm.data(), hidden, spec_.norm_eps,
                          norm);
        quantize(norm, i, hidden, need);
      }
    });
    mark(Op::output_norm);
    multiply(output, norm_.data(), norm_stride_, exact_run_, logits, output.padded_rows(), false);
    if (spec_.logit_softcap > 0.0f) {
      pool_.parallel(num_rows, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          kernels_.softcap(logits + i * output.padded_rows(), spec_.logit_softcap, output.rows);
        }
      });
    }
    mark(Op::output);
  });
}

}  // namespace outpace
