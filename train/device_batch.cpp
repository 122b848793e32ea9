#include "train/device_batch.h"

#include <algorithm>
#include <cstring>

#include "model/head.h"

namespace outeffhop {
namespace {

void check_ids(const std::vector<std::int32_t>& ids, std::int64_t bound, const char* what) {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= bound)
      fail(ErrorKind::data, "a batch holds the {} {}, but the model knows 0 to {}", what, id, bound - 1);
  }
}

/// Attention counts on ranges that stay in their row and never fall; a position, on a range that holds its token.
void check_key_ranges(const Batch& batch) {
  if (batch.key_ranges.empty()) return;
  require(batch.key_ranges.size() == 2 * batch.input_ids.size(),
          "a batch of {} x {} tokens has {} ends of key ranges, expected two for each token", batch.B, batch.T,
          batch.key_ranges.size());
  const std::int32_t* range = batch.key_ranges.data();
  for (std::int64_t b = 0; b < batch.B; ++b) {
    std::int64_t least_begin = 0, least_end = 0;
    for (std::int64_t t = 0; t < batch.T; ++t, range += 2) {
      const std::int64_t begin = range[0], end = range[1];
      const bool holds_token = begin <= t && (t < end || begin == end);
      if (begin < least_begin || end < least_end || end > batch.T || !holds_token)
        fail(ErrorKind::data,
             "token {} of row {} of a packed batch has the key range [{}, {}); a range lies in its row of {} tokens, holds "
             "its token or nothing, and starts and ends no earlier than those before it",
             t, b, begin, end, batch.T);
      least_begin = begin;
      least_end = end;
    }
  }
}

constexpr std::size_t kAlignment = 64;  // of each array in a block

