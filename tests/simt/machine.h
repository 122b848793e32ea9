// What the tests of the runtime stand-in share.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "tests/catch.h"
#include "tests/simt/runtime.h"

namespace outeffhop::test {

/// A fresh machine with `devices` GPUs; at the end nothing may be left on it.
class Machine {
 public:
  explicit Machine(int devices = 1, std::size_t bytes_each = std::size_t{1} << 20) {
    reset();
    simt::set_devices(devices, bytes_each);
  }
  Machine(const Machine&) = delete;
  ~Machine() {
    CHECK(simt::live_objects() == std::vector<std::string>{});
    CHECK_NOTHROW(simt::check_memory());
    reset();
    simt::set_devices(1, std::size_t{4} << 30);
  }

 private:
  static void reset() {
    simt::set_driver(true);
    simt::set_stream_order(simt::StreamOrder::needed_only);
    int devices = 0;
    cudaGetDeviceCount(&devices);
    for (int device = 0; device < devices; ++device) {
      cudaSetDevice(device);
      cudaDeviceReset();
    }
    cudaSetDevice(0);
    (void)cudaGetLastError();
  }
};

/// Floats on the current device.
class Floats {
 public:
  explicit Floats(std::size_t count) : bytes_(count * sizeof(float)) { REQUIRE(cudaMalloc(&data_, bytes_) == cudaSuccess); }
  Floats(std::initializer_list<float> values) : Floats(values.size()) {
    REQUIRE(cudaMemcpy(data_, values.begin(), bytes_, cudaMemcpyHostToDevice) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
  Floats(const Floats&) = delete;
  ~Floats() { cudaFree(data_); }
  float* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  /// As they are in memory, whatever has yet to run.
  std::vector<float> now() const { return {data_, data_ + bytes_ / sizeof(float)}; }

 private:
  float* data_ = nullptr;
  std::size_t bytes_;
};

class Pinned {
 public:
  explicit Pinned(std::size_t count) { REQUIRE(cudaMallocHost(&data_, count * sizeof(float)) == cudaSuccess); }
  Pinned(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data_); }
  float* data() const { return data_; }
  float& operator[](std::size_t i) const { return data_[i]; }

 private:
  float* data_ = nullptr;
};

class StreamOfTest {
 public:
  explicit StreamOfTest(unsigned flags = cudaStreamNonBlocking) {
    REQUIRE(cudaStreamCreateWithFlags(&stream_, flags) == cudaSuccess);
  }
  StreamOfTest(const StreamOfTest&) = delete;
  ~StreamOfTest() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }  // NOLINT: implicit by intent

 private:
  cudaStream_t stream_ = nullptr;
};

class EventOfTest {
 public:
  explicit EventOfTest(unsigned flags = cudaEventDefault) {
    REQUIRE(cudaEventCreateWithFlags(&event_, flags) == cudaSuccess);
  }
  EventOfTest(const EventOfTest&) = delete;
  ~EventOfTest() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }  // NOLINT

 private:
  cudaEvent_t event_ = nullptr;
};

__global__ inline void add_kernel(float* x, float value) { *x += value; }
__global__ inline void set_kernel(float* x, float value) { *x = value; }
__global__ inline void double_kernel(float* x) { *x *= 2; }

/// *x += value, in a stream.
inline void add(cudaStream_t stream, float* x, float value) {
  cuda::launch({.kernel = "add", .grid = 1, .block = 1, .stream = stream}, add_kernel, x, value);
}
inline void set(cudaStream_t stream, float* x, float value) {
  cuda::launch({.kernel = "set", .grid = 1, .block = 1, .stream = stream}, set_kernel, x, value);
}
inline void twice(cudaStream_t stream, float* x) {
  cuda::launch({.kernel = "double", .grid = 1, .block = 1, .stream = stream}, double_kernel, x);
}

}  // namespace outeffhop::test
