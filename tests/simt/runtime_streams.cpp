// Streams and events of the runtime stand-in: what runs, when, and after what.
#include <algorithm>
#include <unordered_set>

#include "tests/simt/runtime_state.h"

namespace outeffhop::simt {
namespace {

constexpr double kWorkMilliseconds = 1e-3;  // what a piece of work takes that does not say

bool is_legacy(const Stream& stream) {
  return runtime().devices[static_cast<std::size_t>(stream.device)].legacy.get() == &stream;
}

void execute(Node& node) {
  Runtime& state = runtime();
  const std::function<void()> work = std::exchange(node.work, nullptr);
  node.after.clear();
  node.complete = nullptr;
  node.done = true;
  node.finished = state.clock;
  if (!work) return;
  state.executing = true;
  try {
    work();
  } catch (...) {
    state.executing = false;
    drop_all();
    throw;
  }
  state.executing = false;
  node.finished = state.clock += kWorkMilliseconds;
}

/// Depth first, without recursion: streams are thousands of nodes long.
void run_one(const NodePtr& last) {
  Nodes path{last};
  std::unordered_set<const Node*> on_path{last.get()};
  while (!path.empty()) {
    const NodePtr node = path.back();
    if (const auto complete = node->done ? nullptr : node->complete) complete(true);  // others may run or drop it meanwhile
    // Work of other streams first: a stream's own order is the last thing to rely on.
    const auto next = std::find_if(node->after.rbegin(), node->after.rend(), [](const NodePtr& n) { return !n->done; });
    if (!node->done && next != node->after.rend()) {
      if (!on_path.insert(next->get()).second) {
        drop_all();
        throw Violation("streams wait for each other: none of them can go on");
      }
      path.push_back(*next);
      continue;
    }
    if (!node->done) execute(*node);
    on_path.erase(node.get());
    path.pop_back();
  }
}

/// Whether a node can run without waiting for other threads.
bool can_run(const NodePtr& last) {
  Nodes open{last};
  std::unordered_set<const Node*> seen{last.get()};
  while (!open.empty()) {
    const NodePtr node = open.back();
    open.pop_back();
    if (node->done) continue;
    if (node->complete && !node->complete(false)) return false;
    for (const NodePtr& before : node->after)
      if (seen.insert(before.get()).second) open.push_back(before);
  }
  return true;
}

cudaError_t query(const Nodes& nodes) {
  Nodes waiting;
  std::copy_if(nodes.begin(), nodes.end(), std::back_inserter(waiting), [](const NodePtr& node) { return !node->done; });
  const bool all_queried = std::all_of(waiting.begin(), waiting.end(), [](const NodePtr& node) { return node->queried; });
  if (!all_queried || !std::all_of(waiting.begin(), waiting.end(), can_run)) {
    for (const NodePtr& node : waiting) node->queried = true;
    return cudaErrorNotReady;
  }
  run(waiting);
  return cudaSuccess;
}

Event* find_event(cudaEvent_t event) { return owns(runtime().events, event) ? event : nullptr; }

/// The error of calls that ask how far an event is.
cudaError_t refuse_event(const Event& event) {
  if (!event.capture) return refuse_unsafe();
  if (!event.capture->ended) event.capture->invalidated = true;
  return cudaErrorCapturedEvent;
}

void add(std::vector<std::size_t>& to, const std::vector<std::size_t>& from) {
  for (const std::size_t node : from)
    if (std::find(to.begin(), to.end(), node) == to.end()) to.push_back(node);
}

/// cudaStreamWaitEvent for an event recorded in a capture: the stream joins it.
cudaError_t wait_for_captured(Stream& stream, const Event& event) {
  if (event.capture->ended) return cudaErrorCapturedEvent;
  if (event.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
  if (is_legacy(stream)) {
    event.capture->invalidated = true;
    return cudaErrorStreamCaptureImplicit;
  }
  if (stream.capture && stream.capture != event.capture) {
    event.capture->invalidated = true;
    return invalidate(stream, cudaErrorStreamCaptureMerge);
  }
  stream.capture = event.capture;
  add(stream.capture_tail, event.capture_tail);
  return cudaSuccess;
}

}  // namespace

NodePtr make_node(std::function<void()> work, Nodes after) {
  std::erase_if(after, [](const NodePtr& node) { return !node || node->done; });
  return std::make_shared<Node>(Node{std::move(work), std::move(after)});
}

void spend(double milliseconds) { runtime().clock += milliseconds; }

void set_stream_order(StreamOrder order) {
  const std::lock_guard lock(runtime().mutex);
  runtime().order = order;
}

Stream* find_stream(cudaStream_t stream) {
  if (!stream) return runtime().current().legacy.get();
  return owns(runtime().streams, stream) ? stream : nullptr;
}

Nodes tails_of(Stream& stream) {
  Nodes tails;
  if (is_legacy(stream)) {
    for (const auto& other : runtime().streams)
      if (other->blocking && other->device == stream.device && other->tail) tails.push_back(other->tail);
  }
  if (stream.tail) tails.push_back(stream.tail);
  return tails;
}

cudaError_t enqueue(Stream& stream, const Maker& make, NodePtr* made) {
  if (stream.capture) {
    if (stream.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    auto& nodes = stream.capture->nodes;
    nodes.push_back({make, stream.capture_tail});
    stream.capture_tail = {nodes.size() - 1};
    return cudaSuccess;
  }
  if (const cudaError_t refused = refuse_implicit(stream)) return refused;
  stream.tail = make(tails_of(stream));
  if (is_legacy(stream)) {  // blocking streams wait for it
    for (const auto& other : runtime().streams)
      if (other->blocking && other->device == stream.device) other->tail = stream.tail;
  }
  if (made) *made = stream.tail;
  runtime().changed.notify_all();
  return cudaSuccess;
}

cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
  return api([&] {
    Stream* on = find_stream(stream);
    if (!on) return cudaErrorInvalidResourceHandle;
    return enqueue(*on, [work = std::move(work)](Nodes after) { return make_node(work, std::move(after)); });
  });
}

void run(const Nodes& nodes) {
  Runtime& state = runtime();
  throw_faults();
  if (state.order == StreamOrder::others_first) {
    Nodes others;
    for (auto stream = state.streams.rbegin(); stream != state.streams.rend(); ++stream)
      if ((*stream)->tail && can_run((*stream)->tail)) others.push_back((*stream)->tail);
    for (const NodePtr& node : others)
      if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) run_one(node);
  }
  for (const NodePtr& node : nodes) run_one(node);
  std::erase_if(state.detached, [](const auto& entry) { return entry.second->done; });
  state.changed.notify_all();
  throw_faults();
}

void run_device(int device) {
  Runtime& state = runtime();
  Nodes tails;
  for (auto stream = state.streams.rbegin(); stream != state.streams.rend(); ++stream)
    if ((*stream)->device == device && (*stream)->tail) tails.push_back((*stream)->tail);
  for (const auto& [its_device, tail] : state.detached)
    if (its_device == device) tails.push_back(tail);
  if (const NodePtr& legacy = state.devices[static_cast<std::size_t>(device)].legacy->tail) tails.push_back(legacy);
  run(tails);
}

void throw_faults() {
  auto& faults = runtime().faults;
  if (faults.empty()) return;
  std::string text = faults.front();
  if (faults.size() > 1) text += " (and " + std::to_string(faults.size() - 1) + " more)";
  faults.clear();
  throw Violation(text);
}

void drop_all() {
  Runtime& state = runtime();
  Nodes open;
  const auto take = [&](NodePtr& tail) {
    if (tail) open.push_back(std::exchange(tail, nullptr));
  };
  for (const auto& stream : state.streams) take(stream->tail);
  for (DeviceState& device : state.devices) take(device.legacy->tail);
  for (auto& [device, tail] : state.detached) take(tail);
  state.detached.clear();
  while (!open.empty()) {
    const NodePtr node = open.back();
    open.pop_back();
    if (node->done) continue;
    open.insert(open.end(), node->after.begin(), node->after.end());
    node->after.clear();
    node->work = nullptr;
    node->complete = nullptr;
    node->done = true;
  }
  for (const auto& then : state.when_dropped) then();
  state.changed.notify_all();
}

}  // namespace outeffhop::simt

