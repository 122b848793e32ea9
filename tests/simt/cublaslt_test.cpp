// The stand-in for cuBLASLt: that it computes what the library's documentation says, and that it notices each misuse that
// the library or a GPU would.
#include "tests/simt/cublaslt.h"

#include <cublasLt.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/reference/values.h"
#include "tests/catch.h"
#include "tests/simt/executor.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

/// An array in device memory.
class Values {
 public:
  Values(cudaDataType_t type, const std::vector<double>& values, std::size_t offset = 0)
      : tensor_{nullptr, type == CUDA_R_32F ? DType::f32 : DType::bf16}, count_(values.size()) {
    void* data = nullptr;
    REQUIRE(cudaMalloc(&data, offset + values.size() * size_of(tensor_.dtype)) == cudaSuccess);
    base_ = data;
    tensor_.data = static_cast<char*>(data) + offset;
    for (std::size_t i = 0; i < values.size(); ++i) reference::write(tensor_, static_cast<std::int64_t>(i), values[i]);
  }
  ~Values() { cudaFree(base_); }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;

  void* data() const { return tensor_.data; }
  double operator[](std::size_t i) const { return reference::read<double>(tensor_, static_cast<std::int64_t>(i)); }
  std::vector<double> all() const { return reference::load<double>(tensor_, static_cast<std::int64_t>(count_)); }

 private:
  void* base_ = nullptr;
  Tensor tensor_;
  std::size_t count_;
};

/// A call of cublasLtMatmul that is all right; tests change one thing.
struct Call {
  std::int64_t m = 5, n = 3, k = 7;
  cudaDataType_t type = CUDA_R_32F, result_type = CUDA_R_32F, b_type = CUDA_R_32F;
  bool transpose_a = false, transpose_b = false;
  std::int64_t padding = 0;  ///< between the columns of each matrix, in elements
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT, reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  std::uint32_t alignment = 4, a_alignment = 4;
  std::uint64_t workspace_limit = 1 << 20;
  float alpha = 1, beta = 0;
  const void *a = nullptr, *b = nullptr, *c = nullptr, *bias = nullptr;
  void *d = nullptr, *aux = nullptr, *workspace = nullptr;
  std::int64_t aux_leading_dimension = 0;
  std::int32_t bias_type = -1;

  Call() = default;
  explicit Call(cudaDataType_t t) : type(t), result_type(t), b_type(t) {}

  cublasStatus_t search_status = CUBLAS_STATUS_SUCCESS;
  cublasLtMatmulHeuristicResult_t found{};
  std::int64_t given_workspace = -1;  ///< bytes; -1: what was found to be needed

  std::int64_t a_rows() const { return (transpose_a ? k : m) + padding; }
  std::int64_t b_rows() const { return (transpose_b ? n : k) + padding; }
  std::int64_t d_rows() const { return m + padding; }

