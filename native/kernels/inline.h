// How the kernels' small functions become part of the loops that call them.
#pragma once

#if defined(OUTPACE_SANITIZED)
// Calls: with a check for each load of each inlined copy, a compiler takes more than four times as long; and
// what the checks find in one copy, they find in the function itself.
#define OUTPACE_INLINE static inline __attribute__((noinline))
#else
#define OUTPACE_INLINE static inline __attribute__((always_inline))
#endif
