// The runtime stand-in: streams and events, and what they do not order.
#include <thread>

#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;
using simt::Violation;

TEST_CASE("work runs when something waits for it, with the arguments of its launch") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x({1});
  float value = 2;
  add(stream, x.data(), value);
  value = 100;
  CHECK(x.now()[0] == 1);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == 3);
}

TEST_CASE("the order of two streams is not that of submission") {
  Machine machine;
  const StreamOfTest a, b;
  const Floats x({1});
  SECTION("what nobody waits for does not run") {
    set(a, x.data(), 5);
    twice(b, x.data());
    REQUIRE(cudaStreamSynchronize(b) == cudaSuccess);
    CHECK(x.now()[0] == 2);
    REQUIRE(cudaStreamSynchronize(a) == cudaSuccess);
    CHECK(x.now()[0] == 5);
  }
  SECTION("the device is emptied in an order of its own") {
    set(a, x.data(), 5);
    twice(b, x.data());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(x.now()[0] == 5);
  }
  SECTION("or everything else runs first") {
    simt::set_stream_order(simt::StreamOrder::others_first);
    set(a, x.data(), 5);
    twice(b, x.data());
    REQUIRE(cudaStreamSynchronize(a) == cudaSuccess);
    CHECK(x.now()[0] == 5);
    set(a, x.data(), 1);
    REQUIRE(cudaStreamSynchronize(a) == cudaSuccess);
    twice(a, x.data());
    set(b, x.data(), 5);
    REQUIRE(cudaStreamSynchronize(a) == cudaSuccess);
    CHECK(x.now()[0] == 10);
  }
  SECTION("an event orders them") {
    const EventOfTest event;
    set(a, x.data(), 5);
    REQUIRE(cudaEventRecord(event, a) == cudaSuccess);
    set(a, x.data(), 50);  // behind the event
    REQUIRE(cudaStreamWaitEvent(b, event) == cudaSuccess);
    twice(b, x.data());
    REQUIRE(cudaStreamSynchronize(b) == cudaSuccess);
    CHECK(x.now()[0] == 10);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(x.now()[0] == 50);
  }
}

TEST_CASE("a wait is for the event as it was last recorded before") {
  Machine machine;
  const StreamOfTest a, b;
  const Floats x({1}), y({1});
  const EventOfTest event(cudaEventDisableTiming);
  REQUIRE(cudaStreamWaitEvent(b, event) == cudaSuccess);  // never recorded: nothing to wait for
  set(a, x.data(), 5);
  REQUIRE(cudaEventRecord(event, a) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(b, event) == cudaSuccess);
  set(a, x.data(), 6);
  REQUIRE(cudaEventRecord(event, a) == cudaSuccess);
  set(b, y.data(), 2);
  REQUIRE(cudaStreamSynchronize(b) == cudaSuccess);
  CHECK(x.now()[0] == 5);
  REQUIRE(cudaEventSynchronize(event) == cudaSuccess);
  CHECK(x.now()[0] == 6);
}

TEST_CASE("the default stream and blocking streams wait for each other, others do not") {
  Machine machine;
  const StreamOfTest blocking(cudaStreamDefault), other(cudaStreamDefault), apart(cudaStreamNonBlocking);
  const Floats x({1}), y({1});
  set(blocking, x.data(), 5);
  twice(nullptr, x.data());
  add(other, x.data(), 1);
  set(apart, y.data(), 7);
  REQUIRE(cudaStreamSynchronize(other) == cudaSuccess);
  CHECK(x.now()[0] == 11);
  CHECK(y.now()[0] == 1);
  add(other, x.data(), 1);
  REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
  CHECK(x.now()[0] == 12);
  CHECK(y.now()[0] == 1);
  twice(nullptr, x.data());
  const StreamOfTest late(cudaStreamDefault);
  add(late, x.data(), 1);
  REQUIRE(cudaStreamSynchronize(late) == cudaSuccess);
  CHECK(x.now()[0] == 25);
  // llm.c's softmax backward ran on the default stream, beside a stream that does not wait for it.
  set(nullptr, y.data(), 3);
  twice(apart, y.data());
  REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
  CHECK(y.now()[0] == 3);
}