  /// Makes the descriptors, searches, and multiplies unless the search failed or `found_before` has an algorithm.
  cublasStatus_t run(const cublasLtMatmulHeuristicResult_t* found_before = nullptr) {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t description;
    cublasLtMatrixLayout_t a_layout, b_layout, d_layout;
    cublasLtMatmulPreference_t preference;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&description, compute, CUDA_R_32F);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
      CHECK(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, std::int32_t{transpose_a});
    set(CUBLASLT_MATMUL_DESC_TRANSB, std::int32_t{transpose_b});
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias_type);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_leading_dimension);
    const auto u = [](std::int64_t count) { return static_cast<std::uint64_t>(count); };
    cublasLtMatrixLayoutCreate(&a_layout, type, u(transpose_a ? k : m), u(transpose_a ? m : k), a_rows());
    cublasLtMatrixLayoutCreate(&b_layout, b_type, u(transpose_b ? n : k), u(transpose_b ? k : n), b_rows());
    cublasLtMatrixLayoutCreate(&d_layout, result_type, u(m), u(n), d_rows());
    cublasLtMatmulPreferenceCreate(&preference);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_limit);
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a_alignment);
    for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      prefer(attribute, alignment);
    int count = -1;
    search_status = cublasLtMatmulAlgoGetHeuristic(handle, description, a_layout, b_layout, d_layout, d_layout, preference,
                                                   1, &found, &count);
    CHECK(count == (search_status == CUBLAS_STATUS_SUCCESS ? 1 : 0));
    cublasStatus_t status = search_status;
    std::string violation;
    if (status == CUBLAS_STATUS_SUCCESS) {
      Values scratch(CUDA_R_32F, std::vector<double>(found.workspaceSize / 4 + 4));
      const std::size_t bytes = given_workspace < 0 ? found.workspaceSize : static_cast<std::size_t>(given_workspace);
      try {
        status = cublasLtMatmul(handle, description, &alpha, a, a_layout, b, b_layout, &beta, c ? c : d, d_layout, d,
                                d_layout, found_before ? &found_before->algo : &found.algo,
                                workspace ? workspace : scratch.data(), bytes, nullptr);
      } catch (const simt::Violation& broken) {
        violation = broken.what();
      }
      cudaStreamSynchronize(nullptr);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t layout : {a_layout, b_layout, d_layout}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(description);
    cublasLtDestroy(handle);
    if (!violation.empty()) throw simt::Violation(violation);
    return status;
  }
};

/// The same with operands of random values, wherever the test gives none.
struct Filled : Call {
  Values a_values, b_values, d_values, bias_values, aux_values;

  explicit Filled(Call call, std::size_t offset = 0)
      : Call(call),
        a_values(type, random(a_rows() * (transpose_a ? m : k), 1), offset),
        b_values(b_type, random(b_rows() * (transpose_b ? k : n), 2)),
        d_values(result_type, random(d_rows() * n, 3)),
        bias_values(result_type, random(m + 16, 4)),
        aux_values(result_type, std::vector<double>(static_cast<std::size_t>((m + 8) * n))) {
    a = a_values.data();
    b = b_values.data();
    d = d_values.data();
    bias = bias_values.data();
    aux = aux_values.data();
  }
  static std::vector<double> random(std::int64_t count, unsigned seed) {
    auto rng = generator(seed);
    return normal_values(rng, count);
  }
  /// Element (i, j) of op(A) op(B), in fp64.
  double product(std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t p = 0; p < k; ++p)
      sum += a_values[static_cast<std::size_t>(transpose_a ? p + i * a_rows() : i + p * a_rows())] *
             b_values[static_cast<std::size_t>(transpose_b ? j + p * b_rows() : p + j * b_rows())];
    return sum;
  }
  double result(std::int64_t i, std::int64_t j) const { return d_values[static_cast<std::size_t>(i + j * d_rows())]; }
};

double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

}  // namespace

TEST_CASE("cuBLASLt stand-in: products") {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const std::int64_t padding : {0, 3})
        for (const auto& [type, result_type] :
             {std::pair{CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}, {CUDA_R_16BF, CUDA_R_32F}}) {
          Call call(type);
          call.result_type = result_type;
          call.transpose_a = ta;
          call.transpose_b = tb;
          call.padding = padding;
          call.m = 21;
          call.n = 10;
          call.k = 70;
          call.alpha = 0.5f;
          call.beta = 2;
          Filled filled(call);
          const std::vector<double> before = filled.d_values.all();
          REQUIRE(filled.run() == CUBLAS_STATUS_SUCCESS);
          const double tolerance = result_type == CUDA_R_32F ? 1e-5 : 0.15;
          for (std::int64_t j = 0; j < call.n; ++j)
            for (std::int64_t i = 0; i < filled.d_rows(); ++i) {
              const double was = before[static_cast<std::size_t>(i + j * filled.d_rows())];
              const double expected = i < call.m ? 0.5 * filled.product(i, j) + 2 * was : was;  // padding stays
              CHECK(std::fabs(filled.result(i, j) - expected) <= tolerance);
            }
        }
}

