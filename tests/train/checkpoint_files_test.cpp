#include "train/checkpoint_files.h"

#include "tests/train/train_support.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;

nlohmann::json manifest() {
  return {{"format_version", 1}, {"files", {{"model.safetensors", {{"size", 12}, {"xxh64", "00112233445566ff"}}}}}};
}

nlohmann::json trainer() {
  return {{"format_version", 1},     {"step", 10},      {"updates", 9},
          {"samples", 320},          {"seconds", 2.5},  {"bad_steps_in_a_row", 1},
          {"data_fingerprint", "f"}, {"device", "cpu"}, {"config", {{"output", "runs/a"}}}};
}

/// The complaint about `value`, with `patch` (RFC 7396: null removes) applied.
template <class Parse>
std::string refusal(const Parse& parse, nlohmann::json value, const nlohmann::json& patch) {
  value.merge_patch(patch);
  const Error e = caught_error([&] { parse(value.dump(), "some.json"); });
  CHECK(e.kind() == ErrorKind::checkpoint);
  CHECK_THAT(e.what(), Contains("some.json"));
  return e.what();
}

TEST_CASE("A manifest lists the files of its own directory") {
  const std::vector<ManifestEntry> entries = parse_manifest(manifest().dump(), "some.json");
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].name == "model.safetensors");
  CHECK(entries[0].bytes == 12);
  CHECK(entries[0].xxh64 == "00112233445566ff");

  const auto wrong = [](const nlohmann::json& patch) { return refusal(parse_manifest, manifest(), patch); };
  CHECK_THAT(wrong({{"format_version", 2}}), Contains("format version 2"));
  CHECK_THAT(wrong({{"format_version", nullptr}}), Contains("lacks \"format_version\""));
  CHECK_THAT(wrong({{"files", 3}}), Contains("\"files\" is 3"));
  CHECK_THAT(wrong({{"files", {{"model.safetensors", nullptr}}}}), Contains("does not list"));
  CHECK_THAT(wrong({{"files", {{"model.safetensors", {{"size", -1}}}}}}), Contains("\"model.safetensors\" is damaged"));
  CHECK_THAT(wrong({{"files", {{"model.safetensors", {{"xxh64", 7}}}}}}), Contains("\"model.safetensors\" is damaged"));
  const nlohmann::json entry = {{"size", 1}, {"xxh64", ""}};
  for (const std::string name : {"../x", "..", ".", "", "/etc/passwd"}) {
    CHECK_THAT(wrong({{"files", {{name, entry}}}}), Contains("the entry of \"" + name + "\" is damaged"));
  }
}

TEST_CASE("trainer.json holds whole counts from 0 and a configuration") {
  const Resumable read = parse_trainer(trainer().dump(), "some.json");
  CHECK(read.snapshot.state.step == 10);
  CHECK(read.snapshot.state.updates == 9);
  CHECK(read.snapshot.state.samples == 320);
  CHECK(read.snapshot.state.seconds == 2.5);
  CHECK(read.snapshot.state.tokens == -1);
  nlohmann::json counted = trainer();
  counted["tokens"] = 4000;
  CHECK(parse_trainer(counted.dump(), "some.json").snapshot.state.tokens == 4000);
  CHECK(read.snapshot.plans.empty());
  counted["plans"] = "{}";
  CHECK(parse_trainer(counted.dump(), "some.json").snapshot.plans == "{}");
  CHECK(read.snapshot.state.bad_steps_in_a_row == 1);
  CHECK(read.data_fingerprint == "f");
  CHECK(read.device == "cpu");
  CHECK(read.config["output"] == "runs/a");

  const auto wrong = [](const nlohmann::json& patch) { return refusal(parse_trainer, trainer(), patch); };
  CHECK_THAT(wrong({{"format_version", 2}}), Contains("format version 2"));
  for (const std::string key : {"step", "updates", "samples", "bad_steps_in_a_row"}) {
    CHECK_THAT(wrong({{key, nullptr}}), Contains("lacks \"" + key + "\""));
    CHECK_THAT(wrong({{key, -1}}), Contains("\"" + key + "\" is -1, but must be a whole number"));
    CHECK_THAT(wrong({{key, 1e300}}), Contains("whole number"));
    CHECK_THAT(wrong({{key, true}}), Contains("whole number"));
    CHECK_THAT(wrong({{key, 9223372036854775808u}}), Contains("whole number"));
  }
  CHECK_THAT(wrong({{"tokens", -1}}), Contains("\"tokens\" is -1, but must be a whole number"));
  CHECK_THAT(wrong({{"seconds", -0.5}}), Contains("\"seconds\" is -0.5"));
  CHECK_THAT(wrong({{"data_fingerprint", 5}}), Contains("must be a string"));
  CHECK_THAT(wrong({{"device", 5}}), Contains("must be a string"));
  CHECK_THAT(wrong({{"plans", 5}}), Contains("must be a string"));
  CHECK_THAT(wrong({{"config", {{"output", nullptr}}}, {"step", "3"}}), Contains("\"step\" is \"3\""));
  CHECK_THAT(wrong({{"window_losses", 5}}), Contains("\"window_losses\" is 5, but must be a list of numbers"));
  CHECK_THAT(wrong({{"window_losses", {1.5, "2"}}}), Contains("list of numbers"));
  CHECK_THAT(wrong({{"window_losses", {1.5, 2}}}), Contains("2 window_losses and 0 window_gradient_norms"));
  nlohmann::json no_object = trainer();
  no_object["config"] = 3;
  CHECK_THAT(refusal(parse_trainer, no_object, nlohmann::json::object()), Contains("\"config\" is 3"));
}

}  // namespace
}  // namespace outeffhop
