// What the trainer takes for granted of cuBLASLt and its documentation leaves open, or a stand-in could have wrong. The same
// cases are run with tests/simt's stand-in, in every build, and on a GPU with the library itself: scripts/gpu_acceptance.sh.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "kernels/reference/values.h"
#include "tests/catch.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
const double kNaN = std::numeric_limits<double>::quiet_NaN();

DType dtype_of(cudaDataType type) { return type == CUDA_R_32F ? DType::f32 : DType::bf16; }

/// An array in device memory, which begins `offset` elements into its allocation.
class Array {
 public:
  Array(cudaDataType type, const std::vector<double>& values, std::size_t offset = 0)
      : dtype_(dtype_of(type)), count_(values.size()), offset_(offset * size_of(dtype_)) {
    REQUIRE(cudaMalloc(&base_, offset_ + bytes()) == cudaSuccess);
    assign(values);
  }
  ~Array() { cudaFree(base_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void assign(const std::vector<double>& values) {
    std::vector<std::byte> host(bytes());
    for (std::size_t i = 0; i < count_; ++i)
      reference::write(Tensor{host.data(), dtype_}, static_cast<std::int64_t>(i), values[i]);
    REQUIRE(cudaMemcpy(data(), host.data(), host.size(), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  void* data() const { return static_cast<char*>(base_) + offset_; }
  std::vector<double> values() const {
    std::vector<std::byte> host(bytes());
    REQUIRE(cudaMemcpy(host.data(), data(), host.size(), cudaMemcpyDeviceToHost) == cudaSuccess);
    return reference::load<double>({host.data(), dtype_}, static_cast<std::int64_t>(count_));
  }

 private:
  std::size_t bytes() const { return count_ * size_of(dtype_); }

  DType dtype_;
  std::size_t count_, offset_;
  void* base_ = nullptr;
};

/// D = epilogue(op(A) op(B) + beta D), column-major, with operands that the test fills in.
struct Product {
  std::int64_t m = 48, n = 40, k = 64;
  cudaDataType type = CUDA_R_16BF, result_type = CUDA_R_16BF;
  bool transpose_a = false, transpose_b = false;
  std::int64_t padding = 0;      ///< elements between the columns of a matrix
  std::size_t offset = 0;        ///< of A, B and D in their allocations, in elements
  std::uint32_t alignment = 16;  ///< that the search is told of
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  float beta = 0;
  std::vector<double> a, b, d, bias;  ///< empty: random values of the operands' type

  std::int64_t a_rows() const { return (transpose_a ? k : m) + padding; }
  std::int64_t b_rows() const { return (transpose_b ? n : k) + padding; }
  std::int64_t d_rows() const { return m + padding; }
  std::int64_t a_columns() const { return transpose_a ? m : k; }
  std::int64_t b_columns() const { return transpose_b ? k : n; }

  /// Element (i, j) of op(A) op(B), exactly.
  double exact(std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t p = 0; p < k; ++p)
      sum += a[static_cast<std::size_t>(transpose_a ? p + i * a_rows() : i + p * a_rows())] *
             b[static_cast<std::size_t>(transpose_b ? j + p * b_rows() : p + j * b_rows())];
    return sum;
  }
};

struct Result {
  std::vector<double> d, aux;
  bool found = false;  ///< whether the search gave an algorithm
};

#define LT(call) REQUIRE((call) == CUBLAS_STATUS_SUCCESS)

std::vector<double> random_values(cudaDataType type, std::int64_t count, unsigned seed) {
  auto rng = generator(seed);
  std::vector<double> values = normal_values(rng, static_cast<std::size_t>(count));
  for (double& value : values)
    value = type == CUDA_R_32F ? static_cast<float>(value)
                               : static_cast<double>(static_cast<float>(bf16(static_cast<float>(value))));
  return values;
}

/// Fills what the test left empty.
void fill(Product& product) {
  if (product.a.empty()) product.a = random_values(product.type, product.a_rows() * product.a_columns(), 1);
  if (product.b.empty()) product.b = random_values(product.type, product.b_rows() * product.b_columns(), 2);
  if (product.d.empty()) product.d = random_values(product.result_type, product.d_rows() * product.n, 3);
  if (product.bias.empty()) product.bias = random_values(product.result_type, product.m, 4);
}

/// As the trainer calls: the search sees pointers that are aligned and nothing else, and what is found is run with others.
Result run(Product& product) {
  fill(product);
  const bool biased = product.epilogue & CUBLASLT_EPILOGUE_BIAS, auxiliary = product.epilogue & 128;
  const Array a(product.type, product.a, product.offset), b(product.type, product.b, product.offset);
  const Array d(product.result_type, product.d, product.offset), bias(product.result_type, product.bias);
  const std::int64_t aux_rows = (product.m + 7) / 8 * 8;
  const Array aux(product.result_type, std::vector<double>(static_cast<std::size_t>(aux_rows * product.n)));
  void* workspace = nullptr;
  REQUIRE(cudaMalloc(&workspace, kWorkspaceBytes) == cudaSuccess);

  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t description;
  cublasLtMatmulPreference_t preference;
  LT(cublasLtCreate(&handle));
  LT(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
    LT(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, std::int32_t{product.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N});
  set(CUBLASLT_MATMUL_DESC_TRANSB, std::int32_t{product.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N});
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, product.epilogue);
  const void* const aligned = reinterpret_cast<const void*>(16);
  if (biased) {
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, std::int32_t{product.result_type});
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, aligned);
  }
  if (auxiliary) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_rows);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aligned);
  }
  const auto layout = [](cudaDataType type, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
    cublasLtMatrixLayout_t made = nullptr;
    LT(cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns),
                                  stride));
    return made;
  };
  const auto a_layout = layout(product.type, product.a_rows() - product.padding, product.a_columns(), product.a_rows());
  const auto b_layout = layout(product.type, product.b_rows() - product.padding, product.b_columns(), product.b_rows());
  const auto d_layout = layout(product.result_type, product.m, product.n, product.d_rows());
  LT(cublasLtMatmulPreferenceCreate(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    LT(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes});
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    prefer(attribute, product.alignment);

  Result result;
  cublasLtMatmulHeuristicResult_t best{};
  int count = 0;
  const cublasStatus_t searched = cublasLtMatmulAlgoGetHeuristic(handle, description, a_layout, b_layout, d_layout, d_layout,
                                                                 preference, 1, &best, &count);
  result.found = searched == CUBLAS_STATUS_SUCCESS && count == 1 && best.state == CUBLAS_STATUS_SUCCESS;
  if (result.found) {
    // What is found passes the check that an algorithm of an earlier process gets before it is used again.
    cublasLtMatmulHeuristicResult_t checked{};
    LT(cublasLtMatmulAlgoCheck(handle, description, a_layout, b_layout, d_layout, d_layout, &best.algo, &checked));
    REQUIRE(checked.workspaceSize <= kWorkspaceBytes);
    if (biased) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias.data()));
    if (auxiliary) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.data());
    const float alpha = 1;
    LT(cublasLtMatmul(handle, description, &alpha, a.data(), a_layout, b.data(), b_layout, &product.beta, d.data(), d_layout,
                      d.data(), d_layout, &best.algo, workspace, kWorkspaceBytes, nullptr));
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    result.d = d.values();
    result.aux = aux.values();
  }
  cublasLtMatmulPreferenceDestroy(preference);
  for (const auto made : {a_layout, b_layout, d_layout}) cublasLtMatrixLayoutDestroy(made);
  cublasLtMatmulDescDestroy(description);
  cublasLtDestroy(handle);
  cudaFree(workspace);
  return result;
}