TEST_CASE("cuBLASLt stand-in: C is not read where beta is 0") {
  Filled filled{Call{}};
  Values poisoned(CUDA_R_32F, std::vector<double>(15, std::nan("")));
  filled.d = poisoned.data();
  REQUIRE(filled.run() == CUBLAS_STATUS_SUCCESS);
  CHECK(std::fabs(poisoned[0] - filled.product(0, 0)) < 1e-5);
}

TEST_CASE("cuBLASLt stand-in: epilogues") {
  for (const std::uint32_t epilogue :
       {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS,
        CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}) {
    Call call;
    call.epilogue = epilogue;
    call.aux_leading_dimension = 8;
    Filled filled(call);
    REQUIRE(filled.run() == CUBLAS_STATUS_SUCCESS);
    CHECK(simt::cublaslt_counts().epilogue == epilogue);
    for (std::int64_t j = 0; j < call.n; ++j)
      for (std::int64_t i = 0; i < call.m; ++i) {
        const double bias = epilogue & CUBLASLT_EPILOGUE_BIAS ? filled.bias_values[static_cast<std::size_t>(i)] : 0;
        const double pre = filled.product(i, j) + bias;
        const double expected = epilogue & CUBLASLT_EPILOGUE_RELU   ? std::max(pre, 0.0)
                                : epilogue & CUBLASLT_EPILOGUE_GELU ? gelu_tanh(pre)
                                                                    : pre;
        CHECK(std::fabs(filled.result(i, j) - expected) < 1e-5);
        const double aux = filled.aux_values[static_cast<std::size_t>(i + 8 * j)];
        CHECK(std::fabs(aux - (epilogue & 128 ? pre : 0)) < 1e-5);
      }
  }
}

TEST_CASE("cuBLASLt stand-in: what has no algorithm") {
  const auto status_of = [](auto change) {
    Call call;
    change(call);
    Filled filled(call);
    const std::int64_t products = simt::cublaslt_counts().products;
    const cublasStatus_t status = filled.run();
    CHECK(filled.search_status == status);
    CHECK(simt::cublaslt_counts().products == products);
    return status;
  };
  CHECK(status_of([](Call& call) { call.b_type = CUDA_R_16BF; }) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(status_of([](Call& call) { call.result_type = CUDA_R_16BF; }) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(status_of([](Call& call) { call.padding = -1; }) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(status_of([](Call& call) { call.epilogue = 3; }) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(status_of([](Call& call) {
          call.epilogue = CUBLASLT_EPILOGUE_BIAS;
          call.bias_type = CUDA_R_16BF;
        }) == CUBLAS_STATUS_NOT_SUPPORTED);
  for (const std::int64_t leading_dimension : {0, 7, 12})  // none, less than m, no multiple of 8
    CHECK(status_of([&](Call& call) {
            call.m = leading_dimension == 7 ? 9 : 5;
            call.epilogue = CUBLASLT_EPILOGUE_GELU_AUX;
            call.aux_leading_dimension = leading_dimension;
          }) == CUBLAS_STATUS_INVALID_VALUE);
  simt::cublaslt_refuse_epilogues(CUBLASLT_EPILOGUE_BIAS);
  CHECK(status_of([](Call& call) { call.epilogue = CUBLASLT_EPILOGUE_RELU_BIAS; }) == CUBLAS_STATUS_NOT_SUPPORTED);
  simt::cublaslt_refuse_epilogues(0);

  cublasLtHandle_t handle;
  cublasLtCreate(&handle);
  int count = 0;
  cublasLtMatmulHeuristicResult_t result;
  CHECK(cublasLtMatmulAlgoGetHeuristic(handle, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 1, &result, &count) ==
        CUBLAS_STATUS_INVALID_VALUE);
  CHECK(cublasLtMatmulAlgoGetHeuristic(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 1, &result, &count) ==
        CUBLAS_STATUS_NOT_INITIALIZED);
  cublasLtDestroy(handle);
}

TEST_CASE("cuBLASLt stand-in: attributes have the size that is documented") {
  cublasLtMatmulDesc_t description;
  cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const std::int64_t value = 0;
  CHECK(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSA, &value, 8) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &value, 4) ==
        CUBLAS_STATUS_INVALID_VALUE);
  CHECK(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_EPILOGUE, nullptr, 4) ==
        CUBLAS_STATUS_INVALID_VALUE);
  cublasLtMatmulDescDestroy(description);
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulPreferenceCreate(&preference);
  CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &value, 4) ==
        CUBLAS_STATUS_INVALID_VALUE);
  cublasLtMatmulPreferenceDestroy(preference);
}