using namespace outeffhop::simt;  // NOLINT: the API is in the global namespace

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return api([&] {
    if (!stream || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    const bool blocking = flags != cudaStreamNonBlocking;
    const NodePtr tail = blocking ? runtime().current().legacy->tail : nullptr;
    runtime().streams.push_back(std::make_unique<Stream>(Stream{current_device, blocking, tail}));
    *stream = runtime().streams.back().get();
    return cudaSuccess;
  });
}
// Returns at once; what the stream was given still runs.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return api([&] {
    Runtime& state = runtime();
    if (!stream || !find_stream(stream)) return cudaErrorInvalidResourceHandle;
    if (stream->capture) invalidate(*stream, cudaErrorStreamCaptureUnsupported);
    if (stream->tail && !stream->tail->done) {
      NodePtr& legacy = state.devices[static_cast<std::size_t>(stream->device)].legacy->tail;
      if (stream->blocking)
        legacy = make_node(nullptr, {legacy, stream->tail});
      else
        state.detached.emplace_back(stream->device, stream->tail);
    }
    destroy(state.streams, stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return api([&] {
    Stream* on = find_stream(stream);
    if (!on) return cudaErrorInvalidResourceHandle;
    if (on->capture) return invalidate(*on, cudaErrorStreamCaptureUnsupported);
    if (const cudaError_t refused = refuse_implicit(*on)) return refused;
    run(tails_of(*on));
    return cudaSuccess;
  });
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return api([&] {
    Stream* on = find_stream(stream);
    if (!on) return cudaErrorInvalidResourceHandle;
    if (on->capture) return invalidate(*on, cudaErrorStreamCaptureUnsupported);
    if (const cudaError_t refused = refuse_implicit(*on)) return refused;
    return query(tails_of(*on));
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return api([&] {
    Stream* on = find_stream(stream);
    const Event* awaited = find_event(event);
    if (!on || !awaited) return cudaErrorInvalidResourceHandle;
    if (flags != 0) return cudaErrorInvalidValue;
    if (awaited->capture) return wait_for_captured(*on, *awaited);
    if (!awaited->node) return cudaSuccess;  // never recorded
    if (on->capture) return invalidate(*on, cudaErrorStreamCaptureIsolation);
    return enqueue(*on, [node = awaited->node](Nodes after) {
      after.push_back(node);
      return make_node(nullptr, std::move(after));
    });
  });
}
cudaError_t cudaDeviceSynchronize() {
  return api([&] {
    if (const cudaError_t refused = refuse_while_capturing()) return refused;
    run_device(current_device);
    return cudaSuccess;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (!function) return last_error = cudaErrorInvalidValue;
  return submit(stream, [=] { function(data); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return api([&] {
    if (!event || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0) return cudaErrorInvalidValue;
    runtime().events.push_back(std::make_unique<Event>(Event{current_device, (flags & cudaEventDisableTiming) == 0}));
    *event = runtime().events.back().get();
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return api([&] { return destroy(runtime().events, event) ? cudaSuccess : cudaErrorInvalidResourceHandle; });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return api([&] {
    Stream* on = find_stream(stream);
    Event* recorded = find_event(event);
    if (!on || !recorded || recorded->device != on->device) return cudaErrorInvalidResourceHandle;
    if (on->capture) {
      if (on->capture->invalidated) return cudaErrorStreamCaptureInvalidated;
      recorded->capture = on->capture;
      recorded->capture_tail = on->capture_tail;
      recorded->node = nullptr;
      return cudaSuccess;
    }
    NodePtr made;
    const cudaError_t status = enqueue(
        *on, [](Nodes after) { return make_node(nullptr, std::move(after)); }, &made);
    if (status != cudaSuccess) return status;
    recorded->capture = nullptr;
    recorded->node = made;
    return cudaSuccess;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return api([&] {
    const Event* awaited = find_event(event);
    if (!awaited) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t refused = refuse_event(*awaited)) return refused;
    if (awaited->node) run(Nodes{awaited->node});
    return cudaSuccess;
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return api([&] {
    const Event* awaited = find_event(event);
    if (!awaited) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t refused = refuse_event(*awaited)) return refused;
    return awaited->node ? query({awaited->node}) : cudaSuccess;
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return api([&] {
    const Event *first = find_event(start), *second = find_event(end);
    if (!milliseconds) return cudaErrorInvalidValue;
    if (!first || !second || !first->timing || !second->timing) return cudaErrorInvalidResourceHandle;
    if (first->capture || second->capture) return cudaErrorCapturedEvent;
    if (!first->node || !second->node) return cudaErrorInvalidResourceHandle;
    if (!first->node->done || !second->node->done) return cudaErrorNotReady;
    *milliseconds = static_cast<float>(second->node->finished - first->node->finished);
    return cudaSuccess;
  });
}
