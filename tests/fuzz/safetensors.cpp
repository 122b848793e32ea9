// Safetensors files: as the input is; and as one whose header is the input up to the first NUL byte and whose data is what
// follows it, with the header's length put before, so that no mutation is lost to a length that does not fit.
#include "train/safetensors.h"

#include <cstring>

#include "tests/fuzz/target.h"

namespace outeffhop {
namespace {

bool is_floating(FileType type) { return type == FileType::f32 || type == FileType::f16 || type == FileType::bf16; }

std::vector<float> floats(const SafetensorsFile& file, const TensorEntry& entry) {
  std::vector<float> values(static_cast<std::size_t>(entry.count()));
  file.read_floats(entry, values.data());
  return values;
}

/// What holds only floating-point tensors is written again, as F32, and must hold the same.
void check_round_trip(const SafetensorsFile& file) {
  std::vector<std::vector<float>> values;
  std::vector<TensorToWrite> tensors;
  for (const TensorEntry& entry : file.tensors()) {
    values.push_back(floats(file, entry));
    tensors.push_back({entry.name, FileType::f32, entry.shape, values.back().data()});
  }
  const fuzz::MemoryFile copy_file("");
  write_safetensors(copy_file.path(), tensors);
  const SafetensorsFile copy(copy_file.path());
  if (copy.tensors().size() != tensors.size()) fuzz::finding("a copy has another number of tensors");
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorEntry* entry = copy.find(tensors[i].name);
    if (!entry || entry->shape != tensors[i].shape) fuzz::finding("a tensor is lost in a copy: " + tensors[i].name);
    const std::vector<float> read = floats(copy, *entry);
    if (!read.empty() && std::memcmp(read.data(), values[i].data(), read.size() * sizeof(float)) != 0) {
      fuzz::finding("a tensor differs in a copy: " + tensors[i].name);
    }
  }
}

void read_safetensors(std::string_view bytes) {
  const fuzz::MemoryFile on_disk(bytes);
  const auto file =
      fuzz::value_or_refusal(on_disk.path(), {ErrorKind::checkpoint}, [&] { return SafetensorsFile(on_disk.path()); });
  if (!file) return;
  bool all_floating = true;
  for (const TensorEntry& entry : file->tensors()) {
    all_floating = all_floating && is_floating(entry.type);
    if (is_floating(entry.type)) continue;
    fuzz::value_or_refusal(on_disk.path(), {ErrorKind::checkpoint}, [&] {
      std::vector<std::int32_t> integers(static_cast<std::size_t>(entry.count()));
      file->read_integers(entry, integers.data());
      return true;
    });
  }
  if (all_floating) check_round_trip(*file);
}

}  // namespace
}  // namespace outeffhop

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = outeffhop::fuzz::as_text(data, size);
  outeffhop::read_safetensors(input);
  const std::size_t nul = input.find('\0');
  const std::string header(input.substr(0, nul));
  const std::uint64_t header_bytes = header.size();
  std::string framed(sizeof(header_bytes), '\0');
  std::memcpy(framed.data(), &header_bytes, sizeof(header_bytes));
  framed += header;
  if (nul != input.npos) framed += input.substr(nul + 1);
  outeffhop::read_safetensors(framed);
  return 0;
}
