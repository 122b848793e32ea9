// Stream capture and graphs of the runtime stand-in: a graph is a list of submissions, each with the arguments it was
// recorded with and with what it comes after; a replay makes them again.
#include <algorithm>

#include "tests/simt/runtime_state.h"

namespace outeffhop::simt {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool forbids_unsafe_calls(const Capture& capture) {
  if (capture.mode == cudaStreamCaptureModeRelaxed || thread_mode == cudaStreamCaptureModeRelaxed) return false;
  if (capture.thread == std::this_thread::get_id()) return true;
  return capture.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
}

/// Whether each node is one that `last` come after, or one of them.
bool all_lead_to(const std::vector<GraphNode>& nodes, std::vector<std::size_t> last) {
  std::vector<bool> reached(nodes.size());
  while (!last.empty()) {
    const std::size_t node = last.back();
    last.pop_back();
    if (reached[node]) continue;
    reached[node] = true;
    last.insert(last.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return std::all_of(reached.begin(), reached.end(), [](bool r) { return r; });
}

/// One replay, behind `after` and behind the last replay of the same.
NodePtr replay(Replay& graph, Nodes after) {
  if (graph.last) after.push_back(graph.last);
  Nodes made;
  for (const GraphNode& node : graph.nodes) {
    Nodes before;
    for (const std::size_t i : node.after) before.push_back(made[i]);
    made.push_back(node.make(node.after.empty() ? after : before));
  }
  if (made.empty()) made = after;
  return graph.last = make_node(nullptr, made);
}

}  // namespace

cudaError_t invalidate(Stream& stream, cudaError_t status) {
  if (!stream.capture) return status;
  if (stream.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
  stream.capture->invalidated = true;
  return status;
}

cudaError_t refuse_implicit(const Stream& stream) {
  Runtime& state = runtime();
  if (state.devices[static_cast<std::size_t>(stream.device)].legacy.get() != &stream) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  for (const auto& other : state.streams) {
    if (!other->capture || !other->blocking || other->device != stream.device) continue;
    other->capture->invalidated = true;
    status = cudaErrorStreamCaptureImplicit;
  }
  return status;
}

cudaError_t refuse_unsafe() {
  cudaError_t status = cudaSuccess;
  for (const CapturePtr& capture : runtime().captures) {
    if (!forbids_unsafe_calls(*capture)) continue;
    capture->invalidated = true;
    status = cudaErrorStreamCaptureUnsupported;
  }
  return status;
}

GraphCounts take_graph_counts() {
  const std::lock_guard lock(runtime().mutex);
  return std::exchange(runtime().graph_counts, {});
}

cudaError_t refuse_while_capturing() {
  for (const CapturePtr& capture : runtime().captures) capture->invalidated = true;
  return runtime().captures.empty() ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

}  // namespace outeffhop::simt

using namespace outeffhop::simt;  // NOLINT: the API is in the global namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return api([&] {
    if (!stream) return cudaErrorStreamCaptureUnsupported;  // the legacy stream
    if (!find_stream(stream)) return cudaErrorInvalidResourceHandle;
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    if (stream->capture) return cudaErrorIllegalState;
    stream->capture = std::make_shared<Capture>(Capture{stream, mode, std::this_thread::get_id(), {}});
    stream->capture_tail.clear();
    runtime().captures.push_back(stream->capture);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return api([&] {
    Runtime& state = runtime();
    if (!graph) return cudaErrorInvalidValue;
    *graph = nullptr;
    if (!stream || !find_stream(stream)) return cudaErrorInvalidResourceHandle;
    const CapturePtr capture = stream->capture;
    if (!capture) return cudaErrorIllegalState;
    if (capture->origin != stream) return invalidate(*stream, cudaErrorStreamCaptureUnmatched);
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
      return cudaErrorStreamCaptureWrongThread;
    const std::vector<std::size_t> last = stream->capture_tail;
    for (const auto& other : state.streams) {
      if (other->capture != capture) continue;
      other->capture = nullptr;
      other->capture_tail.clear();
    }
    std::erase(state.captures, capture);
    capture->ended = true;
    if (capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    if (!all_lead_to(capture->nodes, last)) return cudaErrorStreamCaptureUnjoined;
    state.graphs.push_back(std::make_unique<Graph>(Graph{std::move(capture->nodes)}));
    *graph = state.graphs.back().get();
    ++state.graph_counts.captured;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return api([&] {
    const Stream* on = find_stream(stream);
    if (!on) return cudaErrorInvalidResourceHandle;
    if (!status) return cudaErrorInvalidValue;
    if (const cudaError_t refused = refuse_implicit(*on)) return refused;
    *status = !on->capture               ? cudaStreamCaptureStatusNone
              : on->capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return api([&] {
    if (!mode || *mode < cudaStreamCaptureModeGlobal || *mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    std::swap(*mode, thread_mode);
    return cudaSuccess;
  });
}
// `nodes` null: the count alone.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  return api([&] {
    if (!owns(runtime().graphs, graph) || !count) return cudaErrorInvalidValue;
    if (!nodes) {
      *count = graph->nodes.size();
      return cudaSuccess;
    }
    for (std::size_t i = 0; i < *count; ++i) nodes[i] = i < graph->nodes.size() ? &graph->nodes[i] : nullptr;
    *count = std::min(*count, graph->nodes.size());
    return cudaSuccess;
  });
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return api([&] {
    if (!executable || flags != 0 || !owns(runtime().graphs, graph)) return cudaErrorInvalidValue;
    auto made = std::make_shared<Replay>(Replay{graph->nodes});
    runtime().executables.push_back(std::make_unique<GraphExec>(GraphExec{std::move(made)}));
    *executable = runtime().executables.back().get();
    return cudaSuccess;
  });
}
cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream) {
  return api(
      [&] { return owns(runtime().executables, executable) && find_stream(stream) ? cudaSuccess : cudaErrorInvalidValue; });
}
// In a stream that is being captured the whole graph becomes one node.
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return api([&] {
    Stream* on = find_stream(stream);
    if (!on || !owns(runtime().executables, executable)) return cudaErrorInvalidValue;
    ++runtime().graph_counts.launched;
    return enqueue(*on, [graph = executable->replay](Nodes after) { return replay(*graph, std::move(after)); });
  });
}
// A replay that has not run yet still does.
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return api([&] { return destroy(runtime().executables, executable) ? cudaSuccess : cudaErrorInvalidValue; });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return api([&] { return destroy(runtime().graphs, graph) ? cudaSuccess : cudaErrorInvalidValue; });
}
