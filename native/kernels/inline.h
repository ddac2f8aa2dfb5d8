// How the kernels' small functions become part of the loops that call them.
#pragma once

#if defined(OUTPACE_SANITIZED)
// Calls: a check for each load of each inlined copy takes compilers more than four times as long, and what
// one copy checks another one does too.
#define OUTPACE_INLINE static inline __attribute__((noinline))
#else
#define OUTPACE_INLINE static inline __attribute__((always_inline))
#endif
