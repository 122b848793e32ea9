// What the op tests of linear layers do not see: that plans are kept, which epilogue serves what, what happens where there
// is none, and what is refused.
#include "kernels/cuda/linear_engine.h"

#include <cublasLt.h>

#include <cmath>
#include <cstring>

#include "kernels/device.h"
#include "kernels/reference/values.h"
#include "tests/catch.h"
#include "tests/simt/cublaslt.h"
#include "tests/simt/machine.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;

/// A linear layer on a device of its own, with random operands.
struct Layer {
  std::unique_ptr<Device> device = make_device({"cuda", 0});
  LinearForward op;
  LinearBackward backward;
  std::vector<Buffer> buffers;

  Layer(DType dtype, std::int64_t rows, std::int64_t in, std::int64_t out) {
    op.rows = backward.rows = rows;
    op.in = backward.in = in;
    op.out_features = backward.out_features = out;
    op.x = Operand(filled(dtype, rows * in));
    op.weight = Operand(filled(dtype, out * in));
    op.bias = filled(dtype, out);
    op.out = filled(dtype, rows * out);
    backward.x = op.x;
    backward.weight = op.weight;
    backward.d_out = filled(dtype, rows * out);
    backward.d_x = filled(dtype, rows * in);
    backward.d_weight = filled(DType::f32, out * in);
    backward.d_bias = filled(DType::f32, out);
  }

  /// Random values, `offset` elements into a buffer.
  Tensor filled(DType dtype, std::int64_t count, std::int64_t offset = 0) {
    const std::size_t bytes = static_cast<std::size_t>(count + offset) * size_of(dtype);
    std::vector<std::byte> host(bytes);
    auto rng = generator(buffers.size());
    const auto values = normal_values(rng, static_cast<std::size_t>(count + offset));
    for (std::size_t i = 0; i < values.size(); ++i)
      reference::write(Tensor{host.data(), dtype}, static_cast<std::int64_t>(i), values[i]);
    buffers.emplace_back(*device, bytes);
    device->copy_in(buffers.back().data(), host.data(), bytes);
    return Tensor{buffers.back().data(), dtype}.at(offset);
  }
  std::vector<double> fetch(ConstTensor tensor, std::int64_t count) {
    std::vector<std::byte> host(static_cast<std::size_t>(count) * size_of(tensor.dtype));
    device->copy_out(host.data(), tensor.data, host.size());
    return reference::load<double>({host.data(), tensor.dtype}, count);
  }
  std::vector<double> run() {
    device->run(op);
    return fetch(op.out, op.rows * op.out_features);
  }
  /// x weight^T + bias in fp64.
  std::vector<double> expected() {
    const auto x = fetch(op.x, op.rows * op.in), weight = fetch(op.weight, op.out_features * op.in);
    const auto bias = op.bias ? fetch(op.bias, op.out_features) : std::vector<double>(64, 0.0);
    std::vector<double> out;
    for (std::int64_t r = 0; r < op.rows; ++r)
      for (std::int64_t o = 0; o < op.out_features; ++o) {
        double sum = bias[static_cast<std::size_t>(o)];
        for (std::int64_t i = 0; i < op.in; ++i)
          sum += x[static_cast<std::size_t>(r * op.in + i)] * weight[static_cast<std::size_t>(o * op.in + i)];
        out.push_back(sum);
      }
    return out;
  }
};

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest;
}

struct RefusedEpilogues {
  explicit RefusedEpilogues(std::uint32_t bits, cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED) {
    simt::cublaslt_refuse_epilogues(bits, status);
  }
  ~RefusedEpilogues() { simt::cublaslt_refuse_epilogues(0); }
};

/// What searches find, for as long as it lives: algorithms of these times.
struct Offered {
  explicit Offered(std::vector<double> milliseconds) { simt::cublaslt_offer(std::move(milliseconds)); }
  ~Offered() { simt::cublaslt_offer({1.0}); }
};

/// Which algorithm a new device chooses where these are offered.
int chosen_of(std::vector<double> milliseconds) {
  const Offered offered(std::move(milliseconds));
  Layer layer(DType::bf16, 24, 32, 16);
  layer.device->run(layer.op);
  return simt::cublaslt_counts().algorithm;
}

}  // namespace

