// Python's view of api.h, with draft_bindings.cpp the only file that knows nanobind.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>

#include "api.h"
#include "draft_bindings.h"
#include "merges.h"
#include "packed_cache.h"

namespace outpace {

namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <class T>
using Optional = std::optional<Array<T>>;

template <class T>
T* pointer(const Optional<T>& array, size_t size, const char* name) {
  if (!array) return nullptr;
  if (array->size() < size) throw Error(std::string("array '") + name + "' is too small");
  return array->data();
}

template <class T>
T* pointer(const Array<T>& array, size_t size, const char* name) {
  if (array.size() < size) throw Error(std::string("array '") + name + "' is too small");
  return array.data();
}

template <class T>
T get(const nb::dict& d, const char* key) {
  if (!d.contains(key)) throw Error(std::string("missing field '") + key + "'");
  return nb::cast<T>(d[key]);
}

template <class T>
T choice(const nb::dict& d, const char* key, std::initializer_list<std::pair<const char*, T>> values) {
  const auto name = get<std::string>(d, key);
  for (const auto& [known, value] : values) {
    if (name == known) return value;
  }
  throw Error(std::string("field '") + key + "': unknown value '" + name + "'");
}

ModelSpec spec_of(const nb::dict& d) {
  ModelSpec s;
  s.vocab_size = get<int64_t>(d, "vocab_size");
  s.hidden_size = get<int64_t>(d, "hidden_size");
  s.num_layers = get<int64_t>(d, "num_layers");
  s.num_heads = get<int64_t>(d, "num_heads");
  s.num_kv_heads = get<int64_t>(d, "num_kv_heads");
  s.head_dim = get<int64_t>(d, "head_dim");
  s.intermediate_size = get<int64_t>(d, "intermediate_size");
  s.max_context = get<int64_t>(d, "max_context");
  s.norm_eps = get<float>(d, "norm_eps");
  s.qk_norm = get<bool>(d, "qk_norm");
  s.rope_kind = choice<RopeKind>(
      d, "rope_kind",
      {{"none", RopeKind::none}, {"interleaved", RopeKind::interleaved}, {"half", RopeKind::half}});
  s.rope_inv_freq = get<std::vector<float>>(d, "rope_inv_freq");
  s.rope_attention_factor = get<float>(d, "rope_attention_factor");
  s.attention_scale = get<float>(d, "attention_scale");
  s.activation =
      choice<Activation>(d, "activation", {{"silu", Activation::silu}, {"gelu_tanh", Activation::gelu_tanh}});
  s.tied_embeddings = get<bool>(d, "tied_embeddings");
  s.sliding_window = get<int64_t>(d, "sliding_window");
  s.attention_softcap = get<float>(d, "attention_softcap");
  s.logit_softcap = get<float>(d, "logit_softcap");
  s.embedding_scale = get<float>(d, "embedding_scale");
  return s;
}

KVFormat kv_format_of(const nb::dict& d) {
  return choice<KVFormat>(d, "kv_format", {{"int8", KVFormat::int8}, {"f16", KVFormat::f16}});
}

WeightFormat weight_format_of(const nb::dict& d) {
  return choice<WeightFormat>(
      d, "weight_format",
      {{"keep", WeightFormat::keep}, {"q8_0", WeightFormat::q8_0}, {"q4_0", WeightFormat::q4_0}});
}

Options options_of(const nb::dict& d) {
  Options o;
  o.num_threads = get<int>(d, "num_threads");
  o.cores = get<std::vector<std::vector<int>>>(d, "cores");
  o.isa = get<std::string>(d, "isa");
  o.weight_format = weight_format_of(d);
  o.kv_format = kv_format_of(d);
  o.prefill = choice<Prefill>(d, "prefill", {{"exact", Prefill::exact}, {"fast", Prefill::fast}});
  o.num_blocks = get<int64_t>(d, "num_blocks");
  o.max_rows = get<int64_t>(d, "max_rows");
  o.max_tree_rows = get<int64_t>(d, "max_tree_rows");
  o.packed.path = get<std::string>(d, "packed_path");
  o.packed.key = get<std::string>(d, "packed_key");
  o.packed.source = get<std::string>(d, "packed_source");
  o.packed.write = get<bool>(d, "packed_write");
  return o;
}

TensorRef tensor_of(nb::handle h) {
  const auto t = nb::cast<nb::tuple>(h);
  TensorRef ref;
  ref.name = nb::cast<std::string>(t[0]);
  ref.path = nb::cast<std::string>(t[1]);
  ref.offset = nb::cast<uint64_t>(t[2]);
  ref.num_bytes = nb::cast<uint64_t>(t[3]);
  ref.dtype = nb::cast<std::string>(t[4]);
  ref.rows = nb::cast<int64_t>(t[5]);
  ref.columns = nb::cast<int64_t>(t[6]);
  return ref;
}

std::unique_ptr<Model> load(const nb::dict& spec, const nb::list& tensors, const nb::dict& options,
                            const nb::object& progress, const Model* threads_of) {
  const ModelSpec s = spec_of(spec);
  const Options o = options_of(options);
  std::vector<TensorRef> refs;
  for (const nb::handle tensor : tensors) refs.push_back(tensor_of(tensor));
  Model::Progress report;
  // The callback also lets Ctrl-C through: a Python exception stops the load.
  report = [&](uint64_t bytes) {
    const nb::gil_scoped_acquire gil;
    if (!progress.is_none()) progress(bytes);
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  };
  const nb::gil_scoped_release nogil;
  return std::make_unique<Model>(s, refs, o, report, threads_of);
}

// The KV cache's own memory, [blocks, bytes of a block]; it lives as long as this view of it.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>> kv_blocks_of(nb::handle_t<Model> model) {
  const auto& m = nb::cast<const Model&>(model);
  return {m.kv_blocks(),
          {static_cast<size_t>(m.num_kv_blocks()), static_cast<size_t>(m.kv_block_bytes())},
          model};
}

