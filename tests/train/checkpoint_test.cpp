#include "train/checkpoint.h"

#include <fstream>

#include "model/model.h"
#include "tests/train/train_support.h"
#include "train/model_directory.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;
namespace fs = std::filesystem;

ModelConfig tiny(const std::string& model_type = "bert") {
  ModelConfig config = default_model_config(model_type);
  config.vocab_size = 16;
  config.hidden_size = 8;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 2;
  config.intermediate_size = 8;
  config.max_position_embeddings = 8;
  return config;
}

/// A run directory with checkpoints of known contents.
struct Run {
  test::TemporaryDirectory directory;
  CheckpointContext context;
  ParameterTable table;

  explicit Run(const std::string& model_type = "bert") : table(make_parameter_table(tiny(model_type))) {
    context.run = directory.path();
    context.model = tiny(model_type);
    context.config = {{"training", {{"steps", 100}}}};
    context.data_fingerprint = "0123";
    context.device = "CPU, 5 threads";
  }

  Snapshot snapshot(std::int64_t step) const {
    Snapshot s;
    s.state = {step, step - 1, 8 * step, 1, 0.5, {{0.1, 1e300, 1.0 / 3}, {2.5, 5e-324, 7.0}}, 1000 * step, "/runs/before"};
    const auto size = static_cast<std::size_t>(table.flat_size());
    for (auto* values : {&s.weights, &s.first_moments, &s.second_moments}) values->assign(size, 0.0f);
    for (const Parameter& p : table.all()) {
      for (std::int64_t i = p.offset; i < p.offset + p.count; ++i) {
        s.weights[static_cast<std::size_t>(i)] = static_cast<float>(i + step) * 0.25f;
        s.first_moments[static_cast<std::size_t>(i)] = static_cast<float>(-i);
        s.second_moments[static_cast<std::size_t>(i)] = static_cast<float>(2 * i);
      }
    }
    return s;
  }

  fs::path save(std::int64_t step) const { return write_checkpoint(context, table, snapshot(step)); }
};

void flip_byte(const fs::path& file, std::streamoff at) {
  std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
  f.seekg(at);
  const char byte = static_cast<char>(f.get() ^ 1);
  f.seekp(at);
  f.put(byte);
  REQUIRE(f.good());
}

std::vector<std::string> names(const std::vector<fs::path>& paths) {
  std::vector<std::string> result;
  for (const fs::path& p : paths) result.push_back(p.filename().string());
  return result;
}

TEST_CASE("A checkpoint gives back what was written, byte for byte the same each time") {
  const Run run;
  const fs::path path = run.save(20);
  CHECK(path.filename() == "step_00000020");
  const std::string weights = read_file(path / "model.safetensors"), manifest = read_file(path / "manifest.json");
  verify_checkpoint(path);

  const Resumable read = read_checkpoint(path, run.table);
  const Snapshot written = run.snapshot(20);
  CHECK(read.snapshot.weights == written.weights);
  CHECK(read.snapshot.first_moments == written.first_moments);
  CHECK(read.snapshot.second_moments == written.second_moments);
  CHECK(read.snapshot.state.step == 20);
  CHECK(read.snapshot.state.updates == 19);
  CHECK(read.snapshot.state.samples == 160);
  CHECK(read.snapshot.state.bad_steps_in_a_row == 1);
  CHECK(read.snapshot.state.seconds == 0.5);
  CHECK(read.snapshot.state.spikes.losses == written.state.spikes.losses);
  CHECK(read.snapshot.state.spikes.gradient_norms == written.state.spikes.gradient_norms);
  CHECK(read.snapshot.state.tokens == written.state.tokens);
  CHECK(read.snapshot.state.resumed_from == written.state.resumed_from);
  CHECK(read.data_fingerprint == "0123");
  CHECK(read.device == "CPU, 5 threads");
  CHECK(read.config["training"]["steps"] == 100);

  CHECK(run.save(20) == path);
  CHECK(read_file(path / "model.safetensors") == weights);
  CHECK(read_file(path / "manifest.json") == manifest);
  CHECK(names(list_checkpoints(run.context.run)) == std::vector<std::string>{"step_00000020"});
}

