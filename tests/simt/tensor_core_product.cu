// Compiled for the GPU only, to see that nvcc takes every wrapper of kernels/cuda/ptx as the tests use them.
#include "tests/simt/tensor_core_product.cuh"

namespace outeffhop::cuda {

template __global__ void product_kernel<PlantedBug::none>(const bf16*, const bf16*, float*);

/// The wrappers that the product does without.
__global__ void other_wrappers_kernel(const float* x,        // (128)
                                      std::uint32_t* out) {  // (32, 10)
  const auto tile = shared_array<float>(0, 128);
  const int lane = static_cast<int>(threadIdx.x);
  copy_async_4(tile.address(lane), x + lane, lane % 5);
  if (lane < 16) copy_async_8(tile.address(32 + 2 * lane), x + 32 + 2 * lane, lane % 9);
  if (lane < 8) copy_async_16(tile.address(64 + 4 * lane), x + 64 + 4 * lane, 16);
  commit_copies();
  wait_for_copies<0>();
  __syncwarp();
  const auto rows = shared_array<bf16>(0, 256);
  std::uint32_t one[1], two[2], four[4];
  load_matrix_x1(one, rows.address(lane % 8 * 8));
  load_matrix_x2(two, rows.address(lane % 16 * 8));
  load_matrix_x4_transposed(four, rows.address(lane * 8));
  out[lane * 10] = one[0];
  out[lane * 10 + 1] = two[0] ^ two[1];
  for (int i = 0; i < 4; ++i) out[lane * 10 + 2 + i] = four[i];
  load_matrix_x1_transposed(one, rows.address(lane % 8 * 8));
  out[lane * 10 + 6] = one[0];
}

}  // namespace outeffhop::cuda