// The hidden states of the same blocks, [blocks, bytes of a block]; None without a draft head.
nb::object state_blocks_of(nb::handle_t<Model> model) {
  const auto& m = nb::cast<const Model&>(model);
  if (m.state_blocks() == nullptr) return nb::none();
  return nb::cast(nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>(
      m.state_blocks(), {static_cast<size_t>(m.num_kv_blocks()), static_cast<size_t>(m.state_block_bytes())},
      model));
}

// (seconds, [(operation, seconds, bytes, multiply-accumulates)]) of the last traced step.
nb::tuple trace_of(const Model& model) {
  const StepTrace& trace = model.trace();
  nb::list ops;
  for (int i = 0; i < kNumOps; ++i) {
    const OpTrace& op = trace.ops[i];
    ops.append(nb::make_tuple(op_name(static_cast<Op>(i)), op.seconds, op.num_bytes, op.num_macs));
  }
  return nb::make_tuple(trace.seconds, ops);
}

// {operation: seconds of its products alone}, of the last traced step.
nb::dict product_seconds_of(const Model& model) {
  std::array<double, kNumOps> seconds;
  {
    const nb::gil_scoped_release nogil;
    seconds = model.product_seconds();
  }
  nb::dict all;
  for (int i = 0; i < kNumOps; ++i) all[op_name(static_cast<Op>(i))] = seconds[static_cast<size_t>(i)];
  return all;
}

// The strings of a GGUF array, each 8 bytes of length and as many of UTF-8, from byte `at` of `data` on, and
// the byte after them. None where one is cut off or no UTF-8: the caller's own reader says which and how.
nb::object split_strings(const nb::bytes& data, uint64_t at, uint64_t count) {
  const char* bytes = data.c_str();
  const uint64_t size = data.size();
  if (at > size || count > (size - at) / sizeof(uint64_t)) return nb::none();
  const nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
  if (!list.is_valid()) throw nb::python_error();
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t length = 0;
    if (size - at < sizeof length) return nb::none();
    std::memcpy(&length, bytes + at, sizeof length);
    at += sizeof length;
    if (length > size - at) return nb::none();
    PyObject* text = PyUnicode_DecodeUTF8(bytes + at, static_cast<Py_ssize_t>(length), nullptr);
    if (text == nullptr) {
      if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw nb::python_error();
      PyErr_Clear();
      return nb::none();
    }
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), text);
    at += length;
  }
  return nb::make_tuple(list, at);
}