Result must_run(Product& product) {
  Result result = run(product);
  REQUIRE(result.found);
  return result;
}

/// Half a unit in the last place of a result, and what k additions in fp32 may be off by.
double rounding(const Product& product, double value) {
  const double stored = product.result_type == CUDA_R_32F ? 0x1p-24 : 0x1p-8;
  return stored * 1.01 * std::max(std::fabs(value), 1.0) + static_cast<double>(product.k) * 8 * 0x1p-24;
}

double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

/// The product of k ones with k values: every element of D is their sum.
Product sum_of(std::vector<double> values, cudaDataType type, cudaDataType result_type) {
  Product product;
  product.k = static_cast<std::int64_t>(values.size());
  product.type = type;
  product.result_type = result_type;
  product.a.assign(static_cast<std::size_t>(product.m * product.k), 1.0);
  for (std::int64_t j = 0; j < product.n; ++j) product.b.insert(product.b.end(), values.begin(), values.end());
  return product;
}

}  // namespace

TEST_CASE("cuBLASLt: every transposition, types, and columns that are apart") {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const std::int64_t padding : {0, 8})
        for (const auto& [type, result_type] :
             {std::pair{CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}, {CUDA_R_16BF, CUDA_R_32F}}) {
          Product product;
          product.type = type;
          product.result_type = result_type;
          product.transpose_a = ta;
          product.transpose_b = tb;
          product.padding = padding;
          product.beta = 1;
          const Result result = must_run(product);
          bool right = true, untouched = true;
          for (std::int64_t j = 0; j < product.n; ++j)
            for (std::int64_t i = 0; i < product.d_rows(); ++i) {
              const auto at = static_cast<std::size_t>(i + j * product.d_rows());
              if (i >= product.m) {
                untouched &= result.d[at] == product.d[at];
              } else {
                const double expected = product.exact(i, j) + product.d[at];
                right &= std::fabs(result.d[at] - expected) <= rounding(product, expected);
              }
            }
          CHECK(right);
          CHECK(untouched);
        }
}

