// The part of the CUDA 13 runtime API that a trainer calls, as stand-ins that run on the CPU: the names, signatures and
// values of the real one, so that host code is compiled unchanged. Where CUDA leaves a choice, the one is made that shows
// mistakes:
//
//   - Streams are deferred. Nothing runs when it is submitted; it runs when a call has to wait for it (synchronisation, a
//     second query, a copy that blocks, cudaFree), and then only that and what it depends on. So the order of two streams
//     is that of events and of the legacy default stream, never that of submission (set_stream_order: the other extreme).
//   - Pageable memory: a copy to the device reads it before the call returns, a copy from the device is done when the call
//     returns. Pinned memory is read and written when the copy runs; what a copy will write holds NaNs until then.
//   - New and freed memory hold NaNs (as fp32 and as bf16). Freed memory is kept aside for a while, to see who writes to it.
//   - A query of work that has not run says cudaErrorNotReady once; the second one finds it done.
//
// What no correct program does is a Violation: copies and fills beyond one live allocation, a pinned buffer freed under a
// copy, a graph replayed over freed memory, streams that wait for each other. It is thrown from the call at which it is
// found; whatever was still to run is then dropped, and all streams are empty and usable. Calls that clean up (cudaFree,
// destroy) do not throw, as they stand in destructors: what they find is thrown by the next call that waits.
// Under AddressSanitizer each allocation has its exact size, so that kernels that read or write beyond it are found too.
//
// Calls of several threads are taken one at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/simt/builtins.h"

#define CUDART_VERSION 13000

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidMemcpyDirection = 21,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorIllegalState = 401,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotPermitted = 800,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureMerge = 902,
  cudaErrorStreamCaptureUnmatched = 903,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorStreamCaptureImplicit = 906,
  cudaErrorCapturedEvent = 907,
  cudaErrorStreamCaptureWrongThread = 908,
  cudaErrorUnknown = 999,
};
enum cudaMemcpyKind : int {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute : int { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr : int {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrClockRate = 13,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem, sharedMemPerBlock;
  int warpSize, maxThreadsPerBlock, major, minor, multiProcessorCount, maxThreadsPerMultiProcessor;
  std::size_t sharedMemPerMultiprocessor, sharedMemPerBlockOptin;
};
enum cudaStreamCaptureMode : int {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus : int {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1;

namespace outeffhop::simt {
struct Stream;
struct Event;
struct Graph;
struct GraphNode;
struct GraphExec;
}  // namespace outeffhop::simt
using cudaStream_t = outeffhop::simt::Stream*;
using cudaEvent_t = outeffhop::simt::Event*;
using cudaGraph_t = outeffhop::simt::Graph*;
using cudaGraphNode_t = const outeffhop::simt::GraphNode*;
using cudaGraphExec_t = outeffhop::simt::GraphExec*;
using cudaHostFn_t = void (*)(void* data);

// The device: runtime_device.cpp.
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaDeviceReset();

// Memory and copies: runtime_memory.cpp.
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** data, std::size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, std::size_t bytes);
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* data, int value, std::size_t bytes);
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream = nullptr);
template <class T>
cudaError_t cudaMalloc(T** data, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(data), bytes);
}
template <class T>
cudaError_t cudaMallocHost(T** data, std::size_t bytes, unsigned flags = 0) {
  return cudaHostAlloc(reinterpret_cast<void**>(data), bytes, flags);
}
template <class T>
cudaError_t cudaHostAlloc(T** data, std::size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(data), bytes, flags);
}

// Streams and events: runtime_streams.cpp.
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

// Capture and graphs: runtime_graphs.cpp.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

namespace outeffhop::simt {

// For the other stand-ins.

/// Work for a stream, in its order. What is being captured becomes a node of a graph. Returns the error of a stream that
/// cannot take it.
cudaError_t submit(cudaStream_t stream, std::function<void()> work);

/// A place in memory of the stand-in's, and the allocation it was in when it was noted.
class MemoryUse {
 public:
  /// Throws Violation, beginning with `what`, unless [data, data + bytes) lies in one live allocation on a device.
  static MemoryUse device(const void* data, std::size_t bytes, const std::string& what);
  /// An argument of a kernel: null, or the begin or end of something in device or pinned memory.
  static MemoryUse argument(const void* data, const std::string& what);
  /// Throws Violation if the allocation is no more.
  void require_alive() const;

 private:
  MemoryUse(const void* data, unsigned long long allocation, std::string what)
      : data_(data), allocation_(allocation), what_(std::move(what)) {}
  const void* data_;
  unsigned long long allocation_;
  std::string what_;
};

/// A launch of `body` once a thread, as cudaLaunchKernelEx: returns its errors, among them the one for more than 48 KiB of
/// shared memory that cudaFuncSetAttribute was not asked for. Pointers among the arguments have to be alive when it runs.
cudaError_t launch_kernel(const void* kernel, const Launch& launch, cudaStream_t stream, std::vector<MemoryUse> arguments,
                          std::function<void()> body);

/// Called by work as it runs: it takes so long, by the clock of events. That clock has no part of real time: work that says
/// nothing takes a microsecond.
void spend(double milliseconds);

/// Adds a name to what take_launched() returns.
void note_launched(std::string name);

// For tests.

/// What runs where a call waits: only what it waits for (at start), or everything else first.
enum class StreamOrder { needed_only, others_first };
void set_stream_order(StreamOrder order);

/// Whether the machine has a driver, and how many GPUs of how much memory. At start: one, of 4 GiB.
void set_driver(bool installed);
void set_devices(int count, std::size_t bytes_each);

/// Names of the kernels launched since the last call, in order (the latest few thousand): which of several serves an op. A
/// product of cuBLASLt is among them as "product M x N x K".
std::vector<std::string> take_launched();

/// Graphs that were captured, and replays that were asked for, since the last call.
struct GraphCounts {
  int captured = 0, launched = 0;
};
GraphCounts take_graph_counts();

/// Everything that is allocated or made and not yet freed or destroyed, in words; what of it a device reset would lose.
std::vector<std::string> live_objects();

/// Throws Violation if freed memory was written to, if something was written right behind an allocation, or if something was
/// freed that could not be.
void check_memory();

}  // namespace outeffhop::simt
