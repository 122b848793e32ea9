#include "train/checkpoint_writer.h"

#include <exception>
#include <utility>

#include "kernels/error.h"

namespace outeffhop {

CheckpointWriter::CheckpointWriter(const CheckpointContext& context, const ParameterTable& table, std::int64_t keep_last,
                                   std::int64_t keep_every)
    : context_(context), table_(table), keep_last_(keep_last), keep_every_(keep_every), thread_([this] { work(); }) {}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Snapshot& CheckpointWriter::snapshot() {
  const std::lock_guard lock(mutex_);
  require(!writing_, "the snapshot of step {} is still being written", snapshot_.state.step);
  return snapshot_;
}

void CheckpointWriter::start() {
  {
    const std::lock_guard lock(mutex_);
    require(!writing_ && !result_, "a checkpoint of step {} while another is not done", snapshot_.state.step);
    writing_ = true;
  }
  changed_.notify_all();
}

bool CheckpointWriter::wait(std::chrono::milliseconds at_most) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, at_most, [this] { return !writing_; });
}

std::optional<SaveResult> CheckpointWriter::take_result() {
  const std::lock_guard lock(mutex_);
  return std::exchange(result_, std::nullopt);
}

void CheckpointWriter::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return writing_ || leaving_; });
    if (!writing_) return;
    lock.unlock();
    SaveResult result = write();
    lock.lock();
    result_ = std::move(result);
    writing_ = false;
    changed_.notify_all();
  }
}

SaveResult CheckpointWriter::write() const {
  SaveResult result;
  result.step = snapshot_.state.step;
  try {
    result.checkpoint = write_checkpoint(context_, table_, snapshot_);
  } catch (const std::exception& e) {
    result.error = e.what();
    return result;
  }
  try {
    prune_checkpoints(context_.run, keep_last_, keep_every_);
  } catch (const std::exception& e) {
    result.warning = e.what();
  }
  return result;
}

}  // namespace outeffhop
