// The safetensors format: 8 bytes of little-endian header length, a JSON header, the tensors back to back.
// https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "train/files.h"

namespace outeffhop {

/// Element types that occur in the files this program reads. Written are F32 and I32.
enum class FileType : std::uint8_t { f32, f16, bf16, i64, i32 };

/// What a header says about one tensor.
struct TensorEntry {
  std::string name;
  FileType type = FileType::f32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< bytes in the data section

  std::int64_t count() const;
};

/// "F32", as headers spell it.
const char* name_of(FileType type);

/// "(30522, 768)", for messages.
std::string shape_text(const std::vector<std::int64_t>& shape);

/// A safetensors file, its header read and checked: lengths, known types, sizes that follow from the shapes, offsets that
/// cover the data section without a gap or an overlap. Anything else is Error(checkpoint) naming the file.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }  ///< in file order
  const TensorEntry* find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Reads a tensor of F32, F16 or BF16 as floats (exactly). `out` holds entry.count() values.
  void read_floats(const TensorEntry& entry, float* out) const;
  /// Reads a tensor of I64 or I32. A value outside int32 is Error(checkpoint).
  void read_integers(const TensorEntry& entry, std::int32_t* out) const;

 private:
  std::vector<char> read_bytes(const TensorEntry& entry) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t data_begin_ = 0;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// One tensor to write; `data` is host memory of the type's size times the product of the shape.
struct TensorToWrite {
  std::string name;
  FileType type = FileType::f32;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

/// Writes and fsyncs a file with the tensors sorted by name and {"format": "pt"} as metadata. The same tensors always give
/// the same bytes. The header is padded with spaces so that data starts at a multiple of 8. The tensors are written from where
/// they lie: no copy of them is made.
WrittenFile write_safetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors);

}  // namespace outeffhop
