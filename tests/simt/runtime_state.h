// What the files of the runtime stand-in share. Everything is guarded by Runtime::mutex, which api() takes.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/simt/runtime.h"

namespace outeffhop::simt {

struct Node;
using NodePtr = std::shared_ptr<Node>;
using Nodes = std::vector<NodePtr>;

/// Work that waits to be run, after all of `after`.
struct Node {
  std::function<void()> work;
  Nodes after;
  /// Whether `after` is complete, where that depends on others (ranks that have yet to come). With `wait` it returns true,
  /// when it is, or throws.
  std::function<bool(bool wait)> complete = nullptr;
  bool done = false;
  bool queried = false;  ///< cudaErrorNotReady has been said of it
  double finished = 0;  ///< milliseconds, as Runtime::clock
};
/// Makes the node of a submission once it is known what it comes after: at once, or at each replay of a graph.
using Maker = std::function<NodePtr(Nodes after)>;
NodePtr make_node(std::function<void()> work, Nodes after);

/// A node of a graph that is being captured or was.
struct GraphNode {
  Maker make;
  std::vector<std::size_t> after;
};

struct Capture {
  Stream* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::vector<GraphNode> nodes;
  bool invalidated = false, ended = false;
};
using CapturePtr = std::shared_ptr<Capture>;

struct Stream {
  int device;
  bool blocking;
  NodePtr tail;  ///< the last that was submitted
  CapturePtr capture = nullptr;
  std::vector<std::size_t> capture_tail = {};  ///< nodes of the graph that the next one comes after
};

struct Event {
  int device;
  bool timing;
  NodePtr node = nullptr;
  CapturePtr capture = nullptr;  ///< it was last recorded in this one, after `capture_tail`
  std::vector<std::size_t> capture_tail = {};
};

struct Graph {
  std::vector<GraphNode> nodes;
};

/// An executable graph; replays of one do not overlap.
struct Replay {
  std::vector<GraphNode> nodes;
  NodePtr last = nullptr;
};
struct GraphExec {
  std::shared_ptr<Replay> replay;
};

struct Allocation {
  std::size_t bytes;
  bool pinned;
  int device;
  unsigned long long number;
  int pending_reads = 0;  ///< copies that will read it, of pinned memory
};

struct Freed {
  std::byte* data;
  Allocation allocation;
};

struct DeviceState {
  std::size_t total, used = 0;
  std::unique_ptr<Stream> legacy;
};

struct Runtime {
  std::recursive_mutex mutex;
  std::condition_variable_any changed;  ///< something was submitted, run or dropped
  bool driver = true;
  bool executing = false;  ///< work is running, on the thread that holds the mutex
  StreamOrder order = StreamOrder::needed_only;
  double clock = 0;  ///< milliseconds that all work took: what events tell
  std::vector<DeviceState> devices;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::pair<int, NodePtr>> detached;  ///< device and tail of streams destroyed with work in them
  std::vector<std::unique_ptr<Event>> events;
  std::vector<std::unique_ptr<Graph>> graphs;
  std::vector<std::unique_ptr<GraphExec>> executables;
  std::vector<CapturePtr> captures;                  ///< those that have not ended
  std::map<std::uintptr_t, Allocation> allocations;  ///< by their begin
  unsigned long long allocations_made = 0;
  std::deque<Freed> freed;  ///< kept to see who writes to it, the oldest first
  std::size_t freed_bytes = 0;
  std::map<const void*, std::size_t> opted_in;  ///< kernels' largest dynamic shared memory
  std::vector<std::string> launched;            ///< kernels, for take_launched()
  GraphCounts graph_counts;
  std::vector<std::string> faults;              ///< found where nothing may be thrown
  std::vector<std::function<void()>> when_dropped;
  int communicators = 0;  ///< of NCCL, that are not destroyed

  Runtime();
  ~Runtime();
  DeviceState& current();
};
Runtime& runtime();

inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local int current_device = 0;

/// The body of an API call: one at a time, nothing without a driver or from inside work, errors remembered.
template <class Call>
cudaError_t api(Call&& call) {
  Runtime& state = runtime();
  std::unique_lock lock(state.mutex);
  cudaError_t status;
  if (!state.driver)
    status = cudaErrorInsufficientDriver;
  else if (state.executing)
    status = cudaErrorNotPermitted;
  else
    status = call();
  if (status != cudaSuccess) last_error = status;
  return status;
}

/// A handle's object; the legacy stream for null; null for what is none (any more).
Stream* find_stream(cudaStream_t stream);
template <class T>
bool owns(const std::vector<std::unique_ptr<T>>& all, const T* one) {
  for (const auto& candidate : all)
    if (candidate.get() == one) return one != nullptr;
  return false;
}
/// Destroys the object of a handle; false if there is none.
template <class T>
bool destroy(std::vector<std::unique_ptr<T>>& all, const T* one) {
  return std::erase_if(all, [one](const auto& candidate) { return candidate.get() == one; }) != 0;
}

/// Puts work behind what a stream has, or records it. `made`: the node, where it was not recorded.
cudaError_t enqueue(Stream& stream, const Maker& make, NodePtr* made = nullptr);
/// All that a stream has been given.
Nodes tails_of(Stream& stream);
/// Runs `nodes`, and all that they come after.
void run(const Nodes& nodes);
/// All that a device has been given.
void run_device(int device);
/// Throws what was found where nothing may be thrown.
void throw_faults();
/// Forgets all work that has not run.
void drop_all();

/// Marks the capture that `stream` is in as broken by a call it may not make; returns `status`.
cudaError_t invalidate(Stream& stream, cudaError_t status);
/// The legacy stream waits for blocking streams: not while one of them is captured. Ends in cudaErrorStreamCaptureImplicit.
cudaError_t refuse_implicit(const Stream& stream);
/// For calls that no capture sees, such as cudaMalloc: success, or the error of a capture that forbids it, now invalidated.
cudaError_t refuse_unsafe();
/// For calls that wait for the whole device.
cudaError_t refuse_while_capturing();

/// Frees what is left of a device's memory.
void release_memory(int device);

}  // namespace outeffhop::simt
