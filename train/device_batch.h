// A batch on its way from host memory to the device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "data/batch.h"
#include "kernels/device.h"
#include "model/model.h"

namespace outeffhop {

/// Memory for one micro-batch, made once and filled again for each batch. All arrays of a batch lie in one block, which is
/// packed in host memory, copied to one of two blocks of the device while that works on the batch before, and from there to
/// the block that the model reads: the same addresses for all batches of one shape.
class DeviceBatch {
 public:
  /// Room for max_batch sequences of max_sequence tokens of a model of this config.
  DeviceBatch(Device& device, const ModelConfig& config, std::int64_t max_batch, std::int64_t max_sequence);

  /// Copies a batch in and returns the view the model reads, valid until the next upload. Adds what the model needs and the
  /// loader does not know: rows of the position table, counted from the start of each document of a packed row, and the
  /// labelled positions gathered. `type_ids` (B, T), if not empty, are segment types. Throws Error(data) for an id outside
  /// the model's tables and for key ranges that leave their row or fall.
  ModelBatch upload(const Batch& batch, const std::vector<std::int32_t>& type_ids = {});

  /// Begins to copy a batch beside what the device does. An upload of the same object with the same samples goes on from
  /// there; one of another batch makes the copy useless and no more. Throws as upload.
  void prepare(const Batch& batch, const std::vector<std::int32_t>& type_ids = {});

  /// A sum of losses for those who keep none themselves.
  double* loss_sum() const { return loss_sum_.as<double>(); }

  std::size_t device_bytes() const;
  /// Of the memory that uploads go through.
  std::size_t host_bytes() const;

 private:
  template <class T>
  const T* place(const std::vector<T>& values);
  bool is_prepared(const Batch& batch) const;

  Device& device_;
  std::int64_t max_batch_, max_sequence_, vocab_size_, type_vocab_size_, position_offset_, padding_position_, position_rows_;
  Buffer block_, loss_sum_;
  std::array<Buffer, 2> ahead_;
  std::size_t turn_ = 0;  ///< of ahead_, to be written next
  std::vector<std::byte> packed_;
  std::size_t used_ = 0;  ///< bytes of packed_
  ModelBatch view_;
  const Batch* prepared_ = nullptr;
  std::vector<std::uint64_t> prepared_samples_;
  std::vector<std::int32_t> positions_, rows_, ids_;  // reused, so that a step allocates nothing
};

/// What tells apart the work that `model` does with `batch`, adding to `loss_sum`: see Device::repeat. `name` says whether
/// that is a forward or more, with dropout or without.
WorkKey work_key(const char* name, const Model& model, const ModelBatch& batch, const double* loss_sum);

/// Labelled tokens of a batch.
std::int64_t count_labels(const Batch& batch);

}  // namespace outeffhop
