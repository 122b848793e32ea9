// How one shape of product is run: cuBLASLt's descriptors of it, and the algorithms that it offers.
#pragma once

#include <cublasLt.h>

#include <memory>
#include <vector>

#include "kernels/cuda/linear_engine.h"

namespace outeffhop::cuda {

/// Throws Error(internal) with the call's own text where it failed.
void check(cublasStatus_t status, const char* call);
#define OUTEFFHOP_CUBLASLT(call) ::outeffhop::cuda::check((call), #call)

/// Owns what `Destroy` ends.
template <class Pointer, cublasStatus_t (*Destroy)(Pointer)>
struct Destroyer {
  using pointer = Pointer;
  void operator()(Pointer object) const { (void)Destroy(object); }
};
template <class Pointer, cublasStatus_t (*Destroy)(Pointer)>
using Owned = std::unique_ptr<Pointer, Destroyer<Pointer, Destroy>>;
using Handle = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

/// Of an epilogue.
constexpr std::uint32_t kBiasBit = CUBLASLT_EPILOGUE_BIAS;
/// The epilogue's vector loads and stores fault on less, whatever the algorithm was asked for.
constexpr std::uintptr_t kEpilogueAlignment = 16;

/// All that the choice of an algorithm depends on. Whether the product is accumulated, cuBLASLt does not ask.
struct ProductKey {
  std::int64_t M, N, K, a_stride, out_stride;
  DType operands, out;
  bool a_transposed, b_transposed;
  std::uint32_t epilogue;
  std::uint32_t a_alignment, b_alignment, out_alignment;  ///< bytes

  auto operator<=>(const ProductKey&) const = default;
};

struct ProductPlan {
  Description description;
  Layout a, b, out;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;  ///< false: there is no algorithm
};

/// The plan of a key, but for its algorithm.
ProductPlan describe(const ProductKey& key);

/// Algorithms that cuBLASLt has for the product, at most kCandidates, what it takes for the fastest first.
std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const ProductKey& key, const ProductPlan& plan);
constexpr int kCandidates = 8;

/// Whether `algorithm`, of another process, is one for the product here.
bool accepts(cublasLtHandle_t handle, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algorithm);

/// Where products run.
struct ProductStream {
  cublasLtHandle_t handle;
  cudaStream_t stream;
  void* workspace;  ///< LinearEngine::kWorkspaceBytes
};

/// Runs the product that `plan` is made for by `algorithm`.
cublasStatus_t multiply(const ProductStream& on, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algorithm,
                        const Product& product);

}  // namespace outeffhop::cuda
