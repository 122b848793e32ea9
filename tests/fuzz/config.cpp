// The configuration of a run: JSON text, and after it, parted by NUL bytes, the texts of --set.
#include "train/config.h"

#include "tests/fuzz/target.h"

namespace outeffhop {
namespace {

ShardMetadata metadata() {
  ShardMetadata m;
  m.present = true;
  m.vocab_size = 1000;
  m.special_ids = {0, 1, 2};
  m.mask_id = 2;
  m.pad_id = 0;
  m.eos_id = 1;
  return m;
}

std::string again(const std::string& written) { return write_config(parse_config(written, "written.json")).dump(); }

Config read(std::string_view text) {
  std::vector<Override> overrides;
  const std::size_t end = text.find('\0');
  for (std::size_t at = end; at != std::string_view::npos;) {
    const std::size_t next = text.find('\0', at + 1);
    overrides.push_back(parse_override(std::string(text.substr(at + 1, next == text.npos ? next : next - at - 1))));
    at = next;
  }
  return parse_config(text.substr(0, end), "run.json", overrides);
}

}  // namespace
}  // namespace outeffhop

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace outeffhop;
  // Messages begin with the file's name or with --set, or name a key alone.
  auto config = fuzz::value_or_refusal("", {ErrorKind::usage}, [&] { return read(fuzz::as_text(data, size)); });
  if (!config) return 0;
  std::string written = write_config(*config).dump();
  if (again(written) != written) fuzz::finding("it reads back as another configuration: " + written);
  const auto resolved = fuzz::value_or_refusal("", {ErrorKind::usage, ErrorKind::unsupported}, [&] {
    resolve(*config, metadata());
    return true;
  });
  if (!resolved) return 0;
  written = write_config(*config).dump();
  if (again(written) != written) fuzz::finding("resolved, it reads back as another configuration: " + written);
  if (!check_resume(nlohmann::json::parse(written), *config).empty()) fuzz::finding("a run cannot go on unchanged");
  return 0;
}
