#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <string>

#include "kernels/error.h"

namespace outeffhop::cpu {
namespace {

/// What the processor and the operating system offer, capped by what this binary was compiled for.
Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe");
  [[maybe_unused]] const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                                   __builtin_cpu_supports("avx512vl");
#if defined(OUTEFFHOP_HAS_ISA_AVX512)
  if (v4) return Isa::avx512;
#endif
#if defined(OUTEFFHOP_HAS_ISA_AVX2)
  if (v3) return Isa::avx2;
#endif
  (void)v3;
#endif
  return Isa::baseline;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* limit = std::getenv("OUTEFFHOP_MAX_ISA");
  if (limit == nullptr || *limit == '\0') return best;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (limit == name_of(isa)) return isa < best ? isa : best;
  fail(ErrorKind::usage, "OUTEFFHOP_MAX_ISA=\"{}\" is no instruction-set level; use baseline, avx2 or avx512, or unset it", limit);
}

}  // namespace

Isa detected_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

bool has_bf16_products() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  // Every processor with AMX-BF16 has AVX512-BF16 as well.
  return detected_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "?";
}

}  // namespace outeffhop::cpu
