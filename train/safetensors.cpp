#include "train/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/json.h"
#include "kernels/error.h"
#include "kernels/tensor.h"

namespace outeffhop {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are read and written as they lie in memory");

constexpr std::uint64_t kLargestHeader = 100'000'000;  // the format's own cap

struct TypeName {
  FileType type;
  const char* name;
  std::uint64_t bytes;
};
constexpr TypeName kTypes[] = {{FileType::f32, "F32", 4},
                               {FileType::f16, "F16", 2},
                               {FileType::bf16, "BF16", 2},
                               {FileType::i64, "I64", 8},
                               {FileType::i32, "I32", 4}};

const TypeName& type_name(FileType type) {
  return *std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypeName& t) { return t.type == type; });
}

float float_of_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  float magnitude = 0.0f;
  if (exponent == 31) {
    magnitude = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

[[noreturn]] void damaged(const std::filesystem::path& path, const std::string& why) {
  fail(ErrorKind::checkpoint, "{} is not a sound safetensors file: {}", path.string(), why);
}

void read_exactly(int descriptor, const std::filesystem::path& path, std::uint64_t offset, void* out, std::uint64_t bytes) {
  char* at = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got =
        ::pread(descriptor, at, std::min<std::uint64_t>(bytes, std::uint64_t{1} << 30), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(ErrorKind::io, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (got == 0) damaged(path, "it ends too early");
    at += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
  }
}

/// One header entry, every field checked; `data_bytes` is the size of the data section.
TensorEntry read_entry(const std::filesystem::path& path, const std::string& name, const nlohmann::json& value,
                       std::uint64_t data_bytes) {
  TensorEntry entry;
  entry.name = name;
  const auto complain = [&](const std::string& why) { damaged(path, fmt::format("tensor \"{}\" {}", name, why)); };
  if (!value.is_object()) complain("is not described by an object");
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(key)) complain(fmt::format("lacks \"{}\"", key));
  }
  if (!value["dtype"].is_string()) complain("has a dtype that is no string");
  const auto dtype = value["dtype"].get<std::string>();
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypeName& t) { return dtype == t.name; });
  if (type == std::end(kTypes)) complain(fmt::format("has the dtype {}; F32, F16, BF16, I64 and I32 can be read", dtype));
  entry.type = type->type;

  if (!value["shape"].is_array()) complain("has a shape that is no list");
  std::uint64_t bytes = type->bytes;
  for (const nlohmann::json& d : value["shape"]) {
    if (!d.is_number_unsigned()) complain("has a shape with something else than sizes");
    const auto size = d.get<std::uint64_t>();
    if (size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) ||
        __builtin_mul_overflow(bytes, size, &bytes)) {
      complain("has a shape whose size overflows");
    }
    entry.shape.push_back(static_cast<std::int64_t>(size));
  }

  const nlohmann::json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
    complain("has data_offsets that are not two sizes");
  }
  entry.begin = offsets[0].get<std::uint64_t>();
  entry.end = offsets[1].get<std::uint64_t>();
  if (entry.begin > entry.end || entry.end > data_bytes) {
    complain(fmt::format("claims bytes {} to {} of a data section of {}", entry.begin, entry.end, data_bytes));
  }
  if (entry.end - entry.begin != bytes) {
    complain(fmt::format("of shape {} and dtype {} needs {} bytes and claims {}", shape_text(entry.shape), dtype, bytes,
                         entry.end - entry.begin));
  }
  return entry;
}

}  // namespace

std::int64_t TensorEntry::count() const {
  std::int64_t product = 1;
  for (const std::int64_t d : shape) product *= d;
  return product;
}

