// The part of Python's view that bindings.cpp leaves to draft_bindings.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace outpace {

void bind_drafting(nb::module_& m);

}  // namespace outpace