TEST_CASE("the fastest algorithm is taken, and of nearly equal ones the first") {
  CHECK(chosen_of({1}) == 0);
  CHECK(chosen_of({1, 2, 3}) == 0);
  CHECK(chosen_of({1, 0.7, 0.5, 0.6}) == 2);
  CHECK(chosen_of({1, 0.985, 0.99}) == 0);
  CHECK(chosen_of({1, 0.97}) == 1);
  CHECK(chosen_of({1, 0.9, 0.885}) == 1);
  CHECK(chosen_of({2, 2, 2, 2, 2, 2, 2, 1, 0.1}) == 7);  // no more than eight are asked for
  CHECK(chosen_of({-1, 2, 1}) == 2);                     // one that does not run is left out
  const Offered offered({-1, -1});
  Layer layer(DType::bf16, 24, 32, 16);
  CHECK_THROWS_WITH(layer.device->run(layer.op), Contains("cuBLASLt has no algorithm"));
}

TEST_CASE("measuring writes to no result, and is done once") {
  Layer plain(DType::bf16, 24, 32, 16), measured(DType::bf16, 24, 32, 16);
  plain.op.activation = measured.op.activation = Activation::gelu_tanh;
  plain.op.pre = plain.filled(DType::bf16, 24 * 16);
  measured.op.pre = measured.filled(DType::bf16, 24 * 16);
  plain.backward.accumulate_d_x = measured.backward.accumulate_d_x = true;
  plain.device->run(plain.op);
  plain.device->run(plain.backward);

  const Offered offered({2, 1, 3});
  const auto products = [] { return simt::cublaslt_counts().products; };
  std::int64_t before = products();
  measured.device->run(measured.op);
  measured.device->run(measured.backward);
  CHECK(products() - before > 3 * 3);
  // These sums are too short to depend on the algorithm.
  CHECK(measured.fetch(measured.op.out, 24 * 16) == plain.fetch(plain.op.out, 24 * 16));
  CHECK(measured.fetch(measured.op.pre, 24 * 16) == plain.fetch(plain.op.pre, 24 * 16));
  CHECK(measured.fetch(measured.backward.d_x, 24 * 32) == plain.fetch(plain.backward.d_x, 24 * 32));
  CHECK(measured.fetch(measured.backward.d_weight, 16 * 32) == plain.fetch(plain.backward.d_weight, 16 * 32));
  before = products();
  measured.device->run(measured.op);
  measured.device->run(measured.backward);
  CHECK(products() - before == 3);
  CHECK(simt::cublaslt_counts().algorithm == 1);
}

TEST_CASE("without memory for a second result the first algorithm is taken") {
  const Machine machine(1, std::size_t{40} << 20);
  const Offered offered({2, 1});
  Layer layer(DType::bf16, 24, 32, 16);
  std::size_t available = 0, total = 0;
  REQUIRE(cudaMemGetInfo(&available, &total) == cudaSuccess);
  const Buffer filler(*layer.device, available - 256);
  layer.device->run(layer.op);
  CHECK(simt::cublaslt_counts().algorithm == 0);
}

TEST_CASE("plans of one device are those of another") {
  std::string plans, before;
  std::vector<double> out;
  constexpr std::int64_t kRows = 8, kIn = 256, kOut = 24;  // sums long enough to depend on the algorithm
  const auto layer_of = [&] { return std::make_unique<Layer>(DType::f32, kRows, kIn, kOut); };
  {
    const Offered offered({2, 1, 3});
    const auto layer = layer_of();
    CHECK(layer->device->plans().empty());
    out = layer->run();
    layer->device->run(layer->backward);
    plans = layer->device->plans();
  }
  const Offered offered({3, 2, 1});
  const auto searches = [] { return simt::cublaslt_counts().searches; };
  {
    const auto layer = layer_of();
    CHECK(layer->run() != out);
    before = layer->device->plans();
    for (const std::string& damaged : {std::string("{"), std::string("[]"), plans.substr(1),
                                       std::string(plans).replace(plans.find("executor"), 8, "colossus"),
                                       std::string(plans).replace(plans.find("\"algorithm\":\"") + 13, 4, "7777"),
                                       std::string(plans).replace(plans.find("\"algorithm\":\"") + 13, 4, "none")})
      CHECK_FALSE(layer->device->use_plans(damaged));
    simt::cublaslt_set_version(130001);
    CHECK_FALSE(layer->device->use_plans(plans));
    CHECK_THAT(layer->device->description(), Contains("cuBLASLt 13.0.1"));
    simt::cublaslt_set_version(130000);
    CHECK(layer->device->plans() == before);
    CHECK(layer->device->use_plans(""));
    CHECK(layer->device->plans() == before);
    CHECK(layer->device->use_plans(plans));  // in place of what was measured here
    CHECK(layer->run() == out);
  }
  const auto layer = layer_of();
  REQUIRE(layer->device->use_plans(plans));
  CHECK(layer->device->plans() == plans);
  const std::int64_t searched = searches();
  CHECK(layer->run() == out);
  layer->device->run(layer->backward);
  CHECK(searches() == searched);
  CHECK(simt::cublaslt_counts().algorithm == 1);
  layer->op.rows = kRows - 1;  // a shape that the plans do not have
  layer->device->run(layer->op);
  CHECK(simt::cublaslt_counts().algorithm == 2);
}

