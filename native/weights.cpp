#include "weights.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "aligned.h"
#include "file.h"
#include "kernels/f16.h"
#include "packed_cache.h"

namespace outpace {

namespace {

struct FileType {
  const char* name;
  Format format;
  int64_t block_columns, block_bytes;
};

// ggml's tensor types: how many weights a block holds, and in how many bytes.
constexpr FileType kFileTypes[] = {
    {"F32", Format::f32, 1, 4},       {"F16", Format::f16, 1, 2},       {"BF16", Format::bf16, 1, 2},
    {"Q4_0", Format::q4_0, 32, 18},   {"Q4_1", Format::q4_1, 32, 20},   {"Q5_0", Format::q5_0, 32, 22},
    {"Q5_1", Format::q5_1, 32, 24},   {"Q8_0", Format::q8_0, 32, 34},   {"Q4_K", Format::q4_k, 256, 144},
    {"Q5_K", Format::q5_k, 256, 176}, {"Q6_K", Format::q6_k, 256, 210},
};

// A decode step takes the time that its bytes take, so tiles have none more than the file.
static_assert(std::all_of(std::begin(kFileTypes), std::end(kFileTypes), [](const FileType& type) {
  return cell_bytes(type.format) == kStrip * type.block_bytes &&
         cell_columns(type.format) == type.block_columns;
}));

const FileType& file_type(const TensorRef& tensor) {
  for (const FileType& type : kFileTypes) {
    if (tensor.dtype == type.name) return type;
  }
  throw Error("tensor '" + tensor.name + "' has the type " + tensor.dtype + ", which Outpace cannot run");
}

const FileType& file_type(Format format) {
  return *std::find_if(std::begin(kFileTypes), std::end(kFileTypes),
                       [&](const FileType& type) { return type.format == format; });
}

// What a tensor of `type` becomes: blocks of the format asked for where those are smaller.
Format packed_format(const FileType& type, WeightFormat wanted, int64_t columns) {
  if (wanted == WeightFormat::keep || columns % kGroup != 0) return type.format;
  const FileType& to = file_type(wanted == WeightFormat::q8_0 ? Format::q8_0 : Format::q4_0);
  return to.block_bytes * type.block_columns < type.block_bytes * to.block_columns ? to.format : type.format;
}

class Loader {
 public:
  Loader(const ModelSpec& spec, const std::vector<TensorRef>& tensors, WeightFormat weight_format,
         const PackedCache& packed, const Kernels& kernels, ThreadPool& pool, const Model::Progress& progress,
         bool is_head = false)
      : spec_(spec),
        is_head_(is_head),
        weight_format_(weight_format),
        packed_(packed),
        kernels_(kernels),
        pool_(pool),
        progress_(progress) {
    for (const TensorRef& tensor : tensors) tensors_[tensor.name] = &tensor;
  }

  Weights load() {
    Weights w;
    plan(w);
    uint64_t total = 0;
    for (const Planned& p : planned_) total += static_cast<uint64_t>(p.matrix->total_bytes());
    const auto pause = [&] { report(); };
    w.tiles = read_packed(packed_, total, pool_, pause, w.packed_note);
    const bool found = w.tiles.data() != nullptr;
    if (!found) w.tiles = HugeBuffer(total, "the weights");
    uint8_t* at = w.tiles.data();
    for (const Planned& p : planned_) {
      p.matrix->data = at;
      at += p.matrix->total_bytes();
      if (p.matrix != &w.embed || spec_.tied_embeddings) {
        w.step_bytes += static_cast<uint64_t>(p.matrix->total_bytes());
      }
      if (!found) fill(p);
    }
    w.step_bytes += vector_bytes_;
    if (spec_.tied_embeddings) w.output = w.embed;
    if (found)
      w.packed_state = "hit";
    else if (write_packed(packed_, w.tiles, pool_, pause, w.packed_note))
      w.packed_state = "written";
    else if (!packed_.path.empty())
      w.packed_state = "missed";
    return w;
  }

 private:
  struct Planned {
    TileMatrix* matrix;
    const TensorRef* tensor;
    Format file_format;
  };

  const TensorRef* find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : it->second;
  }

