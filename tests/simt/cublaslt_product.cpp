#include "tests/simt/cublaslt_product.h"

#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "kernels/tensor.h"

namespace outeffhop::simt {
namespace {

constexpr std::int64_t kParts = 4;             // of a sum that is split, and rounded for it
constexpr std::int64_t kWide = 8, kHigh = 4;   // a tile of the result that stays in registers
constexpr std::int64_t kWorthATeam = 1 << 18;  // multiplications

float read(const void* data, cudaDataType type, std::int64_t i) {
  return type == CUDA_R_32F ? static_cast<const float*>(data)[i] : static_cast<float>(static_cast<const bf16*>(data)[i]);
}
void write(void* data, cudaDataType type, std::int64_t i, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<bf16*>(data)[i] = bf16(value);
  }
}
float rounded(cudaDataType type, float value) { return type == CUDA_R_32F ? value : static_cast<float>(bf16(value)); }
/// To the 10 bits of significand that TF32 has.
float tf32(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  return std::isfinite(value) ? __builtin_bit_cast(float, (bits + 0x1000u) & ~0x1fffu) : value;
}

float gelu_tanh(float x) {
  const double z = 0.7978845608028654 * (x + 0.044715 * static_cast<double>(x) * x * x);
  return static_cast<float>(0.5 * x * (1 + std::tanh(z)));
}

std::int64_t padded(std::int64_t count, std::int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }
/// op(X) as fp32, `rows` neighbouring elements for each of `columns`, with zeros up to a multiple.
std::vector<float> packed(const Algorithm& algorithm, const void* data, std::int64_t rows, std::int64_t columns,
                          std::int64_t multiple, std::int64_t row_stride, std::int64_t column_stride) {
  const auto type = static_cast<cudaDataType>(algorithm.operand_type);
  const std::int64_t stride = padded(rows, multiple);
  std::vector<float> values(static_cast<std::size_t>(stride * columns));
  for (std::int64_t column = 0; column < columns; ++column)
    for (std::int64_t row = 0; row < rows; ++row) {
      const float value = read(data, type, row * row_stride + column * column_stride);
      values[static_cast<std::size_t>(column * stride + row)] =
          algorithm.compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? tf32(value) : value;
    }
  return values;
}

}  // namespace

void ProductWork::operator()() const {
  const auto [m, n, k, workspace_bytes] = std::tuple(algorithm.m, algorithm.n, algorithm.k, algorithm.workspace_bytes);
  spend(milliseconds);
  if (workspace_bytes) std::memset(workspace, 0xa5, static_cast<std::size_t>(workspace_bytes));
  const std::int64_t ld_a = algorithm.leading_dimensions[0], ld_b = algorithm.leading_dimensions[1];
  const bool ta = algorithm.transposes & 2, tb = algorithm.transposes & 1;
  const std::vector<float> left = packed(algorithm, a, m, k, kWide, ta ? ld_a : 1, ta ? 1 : ld_a);   // (k, m)
  const std::vector<float> right = packed(algorithm, b, n, k, kHigh, tb ? 1 : ld_b, tb ? ld_b : 1);  // (k, n)
  const auto type = static_cast<cudaDataType>(algorithm.result_type);
  constexpr std::uint32_t kRounding = CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
  const bool rounding = algorithm.reductions & kRounding;
  const std::int64_t parts = k < kSplitFrom ? 1 : rounding ? kParts : 1 + algorithm.variant;
  const std::int64_t left_stride = padded(m, kWide), right_stride = padded(n, kHigh);
#pragma omp parallel for schedule(static) if (m * n * k > kWorthATeam)
  for (std::int64_t j = 0; j < n; j += kHigh) {
    for (std::int64_t i = 0; i < m; i += kWide) {
      float total[kHigh][kWide] = {};
      for (std::int64_t part = 0; part < parts; ++part) {
        float sum[kHigh][kWide] = {};
        for (std::int64_t p = part * k / parts; p < (part + 1) * k / parts; ++p) {
          const float* x = &left[static_cast<std::size_t>(p * left_stride + i)];
          const float* y = &right[static_cast<std::size_t>(p * right_stride + j)];
          for (int h = 0; h < kHigh; ++h)
            for (int w = 0; w < kWide; ++w) sum[h][w] += x[w] * y[h];
        }
        for (int h = 0; h < kHigh; ++h)
          for (int w = 0; w < kWide; ++w)
            total[h][w] = rounding && parts > 1 ? rounded(type, total[h][w] + sum[h][w]) : total[h][w] + sum[h][w];
      }
      for (std::int64_t h = 0; h < std::min(kHigh, n - j); ++h)
        for (std::int64_t w = 0; w < std::min(kWide, m - i); ++w) finish(i + w, j + h, total[h][w]);
    }
  }
}

void ProductWork::finish(std::int64_t row, std::int64_t column, float sum) const {
  const auto type = static_cast<cudaDataType>(algorithm.result_type);
  float value = alpha * sum;
  if (beta != 0) value += beta * read(c, type, row + column * c_leading_dimension);
  if (algorithm.epilogue & kBias) value += read(bias, type, row);
  if (algorithm.epilogue & kAux) write(aux, type, row + column * aux_leading_dimension, value);
  if (algorithm.epilogue & kRelu) value = std::fmax(value, 0.0f);  // NaN becomes 0
  if (algorithm.epilogue & kGelu) value = gelu_tanh(value);
  write(d, type, row + column * std::int64_t{algorithm.leading_dimensions[2]}, value);
}

}  // namespace outeffhop::simt
