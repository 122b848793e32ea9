// The runtime stand-in: the device, memory, copies, and the faults that it finds in them.
#include "kernels/device.h"
#include "tests/simt/machine.h"

namespace outeffhop::test {
namespace {

using Catch::Matchers::Contains;
using simt::Violation;

TEST_CASE("errors are remembered until they are asked for") {
  Machine machine;
  float value;
  CHECK(cudaMemcpyAsync(&value, &value + 1, 4, static_cast<cudaMemcpyKind>(9)) == cudaErrorInvalidMemcpyDirection);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidMemcpyDirection);
  int device = -1;
  CHECK(cudaGetDevice(&device) == cudaSuccess);
  CHECK(device == 0);
  CHECK(cudaGetLastError() == cudaErrorInvalidMemcpyDirection);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
  CHECK(std::string(cudaGetErrorName(cudaErrorStreamCaptureIsolation)) == "cudaErrorStreamCaptureIsolation");
}

TEST_CASE("a machine without a driver answers 35 and touches nothing") {
  Machine machine;
  simt::set_driver(false);
  int count = 77, version = -1;
  void* data = &count;
  CHECK(cudaGetDeviceCount(&count) == 35);
  CHECK(count == 77);
  CHECK(cudaMalloc(&data, 4) == 35);
  CHECK(data == &count);
  CHECK(cudaStreamSynchronize(nullptr) == 35);
  CHECK(cudaDriverGetVersion(&version) == cudaSuccess);
  CHECK(version == 0);
  try {
    make_device({"cuda"});
    FAIL("a device was made");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::unsupported);
    CHECK_THAT(error.what(), Contains("driver") && Contains("--device cpu"));
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
  }
  CHECK(make_device({"cpu", 1}));
  simt::set_driver(true);
}

TEST_CASE("a machine with a driver and no GPU says so") {
  Machine machine(0);
  int count = 77;
  CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice);
  CHECK(count == 0);
  CHECK_THROWS_WITH(make_device({"cuda"}), Contains("needs an NVIDIA GPU") && Contains("--device cpu"));
}

TEST_CASE("device memory ends where the machine's does") {
  Machine machine(2, 4096);
  std::size_t free = 0, total = 0;
  void *a = nullptr, *b = nullptr, *other = nullptr;
  REQUIRE(cudaMalloc(&a, 3000) == cudaSuccess);
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free == 1096);
  CHECK(total == 4096);
  CHECK(cudaMalloc(&b, 1097) == cudaErrorMemoryAllocation);
  CHECK(b == nullptr);
  CHECK(cudaMalloc(&b, SIZE_MAX) == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&b, 1096) == cudaSuccess);
  CHECK(cudaSetDevice(1) == cudaSuccess);  // the other GPU's is its own
  CHECK(cudaMalloc(&other, 4096) == cudaSuccess);
  CHECK(simt::live_objects().size() == 3);
  CHECK_THAT(simt::live_objects().front(), Contains("device memory of"));
  for (void* data : {a, b, other}) CHECK(cudaFree(data) == cudaSuccess);
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free == total);
}

TEST_CASE("a device that is full is an Error that names the size") {
  SECTION("when a tensor does not fit") {
    Machine machine(1, std::size_t{64} << 20);
    const auto device = make_device({"cuda"});
    CHECK_THROWS_WITH(Buffer(*device, 64000001), Contains("cannot allocate 64000001 bytes"));
  }
  SECTION("when the device itself does not, of which nothing is left behind") {
    Machine machine(1, 1000);
    CHECK_THROWS_WITH(make_device({"cuda"}), Contains("no memory left"));
  }
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}

TEST_CASE("new memory is NaN as fp32 and as bf16") {
  Machine machine;
  const Floats x(3);
  const Pinned host(3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(std::isnan(x.now()[i]));
    CHECK(std::isnan(host[i]));
    std::uint16_t half;
    std::memcpy(&half, reinterpret_cast<const char*>(x.data()) + 2 * i, 2);
    CHECK((half & 0x7f80u) == 0x7f80u);
    CHECK((half & 0x7fu) != 0);
  }
}

TEST_CASE("leaks are listed, and a reset takes them") {
  Machine machine;
  void* data = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  REQUIRE(cudaMalloc(&data, 123) == cudaSuccess);
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaEventCreate(&event) == cudaSuccess);
  const auto live = simt::live_objects();
  REQUIRE(live.size() == 3);
  CHECK_THAT(live[0], Contains("123 bytes"));
  CHECK(live[1] == "a stream");
  CHECK(live[2] == "an event");
  CHECK(cudaDeviceReset() == cudaSuccess);
  CHECK(simt::live_objects().empty());
  CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  CHECK(cudaEventRecord(event) == cudaErrorInvalidResourceHandle);
}