TEST_CASE("cuBLASLt stand-in: an algorithm serves the product it was found for") {
  Call other;
  other.n = 4;
  Filled for_other(other);
  REQUIRE(for_other.run() == CUBLAS_STATUS_SUCCESS);
  Filled filled{Call{}};
  CHECK(filled.run(&for_other.found) == CUBLAS_STATUS_INVALID_VALUE);
}

TEST_CASE("cuBLASLt stand-in: an algorithm of another process is checked before it is used") {
  Filled filled{Call{}};
  REQUIRE(filled.run() == CUBLAS_STATUS_SUCCESS);
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t description;
  cublasLtMatrixLayout_t a, b, d;
  cublasLtCreate(&handle);
  cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatrixLayoutCreate(&a, CUDA_R_32F, 5, 7, 5);
  cublasLtMatrixLayoutCreate(&b, CUDA_R_32F, 7, 3, 7);
  cublasLtMatrixLayoutCreate(&d, CUDA_R_32F, 5, 3, 5);
  cublasLtMatmulHeuristicResult_t result;
  const auto check = [&](const cublasLtMatmulAlgo_t& algorithm) {
    return cublasLtMatmulAlgoCheck(handle, description, a, b, d, d, &algorithm, &result);
  };
  CHECK(check(filled.found.algo) == CUBLAS_STATUS_SUCCESS);
  CHECK(result.workspaceSize == filled.found.workspaceSize);
  CHECK(check({}) == CUBLAS_STATUS_INVALID_VALUE);
  const std::uint32_t epilogue = CUBLASLT_EPILOGUE_RELU;
  cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
  CHECK(check(filled.found.algo) == CUBLAS_STATUS_INVALID_VALUE);
  for (cublasLtMatrixLayout_t layout : {a, b, d}) cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulDescDestroy(description);
  cublasLtDestroy(handle);
}

TEST_CASE("cuBLASLt stand-in: the workspace") {
  Call call;
  call.k = 100;
  Filled filled(call);
  REQUIRE(filled.run() == CUBLAS_STATUS_SUCCESS);
  CHECK(filled.found.workspaceSize == 5 * 3 * 4);
  filled.given_workspace = 5 * 3 * 4 - 1;
  CHECK(filled.run() == CUBLAS_STATUS_INVALID_VALUE);
  filled.given_workspace = -1;
  Values scratch(CUDA_R_32F, std::vector<double>(64));
  filled.workspace = static_cast<char*>(scratch.data()) + 8;
  CHECK_THROWS_WITH(filled.run(), Catch::Matchers::Contains("the workspace"));
  filled.workspace = nullptr;
  filled.workspace_limit = 5 * 3 * 4 - 1;
  REQUIRE(filled.run() == CUBLAS_STATUS_SUCCESS);
  CHECK(filled.found.workspaceSize == 0);
}

