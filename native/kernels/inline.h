// How the kernels' small functions become part of the loops that call them, and loops straight code.
#pragma once

#if defined(OUTPACE_SANITIZED)
// Calls: a check for each load of each inlined copy takes compilers more than four times as long, and what
// one copy checks another one does too.
#define OUTPACE_INLINE_MEMBER inline __attribute__((noinline))
#else
#define OUTPACE_INLINE_MEMBER inline __attribute__((always_inline))
#endif
#define OUTPACE_INLINE static OUTPACE_INLINE_MEMBER

// Before a loop over what has to stay in registers, which gcc must be told.
#define OUTPACE_UNROLL _Pragma("GCC unroll 16")
// Before a loop over channels or tokens: unrolled, its sums need no copies from one turn to the next.
#define OUTPACE_UNROLL_SOME _Pragma("GCC unroll 4")
