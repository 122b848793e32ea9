#include "kernels/cuda/graphs.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "kernels/cuda/check.h"

namespace outeffhop::cuda {
namespace {

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph>;

/// A stream that is being captured while this lives.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    OUTEFFHOP_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture() {
    if (ended_) return;
    (void)end();
    (void)cudaGetLastError();  // work that failed has said why
  }

  /// What was captured; null, with the status in `status`, where a call broke the capture.
  Graph end(cudaError_t* status = nullptr) {
    ended_ = true;
    cudaGraph_t graph = nullptr;
    const cudaError_t result = cudaStreamEndCapture(stream_, &graph);
    if (status) *status = result;
    return Graph(graph);
  }

 private:
  cudaStream_t stream_;
  bool ended_ = false;
};

/// True while it lives.
class Flag {
 public:
  explicit Flag(bool& flag) : flag_(flag) { flag_ = true; }
  Flag(const Flag&) = delete;
  Flag& operator=(const Flag&) = delete;
  ~Flag() { flag_ = false; }

 private:
  bool& flag_;
};

}  // namespace

void GraphCache::repeat(const WorkKey& key, const std::function<void()>& work) {
  require(!busy_, "the work \"{}\" was begun within work that is repeated", key.name);
  ++calls_;
  const auto found = entries_.find(key);
  if (found == entries_.end()) {
    const Flag busy(busy_);
    work();
    if (entries_.size() == kMost) drop_oldest();
    entries_[key].used = calls_;
    return;
  }
  Entry& entry = found->second;
  entry.used = calls_;
  if (entry.graph && entry.workspace != context_.workspace.generation()) {
    OUTEFFHOP_CUDA(cudaGraphExecDestroy(entry.graph));
    entry.graph = nullptr;
  }
  if (entry.graph)
    ++replayed_;
  else
    record(key, entry, work);
  OUTEFFHOP_CUDA(cudaGraphLaunch(entry.graph, context_.stream));
}

void GraphCache::record(const WorkKey& key, Entry& entry, const std::function<void()>& work) {
  const Flag busy(busy_);
  Capture capture(context_.stream);
  work();
  cudaError_t status = cudaSuccess;
  const Graph graph = capture.end(&status);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    fail(ErrorKind::internal, "the work \"{}\" cannot be recorded as a CUDA graph: cudaStreamEndCapture failed: {}",
         key.name, cudaGetErrorString(status));
  }
  OUTEFFHOP_CUDA(cudaGraphInstantiate(&entry.graph, graph.get(), 0));
  entry.workspace = context_.workspace.generation();
  ++recorded_;
}

void GraphCache::drop_oldest() {
  const auto oldest = std::min_element(entries_.begin(), entries_.end(),
                                       [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
  if (oldest->second.graph) OUTEFFHOP_CUDA(cudaGraphExecDestroy(oldest->second.graph));
  entries_.erase(oldest);
}

void GraphCache::clear() noexcept {
  for (auto& [key, entry] : entries_)
    if (entry.graph) (void)cudaGraphExecDestroy(entry.graph);
  entries_.clear();
}

}  // namespace outeffhop::cuda