TEST_CASE("a plan is searched for once and kept") {
  Layer layer(DType::bf16, 24, 32, 16);
  const auto searches = [] { return simt::cublaslt_counts().searches; };
  const auto products = [] { return simt::cublaslt_counts().products; };
  std::int64_t before = searches(), multiplied = products();
  layer.device->run(layer.op);
  layer.device->run(layer.backward);
  CHECK(searches() - before == 3);  // forward, d_x, d_weight
  CHECK(products() - multiplied == 3);
  before = searches();
  for (int step = 0; step < 5; ++step) {
    layer.device->run(layer.op);
    layer.device->run(layer.backward);
  }
  layer.backward.accumulate_d_x = true;  // the same plan
  layer.device->run(layer.backward);
  layer.op.bias = layer.filled(DType::bf16, 16);  // another pointer, the same alignment
  layer.device->run(layer.op);
  CHECK(searches() == before);
  layer.op.rows = 23;  // another shape
  layer.device->run(layer.op);
  CHECK(searches() - before == 1);
  layer.op.x = Operand(layer.filled(DType::bf16, 24 * 32, 1));  // another alignment
  layer.device->run(layer.op);
  CHECK(searches() - before == 2);
}

TEST_CASE("that there is no algorithm is remembered too") {
  const RefusedEpilogues refused(CUBLASLT_EPILOGUE_BIAS);
  Layer layer(DType::bf16, 8, 8, 8);
  layer.device->run(layer.op);
  const std::int64_t before = simt::cublaslt_counts().searches;
  layer.device->run(layer.op);
  CHECK(simt::cublaslt_counts().searches == before);
}

TEST_CASE("plans and descriptors are freed with the engine") {
  const std::int64_t alive = simt::cublaslt_counts().alive;
  {
    Layer layer(DType::f32, 4, 4, 4);
    layer.device->run(layer.op);
    CHECK(simt::cublaslt_counts().alive > alive);
  }
  CHECK(simt::cublaslt_counts().alive == alive);
}

TEST_CASE("a product whose plan is made can be recorded and replayed") {
  cuda::LinearEngine engine;
  cudaStream_t stream;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  const auto matrix = [](std::int64_t count, float value) {
    float* data = nullptr;
    REQUIRE(cudaMalloc(&data, static_cast<std::size_t>(count) * sizeof(float)) == cudaSuccess);
    const std::vector<float> values(static_cast<std::size_t>(count), value);
    cudaMemcpy(data, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice);
    return Tensor{data, DType::f32};
  };
  const Tensor a = matrix(4 * 8, 2), b = matrix(8 * 12, 0.5f), out = matrix(4 * 12, 1);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);  // copies were on another stream
  const cuda::Product product{.M = 4, .N = 12, .K = 8, .a = a, .b = b, .out = out, .accumulate = true};
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK_THROWS_WITH(engine.run(stream, product), Contains("(4 x 8) by (8 x 12) product was recorded before it was run"));
  cudaGraph_t graph;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  cudaGraphDestroy(graph);
  engine.run(stream, product);
  CHECK(engine.plan_count() == 1);
  cudaGraphExec_t executable;
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  engine.run(stream, product);
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  for (int replay = 0; replay < 2; ++replay) REQUIRE(cudaGraphLaunch(executable, stream) == cudaSuccess);
  float last = 0;
  cudaMemcpyAsync(&last, out.at(4 * 12 - 1).data, sizeof last, cudaMemcpyDeviceToHost, stream);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(last == 1 + 3 * 8 * 2 * 0.5f);
  CHECK(engine.plan_count() == 1);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  for (const Tensor& tensor : {a, b, out}) cudaFree(tensor.data);
  cudaStreamDestroy(stream);
}

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
      {DType::bf16, Activation::gelu_tanh, true, true, CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
      {DType::bf16, Activation::gelu_tanh, false, true, CUBLASLT_EPILOGUE_GELU_AUX},
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
  Layer ragged(DType::bf16, 8, 16, 23);  // no leading dimension for GELU_AUX
  ragged.op.activation = Activation::gelu_tanh;
  ragged.op.pre = ragged.filled(DType::bf16, 8 * 23);
  ragged.device->run(ragged.op);
  CHECK(simt::cublaslt_counts().epilogue == CUBLASLT_EPILOGUE_BIAS);
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