  void plan(Weights& w) {
    const int64_t q_rows = spec_.num_heads * spec_.head_dim, kv_rows = spec_.num_kv_heads * spec_.head_dim;
    const int64_t hidden = spec_.hidden_size, inner = spec_.intermediate_size;
    if (is_head_)
      matrix(w.fc, "fc", hidden, 2 * hidden);
    else
      matrix(w.embed, "embed", spec_.vocab_size, hidden);
    if (!spec_.tied_embeddings) matrix(w.output, "output", spec_.vocab_size, hidden);
    w.output_norm = vector("output_norm", hidden, true);
    w.layers.resize(static_cast<size_t>(spec_.num_layers));
    for (size_t i = 0; i < w.layers.size(); ++i) {
      LayerWeights& layer = w.layers[i];
      const std::string prefix = "layers." + std::to_string(i) + ".";
      layer.attn_norm = vector(prefix + "attn_norm", hidden, true);
      matrix(layer.q, prefix + "q", q_rows, hidden);
      matrix(layer.k, prefix + "k", kv_rows, hidden);
      matrix(layer.v, prefix + "v", kv_rows, hidden);
      layer.q_bias = vector(prefix + "q_bias", q_rows, false);
      layer.k_bias = vector(prefix + "k_bias", kv_rows, false);
      layer.v_bias = vector(prefix + "v_bias", kv_rows, false);
      layer.q_norm = vector(prefix + "q_norm", spec_.head_dim, spec_.qk_norm);
      layer.k_norm = vector(prefix + "k_norm", spec_.head_dim, spec_.qk_norm);
      matrix(layer.o, prefix + "o", hidden, q_rows);
      layer.ffn_norm = vector(prefix + "ffn_norm", hidden, true);
      matrix(layer.gate, prefix + "gate", inner, hidden);
      matrix(layer.up, prefix + "up", inner, hidden);
      matrix(layer.down, prefix + "down", hidden, inner);
      balance_keys(layer);
    }
  }

  void matrix(TileMatrix& out, const std::string& name, int64_t rows, int64_t columns) {
    const TensorRef* tensor = find(name);
    if (tensor == nullptr) throw Error("the model has no tensor '" + name + "'");
    if (tensor->rows != rows || tensor->columns != columns) {
      throw Error("tensor '" + name + "' is " + std::to_string(tensor->rows) + " x " +
                  std::to_string(tensor->columns) + ", but the model's metadata asks for " +
                  std::to_string(rows) + " x " + std::to_string(columns));
    }
    const FileType& type = file_type(*tensor);
    if (columns % type.block_columns != 0 ||
        tensor->num_bytes !=
            static_cast<uint64_t>(rows * (columns / type.block_columns) * type.block_bytes)) {
      throw Error("tensor '" + name + "' does not have the bytes that its type and shape ask for");
    }
    out = tile_shape(packed_format(type, weight_format_, columns), rows, columns);
    planned_.push_back({&out, tensor, type.format});
  }

  std::vector<float> vector(const std::string& name, int64_t size, bool required) {
    const TensorRef* tensor = find(name);
    if (tensor == nullptr) {
      if (required) throw Error("the model has no tensor '" + name + "'");
      return {};
    }
    const FileType& type = file_type(*tensor);
    if (!is_float(type.format))
      throw Error("tensor '" + name + "' has the type " + tensor->dtype + ", not a float type");
    if (tensor->rows * tensor->columns != size ||
        tensor->num_bytes != static_cast<uint64_t>(size * type.block_bytes)) {
      throw Error("tensor '" + name + "' does not have " + std::to_string(size) + " elements");
    }
    std::vector<uint8_t> bytes(tensor->num_bytes);
    file(tensor->path).read(tensor->offset, bytes.data(), bytes.size());
    std::vector<float> out(static_cast<size_t>(size));
    for (size_t i = 0; i < out.size(); ++i) {
      uint16_t half = 0;
      if (type.format == Format::f32) {
        std::memcpy(&out[i], bytes.data() + 4 * i, 4);
        continue;
      }
      std::memcpy(&half, bytes.data() + 2 * i, 2);
      const uint32_t word = static_cast<uint32_t>(half) << 16;
      if (type.format == Format::bf16)
        std::memcpy(&out[i], &word, 4);
      else
        out[i] = f16_to_f32(half);
    }
    vector_bytes_ += out.size() * sizeof(float);
    return out;
  }

  // Keys are cached as 8-bit numbers with one scale for a head. Some models add a bias of several
  // hundred to a few channels, which would leave nothing for the others (Qwen2.5: a KL divergence of
  // 0.012 nats). Rotation keeps the norm of a pair of channels, so each pair is divided by a constant
  // of its own before it is quantized, and the query is multiplied by it: 0.0005 nats.
  void balance_keys(LayerWeights& layer) const {
    const int64_t d = spec_.head_dim, pairs = static_cast<int64_t>(spec_.rope_inv_freq.size());
    constexpr float kTypicalKey = 4.0f;
    layer.key_balance.assign(static_cast<size_t>(spec_.num_kv_heads * d), 1.0f);
    const std::vector<float>& known = layer.k_bias.empty() ? layer.k_norm : layer.k_bias;
    if (known.empty()) return;
    const float floor = layer.k_bias.empty() ? 1e-2f : kTypicalKey;
    for (int64_t head = 0; head < spec_.num_kv_heads; ++head) {
      const float* size = known.data() + (layer.k_bias.empty() ? 0 : head * d);
      float* balance = layer.key_balance.data() + head * d;
      for (int64_t c = 0; c < d; ++c) {
        int64_t other = c;
        if (c < 2 * pairs && spec_.rope_kind == RopeKind::half) other = c < pairs ? c + pairs : c - pairs;
        if (c < 2 * pairs && spec_.rope_kind == RopeKind::interleaved) other = c ^ 1;
        balance[c] = std::max(std::hypot(size[c], size[other]), floor);
      }
    }
  }

