// `outeffhop inspect`: what is there, and what is wrong with it.
#include "train/inspect.h"

#include <sys/file.h>

#include <cmath>
#include <limits>

#include "tests/train/train_support.h"
#include "train/checkpoint.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::TinyCorpus;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

/// A finished run of three steps with one checkpoint before the last; returns its directory.
fs::path small_run(const TinyCorpus& corpus) {
  train(test::quiet_options(corpus.config("bert", "run"), {"training.steps=3", "checkpoint.interval=2"}));
  return corpus.path("run");
}

void flip_byte(const fs::path& file, std::size_t at) {
  std::string bytes = read_file(file);
  bytes.at(at) = static_cast<char>(bytes.at(at) ^ 1);
  write_durable(file, bytes);
}

std::string only_problem(const Inspection& found) {
  REQUIRE(found.facts.contains("problems"));
  REQUIRE(found.facts["problems"].size() == 1);
  return found.facts["problems"][0];
}

Json row_of(const Json& table, const char* key, const std::string& value) {
  for (const Json& row : table) {
    if (row[key] == value) return row;
  }
  FAIL("no row with " << key << " = " << value);
  return {};
}

}  // namespace

TEST_CASE("inspect: shards, their ids and the vocabulary beside them") {
  const TinyCorpus corpus;
  const Inspection one = inspect(corpus.path("tiny_train_000.bin"));
  CHECK(one.exit_code == 0);
  CHECK(one.facts["tokens"] == 4096);
  CHECK(one.facts["version"] == 1);
  CHECK(one.facts["smallest_id"] == 5);  // chained_tokens(): 4 + powers of 2 modulo 59
  CHECK(one.facts["largest_id"] == 62);
  CHECK(one.facts["first_tokens"][3] == 12);
  CHECK(one.facts["metadata"]["vocab_size"] == 64);

  for (const std::string& path : {corpus.path("*.bin"), corpus.directory.path().string()}) {
    const Inspection all = inspect(path);
    CHECK(all.exit_code == 0);
    CHECK(all.facts["shards"].size() == 3);
    CHECK(all.facts["tokens"] == 4096 + 2048 + 512);
  }

  std::vector<std::uint16_t> tokens = test::chained_tokens(100);
  tokens[41] = 64;
  test::write_shard(corpus.directory.path() / "beyond.bin", tokens);
  const Inspection beyond = inspect(corpus.path("beyond.bin"));
  CHECK(beyond.exit_code == 3);
  CHECK(beyond.facts["largest_id"] == 64);
  CHECK_THAT(only_problem(beyond), Contains("64 at position 41") && Contains("beyond.bin"));
}

TEST_CASE("inspect: a cut shard is told beside the sound ones") {
  const TinyCorpus corpus;
  fs::resize_file(corpus.path("tiny_train_000.bin"), 2000);
  const Inspection found = inspect(corpus.path("*.bin"));
  CHECK(found.exit_code == 3);
  CHECK_THAT(only_problem(found), Contains("tiny_train_000.bin") && Contains("4096"));
  const Json cut = row_of(found.facts["shards"], "shard", corpus.path("tiny_train_000.bin"));
  CHECK(cut["state"] == "damaged");
  CHECK(cut["tokens_promised"] == 4096);
  CHECK(cut["file_bytes"] == 2000);
  CHECK(row_of(found.facts["shards"], "shard", corpus.path("tiny_val_000.bin"))["state"] == "sound");
}

TEST_CASE("inspect: statistics of each tensor of a safetensors file") {
  const test::TemporaryDirectory directory;
  const float values[] = {1.0f, -3.0f, std::nanf(""), 5.0f, std::numeric_limits<float>::infinity(), 1.0f};
  const std::int32_t ids[] = {7, -2};
  const fs::path path = directory.path() / "some.safetensors";
  write_safetensors(path, {{"values", FileType::f32, {2, 3}, values}, {"ids", FileType::i32, {2}, ids}});
  const Inspection found = inspect(path.string());
  CHECK(found.exit_code == 0);
  CHECK(found.facts["non_finite"] == 2);
  const Json row = row_of(found.facts["tensor_table"], "tensor", "values");
  CHECK(row["shape"] == "(2, 3)");
  CHECK(row["min"] == -3.0);
  CHECK(row["max"] == 5.0);
  CHECK(row["mean"] == 1.0);
  CHECK(row["non_finite"] == 2);
  CHECK(row_of(found.facts["tensor_table"], "tensor", "ids")["mean"] == 2.5);

  fs::resize_file(path, fs::file_size(path) - 4);
  const Inspection cut = inspect(path.string());
  CHECK(cut.exit_code == 4);
  CHECK_THAT(only_problem(cut), Contains("some.safetensors"));
}

