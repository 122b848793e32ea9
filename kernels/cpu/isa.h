// Run-time choice of instruction set. The sources in kernels/cpu/simd/ are compiled once for each level (CMakeLists.txt),
// each into its own namespace, and called through a table picked here. No -march=native anywhere.
#pragma once

#include <string_view>

namespace outeffhop::cpu {

enum class Isa { baseline, avx2, avx512 };

/// The best level this processor and this binary have. OUTEFFHOP_MAX_ISA=baseline|avx2|avx512 in the environment lowers it
/// (for tests); any other value throws Error(usage).
Isa detected_isa();

/// True where bf16 matrix products run on hardware (AVX512-BF16 or AMX) and the level above allows it.
bool has_bf16_products();

std::string_view name_of(Isa isa);

}  // namespace outeffhop::cpu
