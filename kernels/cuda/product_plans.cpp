#include "kernels/cuda/product_plans.h"

#include "kernels/error.h"

namespace outeffhop::cuda {
namespace {

using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

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

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(ErrorKind::internal, "{} failed: {}", call, cublasLtGetStatusString(status));
}

std::string cublaslt_version() {
  const std::size_t version = cublasLtGetVersion();
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

ProductPlan describe(const ProductKey& key) {
  ProductPlan plan;
  cublasLtMatmulDesc_t description = nullptr;
  // COMPUTE_32F: fp32 operands are multiplied as they are; TF32 would have to be asked for.
  OUTEFFHOP_CUBLASLT(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.description.reset(description);
  set(description, CUBLASLT_MATMUL_DESC_TRANSA, std::int32_t{key.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
  set(description, CUBLASLT_MATMUL_DESC_TRANSB, std::int32_t{key.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
  set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, key.epilogue);
  if (key.epilogue & kBiasBit) set(description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, std::int32_t{type_of(key.out)});
  // The search takes what later pointers are aligned to from the ones it is shown, and null for every alignment.
  const void* const least_aligned = reinterpret_cast<const void*>(kEpilogueAlignment);
  if (key.epilogue & kBiasBit) set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, least_aligned);
  plan.a = key.a_transposed ? layout_of(key.operands, key.K, key.M, key.a_stride)
                            : layout_of(key.operands, key.M, key.K, key.a_stride);
  plan.b = key.b_transposed ? layout_of(key.operands, key.N, key.K, key.K) : layout_of(key.operands, key.K, key.N, key.N);
  plan.out = layout_of(key.out, key.M, key.N, key.out_stride);
  return plan;
}

std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const ProductKey& key, const ProductPlan& plan) {
  cublasLtMatmulPreference_t made = nullptr;
  OUTEFFHOP_CUBLASLT(cublasLtMatmulPreferenceCreate(&made));
  const Preference preference(made);
  set(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{LinearEngine::kWorkspaceBytes});
  // Partial sums of a sum that is split stay in fp32: in the result's type they would be rounded to bf16.
  set(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b_alignment);
  set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a_alignment);
  set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.out_alignment);
  set(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.out_alignment);

  cublasLtMatmulHeuristicResult_t results[kCandidates] = {};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, plan.description.get(), plan.b.get(), plan.a.get(), plan.out.get(),
                                     plan.out.get(), made, kCandidates, results, &count);
  // An epilogue that does not go with these types or sizes is an invalid value to some versions.
  const bool no_such_epilogue = status == CUBLAS_STATUS_INVALID_VALUE && key.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || no_such_epilogue) return {};
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  std::vector<cublasLtMatmulAlgo_t> found;
  for (int i = 0; i < count; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS) found.push_back(results[i].algo);
  return found;
}

bool accepts(cublasLtHandle_t handle, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algorithm) {
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle, plan.description.get(), plan.b.get(), plan.a.get(),
                                                        plan.out.get(), plan.out.get(), &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= LinearEngine::kWorkspaceBytes;
}

cublasStatus_t multiply(const ProductStream& on, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algorithm,
                        const Product& product) {
  if (product.bias) set(plan.description.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias.data);
  const float alpha = 1, beta = product.accumulate ? 1 : 0;
  // out^T = b^T a^T, which is what column-major eyes see: the operands change places.
  return cublasLtMatmul(on.handle, plan.description.get(), &alpha, product.b.data, plan.b.get(), product.a.data,
                        plan.a.get(), &beta, product.out.data, plan.out.get(), product.out.data, plan.out.get(), &algorithm,
                        on.workspace, LinearEngine::kWorkspaceBytes, on.stream);
}

}  // namespace outeffhop::cuda