TEST_CASE("inspect: a checkpoint, sound and damaged") {
  const TinyCorpus corpus;
  const fs::path checkpoint = list_checkpoints(small_run(corpus)).front();
  const Inspection sound = inspect(checkpoint.string());
  CHECK(sound.exit_code == 0);
  CHECK(sound.facts["verified"] == true);
  CHECK(sound.facts["model"]["model_type"] == "bert");
  CHECK(sound.facts["model"]["attn_softmax"] == "softmax1");
  CHECK(sound.facts["weights"]["values"] == sound.facts["model"]["parameters"]);
  CHECK(sound.facts["moments"]["values"] == 2 * sound.facts["model"]["parameters"].get<std::int64_t>());
  CHECK(sound.facts["training"]["step"] == 3);
  CHECK(sound.facts["training"]["samples"] == 24);

  flip_byte(checkpoint / "optimizer.safetensors", fs::file_size(checkpoint / "optimizer.safetensors") - 1);
  fs::remove(checkpoint / "trainer.json");
  const Inspection damaged = inspect(checkpoint.string());
  CHECK(damaged.exit_code == 4);
  CHECK(damaged.facts["verified"] == false);
  CHECK(row_of(damaged.facts["files"], "file", "optimizer.safetensors")["state"] == "damaged");
  CHECK(row_of(damaged.facts["files"], "file", "trainer.json")["state"] == "missing");
  CHECK(row_of(damaged.facts["files"], "file", "model.safetensors")["state"] == "sound");
  CHECK(damaged.facts["weights"] == sound.facts["weights"]);
  CHECK(damaged.facts["problems"].size() == 2);

  write_durable(checkpoint / "manifest.json", "{\"files\": [");
  fs::resize_file(checkpoint / "model.safetensors", 100);
  const Inspection ruined = inspect(checkpoint.string());
  CHECK(ruined.exit_code == 4);
  CHECK(ruined.facts["model"] == sound.facts["model"]);
  CHECK_THAT(facts_text(ruined.facts), Contains("manifest.json") && Contains("problems"));
}

TEST_CASE("inspect: a run, how far it is and who trains in it") {
  const TinyCorpus corpus;
  const fs::path run = small_run(corpus);
  const Inspection sound = inspect(run.string());
  CHECK(sound.exit_code == 0);
  CHECK(sound.facts["a_process_trains_in_it"] == false);
  CHECK(sound.facts["progress"]["step"] == 3);
  CHECK(sound.facts["progress"]["percent"] == 100.0);
  CHECK(sound.facts["checkpoints"].size() == 2);
  CHECK(sound.facts["last_step"]["step"] == 3);
  CHECK(sound.facts["last_evaluation"].contains("validation_loss"));
  CHECK(sound.facts["configuration"]["training.steps"] == 3);

  const FileLock lock(run / "lock");
  REQUIRE(lock.held());
  CHECK(inspect(run.string()).facts["a_process_trains_in_it"] == true);

  flip_byte(list_checkpoints(run).front() / "model.safetensors", 2000);
  const Inspection damaged = inspect(run.string());
  CHECK(damaged.exit_code == 4);
  CHECK(damaged.facts["checkpoints"][0]["state"] == "model.safetensors: damaged");
  CHECK(damaged.facts["checkpoints"][1]["state"] == "sound");
  CHECK(damaged.facts["resumes_after_step"] == 2);
  CHECK(damaged.facts["last_step"] == sound.facts["last_step"]);
}

TEST_CASE("inspect: what is not there, and what is something else") {
  const TinyCorpus corpus;
  const auto kind_of_error = [](const std::string& path) {
    try {
      inspect(path);
    } catch (const Error& e) {
      CHECK_THAT(e.what(), Contains(path));
      return e.kind();
    }
    return ErrorKind::internal;
  };
  CHECK(kind_of_error(corpus.path("none")) == ErrorKind::io);
  CHECK(kind_of_error(corpus.path("none_*.bin")) == ErrorKind::data);
  CHECK(kind_of_error(corpus.path("metadata.json")) == ErrorKind::usage);
}

}  // namespace outeffhop