TEST_CASE("What the system cannot say about a path is an error of the file system") {
  const test::TemporaryDirectory directory;
  CHECK_FALSE(fs::exists(status_of(directory.path() / "nothing")));
  CHECK(entries_of(directory.path() / "nothing").empty());
  const fs::path loop = directory.path() / "loop";
  fs::create_symlink(loop, loop);
  CHECK(caught_error([&] { status_of(loop); }).kind() == ErrorKind::io);
  CHECK(caught_error([&] { list_checkpoints(loop); }).kind() == ErrorKind::io);
  CHECK(caught_error([&] { read_model_directory(loop); }).kind() == ErrorKind::io);
  CHECK(caught_error([&] { read_checkpoint_state(loop); }).kind() == ErrorKind::io);
  write_durable(directory.path() / "checkpoints", "not a directory");
  CHECK(caught_error([&] { list_checkpoints(directory.path()); }).kind() == ErrorKind::io);
  CHECK(entries_of(directory.path()).size() == 2);
}

TEST_CASE("A damaged checkpoint is noticed, and the one before it taken") {
  const Run run;
  run.save(10);
  const fs::path newest = run.save(20);
  std::vector<std::string> notes;
  CHECK(newest_checkpoint(run.context.run, &notes)->filename() == "step_00000020");
  CHECK(notes.empty());

  std::string expected;
  SECTION("a flipped byte") {
    flip_byte(newest / "model.safetensors", static_cast<std::streamoff>(fs::file_size(newest / "model.safetensors")) - 3);
    expected = "model.safetensors is damaged";
  }
  SECTION("a cut file") {
    fs::resize_file(newest / "optimizer.safetensors", 100);
    expected = "optimizer.safetensors has 100 bytes instead of";
  }
  SECTION("a missing file") {
    fs::remove(newest / "trainer.json");
    expected = "trainer.json is missing";
  }
  SECTION("a missing manifest") {
    fs::remove(newest / "manifest.json");
    expected = "has no manifest.json";
  }
  SECTION("a damaged manifest") {
    fs::resize_file(newest / "manifest.json", 40);
    expected = "not valid JSON";
  }
  const Error e = caught_error([&] { verify_checkpoint(newest); });
  CHECK(e.kind() == ErrorKind::checkpoint);
  CHECK_THAT(e.what(), Contains(expected));
  CHECK(newest_checkpoint(run.context.run, &notes)->filename() == "step_00000010");
  REQUIRE(notes.size() == 1);
  CHECK_THAT(notes[0], Contains("passed over step_00000020") && Contains(expected));
}

TEST_CASE("The tokenizer travels with the checkpoint") {
  Run run;
  run.context.extra_files = {{"vocab.txt", "[PAD]\n"}};
  const fs::path path = run.save(10);
  CHECK(read_file(path / "vocab.txt") == "[PAD]\n");
  verify_checkpoint(path);
  fs::remove(path / "vocab.txt");
  CHECK(caught_error([&] { verify_checkpoint(path); }).kind() == ErrorKind::checkpoint);
}

TEST_CASE("Unfinished directories are no checkpoints, and are cleared away") {
  const Run run;
  run.save(10);
  const fs::path unfinished = run.context.run / "checkpoints" / "step_00000020.unfinished";
  fs::create_directories(unfinished);
  CHECK(names(list_checkpoints(run.context.run)) == std::vector<std::string>{"step_00000010"});
  prune_checkpoints(run.context.run, 2, 0);
  CHECK_FALSE(fs::exists(unfinished));
  CHECK(list_checkpoints(run.context.run).size() == 1);
}

TEST_CASE("The newest are kept, and every so many") {
  const Run run;
  for (const std::int64_t step : {10, 20, 30, 40, 50, 60}) run.save(step);
  prune_checkpoints(run.context.run, 2, 30);
  CHECK(names(list_checkpoints(run.context.run)) ==
        std::vector<std::string>{"step_00000060", "step_00000050", "step_00000030"});
  prune_checkpoints(run.context.run, 1, 0);
  CHECK(names(list_checkpoints(run.context.run)) == std::vector<std::string>{"step_00000060"});
}

TEST_CASE("Going on from an earlier checkpoint sets the later ones aside") {
  const Run run;
  for (const std::int64_t step : {10, 20, 30}) run.save(step);
  CHECK(set_aside_later_checkpoints(run.context.run, 10) == 2);
  CHECK(names(list_checkpoints(run.context.run)) == std::vector<std::string>{"step_00000010"});
  CHECK(fs::exists(run.context.run / "checkpoints" / "step_00000030.superseded" / "model.safetensors"));
}

