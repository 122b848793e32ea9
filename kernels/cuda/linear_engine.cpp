#include "kernels/cuda/linear_engine.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <optional>

#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(ErrorKind::internal, "{} failed: {}", call, cublasLtGetStatusString(status));
}
#define OUTEFFHOP_CUBLASLT(call) check((call), #call)

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
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

constexpr std::uint32_t kBiasBit = CUBLASLT_EPILOGUE_BIAS, kAuxBit = CUBLASLT_EPILOGUE_GELU_AUX & ~CUBLASLT_EPILOGUE_GELU;
/// The epilogue's vector loads and stores fault on less, whatever the algorithm was asked for.
constexpr std::uintptr_t kEpilogueAlignment = 16;
constexpr std::int64_t kAuxElements = 8;  // an auxiliary matrix's leading dimension is a multiple of this

bool is_aligned(const void* data, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

std::int64_t a_stride(const Product& product) {
  return product.a_stride ? product.a_stride : product.a_transposed ? product.M : product.K;
}
std::int64_t out_stride(const Product& product) { return product.out_stride ? product.out_stride : product.N; }

/// What cuBLASLt calls the product's bias, activation and pre; none where it cannot do them all. It has no erf form of GELU,
/// and how exact its tanh form is nobody promises: enough for a result in bf16.
std::optional<std::uint32_t> epilogue_of(const Product& product) {
  std::uint32_t epilogue = 0;
  if (product.bias) {
    if (product.bias.dtype != product.out.dtype || !is_aligned(product.bias.data, kEpilogueAlignment)) return {};
    epilogue |= kBiasBit;
  }
  switch (product.activation) {
    case Activation::none:
      if (product.pre) return {};
      break;
    case Activation::relu:
      if (product.pre) return {};
      epilogue |= CUBLASLT_EPILOGUE_RELU;
      break;
    case Activation::gelu_tanh:
      if (product.out.dtype != DType::bf16) return {};
      epilogue |= CUBLASLT_EPILOGUE_GELU;
      if (product.pre) {
        if (out_stride(product) % kAuxElements != 0 || !is_aligned(product.pre.data, kEpilogueAlignment)) return {};
        epilogue |= kAuxBit;
      }
      break;
    case Activation::gelu_erf:
      return {};
  }
  return epilogue ? epilogue : std::uint32_t{CUBLASLT_EPILOGUE_DEFAULT};
}

cudaDataType_t type_of(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// The largest power of two, up to 16, that divides an address. No kernel asks for more, and where an arena put a tensor
/// should not decide which algorithm it gets.
std::uint32_t alignment_of(const void* data) {
  std::uint32_t alignment = 16;
  while (!is_aligned(data, alignment)) alignment /= 2;
  return alignment;
}

/// All that the choice of an algorithm depends on. Whether the product is accumulated, cuBLASLt does not ask.
struct Key {
  std::int64_t M, N, K, a_stride, out_stride;
  DType operands, out;
  bool a_transposed, b_transposed;
  std::uint32_t epilogue;
  std::uint32_t a_alignment, b_alignment, out_alignment;

  auto operator<=>(const Key&) const = default;
};

struct Plan {
  Description description;
  Layout a, b, out;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;  ///< false: there is no algorithm
};

template <class T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  OUTEFFHOP_CUBLASLT(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof value));
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  OUTEFFHOP_CUBLASLT(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

/// A row-major (rows, columns) matrix is, to cuBLASLt, a column-major one of `columns` rows.
Layout layout_of(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  OUTEFFHOP_CUBLASLT(cublasLtMatrixLayoutCreate(&layout, type_of(dtype), static_cast<std::uint64_t>(columns),
                                                static_cast<std::uint64_t>(rows), stride));
  return Layout(layout);
}

}  // namespace

class LinearEngine::Plans {
 public:
  Plans() {
    cublasLtHandle_t handle = nullptr;
    OUTEFFHOP_CUBLASLT(cublasLtCreate(&handle));
    handle_.reset(handle);
    workspace_.bytes(kWorkspaceBytes);
  }

  std::size_t size() const { return plans_.size(); }

  bool try_run(cudaStream_t stream, const Product& product) {
    require(product.M > 0 && product.N > 0 && product.K > 0, "a product of ({} x {}) and ({} x {}) has no elements",
            product.M, product.K, product.K, product.N);
    const char* name = "a matrix product";
    if (product.a.dtype != DType::f32 && product.a.dtype != DType::bf16) refuse_storage(name, product.a.dtype);
    require_same(product.a.dtype, product.b, name, "its second operand");
    if (product.a.dtype != DType::bf16 || product.out.dtype != DType::f32)
      require_same(product.a.dtype, product.out, name, "its result");
    require_same(product.out.dtype, product.pre, name, "pre");
    const std::optional<std::uint32_t> epilogue = epilogue_of(product);
    if (!epilogue) return false;

    const Key key{product.M,
                  product.N,
                  product.K,
                  a_stride(product),
                  out_stride(product),
                  product.a.dtype,
                  product.out.dtype,
                  product.a_transposed,
                  product.b_transposed,
                  *epilogue,
                  alignment_of(product.a.data),
                  alignment_of(product.b.data),
                  alignment_of(product.out.data)};
    auto position = plans_.find(key);
    if (position == plans_.end()) position = plans_.emplace(key, make_plan(key)).first;
    const Plan& plan = position->second;
    if (!plan.found) return false;

    if (*epilogue & kBiasBit) set(plan.description.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias.data);
    if (*epilogue & kAuxBit) set(plan.description.get(), CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, product.pre.data);
    const float alpha = 1, beta = product.accumulate ? 1 : 0;
    // out^T = b^T a^T, which is what column-major eyes see: the operands change places.
    OUTEFFHOP_CUBLASLT(cublasLtMatmul(handle_.get(), plan.description.get(), &alpha, product.b.data, plan.b.get(),
                                      product.a.data, plan.a.get(), &beta, product.out.data, plan.out.get(),
                                      product.out.data, plan.out.get(), &plan.algorithm, workspace_.bytes(kWorkspaceBytes),
                                      kWorkspaceBytes, stream));
    return true;
  }

 private:
  Plan make_plan(const Key& key) {
    Plan plan;
    cublasLtMatmulDesc_t description = nullptr;
    // COMPUTE_32F: fp32 operands are multiplied as they are; TF32 would have to be asked for.
    OUTEFFHOP_CUBLASLT(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    plan.description.reset(description);
    set(description, CUBLASLT_MATMUL_DESC_TRANSA, std::int32_t{key.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
    set(description, CUBLASLT_MATMUL_DESC_TRANSB, std::int32_t{key.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
    set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, key.epilogue);
    if (key.epilogue & kBiasBit) set(description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, std::int32_t{type_of(key.out)});
    if (key.epilogue & kAuxBit) set(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, key.out_stride);
    // The search takes what later pointers are aligned to from the ones it is shown, and null for every alignment.
    const void* const least_aligned = reinterpret_cast<const void*>(kEpilogueAlignment);
    if (key.epilogue & kBiasBit) set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, least_aligned);
    if (key.epilogue & kAuxBit) set(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, least_aligned);
    plan.a = key.a_transposed ? layout_of(key.operands, key.K, key.M, key.a_stride)
                              : layout_of(key.operands, key.M, key.K, key.a_stride);
    plan.b = key.b_transposed ? layout_of(key.operands, key.N, key.K, key.K) : layout_of(key.operands, key.K, key.N, key.N);
    plan.out = layout_of(key.out, key.M, key.N, key.out_stride);

    cublasLtMatmulPreference_t made = nullptr;
    OUTEFFHOP_CUBLASLT(cublasLtMatmulPreferenceCreate(&made));
    const Preference preference(made);
    set(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes});
    // Partial sums of a sum that is split stay in fp32: in the result's type they would be rounded to bf16.
    set(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b_alignment);
    set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a_alignment);
    set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.out_alignment);
    set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.out_alignment);

    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_.get(), description, plan.b.get(), plan.a.get(),
                                                                 plan.out.get(), plan.out.get(), made, 1, &best, &found);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "cublasLtMatmulAlgoGetHeuristic");
    plan.found = status == CUBLAS_STATUS_SUCCESS && found > 0 && best.state == CUBLAS_STATUS_SUCCESS;
    plan.algorithm = best.algo;
    return plan;
  }

  Handle handle_;
  Workspace workspace_;
  std::map<Key, Plan> plans_;
};

LinearEngine::LinearEngine() : plans_(std::make_unique<Plans>()) {}
LinearEngine::~LinearEngine() = default;

std::size_t LinearEngine::plans() const { return plans_->size(); }

bool LinearEngine::try_run(cudaStream_t stream, const Product& product) { return plans_->try_run(stream, product); }

void LinearEngine::run(cudaStream_t stream, const Product& product) {
  if (!try_run(stream, product))
    fail(ErrorKind::unsupported, "cuBLASLt has no algorithm for a ({} x {}) by ({} x {}) product of {} into {} on this GPU",
         product.M, product.K, product.K, product.N, name_of(product.a.dtype), name_of(product.out.dtype));
}

}  // namespace outeffhop::cuda