TEST_CASE("cuBLASLt: the result is not read where beta is 0") {
  for (const cudaDataType type : {CUDA_R_32F, CUDA_R_16BF}) {
    Product product;
    product.type = product.result_type = type;
    product.d.assign(static_cast<std::size_t>(product.m * product.n), kNaN);
    const Result result = must_run(product);
    CHECK(std::none_of(result.d.begin(), result.d.end(), [](double value) { return std::isnan(value); }));
  }
}

TEST_CASE("cuBLASLt: a bias belongs to the rows, and is added before the sum is rounded") {
  for (const auto& [type, result_type] : {std::pair{CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}}) {
    Product product;
    product.type = type;
    product.result_type = result_type;
    product.epilogue = CUBLASLT_EPILOGUE_BIAS;
    const Result result = must_run(product);
    bool right = true;
    for (std::int64_t j = 0; j < product.n; ++j)
      for (std::int64_t i = 0; i < product.m; ++i) {
        const double expected = product.exact(i, j) + product.bias[static_cast<std::size_t>(i)];
        right &= std::fabs(result.d[static_cast<std::size_t>(i + j * product.m)] - expected) <= rounding(product, expected);
      }
    CHECK(right);
  }
  // A sum of 257 rounds to 256 in bf16, and would then take the bias to 255.
  Product product = sum_of(std::vector<double>(257, 1.0), CUDA_R_16BF, CUDA_R_16BF);
  product.epilogue = CUBLASLT_EPILOGUE_BIAS;
  product.bias.assign(static_cast<std::size_t>(product.m), -1.0 - 0x1p-6);
  const Result result = must_run(product);
  CHECK(std::all_of(result.d.begin(), result.d.end(), [](double value) { return value == 256; }));
}

TEST_CASE("cuBLASLt: GELU, and its auxiliary output is the pre-activation as stored") {
  for (const std::uint32_t epilogue :
       {CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}) {
    INFO("epilogue " << epilogue);
    Product product;
    product.epilogue = epilogue;
    product.k = 16;
    const Result result = must_run(product);
    bool right = true, stored = true;
    for (std::int64_t j = 0; j < product.n; ++j)
      for (std::int64_t i = 0; i < product.m; ++i) {
        const auto at = static_cast<std::size_t>(i + j * product.m);
        const double pre =
            product.exact(i, j) + (epilogue & CUBLASLT_EPILOGUE_BIAS ? product.bias[static_cast<std::size_t>(i)] : 0);
        // 1e-3: the hyperbolic tangent may be the hardware's approximation.
        right &= std::fabs(result.d[at] - gelu_tanh(pre)) <= rounding(product, gelu_tanh(pre)) + 1e-3;
        if (epilogue & 128) stored &= std::fabs(result.aux[at] - pre) <= rounding(product, pre);
      }
    CHECK(right);
    CHECK(stored);
  }
}

