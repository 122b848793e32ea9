// The arithmetic of the stand-in for cuBLASLt: sums in fp32, rounded once; TF32 operands, and partial sums in D's type,
// where the caller allows them.
#pragma once

#include <cublasLt.h>

#include <algorithm>
#include <cstdint>

namespace outeffhop::simt {

constexpr std::uint32_t kRelu = 2, kBias = 4, kGelu = 32, kAux = 128;  // of epilogues
constexpr std::int64_t kSplitFrom = 64;  // sums this long may be split: partial sums go to the workspace

inline std::int64_t size_of_type(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

/// A product as asked for, and what an algorithm for it may rely on. Trivially copyable: it is what cublasLtMatmulAlgo_t
/// holds.
struct Algorithm {
  std::int64_t m, n, k, workspace_bytes;
  std::int32_t leading_dimensions[3];  // of A, B, D
  std::uint32_t reductions;
  std::uint8_t alignment_bits[6];  // of A, B, C, D, bias, aux: the logarithm
  std::uint8_t operand_type, result_type, transposes, compute;
  std::uint8_t variant;  // which of several algorithms: how many parts a long sum is made in, less one
  std::uint32_t epilogue;

  bool same_problem(const Algorithm& other) const {
    return m == other.m && n == other.n && k == other.k && operand_type == other.operand_type &&
           result_type == other.result_type && transposes == other.transposes && compute == other.compute &&
           epilogue == other.epilogue && std::equal(leading_dimensions, leading_dimensions + 3, other.leading_dimensions);
  }
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

/// All that a product needs when its turn in the stream comes.
struct ProductWork {
  Algorithm algorithm;
  const void *a, *b, *c, *bias;
  void *d, *aux, *workspace;
  float alpha, beta;
  double milliseconds;  ///< that it takes
  std::int64_t c_leading_dimension, aux_leading_dimension;

  void operator()() const;

 private:
  void finish(std::int64_t row, std::int64_t column, float sum) const;
};

}  // namespace outeffhop::simt