TEST_CASE("freeing what is not allocated is an error, and a Violation of the next call that waits") {
  Machine machine;
  void *device = nullptr, *pinned = nullptr;
  float foreign = 0;
  REQUIRE(cudaMalloc(&device, 64) == cudaSuccess);
  REQUIRE(cudaMallocHost(&pinned, 64) == cudaSuccess);
  const auto wrong = [](cudaError_t status, const char* what) {
    CHECK(status == cudaErrorInvalidValue);
    CHECK_THROWS_WITH(cudaDeviceSynchronize(), Contains(what));
    CHECK(cudaDeviceSynchronize() == cudaSuccess);  // told once
  };
  wrong(cudaFree(&foreign), "cudaFree");
  wrong(cudaFree(static_cast<char*>(device) + 8), "no begin of live device memory");
  wrong(cudaFree(pinned), "cudaFree");
  wrong(cudaFreeHost(device), "cudaFreeHost");
  CHECK(cudaFree(device) == cudaSuccess);
  wrong(cudaFree(device), "cudaFree");
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
  wrong(cudaFreeHost(pinned), "cudaFreeHost");
}

TEST_CASE("copies and fills lie in one live allocation") {
  Machine machine;
  const Floats x(4), y(4);
  const Pinned pinned(4);
  float host[8] = {};
  const auto copy = [](void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  };
  CHECK_THROWS_WITH(copy(x.data(), host, 20, cudaMemcpyHostToDevice),
                    Contains("destination") && Contains("20 bytes from byte 0") && Contains("of 16 bytes"));
  CHECK_THROWS_WITH(copy(x.data() + 1, host, 16, cudaMemcpyHostToDevice), Contains("16 bytes from byte 4"));
  CHECK_THROWS_WITH(copy(x.data() - 1, host, 8, cudaMemcpyHostToDevice), Contains("4 bytes before"));
  CHECK_THROWS_WITH(copy(host, x.data() + 3, 8, cudaMemcpyDeviceToHost), Contains("source"));
  CHECK_THROWS_WITH(copy(host, host + 4, 16, cudaMemcpyDeviceToHost), Contains("no live allocation"));
  CHECK_THROWS_WITH(copy(pinned.data(), host, 16, cudaMemcpyHostToDevice), Contains("pinned host memory"));
  CHECK_THROWS_WITH(copy(x.data(), y.data(), 16, cudaMemcpyHostToDevice), Contains("memory of the device"));
  CHECK_THROWS_WITH(copy(x.data(), pinned.data(), 20, cudaMemcpyHostToDevice), Contains("source"));
  CHECK_THROWS_WITH(copy(x.data(), x.data() + 1, 8, cudaMemcpyDeviceToDevice), Contains("overlap"));
  CHECK_THROWS_WITH(cudaMemsetAsync(x.data() + 2, 0, 9), Contains("9 bytes from byte 8"));
  CHECK_THROWS_WITH(cudaMemset(host, 0, 4), Contains("no live allocation"));
  CHECK(copy(x.data(), host, 0, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemset(x.data(), 0, 16) == cudaSuccess);
  CHECK(copy(y.data(), x.data(), 16, cudaMemcpyDefault) == cudaSuccess);
  CHECK(copy(host, y.data(), 16, cudaMemcpyDefault) == cudaSuccess);
}

TEST_CASE("pageable memory: read before the call returns, written when it returns") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x(1);
  float host = 3;
  REQUIRE(cudaMemcpyAsync(x.data(), &host, 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  host = 4;                       // too late to matter
  CHECK(std::isnan(x.now()[0]));  // and the device does not have it yet
  add(stream, x.data(), 1);
  CHECK(std::isnan(x.now()[0]));
  REQUIRE(cudaMemcpyAsync(&host, x.data(), 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(host == 4);
}

TEST_CASE("pinned memory: a source that is changed too early, and a result that is read too early, are seen") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x(1);
  const Pinned in(1), out(1);
  in[0] = 3;
  out[0] = 17;  // say, the loss of the step before
  REQUIRE(cudaMemcpyAsync(x.data(), in.data(), 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data(), x.data(), 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  in[0] = 4;                  // the copy has not run
  CHECK(std::isnan(out[0]));  // nor has this one
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(out[0] == 4);
}

TEST_CASE("a pinned buffer that is still to be read keeps its values when it is also to be written") {
  Machine machine;
  const StreamOfTest stream;
  const Floats x(1), y({5});
  const Pinned both(1);
  both[0] = 3;
  REQUIRE(cudaMemcpyAsync(x.data(), both.data(), 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(both.data(), y.data(), 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(x.now()[0] == 3);
  CHECK(both[0] == 5);
}

TEST_CASE("cudaMemcpy and cudaMemset on the default stream") {
  Machine machine;
  const Floats x({1, 2}), y(2);
  float host[2] = {};
  REQUIRE(cudaMemcpy(y.data(), x.data(), 8, cudaMemcpyDeviceToDevice) == cudaSuccess);
  CHECK(std::isnan(y.now()[0]));  // between two places on the device nobody waits
  REQUIRE(cudaMemcpy(host, y.data(), 8, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(host[1] == 2);
  REQUIRE(cudaMemset(x.data(), 0, 8) == cudaSuccess);
  CHECK(x.now()[0] == 1);
  const Pinned pinned(2);
  REQUIRE(cudaMemcpy(pinned.data(), x.data(), 8, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(pinned[0] == 0);
  REQUIRE(cudaMemset(pinned.data(), 0, 4) == cudaSuccess);  // done at once: the host may look
  CHECK(pinned[0] == 0);
  pinned[0] = 9;
  REQUIRE(cudaMemcpy(x.data(), pinned.data(), 8, cudaMemcpyHostToDevice) == cudaSuccess);
  pinned[0] = 10;
  CHECK(x.now()[0] == 9);
}

TEST_CASE("cudaFree waits for the work that uses the memory, cudaFreeHost does not") {
  Machine machine;
  const StreamOfTest stream;
  const Floats kept({0});
  float* data = nullptr;
  REQUIRE(cudaMalloc(&data, 4) == cudaSuccess);
  set(stream, data, 5);
  REQUIRE(cudaMemcpyAsync(kept.data(), data, 4, cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
  REQUIRE(cudaFree(data) == cudaSuccess);
  CHECK(kept.now()[0] == 5);

  float* pinned = nullptr;
  REQUIRE(cudaMallocHost(&pinned, 4) == cudaSuccess);
  *pinned = 1;
  REQUIRE(cudaMemcpyAsync(kept.data(), pinned, 4, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  REQUIRE(cudaFreeHost(pinned) == cudaSuccess);
  CHECK_THROWS_WITH(cudaStreamSynchronize(stream), Contains("was freed before it was used"));
}

TEST_CASE("a kernel's pointers are the device's, and alive") {
  Machine machine;
  float host = 0;
  CHECK_THROWS_WITH(add(nullptr, &host, 1), Contains("kernel add, argument 1") && Contains("no live memory"));
  float* freed = nullptr;
  REQUIRE(cudaMalloc(&freed, 4) == cudaSuccess);
  REQUIRE(cudaFree(freed) == cudaSuccess);
  CHECK_THROWS_AS(add(nullptr, freed, 1), Violation);
  const Pinned pinned(1);
  pinned[0] = 1;
  add(nullptr, pinned.data(), 1);  // the device can reach it
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(pinned[0] == 2);
}

#if !defined(__SANITIZE_ADDRESS__)  // which ends the program at these
TEST_CASE("memory that is written after it was freed, or behind its end, is found") {
  Machine machine;
  float* data = nullptr;
  REQUIRE(cudaMalloc(&data, 4) == cudaSuccess);
  REQUIRE(cudaFree(data) == cudaSuccess);
  float* volatile stale = data;
  *stale = 1;
  CHECK_THROWS_WITH(simt::check_memory(), Contains("was written after it was freed"));
  *stale = 0;
  std::memcpy(stale, "\xed\x7f\xed\x7f", 4);

  REQUIRE(cudaMalloc(&data, 6) == cudaSuccess);
  reinterpret_cast<volatile char*>(data)[7] = 0;
  CHECK_THROWS_WITH(simt::check_memory(), Contains("written 1 bytes behind the end") && Contains("of 6 bytes"));
  REQUIRE(cudaFree(data) == cudaSuccess);
  CHECK_THROWS_WITH(cudaDeviceSynchronize(), Contains("behind the end"));
}
#endif

__global__ void nothing_kernel() {}

TEST_CASE("launches that no device takes are refused at once") {
  Machine machine;
  const auto attempt = [](simt::Extent3 grid, simt::Extent3 block, std::size_t shared = 0) {
    return simt::launch_kernel(reinterpret_cast<const void*>(nothing_kernel), {"nothing", grid, block, shared}, nullptr, {},
                               nothing_kernel);
  };
  CHECK(attempt({1}, {1024}) == cudaSuccess);
  CHECK(attempt({1}, {1025}) == cudaErrorInvalidConfiguration);
  CHECK(attempt({1}, {1, 1, 65}) == cudaErrorInvalidConfiguration);
  CHECK(attempt({0}, {1}) == cudaErrorInvalidConfiguration);
  CHECK(attempt({1, 65536}, {1}) == cudaErrorInvalidConfiguration);
  CHECK(attempt({1}, {1}, 48 * 1024) == cudaSuccess);
  CHECK(attempt({1}, {1}, 48 * 1024 + 1) == cudaErrorInvalidValue);
  const auto* kernel = reinterpret_cast<const void*>(nothing_kernel);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024) == cudaSuccess);
  CHECK(attempt({1}, {1}, 48 * 1024 + 1) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  // launch() asks by itself.
  cuda::launch({.kernel = "nothing", .grid = 1, .block = 1, .shared_bytes = 200 * 1024}, nothing_kernel);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK_THROWS_WITH(cuda::launch({.kernel = "nothing", .grid = 1, .block = 2000}, nothing_kernel), Contains("nothing"));
}

}  // namespace
}  // namespace outeffhop::test
