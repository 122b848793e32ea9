// The functions of cuBLASLt that this backend calls, each of which loads the library when the first is called. Linked in the
// usual way, a program that never uses a GPU would take 0.3 s and 200 MB to start, which is what it costs to load half a
// gigabyte of kernels; and it would not start where there is no CUDA Toolkit.
#include <cublasLt.h>
#include <dlfcn.h>

#include "kernels/error.h"

namespace outeffhop::cuda {
namespace {

#define OUTEFFHOP_TEXT_OF(number) #number
#define OUTEFFHOP_LIBRARY(major) "libcublasLt.so." OUTEFFHOP_TEXT_OF(major)

/// The library that the headers are of: where the loader looks for it, else in the toolkit that this was built with.
void* library() {
  static void* const handle = [] {
    void* found = dlopen(OUTEFFHOP_LIBRARY(CUBLAS_VER_MAJOR), RTLD_NOW | RTLD_LOCAL);
    if (!found) found = dlopen(OUTEFFHOP_CUDA_LIBRARIES "/" OUTEFFHOP_LIBRARY(CUBLAS_VER_MAJOR), RTLD_NOW | RTLD_LOCAL);
    if (!found) fail(ErrorKind::unsupported, "device \"cuda\" needs cuBLASLt of the CUDA Toolkit: {}", dlerror());
    return found;
  }();
  return handle;
}

void* symbol(const char* name) {
  void* const found = dlsym(library(), name);
  if (!found) fail(ErrorKind::unsupported, "device \"cuda\" needs a newer cuBLASLt: {}", dlerror());
  return found;
}

}  // namespace
}  // namespace outeffhop::cuda

// Calls the library's function of the same name.
#define OUTEFFHOP_FORWARD(function, ...)                                                                   \
  static const auto forwarded = reinterpret_cast<decltype(&function)>(outeffhop::cuda::symbol(#function)); \
  return forwarded(__VA_ARGS__)

#pragma GCC visibility push(hidden)  // what is loaded may have functions of these names, which it means when it calls them
extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { OUTEFFHOP_FORWARD(cublasLtCreate, handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { OUTEFFHOP_FORWARD(cublasLtDestroy, handle); }
const char* cublasLtGetStatusString(cublasStatus_t status) { OUTEFFHOP_FORWARD(cublasLtGetStatusString, status); }
size_t cublasLtGetVersion() { OUTEFFHOP_FORWARD(cublasLtGetVersion); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  OUTEFFHOP_FORWARD(cublasLtMatmulDescCreate, description, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  OUTEFFHOP_FORWARD(cublasLtMatmulDescDestroy, description);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  OUTEFFHOP_FORWARD(cublasLtMatmulDescSetAttribute, description, attribute, value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows, uint64_t columns,
                                          int64_t leading_dimension) {
  OUTEFFHOP_FORWARD(cublasLtMatrixLayoutCreate, layout, type, rows, columns, leading_dimension);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  OUTEFFHOP_FORWARD(cublasLtMatrixLayoutDestroy, layout);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  OUTEFFHOP_FORWARD(cublasLtMatmulPreferenceCreate, preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  OUTEFFHOP_FORWARD(cublasLtMatmulPreferenceDestroy, preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  OUTEFFHOP_FORWARD(cublasLtMatmulPreferenceSetAttribute, preference, attribute, value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  OUTEFFHOP_FORWARD(cublasLtMatmulAlgoGetHeuristic, handle, description, a, b, c, d, preference, wanted, results, found);
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result) {
  OUTEFFHOP_FORWARD(cublasLtMatmulAlgoCheck, handle, description, a, b, c, d, algorithm, result);
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  OUTEFFHOP_FORWARD(cublasLtMatmul, handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
                    algorithm, workspace, workspace_bytes, stream);
}

}  // extern "C"
#pragma GCC visibility pop
