#include "kernels/layernorm.h"

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(LayerNormTable, layernorm_table)

namespace {

std::int64_t round_up(std::int64_t count) { return (count + 15) / 16 * 16; }

void to_fp32(const ConstTensor& from, std::int64_t count, float* to) {
  cast(1, {.count = count, .from = from, .to = {to, DType::f32}});
}

}  // namespace

void layernorm_forward(int threads, Scratch& scratch, const LayerNormForward& op) {
  const char* name = "layer norm";
  require_storage(op.out.dtype, name);
  require_same(op.out.dtype, op.x, name, "x");
  require_same(op.out.dtype, op.residual, name, "residual");
  require_same(op.out.dtype, op.sum, name, "sum");
  require_same(DType::f32, op.mean, name, "mean");
  require_same(DType::f32, op.rstd, name, "rstd");
  const std::int64_t stride = round_up(op.C);
  float* weight = scratch.get<float>(stride * (2 + threads));
  float* bias = weight + stride;
  float* rows = bias + stride;
  to_fp32(op.weight, op.C, weight);
  to_fp32(op.bias, op.C, bias);
  const auto& table = layernorm_table();
  parallel_ranges(threads, op.B * op.T, 1, [&](std::int64_t begin, std::int64_t end, int member) {
    table.forward(op, weight, bias, begin, end, rows + member * stride);
  });
}

void layernorm_backward(int threads, Scratch& scratch, const LayerNormBackward& op) {
  const char* name = "layer norm backward";
  const DType dtype = op.d_out.dtype;
  require_storage(dtype, name);
  require_same(dtype, op.d_sum_in, name, "d_sum_in");
  require_same(dtype, op.sum, name, "sum");
  require_same(dtype, op.d_sum, name, "d_sum");
  require_same(dtype, op.d_x, name, "d_x");
  require_same(DType::f32, op.mean, name, "mean");
  require_same(DType::f32, op.rstd, name, "rstd");
  require_same(DType::f32, op.d_weight, name, "d_weight");
  require_same(DType::f32, op.d_bias, name, "d_bias");
  const std::int64_t rows = op.B * op.T, stride = round_up(op.C);
  float* weight = scratch.get<float>(stride * (1 + 3 * threads));
  float* partial = weight + stride;  // d_weight and d_bias of each team member
  float* row_buffers = partial + 2 * stride * threads;
  to_fp32(op.weight, op.C, weight);
  const auto& table = layernorm_table();
  std::fill(partial, partial + 2 * stride * threads, 0.0f);
  parallel_ranges(threads, rows, 1, [&](std::int64_t begin, std::int64_t end, int member) {
    float* mine = partial + 2 * stride * member;
    table.backward(op, weight, begin, end, mine, mine + stride, row_buffers + member * stride);
  });
  // In the order of the members: the same bits for the same team.
  auto* d_weight = static_cast<float*>(op.d_weight.data);
  auto* d_bias = static_cast<float*>(op.d_bias.data);
  for (int member = 0; member < threads; ++member) {
    const float* one = partial + 2 * stride * member;
    for (std::int64_t c = 0; c < op.C && d_weight; ++c) d_weight[c] += one[c];
    for (std::int64_t c = 0; c < op.C && d_bias; ++c) d_bias[c] += one[stride + c];
  }
}

}  // namespace outeffhop::cpu
