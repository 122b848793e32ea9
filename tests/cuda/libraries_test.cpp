// Only in a build with CUDA, on any machine: what the program loads when a GPU is used, and not before.
#include <cublasLt.h>

#include <string>

#include "kernels/device.h"
#include "tests/catch.h"
#include "tests/test_support.h"
#include "train/files.h"

namespace outeffhop {
namespace {

bool is_loaded(const std::string& library) { return read_file("/proc/self/maps").find(library) != std::string::npos; }

TEST_CASE("cuBLASLt is loaded by the first call, and has every function that is called") {
  CHECK(make_device({"cpu", 1})->description().starts_with("CPU"));
  CHECK_FALSE(is_loaded("libcublasLt"));
  CHECK(std::string(cublasLtGetStatusString(CUBLAS_STATUS_SUCCESS)) == "success");
  CHECK(is_loaded("libcublasLt"));

  // What needs no driver.
  cublasLtMatrixLayout_t layout = nullptr;
  REQUIRE(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, 16, 16, 16) == CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulDesc_t description = nullptr;
  REQUIRE(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
  const std::int32_t transposed = CUBLAS_OP_T;
  CHECK(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) ==
        CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulPreference_t preference = nullptr;
  REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
  const std::uint64_t workspace = 1 << 20;
  CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                             sizeof workspace) == CUBLAS_STATUS_SUCCESS);
  // What needs a handle says so.
  int found = 0;
  cublasLtMatmulHeuristicResult_t result{};
  CHECK(cublasLtMatmulAlgoGetHeuristic(nullptr, description, layout, layout, layout, layout, preference, 1, &result,
                                       &found) == CUBLAS_STATUS_NOT_INITIALIZED);
  const float one = 1, zero = 0;
  CHECK(cublasLtMatmul(nullptr, description, &one, nullptr, layout, nullptr, layout, &zero, nullptr, layout, nullptr, layout,
                       nullptr, nullptr, 0, nullptr) == CUBLAS_STATUS_NOT_INITIALIZED);
  CHECK(cublasLtMatmulPreferenceDestroy(preference) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatmulDescDestroy(description) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatrixLayoutDestroy(layout) == CUBLAS_STATUS_SUCCESS);
  cublasLtHandle_t handle = nullptr;
  if (cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS) CHECK(cublasLtDestroy(handle) == CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace outeffhop
