// Device::repeat on the CUDA backend: what is recorded, when it is replayed, and when it must not be.
#include <functional>
#include <string>

#include "kernels/cuda/graphs.h"
#include "kernels/device.h"
#include "tests/simt/machine.h"
#include "tests/simt/profiler_ranges.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;

constexpr std::size_t kMemory = std::size_t{64} << 20;

/// out = x + x, by an op of the device.
void double_by_op(Device& device, const Buffer& x, const Buffer& out) {
  const Tensor tensor{x.data(), DType::f32};
  DropoutAdd op;
  op.B = op.T = op.C = 1;
  op.x = op.residual = tensor;
  op.out = {out.data(), DType::f32};
  device.run(op);
}

void put(Device& device, const Buffer& x, float value) { device.copy_in(x.data(), &value, sizeof value); }
float get(Device& device, const Buffer& x) {
  float value = 0;
  device.copy_out(&value, x.data(), sizeof value);
  return value;
}

/// Work that is repeated: twice x, added up in a count of the times that the host did it.
struct Doubling {
  Device& device;
  const Buffer x{device, sizeof(float)}, out{device, sizeof(float)};
  int calls = 0;

  void operator()() {
    ++calls;
    const Range range(device, "doubling");
    double_by_op(device, x, out);
  }
  /// What comes of it for `value`.
  float repeat(const WorkKey& key, float value) {
    put(device, x, value);
    device.repeat(key, std::ref(*this));
    return get(device, out);
  }
};

/// GlobalNorm of `count` elements, whose block sums are in the device's workspace.
void norm_by_op(Device& device, const Buffer& gradient, const Buffer& control, std::int64_t count) {
  device.run(GlobalNorm{count, {gradient.data(), DType::f32}, control.as<StepControl>()});
}

TEST_CASE("work of a key is done, then recorded, then replayed") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  Doubling doubling{*device};
  const WorkKey key{"doubling", {1, 2}};
  for (int time = 1; time <= 5; ++time) {
    CHECK(doubling.repeat(key, static_cast<float>(time)) == static_cast<float>(2 * time));
    CHECK(doubling.calls == std::min(time, 2));
  }
  // Another key, which differs in its last number, is other work; a name counts by its characters.
  CHECK(doubling.repeat({"doubling", {1, 3}}, 7) == 14);
  CHECK(doubling.calls == 3);
  CHECK(doubling.repeat({std::string("doubling").c_str(), {1, 2}}, 8) == 16);
  CHECK(doubling.calls == 3);
}

TEST_CASE("a replay takes what is in memory when it runs, in its turn among ops and copies") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  Doubling doubling{*device};
  const WorkKey key{"doubling"};
  for (int time = 0; time < 3; ++time) doubling.repeat(key, 1);
  put(*device, doubling.x, 5);
  device->repeat(key, std::ref(doubling));                              // out = 10
  device->copy(doubling.x.data(), doubling.out.data(), sizeof(float));  // x = 10
  device->repeat(key, std::ref(doubling));                              // out = 20
  double_by_op(*device, doubling.out, doubling.x);                      // x = 40
  device->repeat(key, std::ref(doubling));                              // out = 80
  CHECK(get(*device, doubling.out) == 80);
  CHECK(doubling.calls == 2);
}

TEST_CASE("an eager device launches everything by itself, within named ranges") {
  Machine machine(1, kMemory);
  const WorkKey key{"doubling"};
  (void)simt::take_ranges();
  {
    const auto device = make_device({.kind = "cuda", .eager = true});
    Doubling doubling{*device};
    for (int time = 1; time <= 4; ++time) {
      CHECK(doubling.repeat(key, static_cast<float>(time)) == static_cast<float>(2 * time));
      CHECK(doubling.calls == time);
    }
    CHECK(simt::take_ranges().size() == 8);
    device->repeat(key, std::ref(doubling));
    CHECK(simt::take_ranges() == std::vector<std::string>{"doubling", "doubling/doubling"});
    CHECK(simt::open_ranges() == 0);
  }
  const auto device = make_device({"cuda"});
  Doubling doubling{*device};
  for (int time = 0; time < 3; ++time) doubling.repeat(key, 1);
  CHECK(simt::take_ranges().empty());
}

TEST_CASE("memory that is released takes every graph along") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  Doubling doubling{*device};
  const WorkKey key{"doubling"};
  for (int time = 0; time < 3; ++time) doubling.repeat(key, 1);
  CHECK(doubling.calls == 2);
  { const Buffer gone(*device, 64); }
  CHECK(doubling.repeat(key, 2) == 4);
  CHECK(doubling.calls == 3);  // as it is
  CHECK(doubling.repeat(key, 3) == 6);
  CHECK(doubling.calls == 4);  // recorded
  CHECK(doubling.repeat(key, 4) == 8);
  CHECK(doubling.calls == 4);
}

