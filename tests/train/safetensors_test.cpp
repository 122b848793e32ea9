#include "train/safetensors.h"

#include <cmath>
#include <cstring>

#include "tests/data/data_support.h"
#include "train/files.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::append_little_endian;
using test::caught_error;
using test::write_bytes;

/// A file with this header and this many bytes of data.
std::string file_bytes(const std::string& header, std::size_t data, std::uint64_t claimed_header) {
  std::string bytes;
  append_little_endian(bytes, claimed_header, 8);
  return bytes + header + std::string(data, '\1');
}

std::string complaint(const std::filesystem::path& path) {
  const Error e = caught_error([&] { SafetensorsFile file(path); });
  CHECK(e.kind() == ErrorKind::checkpoint);
  CHECK_THAT(e.what(), Contains(path.string()));
  return e.what();
}

TEST_CASE("What is written is read back, and the same tensors give the same bytes") {
  const test::TemporaryDirectory directory;
  const std::vector<float> a = {1.5f, -0.0f, INFINITY, 1e-40f, 3.0f, -7.25f};
  const std::vector<float> b = {42.0f};
  const std::vector<std::int32_t> c = {-1, 7};
  const auto first = directory.path() / "first.safetensors", second = directory.path() / "second.safetensors";
  write_safetensors(
      first,
      {{"b", FileType::f32, {}, b.data()}, {"a", FileType::f32, {2, 3}, a.data()}, {"c", FileType::i32, {2}, c.data()}});
  write_safetensors(
      second,
      {{"c", FileType::i32, {2}, c.data()}, {"a", FileType::f32, {2, 3}, a.data()}, {"b", FileType::f32, {}, b.data()}});
  CHECK(read_file(first) == read_file(second));

  const SafetensorsFile file(first);
  CHECK(file.metadata().at("format") == "pt");
  REQUIRE(file.tensors().size() == 3);
  const TensorEntry* entry = file.find("a");
  REQUIRE(entry);
  CHECK(entry->shape == std::vector<std::int64_t>{2, 3});
  std::vector<float> read(6);
  file.read_floats(*entry, read.data());
  CHECK(std::memcmp(read.data(), a.data(), 24) == 0);
  CHECK(file.find("b")->shape.empty());
  CHECK(file.find("b")->count() == 1);
  std::vector<std::int32_t> integers(2);
  file.read_integers(*file.find("c"), integers.data());
  CHECK(integers == c);
  CHECK(file.find("d") == nullptr);
  CHECK(caught_error([&] { file.read_floats(*file.find("c"), read.data()); }).kind() == ErrorKind::checkpoint);

  std::uint64_t header = 0;
  std::memcpy(&header, read_file(first).data(), 8);
  CHECK(header % 8 == 0);
}

TEST_CASE("Half-precision and 64-bit values are read exactly") {
  const test::TemporaryDirectory directory;
  const std::string header =
      R"({"h":{"dtype":"F16","shape":[5],"data_offsets":[0,10]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[10,14]},)"
      R"("i":{"dtype":"I64","shape":[2],"data_offsets":[14,30]}})";
  std::string bytes;
  append_little_endian(bytes, header.size(), 8);
  bytes += header;
  for (const std::uint16_t half : {0x3c00, 0xc000, 0x0001, 0x7c00, 0x7bff}) append_little_endian(bytes, half, 2);
  for (const std::uint16_t brain : {0x3f80, 0xc049}) append_little_endian(bytes, brain, 2);
  append_little_endian(bytes, static_cast<std::uint64_t>(-100), 8);
  append_little_endian(bytes, 1ull << 40, 8);
  const SafetensorsFile file(write_bytes(directory.path() / "x.safetensors", bytes));

  std::vector<float> values(5);
  file.read_floats(*file.find("h"), values.data());
  CHECK(values == std::vector<float>{1.0f, -2.0f, std::ldexp(1.0f, -24), INFINITY, 65504.0f});
  values.resize(2);
  file.read_floats(*file.find("b"), values.data());
  CHECK(values == std::vector<float>{1.0f, -3.140625f});
  std::vector<std::int32_t> integers(2);
  CHECK_THAT(caught_error([&] { file.read_integers(*file.find("i"), integers.data()); }).what(), Contains("1099511627776"));
  CHECK(integers[0] == -100);
}

TEST_CASE("A lying header is refused") {
  const test::TemporaryDirectory directory;
  const auto path = directory.path() / "x.safetensors";
  const auto lie = [&](const std::string& header, std::size_t data = 8) {
    write_bytes(path, file_bytes(header, data, header.size()));
    return complaint(path);
  };
  write_bytes(path, "short");
  CHECK_THAT(complaint(path), Contains("5 bytes"));
  write_bytes(path, file_bytes("{}", 0, 1000));
  CHECK_THAT(complaint(path), Contains("claims 1000 bytes of a file of 10"));
  write_bytes(path, file_bytes("{}", 0, std::uint64_t{1} << 63));
  CHECK_THAT(complaint(path), Contains("the format allows"));
  CHECK_THAT(lie("{\"a\":"), Contains("not valid JSON"));
  CHECK_THAT(lie("[]"), Contains("no JSON object"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})"), Contains("needs 12 bytes and claims 8"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})"), Contains("of a data section of 8"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})"),
             Contains("end at byte 4 of a data section of 8"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"), Contains("starts at byte 4 instead of 0"));
  CHECK_THAT(
      lie(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"),
      Contains("\"b\" starts at byte 4 instead of 8"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F8","shape":[8],"data_offsets":[0,8]}})"), Contains("dtype F8"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})"), Contains("something else than sizes"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,8]}})"),
             Contains("overflows"));
  CHECK_THAT(lie(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})"), Contains("lacks \"shape\""));
}

}  // namespace
}  // namespace outeffhop
