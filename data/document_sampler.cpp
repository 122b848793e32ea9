#include "data/document_sampler.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/error.h"

namespace outeffhop {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

/// FROZEN: the order in which tails are packed is this epoch of the permutation, which no run reaches.
constexpr std::uint64_t kPackingEpoch = std::numeric_limits<std::uint64_t>::max();

/// Rows with room, found by how much they have. Of equal ones the one touched last comes first.
class OpenRows {
 public:
  explicit OpenRows(std::uint64_t T) : newest_(T + 1, kNone), has_rows_(T / 64 + 1, 0) {}

  void put(std::uint32_t row, std::uint64_t room) {
    if (row >= next_.size()) next_.resize(row + std::size_t{1}, kNone);
    next_[row] = newest_[room];
    newest_[room] = row;
    has_rows_[room / 64] |= std::uint64_t{1} << (room % 64);
  }

  /// Takes out a row with the least room of at least *room, and says how much it had; kNone when there is none.
  std::uint32_t take(std::uint64_t* room) {
    std::uint64_t word = *room / 64;
    std::uint64_t candidates = has_rows_[word] & (~std::uint64_t{0} << (*room % 64));
    while (candidates == 0) {
      if (++word == has_rows_.size()) return kNone;
      candidates = has_rows_[word];
    }
    *room = word * 64 + static_cast<std::uint64_t>(std::countr_zero(candidates));
    const std::uint32_t row = newest_[*room];
    newest_[*room] = next_[row];
    if (newest_[*room] == kNone) has_rows_[word] &= ~(std::uint64_t{1} << (*room % 64));
    return row;
  }

 private:
  std::vector<std::uint32_t> newest_;    ///< by room
  std::vector<std::uint64_t> has_rows_;  ///< a bit for each room
  std::vector<std::uint32_t> next_;      ///< of each row, in the list it is in
};

}  // namespace

DocumentSampler::DocumentSampler(const ShardSet& shards, const DocumentRule& rule, const DocumentSettings& settings)
    : shards_(&shards), settings_(settings) {
  if (settings.T < 1) fail(ErrorKind::usage, "a sample of {} tokens was asked for, expected at least 1", settings.T);
  std::uint64_t tokens = 0;
  for (const Shard& shard : shards.shards()) {
    first_token_.push_back(tokens);
    tokens += shard.token_count();
  }
  starts_ = find_documents(shards, rule);
  if (document_count() >= kNone) {
    fail(ErrorKind::data, "the shards starting with {} hold {} documents, more than the {} that can be sampled",
         shards.shards().front().path(), document_count(), kNone - 1);
  }
  full_before_.reserve(document_count());
  for (std::uint64_t d = 0; d < document_count(); ++d) {
    full_before_.push_back(full_pieces_);
    full_pieces_ += (starts_[d + 1] - starts_[d]) / static_cast<std::uint64_t>(settings.T);
    if (tail_length(d) > 0) tails_.push_back(static_cast<std::uint32_t>(d));
  }
  row_count_ = tails_.size();
  if (settings.packing && !tails_.empty()) pack_tails();
}

/// FROZEN: which tails share a row is part of the data order of every past run.
void DocumentSampler::pack_tails() {
  const auto T = static_cast<std::uint64_t>(settings_.T);
  const Permutation order(tails_.size(), settings_.seed, kPackingEpoch);
  std::vector<std::uint32_t> visited(tails_.size()), row_of(tails_.size());
  OpenRows open(T);
  std::uint32_t rows = 0;
  for (std::size_t i = 0; i < tails_.size(); ++i) {
    visited[i] = tails_[order(i)];
    const std::uint64_t length = tail_length(visited[i]);
    std::uint64_t room = length;
    std::uint32_t row = open.take(&room);
    if (row == kNone) {
      row = rows++;
      room = T;
    }
    row_of[i] = row;
    if (room > length) open.put(row, room - length);
  }
  // The tails sorted by row; inside a row as they were visited.
  row_count_ = rows;
  first_tail_.assign(std::size_t{rows} + 1, 0);
  for (const std::uint32_t row : row_of) ++first_tail_[row + std::size_t{1}];
  for (std::size_t row = 0; row < rows; ++row) first_tail_[row + 1] += first_tail_[row];
  for (std::size_t i = 0; i < visited.size(); ++i) tails_[first_tail_[row_of[i]]++] = visited[i];
  // Each start has moved to its row's end, which is the next one's start.
  std::copy_backward(first_tail_.begin(), first_tail_.end() - 1, first_tail_.end());
  first_tail_[0] = 0;
}

DocumentSampler::Piece DocumentSampler::full_piece(std::uint64_t index) const {
  const auto T = static_cast<std::uint64_t>(settings_.T);
  // The last document with no more pieces before it than `index`: of those that have the same number the others have none.
  const auto after = std::upper_bound(full_before_.begin(), full_before_.end(), index);
  const auto document = static_cast<std::size_t>(after - full_before_.begin()) - 1;
  return {starts_[document] + (index - full_before_[document]) * T, T};
}

DocumentSampler::Piece DocumentSampler::tail_piece(std::uint64_t index) const {
  const std::uint32_t document = tails_[index];
  const std::uint64_t count = tail_length(document);
  return {starts_[document + std::size_t{1}] - count, count};
}

void DocumentSampler::read(const Piece& piece, std::int64_t vocab_size, std::int32_t* out) const {
  const auto after = std::upper_bound(first_token_.begin(), first_token_.end(), piece.begin);
  const auto index = static_cast<std::size_t>(after - first_token_.begin()) - 1;
  read_tokens(shards_->shards()[index], piece.begin - first_token_[index], piece.count, vocab_size, out);
}

void DocumentSampler::fill(std::uint64_t k, std::int64_t vocab_size, Batch& batch, std::int64_t b) const {
  std::uint64_t row =
      Permutation(sample_count(), settings_.seed, settings_.shuffle ? k / sample_count() : 0)(k % sample_count());
  const std::int64_t T = settings_.T;
  std::int32_t* const tokens = batch.input_ids.data() + b * T;
  std::int32_t* const ranges = settings_.packing ? batch.key_ranges.data() + b * T * 2 : nullptr;
  std::int64_t length = 0;
  const auto append = [&](const Piece& piece) {
    read(piece, vocab_size, tokens + length);
    const std::int64_t end = length + static_cast<std::int64_t>(piece.count);
    for (std::int64_t t = length; ranges && t < end; ++t) {
      ranges[2 * t] = static_cast<std::int32_t>(length);
      ranges[2 * t + 1] = static_cast<std::int32_t>(end);
    }
    length = end;
  };
  if (row < full_pieces_) {
    append(full_piece(row));
  } else {
    row -= full_pieces_;
    const std::uint64_t first = settings_.packing ? first_tail_[row] : row;
    const std::uint64_t end = settings_.packing ? first_tail_[row + 1] : row + 1;
    for (std::uint64_t i = first; i < end; ++i) append(tail_piece(i));
  }
  batch.key_lengths[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(length);
  std::fill(tokens + length, tokens + T, settings_.pad_id);
  if (ranges) std::fill(ranges + 2 * length, ranges + 2 * T, static_cast<std::int32_t>(length));
}

std::string DocumentSampler::description() const {
  const double places = static_cast<double>(sample_count()) * static_cast<double>(settings_.T);
  return fmt::format("{} documents, {} {} rows of {}, {:.1f} % full", document_count(), sample_count(),
                     settings_.packing ? "packed" : "padded", settings_.T,
                     100.0 * static_cast<double>(token_count()) / places);
}

}  // namespace outeffhop
