#include "train/device_batch.h"

#include <algorithm>

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

void copy_in(Device& device, const Buffer& buffer, const auto& values) {
  if (!values.empty()) device.copy_in(buffer.data(), values.data(), values.size() * sizeof(values[0]));
}

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
  const auto tokens = static_cast<std::size_t>(max_batch * max_sequence);
  for (Buffer* buffer : {&input_ids_, &position_ids_, &type_ids_}) *buffer = Buffer(device, tokens * sizeof(std::int32_t));
  const auto most_labels = static_cast<std::size_t>(Head::padded_rows(max_batch * max_sequence));
  for (Buffer* buffer : {&label_rows_, &label_ids_}) *buffer = Buffer(device, most_labels * sizeof(std::int32_t));
  key_ranges_ = Buffer(device, 2 * tokens * sizeof(std::int32_t));
  key_lengths_ = Buffer(device, static_cast<std::size_t>(max_batch) * sizeof(std::int32_t));
  sample_ids_ = Buffer(device, static_cast<std::size_t>(max_batch) * sizeof(std::uint64_t));
  positions_.reserve(tokens);
  for (auto* values : {&rows_, &ids_}) values->reserve(most_labels);
}

std::size_t DeviceBatch::bytes() const {
  std::size_t total = 0;
  for (const Buffer* buffer :
       {&input_ids_, &position_ids_, &type_ids_, &label_rows_, &label_ids_, &key_ranges_, &key_lengths_, &sample_ids_}) {
    total += buffer->bytes();
  }
  for (const auto* values : {&positions_, &rows_, &ids_}) total += values->capacity() * sizeof(std::int32_t);
  return total;
}

ModelBatch DeviceBatch::upload(const Batch& batch, const std::vector<std::int32_t>& type_ids) {
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

  copy_in(device_, input_ids_, batch.input_ids);
  copy_in(device_, position_ids_, positions_);
  copy_in(device_, type_ids_, type_ids);
  copy_in(device_, key_lengths_, batch.key_lengths);
  copy_in(device_, key_ranges_, batch.key_ranges);
  copy_in(device_, sample_ids_, batch.sample_ids);
  copy_in(device_, label_rows_, rows_);
  copy_in(device_, label_ids_, ids_);

  ModelBatch view;
  view.B = batch.B;
  view.T = batch.T;
  view.input_ids = input_ids_.as<std::int32_t>();
  view.position_ids = position_ids_.as<std::int32_t>();
  view.type_ids = type_ids.empty() ? nullptr : type_ids_.as<std::int32_t>();
  view.key_lengths = batch.key_lengths.empty() ? nullptr : key_lengths_.as<std::int32_t>();
  view.key_ranges = batch.key_ranges.empty() ? nullptr : key_ranges_.as<std::int32_t>();
  view.sample_ids = sample_ids_.as<std::uint64_t>();
  view.label_count = label_count;
  view.label_rows = label_rows_.as<std::int32_t>();
  view.label_ids = label_ids_.as<std::int32_t>();
  return view;
}

}  // namespace outeffhop
