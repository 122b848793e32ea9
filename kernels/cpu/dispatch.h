// How an op reaches the SIMD functions of the level picked at run time: a table of function pointers for each level, defined
// in kernels/cpu/simd/NAME.cpp, of which one is chosen on first use.
#pragma once

#include "kernels/cpu/isa.h"

#if defined(OUTEFFHOP_HAS_ISA_AVX2)
#define OUTEFFHOP_IF_AVX2(code) code
#else
#define OUTEFFHOP_IF_AVX2(code)
#endif
#if defined(OUTEFFHOP_HAS_ISA_AVX512)
#define OUTEFFHOP_IF_AVX512(code) code
#else
#define OUTEFFHOP_IF_AVX512(code)
#endif

/// Inside namespace outeffhop::cpu: declares the tables `name` of type `Table` of every level, and a function name() that
/// returns the one for this processor.
#define OUTEFFHOP_SIMD_TABLE(Table, name)                                       \
  namespace isa_baseline {                                                      \
  extern const Table name;                                                      \
  }                                                                             \
  OUTEFFHOP_IF_AVX2(namespace isa_avx2 { extern const Table name; })            \
  OUTEFFHOP_IF_AVX512(namespace isa_avx512 { extern const Table name; })        \
  static const Table& name() {                                                  \
    switch (detected_isa()) {                                                   \
      OUTEFFHOP_IF_AVX512(case Isa::avx512 : return isa_avx512::name;)          \
      OUTEFFHOP_IF_AVX2(case Isa::avx2 : return isa_avx2::name;)                \
      default: return isa_baseline::name;                                       \
    }                                                                           \
  }
