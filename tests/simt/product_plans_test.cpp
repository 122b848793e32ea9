// Plans of matrix products: that they are measured once, kept, and taken over by another device of the same kind.
#include <cublasLt.h>

#include "kernels/cuda/linear_engine.h"
#include "tests/simt/linear_layer.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;

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
                                       std::string(plans).insert(plans.find("\"M\":") + 4, "-"),
                                       std::string(plans).replace(plans.find("\"fp32\""), 6, "\"fp99\""),
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

}  // namespace outeffhop::test