std::vector<Text> texts_of(const nb::tuple& strings) {
  std::vector<Text> texts;
  texts.reserve(strings.size());
  for (const nb::handle each : strings) {
    PyObject* string = each.ptr();
    if (!PyUnicode_Check(string) || PyUnicode_READY(string) != 0)
      throw nb::type_error("not a tuple of strings");
    texts.push_back({PyUnicode_DATA(string), PyUnicode_GET_LENGTH(string), PyUnicode_KIND(string)});
  }
  return texts;
}

// Nothing is converted: an array of another type would become one that is freed before it is read.
template <class T>
void spans(const nb::object& list, size_t num_requests, std::vector<Span<T>>& out, const char* name) {
  if (list.is_none()) return;
  for (const nb::handle item : nb::cast<nb::list>(list)) {
    if (item.is_none()) {
      out.push_back({});
      continue;
    }
    Array<const T> array;
    if (!nb::try_cast(item, array, false))
      throw Error(std::string("an array in '") + name + "' has another type, or gaps");
    out.push_back({array.data(), static_cast<int64_t>(array.size())});  // the caller's list keeps it alive
  }
  if (out.size() != num_requests)
    throw Error(std::string("the list '") + name + "' has another length than the batch");
}

void step(Model& model, const Array<const int32_t>& token_ids, const Array<const int32_t>& row_start,
          const Array<const int32_t>& num_computed_tokens, const Array<const int32_t>& num_draft_tokens,
          const Optional<const int32_t>& draft_parents, const Array<const uint8_t>& sample,
          const nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig>& block_tables,
          const Array<const uint8_t>& sampling, const nb::object& history, const nb::object& bias_token_ids,
          const nb::object& bias_values, const nb::object& token_masks, int64_t num_output_tokens,
          const nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig>& out_token_ids,
          const Array<int32_t>& out_num_accepted, const Optional<float>& out_logprobs,
          const Optional<int32_t>& out_top_token_ids, const Optional<float>& out_top_logprobs,
          const Optional<float>& out_logits, const Optional<float>& out_hidden, int64_t num_top,
          int64_t vocab_size, int64_t hidden_size) {
  StepBatch b;
  b.num_rows = static_cast<int64_t>(token_ids.size());
  const size_t requests = num_computed_tokens.size();
  b.num_requests = static_cast<int64_t>(requests);
  b.token_ids = token_ids.data();
  b.row_start = pointer(row_start, requests + 1, "row_start");
  b.num_computed_tokens = num_computed_tokens.data();
  b.num_draft_tokens = pointer(num_draft_tokens, requests, "num_draft_tokens");
  b.draft_parents = pointer(draft_parents, token_ids.size(), "draft_parents");
  b.sample = pointer(sample, requests, "sample");
  if (block_tables.shape(0) < requests) throw Error("array 'block_tables' is too small");
  b.block_tables = block_tables.data();
  b.block_table_width = static_cast<int64_t>(block_tables.shape(1));
  b.sampling = reinterpret_cast<const Sampling*>(pointer(sampling, requests * sizeof(Sampling), "sampling"));
  spans(history, requests, b.history, "history");
  spans(bias_token_ids, requests, b.bias_token_ids, "bias_token_ids");
  spans(bias_values, requests, b.bias_values, "bias_values");
  spans(token_masks, requests, b.token_masks, "token_masks");
  b.num_output_tokens = num_output_tokens;
  StepOutput out;
  out.width = static_cast<int64_t>(out_token_ids.shape(1));
  if (out_token_ids.shape(0) < requests) throw Error("array 'out_token_ids' is too small");
  const size_t tokens = requests * out_token_ids.shape(1);
  out.token_ids = out_token_ids.data();
  out.num_accepted = pointer(out_num_accepted, requests, "out_num_accepted");
  out.num_top = num_top;
  out.logprobs = pointer(out_logprobs, tokens, "out_logprobs");
  out.top_token_ids = pointer(out_top_token_ids, tokens * static_cast<size_t>(num_top), "out_top_token_ids");
  out.top_logprobs = pointer(out_top_logprobs, tokens * static_cast<size_t>(num_top), "out_top_logprobs");
  out.logits = pointer(out_logits, static_cast<size_t>(b.num_rows * vocab_size), "out_logits");
  out.hidden = pointer(out_hidden, static_cast<size_t>(b.num_rows * hidden_size), "out_hidden");
  const nb::gil_scoped_release nogil;
  model.step(b, out);
}

