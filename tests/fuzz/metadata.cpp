// metadata.json, the vocabulary of token shards.
#include "data/shards.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace outeffhop;
  const auto metadata = fuzz::value_or_refusal(
      "metadata.json", {ErrorKind::data}, [&] { return parse_shard_metadata(fuzz::as_text(data, size), "metadata.json"); });
  if (!metadata) return 0;
  std::vector<std::int32_t> ids = metadata->special_ids;
  for (const std::int32_t id : ids) {
    if (id < 0) fuzz::finding("a special token below 0");
  }
  ids.insert(ids.end(),
             {metadata->mask_id, metadata->pad_id, metadata->cls_id, metadata->sep_id, metadata->bos_id, metadata->eos_id});
  for (const std::int32_t id : ids) {
    if (id < -1 || (metadata->vocab_size > 0 && id >= metadata->vocab_size)) fuzz::finding("a token beyond the vocabulary");
  }
  return 0;
}
