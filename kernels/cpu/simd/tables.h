// What the SIMD sources offer to the ops in kernels/cpu/*.cpp: a table of functions an op, each on a range of rows, columns or
// elements, so that the team and its shares are the caller's business. Arguments are checked by the callers.
#pragma once

#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/layernorm.h"
#include "kernels/linear.h"
#include "kernels/optimizer.h"
#include "kernels/statistics.h"

namespace outeffhop::cpu {

struct EmbeddingTable {
  void (*forward)(const EmbeddingForward& op, std::int64_t row_begin, std::int64_t row_end);
  /// Every row, channels [begin, end) alone.
  void (*backward)(const EmbeddingBackward& op, std::int64_t channel_begin, std::int64_t channel_end);
};

struct LayerNormTable {
  // `weight`, `bias`: fp32 copies; `row`: room for C floats rounded up to 16.
  void (*forward)(const LayerNormForward& op, const float* weight, const float* bias, std::int64_t row_begin,
                  std::int64_t row_end, float* row);
  /// Adds the rows' share to d_weight and d_bias, two arrays of C floats.
  void (*backward)(const LayerNormBackward& op, const float* weight, std::int64_t row_begin, std::int64_t row_end,
                   float* d_weight, float* d_bias, float* row);
};

struct ActivationTable {
  /// out = activation(pre), both of the same type; out may be pre. Returns the bits of the largest |out| as stored (an
  /// integer comparison: NaN is largest).
  std::int32_t (*forward)(Activation activation, const ConstTensor& pre, const Tensor& out, std::int64_t begin,
                          std::int64_t end);
  void (*backward)(const ActivationBackward& op, std::int64_t begin, std::int64_t end);
  /// to[c] += sum over all rows of x, which begin every `stride` elements, for columns [begin, end).
  void (*add_column_sums)(const ConstTensor& x, std::int64_t rows, std::int64_t stride, std::int64_t begin, std::int64_t end,
                          float* to);
};

struct DropoutTable {
  void (*add)(const DropoutAdd& op, std::int64_t row_begin, std::int64_t row_end);
};

struct CrossEntropyTable {
  void (*rows)(const CrossEntropy& op, std::int64_t row_begin, std::int64_t row_end, double* losses);
};

/// The scalars of one AdamW step, for one weight decay.
struct AdamWStep {
  float gradient_scale, decay_factor, beta1, beta2, one_minus_beta1, one_minus_beta2, step_size, root_of_correction2, epsilon;
};

struct OptimizerTable {
  double (*square_sum)(const float* x, std::int64_t count);
  /// `storage` may be null.
  void (*adamw)(const AdamWStep& step, float* p, float* m, float* v, const float* gradient, bf16* storage, std::int64_t count);
};

struct StatisticsTable {
  void (*moments)(const RowMoments& op, std::int64_t row_begin, std::int64_t row_end);
  /// Between fp32 and bf16.
  void (*cast)(const ConstTensor& from, const Tensor& to, std::int64_t begin, std::int64_t end);
};

/// A block of a product: packs operands into fp32 panels padded with zeros and multiplies the panels.
struct ProductTable {
  int panel_rows, panel_columns;  ///< of one microkernel
  /// packed[panel][k][panel_rows]: `rows` x `depth` elements of a, the first at a[0]; strides in elements.
  void (*pack_a)(const void* a, DType dtype, std::int64_t row_stride, std::int64_t depth_stride, std::int64_t rows,
                 std::int64_t depth, float* packed);
  /// packed[panel][k][panel_columns], likewise.
  void (*pack_b)(const void* b, DType dtype, std::int64_t depth_stride, std::int64_t column_stride, std::int64_t depth,
                 std::int64_t columns, float* packed);
  /// tile (rows, stride) += packed a times packed b; rows and columns rounded up to whole panels.
  void (*multiply)(const float* a, const float* b, std::int64_t rows, std::int64_t columns, std::int64_t depth, float* tile,
                   std::int64_t stride);
  /// One row of c: tile row + bias (or none), written or added to c.
  void (*finish)(const float* tile, const ConstTensor& bias, const Tensor& c, std::int64_t columns, bool accumulate);
};

}  // namespace outeffhop::cpu