TEST_CASE("A model directory of any program can be read") {
  const Run run;
  const fs::path ours = run.save(10);
  const Snapshot snapshot = run.snapshot(10);
  CHECK(read_model_directory(ours).weights == snapshot.weights);
  CHECK(read_model_directory(run.context.run).path == ours);

  // The same as another program might have saved it: no manifest, old names, half the precision, tied copies, a pooler.
  const fs::path theirs = run.directory.path() / "theirs";
  fs::create_directories(theirs);
  fs::copy(ours / "config.json", theirs / "config.json");
  const std::vector<float> pooler(64, 1.0f);
  const auto write = [&](const std::function<void(std::vector<TensorToWrite>&)>& change) {
    std::vector<TensorToWrite> tensors;
    for (const Parameter& p : run.table.all()) {
      std::string name = p.name;
      if (name == "bert.embeddings.LayerNorm.weight") name = "bert.embeddings.LayerNorm.gamma";
      if (name == "bert.embeddings.LayerNorm.bias") name = "bert.embeddings.LayerNorm.beta";
      tensors.push_back({name, FileType::f32, p.shape, snapshot.weights.data() + p.offset});
    }
    tensors.push_back({"bert.pooler.dense.weight", FileType::f32, {8, 8}, pooler.data()});
    change(tensors);
    write_safetensors(theirs / "model.safetensors", tensors);
  };
  const Parameter& words = *run.table.find("bert.embeddings.word_embeddings.weight");
  write([&](auto& t) {
    t.push_back({"cls.predictions.decoder.weight", FileType::f32, words.shape, snapshot.weights.data() + words.offset});
  });
  const ModelDirectory read = read_model_directory(theirs);
  CHECK(read.weights == snapshot.weights);
  CHECK(read.run_config.is_null());
  REQUIRE(read.notes.size() == 1);
  CHECK_THAT(read.notes[0], Contains("bert.pooler.dense.weight"));

  const std::vector<float> other(static_cast<std::size_t>(words.count), 2.0f);
  write([&](auto& t) { t.push_back({"cls.predictions.decoder.weight", FileType::f32, words.shape, other.data()}); });
  CHECK(caught_error([&] { read_model_directory(theirs); }).kind() == ErrorKind::unsupported);
  write([&](auto& t) { t.push_back({"bert.surprise", FileType::f32, {8, 8}, pooler.data()}); });
  CHECK_THAT(caught_error([&] { read_model_directory(theirs); }).what(), Contains("bert.surprise"));
  write([&](auto& t) { t.erase(t.begin() + 3); });
  CHECK_THAT(caught_error([&] { read_model_directory(theirs); }).what(), Contains("has no tensor"));
  write([](auto&) {});
  write_durable(theirs / "config.json", R"({"model_type": "bert", "hidden_size": "wide"})");
  const Error damaged = caught_error([&] { read_model_directory(theirs); });
  CHECK(damaged.kind() == ErrorKind::checkpoint);
  CHECK_THAT(damaged.what(), Contains("\"hidden_size\" is \"wide\""));
  fs::copy(ours / "config.json", theirs / "config.json", fs::copy_options::overwrite_existing);
  write([&](auto& t) { t[0].shape = {8, 16}; });
  CHECK_THAT(caught_error([&] { read_model_directory(theirs); }).what(), Contains("(8, 16)") && Contains("(16, 8)"));
}

TEST_CASE("OPT's names are understood without their prefix") {
  const Run run("opt");
  const fs::path ours = run.save(10);
  const Snapshot snapshot = run.snapshot(10);
  std::vector<TensorToWrite> tensors;
  for (const Parameter& p : run.table.all()) {
    REQUIRE(p.name.starts_with("model."));
    tensors.push_back({p.name.substr(6), FileType::f32, p.shape, snapshot.weights.data() + p.offset});
  }
  const fs::path file = run.directory.path() / "bare.safetensors";
  write_safetensors(file, tensors);
  CHECK(read_weights(file, run.table, nullptr) == snapshot.weights);
}

}  // namespace
}  // namespace outeffhop