  const File& file(const std::string& path) {
    auto& slot = files_[path];
    if (!slot) slot = std::make_unique<File>(path);
    return *slot;
  }

  // Reads and repacks one matrix, the strips spread over the threads.
  void fill(const Planned& p) {
    const TileMatrix& m = *p.matrix;
    const FileType& in = file_type(p.file_format);
    const FileType& packed = file_type(m.format);
    const auto row_bytes = static_cast<uint64_t>(m.columns / in.block_columns * in.block_bytes);
    const auto packed_bytes = static_cast<uint64_t>(m.columns / packed.block_columns * packed.block_bytes);
    const bool convert = p.file_format != m.format;
    const TileMatrix original = tile_shape(p.file_format, kStrip, m.columns);
    const File& source = file(p.tensor->path);
    const int64_t grain = std::max<int64_t>(1, static_cast<int64_t>((512 << 10) / (row_bytes * kStrip)));
    std::mutex mutex;
    std::string error;
    pool_.run([&](int) {
      std::vector<uint8_t> bytes(row_bytes * kStrip * static_cast<uint64_t>(grain));
      LineVector<uint8_t> strip(convert ? static_cast<size_t>(original.strip_bytes) : 0);
      LineVector<float> weights(convert ? static_cast<size_t>(m.columns) : 0);
      std::vector<uint8_t> blocks(convert ? packed_bytes * kStrip : 0);
      pool_.parallel(m.num_strips(), grain, [&](int64_t first, int64_t last) {
        try {
          for (int64_t begin = first; begin < last; begin += grain) {
            const int64_t end = std::min(begin + grain, last);
            const int64_t row = begin * kStrip, rows = std::min(end * kStrip, m.rows) - row;
            source.read(p.tensor->offset + static_cast<uint64_t>(row) * row_bytes, bytes.data(),
                        static_cast<uint64_t>(rows) * row_bytes);
            for (int64_t s = begin; s < end; ++s) {
              const uint8_t* rows_of_strip[kStrip];
              for (int o = 0; o < kStrip; ++o) {
                const int64_t r = s * kStrip + o;
                const uint8_t* data = bytes.data() + static_cast<uint64_t>(r - row) * row_bytes;
                rows_of_strip[o] = r < m.rows ? data : nullptr;
              }
              if (convert) {  // what packs and unpacks every format is there: by way of it
                TileMatrix from = original;
                from.data = strip.data();
                kernels_.pack_strip(from, rows_of_strip, from.data);
                for (int o = 0; o < kStrip && rows_of_strip[o] != nullptr; ++o) {
                  uint8_t* block = blocks.data() + static_cast<uint64_t>(o) * packed_bytes;
                  kernels_.dequantize_row(from, o, weights.data());
                  kernels_.quantize_weights(m.format, weights.data(), m.columns, block);
                  rows_of_strip[o] = block;
                }
              }
              kernels_.pack_strip(m, rows_of_strip, m.data + s * m.strip_bytes);
            }
          }
        } catch (const std::exception& e) {
          const std::lock_guard lock(mutex);
          error = e.what();
        }
      });
    });
    if (!error.empty()) throw Error(error);
    bytes_read_ += p.tensor->num_bytes;
    report();
  }

  // A few times a second: each report waits for the interpreter.
  void report() {
    const auto now = std::chrono::steady_clock::now();
    if (!progress_ || now - reported_ < std::chrono::milliseconds(100)) return;
    reported_ = now;
    progress_(bytes_read_);
  }

  const ModelSpec& spec_;
  const bool is_head_;
  const WeightFormat weight_format_;
  const PackedCache& packed_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const Model::Progress& progress_;
  std::map<std::string, const TensorRef*> tensors_;
  std::map<std::string, std::unique_ptr<File>> files_;
  std::vector<Planned> planned_;
  uint64_t bytes_read_ = 0, vector_bytes_ = 0;
  std::chrono::steady_clock::time_point reported_ = std::chrono::steady_clock::now();
};

}  // namespace

Weights Weights::load(const ModelSpec& spec, const std::vector<TensorRef>& tensors, const Options& options,
                      const Kernels& kernels, ThreadPool& pool, const Model::Progress& progress) {
  return Loader(spec, tensors, options.weight_format, options.packed, kernels, pool, progress).load();
}

Weights Weights::load_head(const ModelSpec& spec, const std::vector<TensorRef>& tensors,
                           WeightFormat weight_format, const Kernels& kernels, ThreadPool& pool) {
  const PackedCache nowhere;
  const Model::Progress nobody;
  return Loader(spec, tensors, weight_format, nowhere, kernels, pool, nobody, true).load();
}

}  // namespace outpace
