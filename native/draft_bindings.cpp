// Python's view of the look-up drafters: one call a step for all requests. Where there is no guess for any of
// them, which is the usual case in text that repeats nothing, the answer is None.

#include "draft_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "edit_cursor.h"
#include "proposal.h"
#include "token_index.h"

namespace outpace {

namespace {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// What an index says of itself while no thread changes it. The interpreter goes on meanwhile, as that may
// last.
template <int64_t (TokenIndex::*Get)() const>
int64_t locked(const TokenIndex& index) {
  const nb::gil_scoped_release nogil;
  const auto held = index.hold();
  return (index.*Get)();
}

// The guesses of one call: [(request, token ids, classes, parents or None)], or None.
class Guesses {
 public:
  void add(size_t request, const TokenProposal& p) {
    if (p.empty()) return;
    if (!out_.is_valid()) out_ = nb::list();
    const nb::object parents = p.is_chain() ? nb::none() : nb::object(list(p.parents));
    nb::cast<nb::list>(out_).append(nb::make_tuple(request, list(p.token_ids), list(p.classes), parents));
  }
  nb::object take() { return out_.is_valid() ? out_ : nb::none(); }

 private:
  static nb::list list(const std::vector<int32_t>& values) {
    nb::list out;
    for (const int32_t value : values) out.append(value);
    return out;
  }
  nb::object out_;
};

// A request's own text: its index has seen the beginning of every text that is passed.
nb::object propose_own(const nb::list& indices, const nb::list& texts, const nb::list& most) {
  Guesses guesses;
  SuffixGuess guess;
  TokenProposal proposal;
  for (size_t i = 0; i < indices.size(); ++i) {
    auto& index = nb::cast<TokenIndex&>(indices[i]);
    const auto text = nb::cast<Tokens>(texts[i]);
    const auto length = static_cast<int64_t>(text.size());
    if (length > index.size()) index.append(text.data() + index.size(), length - index.size());
    guess.propose(index, text.data(), length, true, nb::cast<int64_t>(most[i]), proposal);
    guesses.add(i, proposal);
  }
  return guesses.take();
}

// Text of all requests, which a thread of its own appends to: what it changes just now is not looked up.
nb::object propose_shared(const nb::list& indices, const nb::list& texts, const nb::list& most) {
  Guesses guesses;
  SuffixGuess guess;
  TokenProposal proposal;
  for (size_t i = 0; i < indices.size(); ++i) {
    const auto& index = nb::cast<const TokenIndex&>(indices[i]);
    const auto held = index.try_hold();
    if (!held.owns_lock()) continue;
    const auto text = nb::cast<Tokens>(texts[i]);
    guess.propose(index, text.data(), static_cast<int64_t>(text.size()), false, nb::cast<int64_t>(most[i]),
                  proposal);
    guesses.add(i, proposal);
  }
  return guesses.take();
}

nb::object propose_edits(const nb::list& cursors, const nb::list& texts, const nb::list& outputs,
                         const nb::list& most) {
  Guesses guesses;
  TokenProposal proposal;
  for (size_t i = 0; i < cursors.size(); ++i) {
    if (cursors[i].is_none()) continue;
    const auto text = nb::cast<Tokens>(texts[i]);
    nb::cast<EditCursor&>(cursors[i])
        .propose(text.data(), static_cast<int64_t>(text.size()), nb::cast<int64_t>(outputs[i]),
                 nb::cast<int64_t>(most[i]), proposal);
    guesses.add(i, proposal);
  }
  return guesses.take();
}

}  // namespace

void bind_drafting(nb::module_& m) {
  nb::class_<TokenIndex>(m, "TokenIndex")
      .def(nb::init<int64_t, std::vector<int32_t>>(), nb::arg("capacity"), nb::arg("orders"))
      .def_prop_ro("size", locked<&TokenIndex::size>)
      .def_prop_ro("num_kept", locked<&TokenIndex::num_kept>)
      .def_prop_ro("ring_size", locked<&TokenIndex::ring_size>)
      .def_prop_ro("num_bytes", locked<&TokenIndex::num_bytes>)
      .def(
          "append",
          [](TokenIndex& index, const Tokens& tokens) {
            const nb::gil_scoped_release nogil;
            index.append(tokens.data(), static_cast<int64_t>(tokens.size()));
          },
          nb::arg("token_ids"))
      .def(
          "end_document", [](TokenIndex& index) { index.append(&kBorder, 1); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("set_capacity", &TokenIndex::set_capacity, nb::arg("capacity"),
           nb::call_guard<nb::gil_scoped_release>());
  nb::class_<EditCursor>(m, "EditCursor")
      .def(
          "__init__",
          [](EditCursor* self, const Tokens& source, bool is_prompt) {
            new (self) EditCursor({source.data(), source.data() + source.size()}, is_prompt);
          },
          nb::arg("source"), nb::arg("is_prompt"));
  m.def("propose_own", &propose_own, nb::arg("indices"), nb::arg("texts"), nb::arg("max_tokens"));
  m.def("propose_shared", &propose_shared, nb::arg("indices"), nb::arg("texts"), nb::arg("max_tokens"));
  m.def("propose_edits", &propose_edits, nb::arg("cursors"), nb::arg("texts"), nb::arg("outputs"),
        nb::arg("max_tokens"));
  m.attr("num_suffix_classes") = kLengthDegrees * kAgreements;
  m.attr("num_edit_classes") = EditCursor::kClasses;
}

}  // namespace outpace