void attach_head(Model& model, const nb::dict& layers, const nb::list& tensors,
                 const Array<const int32_t>& token_ids, const nb::dict& options) {
  HeadSpec head;
  head.layers = spec_of(layers);
  head.token_ids.assign(token_ids.data(), token_ids.data() + token_ids.size());
  head.weight_format = weight_format_of(options);
  head.num_blocks = get<int64_t>(options, "num_blocks");
  std::vector<TensorRef> refs;
  for (const nb::handle tensor : tensors) refs.push_back(tensor_of(tensor));
  const nb::gil_scoped_release nogil;
  model.attach_head(head, refs);
}

void guess(Model& model, const Array<const int32_t>& token_ids, const Array<const int32_t>& row_start,
           const Array<const int32_t>& positions, const Array<const int32_t>& starts,
           const nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig>& block_tables,
           const nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig>& head_tables,
           const Array<const int32_t>& max_tokens, const Array<const uint8_t>& sampling,
           const Array<const float>& least_chances,
           const nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig>& out_token_ids,
           const Array<float>& out_chances, const Array<int32_t>& out_num_tokens) {
  const size_t requests = positions.size();
  HeadBatch b;
  b.num_rows = static_cast<int64_t>(token_ids.size());
  b.num_requests = static_cast<int64_t>(requests);
  b.token_ids = token_ids.data();
  b.row_start = pointer(row_start, requests + 1, "row_start");
  b.positions = positions.data();
  b.starts = pointer(starts, requests, "starts");
  if (block_tables.shape(0) < requests || head_tables.shape(0) < requests ||
      out_token_ids.shape(0) < requests)
    throw Error("a table is too small");
  b.block_tables = block_tables.data();
  b.block_table_width = static_cast<int64_t>(block_tables.shape(1));
  b.head_tables = head_tables.data();
  b.head_table_width = static_cast<int64_t>(head_tables.shape(1));
  b.max_tokens = pointer(max_tokens, requests, "max_tokens");
  b.sampling = reinterpret_cast<const Sampling*>(pointer(sampling, requests * sizeof(Sampling), "sampling"));
  HeadOutput out;
  out.width = static_cast<int64_t>(out_token_ids.shape(1));
  b.least_chances = pointer(least_chances, out_token_ids.shape(1), "least_chances");
  out.token_ids = out_token_ids.data();
  out.chances = pointer(out_chances, requests * out_token_ids.shape(1), "out_chances");
  out.num_tokens = pointer(out_num_tokens, requests, "out_num_tokens");
  const nb::gil_scoped_release nogil;
  model.guess(b, out);
}

}  // namespace

}  // namespace outpace

