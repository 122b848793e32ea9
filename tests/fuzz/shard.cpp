// Token shards, from the file: as the input is, and with the zeros of the header that nobody reads put in after the first
// five words, so that short inputs reach the tokens.
#include "data/shards.h"
#include "tests/fuzz/target.h"

namespace {

void read_shard(std::string_view bytes) {
  using namespace outeffhop;
  const fuzz::MemoryFile file(bytes);
  const auto shard = fuzz::value_or_refusal(file.path(), {ErrorKind::data}, [&] { return Shard(file.path()); });
  if (!shard) return;
  const std::uint64_t count = shard->token_count();
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  shard->read(0, count, tokens.data());
  std::int32_t last = 0;
  shard->read(count - 1, 1, &last);
  if (last != tokens.back()) fuzz::finding("the last token depends on how it is read");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = outeffhop::fuzz::as_text(data, size);
  read_shard(input);
  constexpr std::size_t kWords = 20, kHeader = 1024;
  if (size >= kWords) {
    read_shard(std::string(input.substr(0, kWords)) + std::string(kHeader - kWords, '\0') +
               std::string(input.substr(kWords)));
  }
  return 0;
}
