// The CUDA device as the rest of the program uses it: what waits for what.
#include "kernels/device.h"

#include <numeric>

#include "kernels/cuda/copies_ahead.h"
#include "kernels/cuda/staging.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

constexpr std::size_t kMemory = std::size_t{64} << 20;

/// x += x, by an op of the device.
void double_by_op(Device& device, const Buffer& x, std::int64_t count) {
  const Tensor tensor{x.data(), DType::f32};
  DropoutAdd op;
  op.B = op.T = 1;
  op.C = count;
  op.x = tensor;
  op.residual = tensor;
  op.out = tensor;
  device.run(op);
}

float first_of(Device& device, const Buffer& x) {
  float value = 0;
  device.copy_out(&value, x.data(), sizeof value);
  return value;
}

TEST_CASE("auto takes the GPU where there is one, and says why where there is none") {
  const auto is = [](const std::string& kind, const std::string& reason) {
    const DeviceChoice choice = choose_device("auto");
    CHECK(choice.kind == kind);
    CHECK_THAT(choice.reason, Catch::Matchers::Contains(reason));
    CHECK(make_device({})->description().starts_with(kind == "cuda" ? "CUDA" : "CPU"));
  };
  {
    const Machine machine(1, kMemory);
    is("cuda", "GPU");
    CHECK(choose_device("cpu").kind == "cpu");
    CHECK(choose_device("cpu").reason.empty());
    simt::set_driver(false);
    is("cpu", "driver version is insufficient");
    CHECK_THROWS(make_device({"cuda"}));
    simt::set_driver(true);
  }
  const Machine machine(0);
  is("cpu", "no CUDA-capable device");
}

TEST_CASE("ops and copies are on the device's own stream, which waits for no other") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  const Buffer x(*device, sizeof(float));
  const float one = 1;
  device->copy_in(x.data(), &one, sizeof one);
  double_by_op(*device, x, 1);
  CHECK(first_of(*device, x) == 2);
  // What an op left on the default stream would not be there when the device has been waited for: each op test would fail.
  set(nullptr, x.as<float>(), 7);
  device->synchronize();
  CHECK(first_of(*device, x) == 2);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(first_of(*device, x) == 7);
}

TEST_CASE("a copy to the device waits for nothing, and its source may be changed at once") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  constexpr std::int64_t kCount = 1000;
  const Buffer x(*device, kCount * sizeof(float)), y(*device, kCount * sizeof(float));
  device->synchronize();
  std::vector<float> values(kCount);
  std::iota(values.begin(), values.end(), 1.0f);
  device->copy_in(x.data(), values.data(), x.bytes());
  values.assign(kCount, 50.0f);
  CHECK(x.as<float>()[0] == 0);  // in the device's memory, now
  double_by_op(*device, x, kCount);
  device->copy_in(y.data(), values.data(), y.bytes());
  CHECK(x.as<float>()[0] == 0);  // neither has the op run
  device->copy_out(values.data(), x.data(), x.bytes());
  CHECK(values[0] == 2);
  CHECK(values[kCount - 1] == 2.0f * kCount);
  CHECK(first_of(*device, y) == 50);
}

TEST_CASE("more copies than there are buffers wait for the oldest alone") {
  Machine machine(1, kMemory);
  const StreamOfTest stream;
  cuda::Staging staging;
  constexpr std::size_t kCopies = cuda::Staging::kSlots + 1;
  const Floats x(kCopies + 1);
  // Sizes rise and fall, so that buffers are taken again as they are and grown.
  std::vector<float> source(2);
  for (std::size_t round = 0; round < 3; ++round) {
    for (std::size_t i = 0; i < kCopies; ++i) {
      source = {static_cast<float>(100 * round + i), -1.0f};
      staging.copy_in(x.data() + i, source.data(), (1 + (i + round) % 2) * sizeof(float), stream);
    }
    if (round == 0) {
      CHECK(x.now()[0] == 0);
      CHECK(std::isnan(x.now()[1]));
    }
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    for (std::size_t i = 0; i < kCopies; ++i) CHECK(x.now()[i] == static_cast<float>(100 * round + i));
  }
}

TEST_CASE("a large copy needs no buffer of its size") {
  Machine machine(1, kMemory);
  const StreamOfTest stream;
  cuda::Staging staging;
  const Floats x(cuda::Staging::kLargest / sizeof(float) + 1);
  std::vector<float> source(x.bytes() / sizeof(float), 3.0f);
  staging.copy_in(x.data(), source.data(), x.bytes(), stream);
  CHECK(x.now() == source);
  CHECK(simt::live_objects().size() == 2);  // the stream and x
}

TEST_CASE("a copy ahead does not wait for the ops that run beside it, and they do not see it") {
  Machine machine(1, kMemory);
  const StreamOfTest ops;
  const Floats first({1}), second({2}), out({0});
  cuda::CopiesAhead ahead;
  const float values[3] = {10, 20, 30};
  ahead.copy_in(first.data(), &values[0], sizeof(float), ops);
  ahead.await(ops);
  twice(ops, first.data());
  ahead.copy_in(second.data(), &values[1], sizeof(float), ops);
  ahead.await(ops);
  add(ops, out.data(), 1);
  CHECK(second.now()[0] == 2);                                  // as late as can be
  ahead.copy_in(first.data(), &values[2], sizeof(float), ops);  // takes the buffer of the first copy, which has to have run
  CHECK(first.now()[0] == 10);
  CHECK(second.now()[0] == 2);
  ahead.copy_in(second.data(), &values[0], sizeof(float), ops);  // that of the second
  CHECK(second.now()[0] == 20);
  CHECK(first.now()[0] == 10);  // no op has run
  CHECK(out.now()[0] == 0);
  REQUIRE(cudaStreamSynchronize(ops) == cudaSuccess);
  CHECK(out.now()[0] == 1);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(first.now()[0] == 30);  // behind the op that was given before the latest await()
  CHECK(second.now()[0] == 10);
}

TEST_CASE("batches copied ahead to two places in turn are each seen once, whichever stream is ahead") {
  Machine machine(1, kMemory);
  for (const simt::StreamOrder order : {simt::StreamOrder::needed_only, simt::StreamOrder::others_first}) {
    simt::set_stream_order(order);
    const auto device = make_device({"cuda"});
    constexpr std::int64_t kCount = 3, kRounds = 20;
    const Buffer places[2] = {Buffer(*device, kCount * sizeof(float)), Buffer(*device, kCount * sizeof(float))};
    const Buffer read(*device, kCount * sizeof(float)), sum(*device, kCount * sizeof(float));
    std::vector<float> values(kCount);
    const auto copy_ahead = [&](std::int64_t round) {
      values.assign(kCount, static_cast<float>(round));
      device->copy_in_ahead(places[round % 2].data(), values.data(), read.bytes());
      values.assign(kCount, -1000.0f);  // the source may be changed at once
    };
    copy_ahead(0);
    for (std::int64_t round = 0; round < kRounds; ++round) {
      device->await_copies_ahead();
      device->copy(read.data(), places[round % 2].data(), read.bytes());
      if (round + 1 < kRounds) copy_ahead(round + 1);
      DropoutAdd op;
      op.B = op.T = 1;
      op.C = kCount;
      op.x = {read.data(), DType::f32};
      op.residual = op.out = Tensor{sum.data(), DType::f32};
      device->run(op);
      if (round % 7 == 3) device->synchronize();
    }
    CHECK(first_of(*device, sum) == kRounds * (kRounds - 1) / 2);
  }
}

}  // namespace
}  // namespace outeffhop::test