TEST_CASE("cuBLASLt: fp32 products are made in fp32, not in TF32") {
  Product product;
  product.type = product.result_type = CUDA_R_32F;
  product.m = product.n = product.k = 64;
  product.a.assign(64 * 64, 0.0);  // the unit matrix
  for (std::size_t i = 0; i < 64; ++i) product.a[i * 65] = 1.0;
  const Result result = must_run(product);
  CHECK(result.d == product.b);  // every bit of the significands
}

TEST_CASE("cuBLASLt: sums of bf16 products stay in fp32 to their end") {
  // Integers, which fp32 adds without rounding in any order; a partial sum in bf16 has 8 bits.
  std::vector<double> values;
  auto rng = generator(8);
  double sum = 0;
  for (int i = 0; i < 4096; ++i) {
    values.push_back(static_cast<double>(rng() % 255) - 127.0);
    sum += values.back();
  }
  const Result exact = [&] {
    Product product = sum_of(values, CUDA_R_16BF, CUDA_R_32F);
    return must_run(product);
  }();
  CHECK(std::all_of(exact.d.begin(), exact.d.end(), [&](double value) { return value == sum; }));
  const auto once_rounded = static_cast<double>(static_cast<float>(bf16(static_cast<float>(sum))));
  const Result rounded = [&] {
    Product product = sum_of(values, CUDA_R_16BF, CUDA_R_16BF);
    return must_run(product);
  }();
  CHECK(std::all_of(rounded.d.begin(), rounded.d.end(), [&](double value) { return value == once_rounded; }));
}

TEST_CASE("cuBLASLt: accumulating adds to what the result holds, in fp32") {
  Product product = sum_of(std::vector<double>(300, 1.0), CUDA_R_16BF, CUDA_R_32F);
  product.beta = 1;
  product.d.assign(static_cast<std::size_t>(product.m * product.n), 0x1p22 + 1);
  const Result result = must_run(product);
  CHECK(std::all_of(result.d.begin(), result.d.end(), [](double value) { return value == 0x1p22 + 301; }));
}

TEST_CASE("cuBLASLt: there is an algorithm for every alignment that it is told of") {
  for (const auto& [type, result_type] :
       {std::pair{CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}, {CUDA_R_16BF, CUDA_R_32F}})
    for (const std::size_t offset : {1, 2, 4, 8})
      for (const std::int64_t m : {48, 47}) {
        INFO("offset " << offset << " elements, m " << m);
        Product product;
        product.type = type;
        product.result_type = result_type;
        product.offset = offset;
        product.m = m;
        product.alignment = static_cast<std::uint32_t>(std::min<std::size_t>(16, offset * size_of(dtype_of(type))));
        const Result result = must_run(product);
        bool right = true;
        for (std::int64_t j = 0; j < product.n; ++j)
          for (std::int64_t i = 0; i < product.m; ++i)
            right &= std::fabs(result.d[static_cast<std::size_t>(i + j * m)] - product.exact(i, j)) <=
                     rounding(product, product.exact(i, j));
        CHECK(right);
      }
}

TEST_CASE("cuBLASLt: what is no number reaches the result, and only where it belongs") {
  for (const cudaDataType type : {CUDA_R_32F, CUDA_R_16BF}) {
    Product product;
    product.type = product.result_type = type;
    fill(product);
    product.a[static_cast<std::size_t>(9 + 20 * product.m)] = kNaN;  // of row 9
    const Result result = must_run(product);
    bool right = true;
    for (std::int64_t j = 0; j < product.n; ++j)
      for (std::int64_t i = 0; i < product.m; ++i)
        right &= std::isnan(result.d[static_cast<std::size_t>(i + j * product.m)]) == (i == 9);
    CHECK(right);
  }
}

TEST_CASE("cuBLASLt: the same product has the same bits every time") {
  for (const std::int64_t k : {64, 5000}) {  // the long one may be split among blocks
    Product product;
    product.k = k;
    product.result_type = CUDA_R_32F;
    const Result first = must_run(product);
    for (int again = 0; again < 5; ++again) CHECK(must_run(product).d == first.d);
  }
}

}  // namespace outeffhop::test