TEST_CASE("cuBLASLt stand-in: what a GPU would fault on") {
  using Catch::Matchers::Contains;
  {
    Call call;
    call.a_alignment = 16;
    CHECK_NOTHROW(Filled(call).run());
    Filled filled(call, 8);
    CHECK_THROWS_WITH(filled.run(), Contains("A at") && Contains("multiple of 16 bytes"));
  }
  {
    Call call;
    call.epilogue = CUBLASLT_EPILOGUE_BIAS;
    Filled filled(call);
    filled.bias = static_cast<char*>(filled.bias_values.data()) + 4;
    CHECK_THROWS_WITH(filled.run(), Contains("the bias"));
    filled.bias = nullptr;
    CHECK(filled.run() == CUBLAS_STATUS_INVALID_VALUE);
    const auto found_for_null = filled.found;  // which promises every alignment
    filled.bias = static_cast<char*>(filled.bias_values.data()) + 16;
    CHECK_THROWS_WITH(filled.run(&found_for_null), Contains("the bias") && Contains("multiple of 256 bytes"));
    CHECK(filled.run() == CUBLAS_STATUS_SUCCESS);
  }
  {
    Call call;
    call.epilogue = CUBLASLT_EPILOGUE_GELU_AUX;
    call.aux_leading_dimension = 8;
    Filled filled(call);
    filled.aux = static_cast<char*>(filled.aux_values.data()) + 4;
    CHECK_THROWS_WITH(filled.run(), Contains("the auxiliary output"));
    filled.aux = filled.d;
    CHECK_THROWS_WITH(filled.run(), Contains("overlaps"));
  }
  {
    Filled filled{Call{}};
    filled.a = static_cast<char*>(filled.d) - 4;
    CHECK_THROWS_WITH(filled.run(), Contains("D, which is written, overlaps A"));
  }
  {
    Filled filled{Call{}};
    filled.beta = 1;
    filled.c = static_cast<char*>(filled.d) + 4;
    CHECK_THROWS_WITH(filled.run(), Contains("overlaps C"));
  }
}

TEST_CASE("cuBLASLt stand-in: matrices lie in device memory that is alive") {
  using Catch::Matchers::Contains;
  Filled filled{Call{}};
  const Values too_small(CUDA_R_32F, std::vector<double>(5 * 3 - 1));
  filled.d = too_small.data();
  CHECK_THROWS_WITH(filled.run(), Contains("cublasLtMatmul: D"));
  Filled host{Call{}};
  const std::vector<float> on_the_host(35);
  host.a = on_the_host.data();
  CHECK_THROWS_WITH(host.run(), Contains("cublasLtMatmul: A"));
}

TEST_CASE("cuBLASLt stand-in: no more precise than it was asked to be") {
  Call call(CUDA_R_16BF);
  call.k = 512;
  Filled exact(call), rounded(call);
  rounded.reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  REQUIRE(exact.run() == CUBLAS_STATUS_SUCCESS);
  REQUIRE(rounded.run() == CUBLAS_STATUS_SUCCESS);
  CHECK(exact.d_values.all() != rounded.d_values.all());

  Filled fp32{Call{}}, tf32{Call{}};
  tf32.compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  REQUIRE(fp32.run() == CUBLAS_STATUS_SUCCESS);
  REQUIRE(tf32.run() == CUBLAS_STATUS_SUCCESS);
  CHECK(std::fabs(fp32.result(0, 0) - fp32.product(0, 0)) < 1e-6);
  CHECK(std::fabs(tf32.result(0, 0) - tf32.product(0, 0)) > 1e-5);
}

TEST_CASE("cuBLASLt stand-in: counts what is alive") {
  const std::int64_t alive = simt::cublaslt_counts().alive;
  cublasLtMatrixLayout_t layout;
  cublasLtMatrixLayoutCreate(&layout, CUDA_R_32F, 1, 1, 1);
  CHECK(simt::cublaslt_counts().alive == alive + 1);
  cublasLtMatrixLayoutDestroy(layout);
  CHECK(simt::cublaslt_counts().alive == alive);
}

}  // namespace outeffhop::test
