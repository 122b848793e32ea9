// What tests ask the stand-in for cuBLASLt (overlay/cublasLt.h) beyond the library's own interface.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace outeffhop::simt {

struct CublasLtCounts {
  std::int64_t searches = 0;   ///< calls of cublasLtMatmulAlgoGetHeuristic
  std::int64_t products = 0;   ///< calls of cublasLtMatmul that were accepted
  std::int64_t alive = 0;      ///< handles and descriptors that were created and not destroyed
  std::uint32_t epilogue = 0;  ///< of the last product
  int algorithm = 0;           ///< of the last product: its place among those that are offered
};
const CublasLtCounts& cublaslt_counts();

/// From now on no algorithm is found for epilogues that have any of these bits, as the library may on some device, and the
/// search says `status`.
void cublaslt_refuse_epilogues(std::uint32_t bits, cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED);

/// From now on a search finds as many algorithms as there are times, each of which takes its time, in milliseconds, for every
/// product; negative: it is refused when it is to run. They make long sums in different numbers of parts. At start: {1}.
void cublaslt_offer(std::vector<double> milliseconds);

/// What cublasLtGetVersion says from now on.
void cublaslt_set_version(std::size_t version);

}  // namespace outeffhop::simt
