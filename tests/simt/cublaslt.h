// What tests ask the stand-in for cuBLASLt (overlay/cublasLt.h) beyond the library's own interface.
#pragma once

#include <cstdint>

namespace outeffhop::simt {

struct CublasLtCounts {
  std::int64_t searches = 0;   ///< calls of cublasLtMatmulAlgoGetHeuristic
  std::int64_t products = 0;   ///< calls of cublasLtMatmul that were accepted
  std::int64_t alive = 0;      ///< handles and descriptors that were created and not destroyed
  std::uint32_t epilogue = 0;  ///< of the last product
};
const CublasLtCounts& cublaslt_counts();

/// From now on no algorithm is found for epilogues that have any of these bits, as the library may on some device.
void cublaslt_refuse_epilogues(std::uint32_t bits);

}  // namespace outeffhop::simt