TEST_CASE("a graph that was recorded with another workspace is recorded anew") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  constexpr std::int64_t kFew = 100, kMany = 300 * kGlobalNormBlock;
  const Buffer few(*device, kFew * sizeof(float)), many(*device, kMany * sizeof(float)),
      control(*device, sizeof(StepControl));
  const std::vector<float> ones(kFew, 1.0f);
  device->copy_in(few.data(), ones.data(), few.bytes());
  int calls = 0;
  const auto repeat = [&] {
    const auto work = [&] {
      ++calls;
      norm_by_op(*device, few, control, kFew);
    };
    device->repeat({"norm"}, std::ref(work));
    StepControl result;
    device->copy_out(&result, control.data(), sizeof result);
    return result.gradient_square_sum;
  };
  for (int time = 0; time < 3; ++time) CHECK(repeat() == kFew);
  CHECK(calls == 2);
  norm_by_op(*device, many, control, kMany);  // needs more than there is, which moves the workspace
  CHECK(repeat() == kFew);
  CHECK(calls == 3);
  CHECK(repeat() == kFew);
  CHECK(calls == 3);
}

TEST_CASE("work that throws while it is recorded leaves nothing behind") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  Doubling doubling{*device};
  const WorkKey key{"doubling"};
  doubling.repeat(key, 1);
  put(*device, doubling.x, 3);
  const auto failing = [&] {
    doubling();
    throw std::runtime_error("the work's own");
  };
  CHECK_THROWS_WITH(device->repeat(key, std::ref(failing)), "the work's own");
  CHECK(get(*device, doubling.out) == 2);  // nothing of it ran
  CHECK(doubling.repeat(key, 4) == 8);
  CHECK(doubling.repeat(key, 5) == 10);
  CHECK(doubling.calls == 3);
}

TEST_CASE("what cannot be recorded is an error that names the call") {
  Machine machine(1, kMemory);
  const auto device = make_device({"cuda"});
  Doubling doubling{*device};
  const float one = 1;
  const std::vector<float> large((std::size_t{2} << 20) / sizeof(float));
  const Buffer room(*device, large.size() * sizeof(float));
  const auto refused = [&](const char* name, const std::function<void()>& work, const char* call) {
    INFO(name);
    const WorkKey key{name};
    device->repeat(key, work);  // the first time everything may be done
    CHECK_THROWS_WITH(device->repeat(key, work), Contains(call) && Contains("captur"));
    CHECK(doubling.repeat({"after", {std::int64_t{name[0]}}}, 2) == 4);  // and the device goes on
  };
  refused(
      "waits", [&] { device->synchronize(); }, "cudaStreamSynchronize");
  refused(
      "allocates", [&] { const Buffer buffer(*device, 64); }, "cannot allocate");
  refused(
      "copies in", [&] { device->copy_in(room.data(), large.data(), room.bytes()); }, "cudaMemcpyAsync");
  refused(
      "later copies ahead", [&] { device->copy_in_ahead(room.data(), &one, sizeof one); }, "cuda");
  int nested = 0;
  const auto inner = [&] { ++nested; };
  const auto outer = [&] { device->repeat({"inner"}, inner); };
  CHECK_THROWS_WITH(device->repeat({"outer"}, outer), Contains("\"inner\" was begun within work that is repeated"));
  CHECK(nested == 0);
}

TEST_CASE("a call that nobody checked still ends the recording with an error") {
  Machine machine(1, kMemory);
  const StreamOfTest stream;
  cuda::Workspace workspace;
  const cuda::Context context{stream, workspace};
  cuda::GraphCache graphs(context);
  const auto work = [&] { (void)cudaStreamSynchronize(stream); };
  graphs.repeat({"unchecked"}, work);
  CHECK_THROWS_WITH(graphs.repeat({"unchecked"}, work),
                    Contains("\"unchecked\" cannot be recorded as a CUDA graph: cudaStreamEndCapture"));
  CHECK(graphs.recorded() == 0);
}

TEST_CASE("so many graphs are kept, and the one that was used longest ago goes") {
  Machine machine(1, kMemory);
  const StreamOfTest stream;
  const Floats x({0});
  cuda::Workspace workspace;
  const cuda::Context context{stream, workspace};
  cuda::GraphCache graphs(context);
  int calls = 0;
  const std::function<void()> work = [&] {
    ++calls;
    add(stream, x.data(), 1);
  };
  constexpr auto kMost = static_cast<std::int64_t>(cuda::GraphCache::kMost);
  const auto use = [&](std::int64_t number) {
    const int before = calls;
    graphs.repeat({"adding", {number}}, work);
    return calls - before;
  };
  for (int round = 0; round < 2; ++round)
    for (std::int64_t number = 0; number < kMost; ++number) CHECK(use(number) == 1);
  CHECK(graphs.size() == cuda::GraphCache::kMost);
  CHECK(graphs.recorded() == kMost);
  CHECK(use(0) == 0);
  CHECK(use(kMost) == 1);  // takes the place of number 1
  CHECK(graphs.size() == cuda::GraphCache::kMost);
  CHECK(use(0) == 0);
  CHECK(use(2) == 0);
  CHECK(use(1) == 1);
  CHECK(graphs.replayed() == 3);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == static_cast<float>(2 * kMost + 5));  // what was in flight ran, whatever was dropped
}

}  // namespace
}  // namespace outeffhop::test