TEST_CASE("a query finds work undone once") {
  Machine machine;
  const StreamOfTest stream;
  const EventOfTest event;
  const Floats x({1});
  CHECK(cudaStreamQuery(stream) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  add(stream, x.data(), 1);
  REQUIRE(cudaEventRecord(event, stream) == cudaSuccess);
  add(stream, x.data(), 1);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  CHECK(cudaGetLastError() == cudaErrorNotReady);
  CHECK(x.now()[0] == 1);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(x.now()[0] == 2);
  CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
  CHECK(cudaStreamQuery(stream) == cudaSuccess);
  CHECK(x.now()[0] == 3);
  (void)cudaGetLastError();
}

TEST_CASE("elapsed time") {
  Machine machine;
  const StreamOfTest stream;
  const EventOfTest start, end, untimed(cudaEventDisableTiming);
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorInvalidResourceHandle);  // not recorded
  REQUIRE(cudaEventRecord(start, stream) == cudaSuccess);
  REQUIRE(cudaLaunchHostFunc(
              stream, [](void*) { simt::spend(3); }, nullptr) == cudaSuccess);
  REQUIRE(cudaEventRecord(end, stream) == cudaSuccess);
  REQUIRE(cudaEventRecord(untimed, stream) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorNotReady);
  REQUIRE(cudaEventSynchronize(end) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&milliseconds, start, end) == cudaSuccess);
  CHECK(milliseconds == Approx(3.001));  // the same in every run
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&milliseconds, start, untimed) == cudaErrorInvalidResourceHandle);
}

TEST_CASE("a destroyed stream still does its work") {
  Machine machine;
  const Floats x({1}), y({1});
  cudaStream_t apart = nullptr, blocking = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&apart, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaStreamCreate(&blocking) == cudaSuccess);
  set(apart, x.data(), 5);
  set(blocking, y.data(), 6);
  REQUIRE(cudaStreamDestroy(apart) == cudaSuccess);
  REQUIRE(cudaStreamDestroy(blocking) == cudaSuccess);
  CHECK(cudaStreamDestroy(apart) == cudaErrorInvalidResourceHandle);
  CHECK(x.now()[0] == 1);
  REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
  CHECK(y.now()[0] == 6);
  CHECK(x.now()[0] == 1);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(x.now()[0] == 5);
}

__global__ void diverging_kernel() {
  if (threadIdx.x == 0) __syncthreads();
}

TEST_CASE("a Violation comes from the call that runs the work, and leaves the streams empty") {
  Machine machine;
  const StreamOfTest a, b;
  const Floats x({1});
  add(b, x.data(), 1);
  cuda::launch({.kernel = "diverging", .grid = 1, .block = 2, .stream = a}, diverging_kernel);
  add(a, x.data(), 1);
  CHECK(x.now()[0] == 1);
  CHECK_THROWS_WITH(cudaStreamSynchronize(a), Contains("diverging"));
  CHECK(cudaStreamSynchronize(a) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(x.now()[0] == 1);
  add(a, x.data(), 1);
  CHECK(cudaStreamSynchronize(a) == cudaSuccess);
  CHECK(x.now()[0] == 2);
  SECTION("also where it ran in a call that may not throw") {
    float* data = nullptr;
    REQUIRE(cudaMalloc(&data, 4) == cudaSuccess);
    cuda::launch({.kernel = "diverging", .grid = 1, .block = 2, .stream = a}, diverging_kernel);
    CHECK_NOTHROW(cudaFree(data));
    CHECK_THROWS_WITH(cudaStreamSynchronize(b), Contains("diverging"));
  }
}

TEST_CASE("work may not call the API") {
  Machine machine;
  static cudaError_t seen;
  seen = cudaSuccess;
  REQUIRE(cudaLaunchHostFunc(
              nullptr, [](void*) { seen = cudaDeviceSynchronize(); }, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(seen == cudaErrorNotPermitted);
  (void)cudaGetLastError();
}

TEST_CASE("a stream can be very long") {
  Machine machine;
  const StreamOfTest stream;
  static int count;
  count = 0;
  bool taken = true;
  for (int i = 0; i < 200000; ++i) taken &= simt::submit(stream, [] { ++count; }) == cudaSuccess;
  REQUIRE(taken);
  SECTION("and run") {
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(count == 200000);
  }
  SECTION("or be dropped") {
    REQUIRE(cudaDeviceReset() == cudaSuccess);
    CHECK(count == 0);
  }
}

TEST_CASE("a kernel goes to a stream of the current device") {
  Machine machine(2);
  const Floats x({1});
  const StreamOfTest stream;
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  CHECK_THROWS_WITH(add(stream, x.data(), 1), Contains("invalid resource handle"));
  const EventOfTest event;  // of device 1
  CHECK(cudaEventRecord(event, stream) == cudaErrorInvalidResourceHandle);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  add(stream, x.data(), 1);
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(x.now()[0] == 1);  // that was the other device
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(x.now()[0] == 2);
}

TEST_CASE("calls of several threads are taken one at a time") {
  Machine machine;
  const Floats x({0}), y({0});
  const auto work = [](float* data) {
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    for (int i = 0; i < 300; ++i) {
      add(stream, data, 1);
      if (i % 10 == 0) cudaStreamSynchronize(stream);
    }
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  };
  std::thread other(work, x.data());
  work(y.data());
  other.join();
  CHECK(x.now()[0] == 300);
  CHECK(y.now()[0] == 300);
}

}  // namespace
}  // namespace outeffhop::test
