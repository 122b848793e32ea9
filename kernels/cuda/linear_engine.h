// Matrix products by cuBLASLt. What a product needs (descriptors, layouts, an algorithm) is made once for each shape, and
// kept: of the algorithms that cuBLASLt offers the one that is measured to be the fastest.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <string_view>

#include "kernels/linear.h"

namespace outeffhop::cuda {

/// out = activation(a b + bias), or out += a b. Row-major matrices, of fp32 with an fp32 result, or of bf16 with a bf16 or
/// fp32 result; sums are made in fp32 (never in TF32) and rounded once.
struct Product {
  std::int64_t M = 0, N = 0, K = 0;  ///< none is 0
  ConstTensor a;                     ///< (M, K); stored (K, M) when a_transposed
  bool a_transposed = false;
  std::int64_t a_stride = 0;  ///< elements from one stored row of a to the next; 0: they lie end to end
  ConstTensor b;  ///< (K, N); stored (N, K) when b_transposed
  bool b_transposed = false;
  Tensor out;                   ///< (M, N)
  std::int64_t out_stride = 0;  ///< elements from one row to the next; 0: N
  bool accumulate = false;  ///< without bias and activation
  ConstTensor bias = {};    ///< (N) or null
  Activation activation = Activation::none;
};

/// "13.0.2".
std::string cublaslt_version();

class LinearEngine {
 public:
  /// Of the current device: a handle, and the workspace that algorithms may use (kWorkspaceBytes).
  LinearEngine();
  ~LinearEngine();

  /// Runs the product as one call of cuBLASLt. False, and nothing is done, where there is none that does all of it: bias
  /// and activation have to be what an epilogue can do, and cuBLASLt has to have an algorithm. The first product of its
  /// kind waits for the stream, to measure; it may not be recorded.
  bool try_run(cudaStream_t stream, const Product& product);
  /// The same, but throws Error(unsupported) instead.
  void run(cudaStream_t stream, const Product& product);

  /// Plans that are kept: one for each shape, set of types, epilogue and alignment seen.
  std::size_t plan_count() const;
  /// Device::plans() and Device::use_plans().
  std::string plans() const;
  bool use_plans(std::string_view text);

  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // what NVIDIA advises for sm_90

 private:
  class Plans;
  std::unique_ptr<Plans> plans_;
};

}  // namespace outeffhop::cuda