NB_MODULE(_native, m) {
  using namespace outpace;
  m.doc() = "The native core of Outpace. Use outpace.backends.native_backend.";
  nb::exception<Error> error(m, "NativeError");
  nb::exception<MemoryError>(m, "NativeMemoryError", error);
  nb::class_<Model>(m, "Model")
      .def_prop_ro("kv_blocks", &kv_blocks_of)
      .def_prop_ro("state_blocks", &state_blocks_of)
      .def_prop_ro("weight_bytes", &Model::weight_bytes)
      .def_prop_ro("memory_bytes", &Model::memory_bytes)
      .def_prop_ro("packed_state", &Model::packed_state)
      .def_prop_ro("packed_note", &Model::packed_note)
      .def_prop_ro("isa", &Model::isa)
      .def_prop_ro("num_threads", &Model::num_threads)
      .def_prop_ro("head_bytes", &Model::head_bytes)
      .def_prop_ro("trace", &trace_of)
      .def("product_seconds", &product_seconds_of)
      .def("set_trace", &Model::set_trace, nb::arg("on"));
  m.def("load", &load, nb::arg("spec"), nb::arg("tensors"), nb::arg("options"), nb::arg("progress").none(),
        nb::arg("threads_of").none() = nb::none());
  m.def("step", &step, nb::arg("model"), nb::arg("token_ids"), nb::arg("row_start"),
        nb::arg("num_computed_tokens"), nb::arg("num_draft_tokens"), nb::arg("draft_parents").none(),
        nb::arg("sample"), nb::arg("block_tables"), nb::arg("sampling"), nb::arg("history").none(),
        nb::arg("bias_token_ids").none(), nb::arg("bias_values").none(), nb::arg("token_masks").none(),
        nb::arg("num_output_tokens"), nb::arg("out_token_ids"), nb::arg("out_num_accepted"),
        nb::arg("out_logprobs").none(), nb::arg("out_top_token_ids").none(),
        nb::arg("out_top_logprobs").none(), nb::arg("out_logits").none(), nb::arg("out_hidden").none(),
        nb::arg("num_top"), nb::arg("vocab_size"), nb::arg("hidden_size"));
  m.def("attach_head", &attach_head, nb::arg("model"), nb::arg("layers"), nb::arg("tensors"),
        nb::arg("token_ids"), nb::arg("options"));
  m.def("guess", &guess, nb::arg("model"), nb::arg("token_ids"), nb::arg("row_start"), nb::arg("positions"),
        nb::arg("starts"), nb::arg("block_tables"), nb::arg("head_tables"), nb::arg("max_tokens"),
        nb::arg("sampling"), nb::arg("least_chances"), nb::arg("out_token_ids"), nb::arg("out_chances"),
        nb::arg("out_num_tokens"));
  m.def(
      "kv_bytes_per_block",
      [](const nb::dict& spec, const nb::dict& options) {
        return kv_bytes_per_block(spec_of(spec), kv_format_of(options));
      },
      nb::arg("spec"), nb::arg("options"));
  m.def(
      "checksum",
      [](const Array<const uint8_t>& data) {
        const nb::gil_scoped_release nogil;
        return checksum(data.data(), data.size());
      },
      nb::arg("data"));
  m.def("split_strings", &split_strings, nb::arg("data"), nb::arg("at"), nb::arg("count"));
  m.def(
      "first_bad_merge",
      [](const nb::tuple& tokens, const nb::tuple& merges) {
        const std::vector<Text> known = texts_of(tokens), checked = texts_of(merges);
        const nb::gil_scoped_release nogil;  // tuples and strings stay as they are
        return first_bad_merge(known, checked);
      },
      nb::arg("tokens"), nb::arg("merges"));
  m.def("read_bandwidth", &read_bandwidth, nb::arg("num_bytes"), nb::arg("num_threads"),
        nb::arg("repeats") = 5, nb::call_guard<nb::gil_scoped_release>());
  m.def("int8_peak", &int8_peak, nb::arg("isa"), nb::arg("num_threads"), nb::arg("repeats") = 5,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("clock_rate", &clock_rate, nb::arg("num_threads"), nb::arg("repeats") = 5,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("available_isas", &available_isas);
  m.def("has_fast_prefill", &has_fast_prefill, nb::arg("isa"));
  bind_drafting(m);
  m.attr("packed_layout") = kPackedLayout;
  m.attr("compiler") = compiler();
}
