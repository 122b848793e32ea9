// A batch on its way from host memory to the device.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batch.h"
#include "kernels/device.h"
#include "model/model.h"

namespace outeffhop {

/// Device memory for one micro-batch, made once and filled again for each batch.
class DeviceBatch {
 public:
  /// Room for max_batch sequences of max_sequence tokens of a model of this config.
  DeviceBatch(Device& device, const ModelConfig& config, std::int64_t max_batch, std::int64_t max_sequence);

  /// Copies a batch in and returns the view the model reads, valid until the next upload. Adds what the model needs and the
  /// loader does not know: rows of the position table, counted from the start of each document of a packed row, and the
  /// labelled positions gathered. `type_ids` (B, T), if not empty, are segment types. Throws Error(data) for an id outside
  /// the model's tables and for key ranges that leave their row or fall.
  ModelBatch upload(const Batch& batch, const std::vector<std::int32_t>& type_ids = {});

  /// Of device memory and of the host memory that uploads go through.
  std::size_t bytes() const;

 private:
  Device& device_;
  std::int64_t max_batch_, max_sequence_, vocab_size_, type_vocab_size_, position_offset_, padding_position_, position_rows_;
  Buffer input_ids_, position_ids_, type_ids_, key_lengths_, key_ranges_, sample_ids_, label_rows_, label_ids_;
  std::vector<std::int32_t> positions_, rows_, ids_;  // reused, so that a step allocates nothing
};

/// Labelled tokens of a batch.
std::int64_t count_labels(const Batch& batch);

}  // namespace outeffhop
