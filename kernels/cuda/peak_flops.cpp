#include "kernels/cuda/peak_flops.h"

namespace outeffhop::cuda {
namespace {

/// FLOPs a clock and multiprocessor of the chips of one compute capability whose name contains `name`.
struct Rate {
  int major, minor;
  std::string_view name;
  double bf16, fp32;
};

// The first that fits. From NVIDIA's data sheets: TFLOP/s of bf16 without sparsity, with fp32 sums, over multiprocessors and
// boost clock. fp32: two a core, of which there are 64 or 128. 0: slower than its family, and how much is not sure.
constexpr Rate kRates[] = {
    {8, 0, "", 2048, 128},        // A100: 312 = 108 x 1.41 GHz
    {8, 6, "GeForce", 512, 256},  // RTX 3090: 71 = 82 x 1.695 GHz
    {8, 6, "A10G", 0, 0},
    {8, 6, "", 1024, 256},        // A10: 125 = 72 x 1.695 GHz; A40, RTX A6000
    {8, 9, "GeForce", 512, 256},  // RTX 4090: 165 = 128 x 2.52 GHz
    {8, 9, "L40S", 1024, 256},    // 362 = 142 x 2.49 GHz
    {8, 9, "L40", 512, 256},      // 181 = 142 x 2.49 GHz
    {8, 9, "L20", 0, 0},
    {8, 9, "", 1024, 256},      // RTX 6000 Ada: 364 = 142 x 2.505 GHz; L4
    {9, 0, "H200", 4096, 256},  // as H100
    {9, 0, "H20", 0, 0},
    {9, 0, "", 4096, 256},              // H100 SXM: 989 = 132 x 1.83 GHz
    {10, 0, "", 8192, 256},             // B200: 2250 = 148 x 1.86 GHz
    {12, 0, "GeForce", 512, 256},       // RTX 5090: 209.5 = 170 x 2.407 GHz
    {12, 0, "RTX PRO 6000", 1024, 256}  // 503.8 = 188 x 2.617 GHz
};

}  // namespace

double peak_flops(const Chip& chip, DType storage) {
  for (const Rate& rate : kRates) {
    if (rate.major != chip.major || rate.minor != chip.minor || chip.name.find(rate.name) == std::string_view::npos)
      continue;
    const double a_clock = storage == DType::bf16 ? rate.bf16 : storage == DType::f32 ? rate.fp32 : 0.0;
    return a_clock * chip.multiprocessors * chip.clock;
  }
  return 0.0;
}

}  // namespace outeffhop::cuda
