// LinearForward and LinearBackward: products by cuBLASLt, and which of its epilogues serves what.
//
//   activation      pre   one call of cuBLASLt               otherwise
//   none            -     BIAS
//   gelu_tanh       -     GELU_BIAS (bf16 results)           BIAS into out, activation kernel in place
//   gelu_erf, relu  -                                        BIAS into out, activation kernel in place
//   any             kept                                     BIAS into pre, activation kernel
//
// The activation kernel reads pre as stored: rounded to bf16, in bf16. That is the value whose derivative the backward pass
// takes, and it saves the fp32 copy that would be written and read for each element. cuBLASLt's ReLU, max(x, 0), may
// make 0 of a NaN, which this kernel keeps; its GELU_AUX_BIAS activates an unrounded pre by a formula of its own: bits that
// this kernel does not make again.
//
// A bias that no epilogue takes (off a multiple of 16 bytes, or of bf16 where the result is fp32) is laid into the result's
// rows first, and the product added to it: as exact, for another write and read of the result.
#include "kernels/linear.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/linear_engine.h"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/storage.h"
#include "kernels/linear_strides.h"

namespace outeffhop::cuda {
namespace {

void require_unquantised(const Operand& operand, const char* name) {
  if (operand.scale != 1.0f || operand.zero_point != 0)
    fail(ErrorKind::unsupported,
         "linear on CUDA multiplies unquantised operands, but {} in {} has scale {} and zero point {}", name,
         name_of(operand.dtype), operand.scale, operand.zero_point);
}

void run_with_bias(const Context& context, LinearEngine& engine, Product product) {
  if (engine.try_run(context.stream, product)) return;
  if (product.bias) {
    spread_bias(context, product.bias, product.out, product.M, product.N, product.out_stride);
    product.bias = {};
    product.accumulate = true;
  }
  engine.run(context.stream, product);
}

}  // namespace

void linear_forward(const Context& context, LinearEngine& engine, const LinearForward& op) {
  require_unquantised(op.x, "x");
  require_unquantised(op.weight, "the weight");
  require_same(op.x.dtype, op.bias, "linear", "the bias");
  require_same(op.out.dtype, op.pre, "linear", "pre");
  const std::int64_t count = op.rows * op.out_features;
  if (count > 0) {
    Product product{.M = op.rows,
                    .N = op.out_features,
                    .K = op.in,
                    .a = op.x,
                    .b = op.weight,
                    .b_transposed = true,
                    .out = op.out,
                    .out_stride = out_stride(op),
                    .bias = op.bias,
                    .activation = op.activation};
    if (op.pre || !engine.try_run(context.stream, product)) {
      product.activation = Activation::none;
      product.out = op.pre ? op.pre : op.out;
      run_with_bias(context, engine, product);
      if (op.pre || op.activation != Activation::none)
        activation_forward(context, {count, op.activation, product.out, op.out});
    }
  }
  if (op.max_abs) max_abs(context, op.out, count, op.max_abs);
}

void linear_backward(const Context& context, LinearEngine& engine, const LinearBackward& op) {
  require_same(DType::f32, op.d_weight, "linear backward", "d_weight");
  require_same(DType::f32, op.d_bias, "linear backward", "d_bias");
  const std::int64_t stride = d_out_stride(op);
  if (op.rows * op.out_features == 0) return;
  if (op.d_x)
    engine.run(context.stream, {.M = op.rows,
                                .N = op.in,
                                .K = op.out_features,
                                .a = op.d_out,
                                .a_stride = stride,
                                .b = op.weight,
                                .out = op.d_x,
                                .accumulate = op.accumulate_d_x});
  if (op.d_weight)
    engine.run(context.stream, {.M = op.out_features,
                                .N = op.in,
                                .K = op.rows,
                                .a = op.d_out,
                                .a_transposed = true,
                                .a_stride = stride,
                                .b = op.x,
                                .out = op.d_weight,
                                .accumulate = true});
  if (op.d_bias) bias_gradient(context, op.d_out, static_cast<float*>(op.d_bias.data), op.rows, op.out_features, stride);
}

}  // namespace outeffhop::cuda