constexpr std::size_t rounded_up(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

std::int64_t count_labels(const Batch& batch) {
  return std::count_if(batch.labels.begin(), batch.labels.end(), [](std::int32_t label) { return label != kIgnoredLabel; });
}

DeviceBatch::DeviceBatch(Device& device, const ModelConfig& config, std::int64_t max_batch, std::int64_t max_sequence)
    : device_(device),
      max_batch_(max_batch),
      max_sequence_(max_sequence),
      vocab_size_(config.vocab_size),
      type_vocab_size_(config.type_vocab_size),
      position_offset_(position_offset(config)),
      padding_position_(padding_position(config)),
      position_rows_(config.max_position_embeddings + position_offset_) {
  const auto rows = static_cast<std::size_t>(max_batch), tokens = static_cast<std::size_t>(max_batch * max_sequence),
             labels = static_cast<std::size_t>(Head::padded_rows(max_batch * max_sequence));
  constexpr std::size_t kId = sizeof(std::int32_t);
  const std::size_t bytes = 3 * rounded_up(tokens * kId) + rounded_up(2 * tokens * kId) + rounded_up(rows * kId) +
                            rounded_up(rows * sizeof(std::uint64_t)) + 2 * rounded_up(labels * kId);
  for (Buffer* block : {&block_, &ahead_[0], &ahead_[1]}) *block = Buffer(device, bytes);
  packed_.resize(bytes);
  loss_sum_ = Buffer(device, sizeof(double));
  prepared_samples_.reserve(rows);
  positions_.reserve(tokens);
  for (auto* values : {&rows_, &ids_}) values->reserve(labels);
}

std::size_t DeviceBatch::device_bytes() const {
  return block_.bytes() + ahead_[0].bytes() + ahead_[1].bytes() + loss_sum_.bytes();
}

std::size_t DeviceBatch::host_bytes() const {
  std::size_t total = packed_.size();
  for (const auto* values : {&positions_, &rows_, &ids_}) total += values->capacity() * sizeof(std::int32_t);
  return total;
}

/// Packs an array behind those before it, and returns where the model will find it; null for one that is empty.
template <class T>
const T* DeviceBatch::place(const std::vector<T>& values) {
  if (values.empty()) return nullptr;
  const std::size_t begin = used_, bytes = values.size() * sizeof(T);
  require(bytes <= packed_.size() - begin, "{} bytes of a batch do not fit the {} planned for", begin + bytes,
          packed_.size());
  std::memcpy(packed_.data() + begin, values.data(), bytes);
  used_ += rounded_up(bytes);
  return reinterpret_cast<const T*>(block_.as<std::byte>() + begin);
}

void DeviceBatch::prepare(const Batch& batch, const std::vector<std::int32_t>& type_ids) {
  prepared_ = nullptr;
  require(batch.B >= 1 && batch.B <= max_batch_ && batch.T >= 1 && batch.T <= max_sequence_,
          "a batch of {} x {} does not fit the {} x {} planned for", batch.B, batch.T, max_batch_, max_sequence_);
  check_ids(batch.input_ids, vocab_size_, "token");
  check_ids(type_ids, type_vocab_size_, "segment type");
  check_key_ranges(batch);

  positions_.clear();
  rows_.clear();
  ids_.clear();
  for (std::int64_t b = 0; b < batch.B; ++b) {
    const std::int64_t length = batch.key_lengths.empty() ? batch.T : batch.key_lengths[static_cast<std::size_t>(b)];
    for (std::int64_t t = 0; t < batch.T; ++t) {
      const auto token = static_cast<std::size_t>(b * batch.T + t);
      const std::int64_t document = batch.key_ranges.empty() ? 0 : batch.key_ranges[2 * token];  // where t's own begins
      const bool padding = t >= length && padding_position_ >= 0;
      positions_.push_back(static_cast<std::int32_t>(padding ? padding_position_ : t - document + position_offset_));
      const std::int32_t label = batch.labels[token];
      if (label == kIgnoredLabel) continue;
      rows_.push_back(static_cast<std::int32_t>(token));
      ids_.push_back(label);
    }
  }
  check_ids(positions_, position_rows_, "position");
  check_ids(ids_, vocab_size_, "label");
  const std::int64_t label_count = std::ssize(rows_);
  for (auto* values : {&rows_, &ids_}) values->resize(static_cast<std::size_t>(Head::padded_rows(label_count)), -1);

  used_ = 0;
  view_.B = batch.B;
  view_.T = batch.T;
  view_.input_ids = place(batch.input_ids);
  view_.position_ids = place(positions_);
  view_.type_ids = place(type_ids);
  view_.key_lengths = place(batch.key_lengths);
  view_.key_ranges = place(batch.key_ranges);
  view_.sample_ids = place(batch.sample_ids);
  view_.label_count = label_count;
  view_.label_rows = place(rows_);  // of any length, and so the last
  view_.label_ids = place(ids_);
  device_.copy_in_ahead(ahead_[turn_].data(), packed_.data(), used_);
  prepared_ = &batch;
  prepared_samples_ = batch.sample_ids;
}

/// By its samples, too: what was prepared may be gone, and another batch where it was.
bool DeviceBatch::is_prepared(const Batch& batch) const {
  return prepared_ == &batch && prepared_samples_ == batch.sample_ids;
}

ModelBatch DeviceBatch::upload(const Batch& batch, const std::vector<std::int32_t>& type_ids) {
  if (!is_prepared(batch)) prepare(batch, type_ids);
  prepared_ = nullptr;
  device_.await_copies_ahead();
  device_.copy(block_.data(), ahead_[turn_].data(), used_);
  turn_ = 1 - turn_;
  return view_;
}

WorkKey work_key(const char* name, const Model& model, const ModelBatch& batch, const double* loss_sum) {
  const auto address = [](const void* data) { return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(data)); };
  const int arrays = (batch.type_ids ? 1 : 0) + (batch.key_lengths ? 2 : 0) + (batch.key_ranges ? 4 : 0);
  return {name,
          {batch.B, batch.T, arrays, Head::padded_rows(batch.label_count), address(&model), address(batch.input_ids),
           address(loss_sum)}};
}

}  // namespace outeffhop
