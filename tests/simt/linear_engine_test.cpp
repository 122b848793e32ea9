// What the op tests of linear layers do not see: which epilogue serves what, what happens where there is none, and what is
// refused.
#include "tests/simt/linear_layer.h"

namespace outeffhop::test {

using Catch::Matchers::Contains;

TEST_CASE("which epilogue serves which layer") {
  struct Case {
    DType dtype;
    Activation activation;
    bool bias, pre;
    std::uint32_t epilogue;
  };
  const std::vector<Case> cases = {
      {DType::bf16, Activation::none, false, false, CUBLASLT_EPILOGUE_DEFAULT},
      {DType::bf16, Activation::none, true, false, CUBLASLT_EPILOGUE_BIAS},
      {DType::f32, Activation::relu, true, false, CUBLASLT_EPILOGUE_BIAS},
      {DType::f32, Activation::relu, false, false, CUBLASLT_EPILOGUE_DEFAULT},
      {DType::bf16, Activation::relu, true, true, CUBLASLT_EPILOGUE_BIAS},
      {DType::bf16, Activation::gelu_tanh, true, false, CUBLASLT_EPILOGUE_GELU_BIAS},
      {DType::bf16, Activation::gelu_tanh, true, true, CUBLASLT_EPILOGUE_BIAS},
      {DType::bf16, Activation::gelu_tanh, false, true, CUBLASLT_EPILOGUE_DEFAULT},
      {DType::f32, Activation::gelu_tanh, true, true, CUBLASLT_EPILOGUE_BIAS},
      {DType::bf16, Activation::gelu_erf, true, false, CUBLASLT_EPILOGUE_BIAS},
      {DType::bf16, Activation::gelu_erf, true, true, CUBLASLT_EPILOGUE_BIAS},
      {DType::bf16, Activation::gelu_erf, false, true, CUBLASLT_EPILOGUE_DEFAULT},
  };
  for (const Case& c : cases) {
    Layer layer(c.dtype, 8, 16, 24);
    layer.op.activation = c.activation;
    if (!c.bias) layer.op.bias = {};
    if (c.pre) layer.op.pre = layer.filled(c.dtype, 8 * 24);
    layer.device->run(layer.op);
    CHECK(simt::cublaslt_counts().epilogue == c.epilogue);
  }
}

TEST_CASE("a bias that no epilogue takes is as exact") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const DType out : {dtype, DType::f32})
      for (const bool misaligned : {false, true})
        for (const std::uint32_t bits : {0u, std::uint32_t{CUBLASLT_EPILOGUE_BIAS}}) {
          const RefusedEpilogues refused(bits);
          Layer layer(dtype, 9, 40, 21);
          layer.op.bias = layer.filled(dtype, 21, misaligned ? 1 : 0);
          layer.op.out = layer.filled(out, 9 * 21);
          const double unit = out == DType::f32 ? 1e-6 : 0x1p-8;
          CHECK(largest_difference(layer.run(), layer.expected()) < 32 * unit);
          const bool fused = out == dtype && !misaligned && bits == 0;
          CHECK(simt::cublaslt_counts().epilogue == (fused ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT));
        }
}

TEST_CASE("an activation that cuBLASLt has no algorithm for is done by a kernel") {
  Layer layer(DType::bf16, 8, 16, 24);
  layer.op.activation = Activation::gelu_tanh;
  const auto fused = layer.run();
  for (const cublasStatus_t status : {CUBLAS_STATUS_NOT_SUPPORTED, CUBLAS_STATUS_INVALID_VALUE}) {
    const RefusedEpilogues refused(CUBLASLT_EPILOGUE_GELU, status);
    Layer plain(DType::bf16, 8, 16, 24);
    plain.op.activation = Activation::gelu_tanh;
    CHECK(largest_difference(plain.run(), fused) < 0.1);  // of values up to 16, rounded to bf16 once or twice
    CHECK(simt::cublaslt_counts().epilogue == CUBLASLT_EPILOGUE_BIAS);
  }
}

TEST_CASE("a product without an algorithm is one clear error") {
  const RefusedEpilogues refused(CUBLASLT_EPILOGUE_BIAS | CUBLASLT_EPILOGUE_DEFAULT);
  Layer layer(DType::bf16, 8, 16, 24);
  CHECK_THROWS_WITH(layer.device->run(layer.op),
                    "cuBLASLt has no algorithm for a (8 x 16) by (16 x 24) product of bf16 into bf16 on this GPU");
  CHECK_THROWS_AS(layer.device->run(layer.backward), Error);
}

