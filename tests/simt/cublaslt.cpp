// A stand-in for cuBLASLt that is as demanding as the library and no more precise than it promises.
//
// What the library answers with a status, this does too. What it does not check, and a GPU would answer with a fault or with
// wrong numbers (pointers less aligned than the algorithm was asked for, a bias off a multiple of 16 bytes, overlapping
// matrices, memory that is not allocated), is a Violation.
#include "tests/simt/cublaslt.h"

#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/simt/cublaslt_product.h"
#include "tests/simt/executor.h"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  std::int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N, bias_type = -1;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  void* aux = nullptr;
  std::int64_t aux_leading_dimension = 0;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType type;
  std::int64_t rows, columns, leading_dimension;
};
struct cublasLtMatmulPreferenceOpaque_t {
  std::uint64_t workspace_bytes = 0;
  std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};

namespace outeffhop::simt {
namespace {

constexpr std::uintptr_t kBiasAlignment = 16, kAuxAlignment = 16, kWorkspaceAlignment = 16;
constexpr std::uint8_t kMostAlgorithms = 16;
constexpr std::int64_t kAuxElements = 8;  // a leading dimension of aux is a multiple of this

CublasLtCounts counts;
std::uint32_t refused_epilogues = 0;
cublasStatus_t refusal = CUBLAS_STATUS_NOT_SUPPORTED;
std::vector<double> offered = {1.0};
std::size_t version = 130000;

struct Problem {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  Algorithm algorithm{};
};

bool fits(const cublasLtMatrixLayoutOpaque_t& layout) {
  return layout.rows > 0 && layout.columns > 0 && layout.leading_dimension >= layout.rows;
}

/// The product that descriptors describe, or why there is none.
Problem problem_of(cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                   cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  if (!description || !a || !b || !c || !d) return {CUBLAS_STATUS_INVALID_VALUE};
  const bool ta = description->transpose_a == CUBLAS_OP_T, tb = description->transpose_b == CUBLAS_OP_T;
  const std::int64_t m = ta ? a->columns : a->rows, k = ta ? a->rows : a->columns;
  const std::int64_t n = tb ? b->rows : b->columns, k_of_b = tb ? b->columns : b->rows;
  if (!fits(*a) || !fits(*b) || !fits(*c) || !fits(*d) || k != k_of_b || d->rows != m || d->columns != n || c->rows != m ||
      c->columns != n)
    return {CUBLAS_STATUS_INVALID_VALUE};
  const bool bf16_operands = a->type == CUDA_R_16BF && (d->type == CUDA_R_16BF || d->type == CUDA_R_32F);
  const bool fp32_operands = a->type == CUDA_R_32F && d->type == CUDA_R_32F;
  if (a->type != b->type || c->type != d->type || !(bf16_operands || fp32_operands) || description->scale != CUDA_R_32F)
    return {CUBLAS_STATUS_NOT_SUPPORTED};
  const std::uint32_t epilogue = description->epilogue;
  switch (epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
      break;
    default:
      return {CUBLAS_STATUS_INVALID_VALUE};
  }
  if (epilogue & kBias && description->bias_type != -1 && description->bias_type != d->type)
    return {CUBLAS_STATUS_NOT_SUPPORTED};
  if (epilogue & kAux && (description->aux_leading_dimension < m || description->aux_leading_dimension % kAuxElements != 0))
    return {CUBLAS_STATUS_INVALID_VALUE};
  if (epilogue & refused_epilogues) return {refusal};
  Problem problem;
  Algorithm& algorithm = problem.algorithm;
  algorithm.m = m;
  algorithm.n = n;
  algorithm.k = k;
  algorithm.leading_dimensions[0] = static_cast<std::int32_t>(a->leading_dimension);
  algorithm.leading_dimensions[1] = static_cast<std::int32_t>(b->leading_dimension);
  algorithm.leading_dimensions[2] = static_cast<std::int32_t>(d->leading_dimension);
  algorithm.operand_type = static_cast<std::uint8_t>(a->type);
  algorithm.result_type = static_cast<std::uint8_t>(d->type);
  algorithm.transposes = static_cast<std::uint8_t>(2 * ta + tb);
  algorithm.compute = static_cast<std::uint8_t>(description->compute);
  algorithm.epilogue = epilogue;
  return problem;
}

void demand(bool condition, const std::string& what) {
  if (!condition) throw Violation("cublasLtMatmul: " + what);
}

void demand_aligned(const void* pointer, std::uintptr_t alignment, const char* name, const char* why) {
  demand(reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0,
         fmt::format("{} at {} is not a multiple of {} bytes, {}", name, pointer, alignment, why));
}

/// What a search takes an address to promise: its own alignment, and null everything.
std::uint8_t alignment_bits_of(const void* pointer) {
  return static_cast<std::uint8_t>(std::countr_zero(reinterpret_cast<std::uintptr_t>(pointer) | 256));
}

struct Span {
  const char* name;
  const char* begin;
  std::int64_t bytes;
};
Span span_of(const char* name, const void* data, const cublasLtMatrixLayoutOpaque_t& layout) {
  return {name, static_cast<const char*>(data),
          ((layout.columns - 1) * layout.leading_dimension + layout.rows) * size_of_type(layout.type)};
}
void demand_apart(const Span& written, const Span& other) {
  demand(written.begin + written.bytes <= other.begin || other.begin + other.bytes <= written.begin,
         fmt::format("{}, which is written, overlaps {}", written.name, other.name));
}

/// Copies an attribute if it has the size it should have.
template <class T>
cublasStatus_t set(T& field, const void* value, std::size_t bytes) {
  if (!value || bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, sizeof field);
  return CUBLAS_STATUS_SUCCESS;
}

template <class T, class... Arguments>
cublasStatus_t create(T** object, Arguments... arguments) {
  if (!object) return CUBLAS_STATUS_INVALID_VALUE;
  *object = new T{arguments...};
  ++counts.alive;
  return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t destroy(T* object) {
  if (object) --counts.alive;
  delete object;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

const CublasLtCounts& cublaslt_counts() { return counts; }
void cublaslt_refuse_epilogues(std::uint32_t bits, cublasStatus_t status) {
  refused_epilogues = bits;
  refusal = status;
}
void cublaslt_offer(std::vector<double> milliseconds) { offered = std::move(milliseconds); }
void cublaslt_set_version(std::size_t given) { version = given; }

}  // namespace outeffhop::simt

using namespace outeffhop::simt;

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an invalid value was given";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the operation is not supported";
    default:
      return "unknown status";
  }
}
std::size_t cublasLtGetVersion() { return version; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return create(handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy(handle); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return create(description, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) { return destroy(description); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  if (!description) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(description->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(description->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(description->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(description->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return set(description->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return set(description->aux_leading_dimension, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(description->bias_type, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t leading_dimension) {
  return create(layout, type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), leading_dimension);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) { return create(preference); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return destroy(preference); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(preference->workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return set(preference->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!preference || requested < 1 || !results || !returned) return CUBLAS_STATUS_INVALID_VALUE;
  ++counts.searches;
  *returned = 0;
  Problem problem = problem_of(description, a, b, c, d);
  if (problem.status != CUBLAS_STATUS_SUCCESS) return problem.status;
  Algorithm& algorithm = problem.algorithm;
  for (int i = 0; i < 4; ++i)
    algorithm.alignment_bits[i] = static_cast<std::uint8_t>(std::countr_zero(preference->alignment[i]));
  algorithm.alignment_bits[4] = alignment_bits_of(description->bias);
  algorithm.alignment_bits[5] = alignment_bits_of(description->aux);
  algorithm.reductions = preference->reductions;
  // Of partial sums in fp32.
  const std::int64_t split_bytes = algorithm.m * algorithm.n * 4;
  if (algorithm.k >= kSplitFrom && preference->reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE &&
      split_bytes <= static_cast<std::int64_t>(preference->workspace_bytes))
    algorithm.workspace_bytes = split_bytes;
  for (; *returned < std::min(requested, static_cast<int>(offered.size())); ++*returned) {
    algorithm.variant = static_cast<std::uint8_t>(*returned);
    results[*returned] = {};
    std::memcpy(&results[*returned].algo, &algorithm, sizeof algorithm);
    results[*returned].workspaceSize = static_cast<std::size_t>(algorithm.workspace_bytes);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!algorithm || !result) return CUBLAS_STATUS_INVALID_VALUE;
  const Problem problem = problem_of(description, a, b, c, d);
  if (problem.status != CUBLAS_STATUS_SUCCESS) return problem.status;
  Algorithm given;
  std::memcpy(&given, algorithm, sizeof given);
  if (!given.same_problem(problem.algorithm) || given.variant >= kMostAlgorithms) return CUBLAS_STATUS_INVALID_VALUE;
  *result = {};
  result->workspaceSize = static_cast<std::size_t>(given.workspace_bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  const Problem problem = problem_of(description, a_layout, b_layout, c_layout, d_layout);
  if (problem.status != CUBLAS_STATUS_SUCCESS) return problem.status;
  if (!alpha || !beta || !a || !b || !c || !d || !algorithm) return CUBLAS_STATUS_INVALID_VALUE;
  ProductWork work{};
  std::memcpy(&work.algorithm, algorithm, sizeof work.algorithm);
  if (!work.algorithm.same_problem(problem.algorithm)) return CUBLAS_STATUS_INVALID_VALUE;
  work.milliseconds = work.algorithm.variant < offered.size() ? offered[work.algorithm.variant] : offered[0];
  if (work.milliseconds < 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (work.algorithm.workspace_bytes > static_cast<std::int64_t>(workspace_bytes)) return CUBLAS_STATUS_INVALID_VALUE;
  const bool biased = work.algorithm.epilogue & kBias, auxiliary = work.algorithm.epilogue & kAux;
  if ((biased && !description->bias) || (auxiliary && !description->aux)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&work.alpha, alpha, sizeof work.alpha);
  std::memcpy(&work.beta, beta, sizeof work.beta);

  constexpr const char* kChosenFor = "as its algorithm was chosen for";
  const void* matrices[4] = {a, b, c, d};
  constexpr const char* kNames[4] = {"A", "B", "C", "D"};
  for (int i = 0; i < 4; ++i)
    demand_aligned(matrices[i], std::uintptr_t{1} << work.algorithm.alignment_bits[i], kNames[i], kChosenFor);
  if (work.algorithm.workspace_bytes) {
    demand(workspace, "the workspace is null");
    demand_aligned(workspace, kWorkspaceAlignment, "the workspace", "as a workspace has to be");
  }
  if (biased) {
    demand_aligned(description->bias, kBiasAlignment, "the bias", "which the library loads at once");
    demand_aligned(description->bias, std::uintptr_t{1} << work.algorithm.alignment_bits[4], "the bias", kChosenFor);
  }
  if (auxiliary) {
    demand_aligned(description->aux, kAuxAlignment, "the auxiliary output", "which the library stores at once");
    demand_aligned(description->aux, std::uintptr_t{1} << work.algorithm.alignment_bits[5], "the auxiliary output",
                   kChosenFor);
  }

  std::vector<Span> read = {span_of("A", a, *a_layout), span_of("B", b, *b_layout)};
  if (biased)
    read.push_back({"the bias", static_cast<const char*>(description->bias), d_layout->rows * size_of_type(d_layout->type)});
  std::vector<Span> written = {span_of("D", d, *d_layout)};
  if (auxiliary)
    written.push_back(span_of("the auxiliary output", description->aux,
                              {d_layout->type, d_layout->rows, d_layout->columns, description->aux_leading_dimension}));
  if (work.algorithm.workspace_bytes)
    written.push_back({"the workspace", static_cast<const char*>(workspace), work.algorithm.workspace_bytes});
  for (std::size_t i = 0; i < written.size(); ++i) {
    for (const Span& other : read) demand_apart(written[i], other);
    for (std::size_t j = 0; j < i; ++j) demand_apart(written[i], written[j]);
  }
  if (c == d) {
    demand(c_layout->leading_dimension == d_layout->leading_dimension, "C is D, but their layouts differ");
  } else if (work.beta != 0) {
    read.push_back(span_of("C", c, *c_layout));
    for (const Span& output : written) demand_apart(output, read.back());
  }
  std::vector<MemoryUse> uses;
  for (const auto* spans : {&read, &written})
    for (const Span& span : *spans)
      uses.push_back(
          MemoryUse::device(span.begin, static_cast<std::size_t>(span.bytes), fmt::format("cublasLtMatmul: {}", span.name)));

  work.a = a;
  work.b = b;
  work.c = c;
  work.d = d;
  work.bias = description->bias;
  work.aux = description->aux;
  work.workspace = workspace;
  work.c_leading_dimension = c_layout->leading_dimension;
  work.aux_leading_dimension = description->aux_leading_dimension;
  const cudaError_t submitted = submit(stream, [work, uses] {
    for (const MemoryUse& use : uses) use.require_alive();
    work();
  });
  if (submitted != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  ++counts.products;
  // Rows, columns and summands of the row-major product that this is to its caller.
  note_launched(fmt::format("product {} x {} x {}", work.algorithm.n, work.algorithm.m, work.algorithm.k));
  counts.epilogue = work.algorithm.epilogue;
  counts.algorithm = work.algorithm.variant;
  return CUBLAS_STATUS_SUCCESS;
}
