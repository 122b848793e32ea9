// The device of the runtime stand-in: what it is, which errors there are, and launches.
#include <fmt/format.h>

#include <cstring>
#include <new>

#include "tests/simt/runtime_state.h"

namespace outeffhop::simt {
namespace {

constexpr std::size_t kMostLaunchedKept = 4096;

constexpr std::size_t kSharedWithoutAsking = 48 * 1024;

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
#define ERROR_TEXT(error, text) \
  { error, #error, text }
constexpr ErrorText kErrors[] = {
    ERROR_TEXT(cudaSuccess, "no error"),
    ERROR_TEXT(cudaErrorInvalidValue, "invalid argument"),
    ERROR_TEXT(cudaErrorMemoryAllocation, "out of memory"),
    ERROR_TEXT(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR_TEXT(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR_TEXT(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR_TEXT(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR_TEXT(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR_TEXT(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR_TEXT(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR_TEXT(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR_TEXT(cudaErrorNotReady, "device not ready"),
    ERROR_TEXT(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR_TEXT(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR_TEXT(cudaErrorNotPermitted, "operation not permitted"),
    ERROR_TEXT(cudaErrorNotSupported, "operation not supported"),
    ERROR_TEXT(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR_TEXT(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR_TEXT(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    ERROR_TEXT(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    ERROR_TEXT(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR_TEXT(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR_TEXT(cudaErrorStreamCaptureImplicit,
               "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR_TEXT(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR_TEXT(cudaErrorStreamCaptureWrongThread,
               "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR_TEXT(cudaErrorUnknown, "unknown error"),
};
#undef ERROR_TEXT

constexpr int kMultiprocessors = 4, kThreadsPerMultiprocessor = 2048;
constexpr std::size_t kSharedPerMultiprocessor = 228 * 1024;

std::vector<DeviceState> make_devices(int count, std::size_t bytes_each) {
  std::vector<DeviceState> devices;
  for (int device = 0; device < count; ++device)
    devices.push_back({bytes_each, 0, std::make_unique<Stream>(Stream{device, true, nullptr})});
  return devices;
}

bool is_device(int device) { return device >= 0 && device < static_cast<int>(runtime().devices.size()); }

}  // namespace

Runtime::Runtime() : devices(make_devices(1, std::size_t{4} << 30)) {}
// Memory that is still allocated stays so: it is a leak, which AddressSanitizer tells.
Runtime::~Runtime() {
  drop_all();
  for (const Freed& entry : freed) ::operator delete (entry.data, std::align_val_t{256});
  for (const std::string& fault : faults) fmt::print(stderr, "CUDA stand-in, seen by no call: {}\n", fault);
}
DeviceState& Runtime::current() { return devices[static_cast<std::size_t>(current_device)]; }

Runtime& runtime() {
  static Runtime instance;
  return instance;
}

void set_driver(bool installed) {
  const std::lock_guard lock(runtime().mutex);
  runtime().driver = installed;
}

void set_devices(int count, std::size_t bytes_each) {
  const std::lock_guard lock(runtime().mutex);
  if (const auto live = live_objects(); !live.empty())
    throw Violation("the machine's devices are changed while there is " + live.front());
  runtime().devices = make_devices(count, bytes_each);
  current_device = 0;
}

std::vector<std::string> live_objects() {
  Runtime& state = runtime();
  const std::lock_guard lock(state.mutex);
  std::vector<std::string> live;
  for (const auto& [begin, allocation] : state.allocations)
    live.push_back(fmt::format("{} memory of {} bytes, allocation {}", allocation.pinned ? "pinned" : "device",
                               allocation.bytes, allocation.number));
  live.insert(live.end(), state.streams.size(), "a stream");
  live.insert(live.end(), state.events.size(), "an event");
  live.insert(live.end(), state.graphs.size(), "a graph");
  live.insert(live.end(), state.executables.size(), "an executable graph");
  live.insert(live.end(), static_cast<std::size_t>(state.communicators), "a communicator");
  return live;
}

std::vector<std::string> take_launched() { return std::exchange(runtime().launched, {}); }

void note_launched(std::string name) {
  const std::lock_guard lock(runtime().mutex);
  if (runtime().launched.size() >= kMostLaunchedKept) runtime().launched.clear();
  runtime().launched.push_back(std::move(name));
}

cudaError_t launch_kernel(const void* kernel, const Launch& launch, cudaStream_t stream, std::vector<MemoryUse> arguments,
                          std::function<void()> body) {
  return api([&] {
    const Stream* on = find_stream(stream);
    if (!on || on->device != current_device) return cudaErrorInvalidResourceHandle;
    const Extent3 &block = launch.block, &grid = launch.grid;
    if (block.count() == 0 || block.count() > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
        grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > 0xffff || grid.z > 0xffff)
      return cudaErrorInvalidConfiguration;
    const auto asked = runtime().opted_in.find(kernel);
    const std::size_t allowed =
        std::max(kSharedWithoutAsking, asked == runtime().opted_in.end() ? std::size_t{0} : asked->second);
    if (launch.shared_bytes > allowed) return cudaErrorInvalidValue;
    note_launched(launch.kernel);
    return enqueue(*find_stream(stream), [=](Nodes after) {
      return make_node(
          [=] {
            for (const MemoryUse& argument : arguments) argument.require_alive();
            run(launch, body);
          },
          std::move(after));
    });
  });
}

}  // namespace outeffhop::simt

using namespace outeffhop::simt;  // NOLINT: the API is in the global namespace

const char* cudaGetErrorString(cudaError_t error) {
  for (const ErrorText& entry : kErrors)
    if (entry.error == error) return entry.text;
  return "unrecognized error code";
}
const char* cudaGetErrorName(cudaError_t error) {
  for (const ErrorText& entry : kErrors)
    if (entry.error == error) return entry.name;
  return "unrecognized error code";
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

// Without a driver `count` stays untouched.
cudaError_t cudaGetDeviceCount(int* count) {
  return api([&] {
    if (!count) return cudaErrorInvalidValue;
    *count = static_cast<int>(runtime().devices.size());
    return *count ? cudaSuccess : cudaErrorNoDevice;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return api([&] {
    if (!device) return cudaErrorInvalidValue;
    *device = current_device;
    return cudaSuccess;
  });
}
cudaError_t cudaSetDevice(int device) {
  return api([&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
  });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return api([&] {
    if (!properties) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *properties = {};
    std::strcpy(properties->name, "CPU executor");
    properties->totalGlobalMem = runtime().devices[static_cast<std::size_t>(device)].total;
    properties->sharedMemPerBlock = kSharedWithoutAsking;
    properties->warpSize = kWarpSize;
    properties->maxThreadsPerBlock = 1024;
    properties->major = 9;
    properties->multiProcessorCount = kMultiprocessors;
    properties->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
    properties->sharedMemPerMultiprocessor = kSharedPerMultiprocessor;
    properties->sharedMemPerBlockOptin = kMaxSharedBytes;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return api([&] {
    if (!value) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    const auto answer = [&](auto number) {
      *value = static_cast<int>(number);
      return cudaSuccess;
    };
    switch (attribute) {
      case cudaDevAttrMaxThreadsPerBlock:
        return answer(1024);
      case cudaDevAttrMaxSharedMemoryPerBlock:
        return answer(kSharedWithoutAsking);
      case cudaDevAttrWarpSize:
        return answer(kWarpSize);
      case cudaDevAttrClockRate:
        return answer(1000 * 1000);  // kHz
      case cudaDevAttrMultiProcessorCount:
        return answer(kMultiprocessors);
      case cudaDevAttrMaxThreadsPerMultiProcessor:
        return answer(kThreadsPerMultiprocessor);
      case cudaDevAttrComputeCapabilityMajor:
        return answer(9);
      case cudaDevAttrComputeCapabilityMinor:
        return answer(0);
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return answer(kSharedPerMultiprocessor);
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return answer(kMaxSharedBytes);
    }
    return cudaErrorInvalidValue;
  });
}
// These two work without a driver; its version is 0 then.
cudaError_t cudaDriverGetVersion(int* version) {
  if (!version) return last_error = cudaErrorInvalidValue;
  *version = runtime().driver ? CUDART_VERSION : 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  if (!version) return last_error = cudaErrorInvalidValue;
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return api([&] {
    if (!kernel) return cudaErrorInvalidDeviceFunction;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) > kMaxSharedBytes)
      return cudaErrorInvalidValue;
    runtime().opted_in[kernel] = static_cast<std::size_t>(value);
    return cudaSuccess;
  });
}
// Streams, events and memory of the current device; graphs belong to no device and stay.
cudaError_t cudaDeviceReset() {
  return api([&] {
    Runtime& state = runtime();
    drop_all();
    std::erase_if(state.streams, [](const auto& stream) { return stream->device == current_device; });
    std::erase_if(state.events, [](const auto& event) { return event->device == current_device; });
    std::erase_if(state.captures, [](const auto& capture) { return !find_stream(capture->origin); });
    release_memory(current_device);
    state.opted_in.clear();
    throw_faults();
    return cudaSuccess;
  });
}