TEST_CASE("linear on CUDA refuses what it does not multiply, in a sentence") {
  Layer layer(DType::bf16, 8, 16, 24);
  const LinearForward sound = layer.op;
  layer.op.x.scale = 0.5f;
  CHECK_THROWS_WITH(layer.device->run(layer.op),
                    "linear on CUDA multiplies unquantised operands, but x in bf16 has scale "
                    "0.5 and zero point 0");
  layer.op = sound;
  layer.op.weight.zero_point = 3;
  CHECK_THROWS_WITH(layer.device->run(layer.op), Contains("the weight in bf16 has scale 1 and zero point 3"));
  layer.op = sound;
  layer.op.x.dtype = layer.op.weight.dtype = DType::i32;
  layer.op.bias = {};
  CHECK_THROWS_WITH(layer.device->run(layer.op), Contains("not int32"));
  layer.op = sound;
  layer.op.x.dtype = layer.op.weight.dtype = layer.op.bias.dtype = DType::f32;  // into bf16
  CHECK_THROWS_WITH(layer.device->run(layer.op), Contains("its result in fp32, but it is bf16"));
  layer.op = sound;
  layer.op.bias.dtype = DType::f32;
  CHECK_THROWS_WITH(layer.device->run(layer.op), Contains("the bias in bf16, but it is fp32"));
  layer.backward.d_weight.dtype = DType::bf16;
  CHECK_THROWS_WITH(layer.device->run(layer.backward), Contains("d_weight in fp32, but it is bf16"));
  layer.op = sound;
  CHECK_NOTHROW(layer.device->run(layer.op));
}

TEST_CASE("no rows: nothing but the largest magnitude is written") {
  Layer layer(DType::f32, 4, 4, 4);
  const auto before = layer.fetch(layer.op.out, 16);
  layer.op.rows = layer.backward.rows = 0;
  layer.op.max_abs = static_cast<float*>(layer.filled(DType::f32, 1).data);
  layer.device->run(layer.op);
  layer.device->run(layer.backward);
  CHECK(layer.fetch(layer.op.out, 16) == before);
  CHECK(layer.fetch({layer.op.max_abs, DType::f32}, 1)[0] == 0.0);
}

TEST_CASE("ReLU shows a NaN") {
  const bf16 nan(std::nanf(""));
  for (const bool kept : {false, true}) {
    Layer layer(DType::bf16, 4, 8, 16);
    layer.device->copy_in(const_cast<void*>(layer.op.x.at(2 * 8).data), &nan, sizeof nan);
    layer.op.activation = Activation::relu;
    if (kept) layer.op.pre = layer.filled(DType::bf16, 4 * 16);
    const auto out = layer.run();
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::isnan(out[i]) == (i / 16 == 2));
  }
}

TEST_CASE("the largest magnitude shows a NaN") {
  Layer layer(DType::bf16, 70, 30, 40);
  const bf16 nan(std::nanf(""));
  layer.device->copy_in(const_cast<void*>(layer.op.x.at(33 * 30).data), &nan, sizeof nan);
  layer.op.max_abs = static_cast<float*>(layer.filled(DType::f32, 1).data);
  layer.device->run(layer.op);
  CHECK(std::isnan(layer.fetch({layer.op.max_abs, DType::f32}, 1)[0]));
}

// Many slices and tiles, ragged ends: more than the op tests' shapes give.
TEST_CASE("bias gradients of long and wide matrices") {
  for (const auto& [rows, out] : {std::pair<std::int64_t, std::int64_t>{1000, 264}, {4100, 8}, {37, 2600}})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Layer layer(dtype, rows, 1, out);
      layer.backward.d_x = layer.backward.d_weight = {};
      auto expected = layer.fetch(layer.backward.d_bias, out);
      const auto d_out = layer.fetch(layer.backward.d_out, rows * out);
      for (std::size_t i = 0; i < d_out.size(); ++i) expected[i % static_cast<std::size_t>(out)] += d_out[i];
      layer.device->run(layer.backward);
      CHECK(largest_difference(layer.fetch(layer.backward.d_bias, out), expected) < 1e-5 * std::sqrt(rows));
    }
}

}  // namespace outeffhop::test
