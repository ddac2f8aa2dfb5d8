#include "cpu.h"

#if defined(OUTPACE_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(OUTPACE_AARCH64)
#include <sys/auxv.h>
#endif

#include "api.h"

namespace outpace {

#if defined(OUTPACE_X86)
namespace {

// clang before 17 does not know this one's name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}

// Tiles are 8 kB of registers that Linux (5.16 or newer) gives to a process that asks for them: once, for
// all of its threads. Without that the first tile instruction is a fault.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// By cpuid itself: compilers differ in the names that they know.
bool has_amx() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return false;  // xgetbv
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // products of bf16, tiles, products of int8
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kNeeded) != kNeeded) return false;
  unsigned saved, high;
  asm("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if ((saved >> 17 & 3) != 3) return false;  // the operating system saves their shapes and their data
  static const bool granted = request_tiles();
  return granted;
}

// On processors without AVX512 too: Alder Lake and newer, Zen 5.
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

}  // namespace
#endif

std::vector<std::string> available_tiers() {
  std::vector<std::string> names;
#if defined(OUTPACE_X86)
  // These ask the operating system too whether it saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512 && has_amx()) names.emplace_back("amx");
  if (avx512) names.emplace_back("avx512vnni");
  if (avx2 && has_avx_vnni()) names.emplace_back("avxvnni");
  if (avx2) names.emplace_back("avx2");
#elif defined(OUTPACE_AARCH64)
  const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  const bool i8mm = dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
  if (i8mm) names.emplace_back("neon-i8mm");
  if (dotprod) names.emplace_back("neon-dotprod");
  names.emplace_back("neon");  // every aarch64 Linux has it
#endif
  names.emplace_back("portable");
  return names;
}

const Kernels& select_kernels(const std::string& name) {
  const std::vector<std::string> names = available_tiers();
  const std::string wanted = name == "auto" ? names.front() : name;
  std::string list;
  for (const std::string& available : names) {
    if (available == wanted) {
#if defined(OUTPACE_X86)
      if (wanted == "amx") return amx_kernels();
      if (wanted == "avx512vnni") return avx512vnni_kernels();
      if (wanted == "avxvnni") return avxvnni_kernels();
      if (wanted == "avx2") return avx2_kernels();
#elif defined(OUTPACE_AARCH64)
      if (wanted == "neon-i8mm") return neon_i8mm_kernels();
      if (wanted == "neon-dotprod") return neon_dotprod_kernels();
      if (wanted == "neon") return neon_kernels();
#endif
      return portable_kernels();
    }
    list += (list.empty() ? "" : ", ") + available;
  }
  throw Error("isa '" + name + "' cannot run here; this machine has: auto, " + list);
}

}  // namespace outpace
