// Checkpoints written while training goes on.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "train/checkpoint.h"

namespace outeffhop {

/// How a save ended.
struct SaveResult {
  std::int64_t step = 0;
  std::filesystem::path checkpoint;  ///< empty: it failed
  std::string error;                 ///< why it failed
  std::string warning;               ///< saved, but what should have been deleted then could not be
};

/// Owns the memory that a checkpoint is written from, and the thread that writes. There is one snapshot, so at most one write
/// is in flight: who wants to save again waits for it, and no checkpoint that was due is left out.
///
/// Not thread-safe itself: one thread, the one that trains, uses it.
class CheckpointWriter {
 public:
  /// After each checkpoint prune_checkpoints(run, keep_last, keep_every). `context` and `table` must outlive this object.
  CheckpointWriter(const CheckpointContext& context, const ParameterTable& table, std::int64_t keep_last,
                   std::int64_t keep_every);
  /// Waits for the write in flight.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// The memory to fill before start(); not while a write is in flight. Its arrays are the caller's to size, once, before the
  /// first step: a save then allocates no more than names and headers.
  Snapshot& snapshot();

  /// Begins to write the snapshot and returns at once. Not while a write is in flight, nor before its result was taken.
  void start();

  /// Waits until no write is in flight, or for so long; returns whether none is.
  bool wait(std::chrono::milliseconds at_most = std::chrono::hours(24 * 365));

  /// The result of the write that start() began, once, when it has ended. No failure of a write is thrown anywhere.
  std::optional<SaveResult> take_result();

 private:
  void work();
  SaveResult write() const;

  const CheckpointContext& context_;
  const ParameterTable& table_;
  const std::int64_t keep_last_, keep_every_;
  Snapshot snapshot_;  // the thread's while writing_
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool writing_ = false, leaving_ = false;
  std::optional<SaveResult> result_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace outeffhop
