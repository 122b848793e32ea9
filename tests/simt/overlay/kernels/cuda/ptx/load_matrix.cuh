// In place of kernels/cuda/ptx/load_matrix.cuh.
#pragma once

#include "kernels/tensor.h"
#include "tests/simt/tensor_core.h"

namespace outeffhop::cuda {

inline void load_matrix_x1(std::uint32_t (&to)[1], const bf16* row, const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(to, 1, false, row, where);
}
inline void load_matrix_x2(std::uint32_t (&to)[2], const bf16* row, const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(to, 2, false, row, where);
}
inline void load_matrix_x4(std::uint32_t (&to)[4], const bf16* row, const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(to, 4, false, row, where);
}

inline void load_matrix_x1_transposed(std::uint32_t (&to)[1], const bf16* row,
                                      const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(to, 1, true, row, where);
}
inline void load_matrix_x2_transposed(std::uint32_t (&to)[2], const bf16* row,
                                      const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(to, 2, true, row, where);
}
inline void load_matrix_x4_transposed(std::uint32_t (&to)[4], const bf16* row,
                                      const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(to, 4, true, row, where);
}

}  // namespace outeffhop::cuda
