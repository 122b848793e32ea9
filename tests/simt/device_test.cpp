// The CUDA device as the rest of the program uses it: what waits for what.
#include "kernels/device.h"

#include <numeric>

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

}  // namespace
}  // namespace outeffhop::test
