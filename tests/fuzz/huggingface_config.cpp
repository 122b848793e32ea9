// config.json of a model directory.
#include "train/huggingface_config.h"

#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace outeffhop;
  const auto config = fuzz::value_or_refusal("config.json", {ErrorKind::checkpoint, ErrorKind::unsupported},
                                             [&] { return parse_model_config(fuzz::as_text(data, size), "config.json"); });
  if (!config) return 0;
  const std::string written = write_huggingface_config(*config, {}).dump();
  if (write_huggingface_config(parse_model_config(written, "written.json"), {}).dump() != written) {
    fuzz::finding("it reads back as another model: " + written);
  }
  return 0;
}
