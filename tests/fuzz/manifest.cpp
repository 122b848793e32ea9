// manifest.json of a checkpoint.
#include "tests/fuzz/target.h"
#include "train/checkpoint_files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace outeffhop;
  const auto entries = fuzz::value_or_refusal("manifest.json", {ErrorKind::checkpoint},
                                              [&] { return parse_manifest(fuzz::as_text(data, size), "manifest.json"); });
  if (!entries) return 0;
  for (const ManifestEntry& entry : *entries) {
    const std::filesystem::path file = std::filesystem::path("checkpoint") / entry.name;
    if (file.lexically_normal().parent_path() != "checkpoint") fuzz::finding("a file elsewhere: " + entry.name);
  }
  return 0;
}
