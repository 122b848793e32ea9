// Work that is done again and again, as CUDA graphs: recorded when it is done for the second time, replayed from then on.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <map>

#include "kernels/cuda/context.h"
#include "kernels/device.h"

namespace outeffhop::cuda {

/// Graphs of work on one stream, by their keys.
///
/// The first time, work is done as it is: that grows the workspace, makes the plans of matrix products and whatever else a
/// stream that is being captured may not do. A graph holds addresses. One that was recorded with another workspace is
/// recorded anew, and clear() forgets them all: to be called before memory is freed that ops may have been given.
class GraphCache {
 public:
  /// Labels of a micro-batch spread over several buckets: 15 % of 32,768 tokens are 4,915 +- 65, so that six standard
  /// deviations on either side are 13 buckets of 64. Twice that for evaluation, and room for batches of several shapes. Of
  /// more, the one that was used longest ago goes.
  static constexpr std::size_t kMost = 64;

  explicit GraphCache(const Context& context) : context_(context) {}
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;
  ~GraphCache() { clear(); }

  /// Device::repeat. What `work` throws while it is recorded goes through, and nothing is left of the recording. Throws
  /// Error(internal) with the name of the key and of the call when the work cannot be recorded.
  void repeat(const WorkKey& key, const std::function<void()>& work);

  /// Graphs that are in flight still end.
  void clear() noexcept;

  std::size_t size() const { return entries_.size(); }
  std::int64_t recorded() const { return recorded_; }  ///< graphs made so far
  std::int64_t replayed() const { return replayed_; }  ///< times that one took the place of its work

 private:
  struct Entry {
    cudaGraphExec_t graph = nullptr;  ///< null: done once, not yet recorded
    std::int64_t workspace = 0;       ///< Workspace::generation() that it was recorded with
    std::int64_t used = 0;            ///< time of the last use, in calls
  };

  void record(const WorkKey& key, Entry& entry, const std::function<void()>& work);
  void drop_oldest();

  const Context& context_;
  std::map<WorkKey, Entry> entries_;
  std::int64_t calls_ = 0, recorded_ = 0, replayed_ = 0;
  bool busy_ = false;
};

}  // namespace outeffhop::cuda
