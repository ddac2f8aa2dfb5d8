// Which instruction sets this machine has, and which tier of kernels to use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace outpace {

// Names of the tiers that this machine can run, the fastest first.
std::vector<std::string> available_tiers();

// The tier of that name, or the fastest for "auto". Throws Error where the machine cannot run it.
const Kernels& select_kernels(const std::string& name);

}  // namespace outpace