const char* name_of(FileType type) { return type_name(type).name; }

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail(ErrorKind::io, "cannot open {}: {}", path.string(), std::strerror(errno));
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail(ErrorKind::io, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (!S_ISREG(status.st_mode)) damaged(path, "it is no regular file");
    const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
    if (file_bytes < 8) damaged(path, fmt::format("{} bytes cannot hold the length of a header", file_bytes));

    std::uint64_t header_bytes = 0;
    read_exactly(descriptor_, path, 0, &header_bytes, 8);
    if (header_bytes > kLargestHeader) {
      damaged(path, fmt::format("its header claims {} bytes; the format allows {}", header_bytes, kLargestHeader));
    }
    if (header_bytes > file_bytes - 8) {
      damaged(path, fmt::format("its header claims {} bytes of a file of {}", header_bytes, file_bytes));
    }
    std::string text(header_bytes, '\0');
    read_exactly(descriptor_, path, 8, text.data(), header_bytes);
    data_begin_ = 8 + header_bytes;
    const std::uint64_t data_bytes = file_bytes - data_begin_;

    const nlohmann::json header = parse_json(text, "the header of " + path.string(), {.kind = ErrorKind::checkpoint});
    if (!header.is_object()) damaged(path, "its header is no JSON object");
    for (const auto& [name, value] : header.items()) {
      if (name != "__metadata__") {
        tensors_.push_back(read_entry(path, name, value, data_bytes));
        continue;
      }
      if (!value.is_object()) damaged(path, "its metadata is no object");
      for (const auto& [key, item] : value.items()) {
        if (!item.is_string()) damaged(path, fmt::format("its metadata \"{}\" is no string", key));
        metadata_[key] = item.get<std::string>();
      }
    }

    std::sort(tensors_.begin(), tensors_.end(), [](const TensorEntry& a, const TensorEntry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t at = 0;
    for (const TensorEntry& entry : tensors_) {
      if (entry.begin != at)
        damaged(path, fmt::format("tensor \"{}\" starts at byte {} instead of {}", entry.name, entry.begin, at));
      at = entry.end;
    }
    if (at != data_bytes) damaged(path, fmt::format("its tensors end at byte {} of a data section of {}", at, data_bytes));
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      data_begin_(other.data_begin_),
      tensors_(std::move(other.tensors_)),
      metadata_(std::move(other.metadata_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(data_begin_, other.data_begin_);
  std::swap(tensors_, other.tensors_);
  std::swap(metadata_, other.metadata_);
  return *this;
}

const TensorEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const TensorEntry& t) { return t.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

std::vector<char> SafetensorsFile::read_bytes(const TensorEntry& entry) const {
  std::vector<char> bytes(entry.end - entry.begin);
  read_exactly(descriptor_, path_, data_begin_ + entry.begin, bytes.data(), bytes.size());
  return bytes;
}

void SafetensorsFile::read_floats(const TensorEntry& entry, float* out) const {
  if (entry.type == FileType::f32) {
    read_exactly(descriptor_, path_, data_begin_ + entry.begin, out, entry.end - entry.begin);
    return;
  }
  if (entry.type != FileType::f16 && entry.type != FileType::bf16) {
    fail(ErrorKind::checkpoint, "tensor \"{}\" of {} has dtype {} where floating-point values are expected", entry.name,
         path_.string(), type_name(entry.type).name);
  }
  const std::vector<char> bytes = read_bytes(entry);
  for (std::int64_t i = 0; i < entry.count(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    if (entry.type == FileType::f16) {
      out[i] = float_of_half(bits);
    } else {
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    }
  }
}

void SafetensorsFile::read_integers(const TensorEntry& entry, std::int32_t* out) const {
  if (entry.type == FileType::i32) {
    read_exactly(descriptor_, path_, data_begin_ + entry.begin, out, entry.end - entry.begin);
    return;
  }
  if (entry.type != FileType::i64) {
    fail(ErrorKind::checkpoint, "tensor \"{}\" of {} has dtype {} where integers (I64 or I32) are expected", entry.name,
         path_.string(), type_name(entry.type).name);
  }
  const std::vector<char> bytes = read_bytes(entry);
  for (std::int64_t i = 0; i < entry.count(); ++i) {
    std::int64_t value = 0;
    std::memcpy(&value, bytes.data() + 8 * i, 8);
    if (value < std::numeric_limits<std::int32_t>::min() || value > std::numeric_limits<std::int32_t>::max()) {
      fail(ErrorKind::checkpoint, "tensor \"{}\" of {} holds {}, beyond 32 bits", entry.name, path_.string(), value);
    }
    out[i] = static_cast<std::int32_t>(value);
  }
}

WrittenFile write_safetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) { return a.name < b.name; });
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t at = 0;
  std::vector<std::uint64_t> sizes;
  for (const TensorToWrite& tensor : tensors) {
    require(!header.contains(tensor.name), "{}: two tensors are named \"{}\"", path.string(), tensor.name);
    std::uint64_t bytes = type_name(tensor.type).bytes;
    for (const std::int64_t d : tensor.shape) bytes *= static_cast<std::uint64_t>(d);
    header[tensor.name] = {
        {"dtype", type_name(tensor.type).name}, {"shape", tensor.shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
    sizes.push_back(bytes);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t header_bytes = text.size();

  DurableFile file(path);
  file.write(&header_bytes, 8);
  file.write(text.data(), text.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) file.write(tensors[i].data, sizes[i]);
  return file.finish();
}

}  // namespace outeffhop
