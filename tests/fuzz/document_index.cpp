// The index of a shard's documents: the shard's token count as 8 bytes, then
// the file, as it is and with the zeros of the header that nobody reads put in
// after the first four words.
#include <cstring>

#include "data/documents.h"
#include "tests/fuzz/target.h"

namespace {

void read_index(std::string_view bytes, std::uint64_t token_count) {
  using namespace outeffhop;
  const auto starts = fuzz::value_or_refusal("shard.idx", {ErrorKind::data}, [&] {
    return parse_document_index(std::as_bytes(std::span(bytes.data(), bytes.size())), token_count, "shard.idx");
  });
  if (!starts) return;
  if (starts->empty() || starts->front() != 0) fuzz::finding("the first document does not begin the shard");
  for (std::size_t i = 0; i < starts->size(); ++i) {
    const std::uint64_t end = i + 1 < starts->size() ? (*starts)[i + 1] : token_count;
    if ((*starts)[i] >= end) fuzz::finding("a document without tokens");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kCount = 8, kWords = 16, kHeader = 1024;
  if (size < kCount) return 0;
  std::uint64_t token_count = 0;
  std::memcpy(&token_count, data, kCount);
  if (token_count == 0) return 0;
  const std::string_view file = outeffhop::fuzz::as_text(data + kCount, size - kCount);
  read_index(file, token_count);
  if (file.size() >= kWords) {
    read_index(std::string(file.substr(0, kWords)) + std::string(kHeader - kWords, '\0') + std::string(file.substr(kWords)),
               token_count);
  }
  return 0;
}
