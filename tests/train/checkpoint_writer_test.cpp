#include "train/checkpoint_writer.h"

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <set>
#include <thread>

#include "model/model.h"
#include "tests/train/process.h"
#include "tests/train/train_support.h"
#include "train/metrics.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;
using test::Process;
using test::TinyCorpus;
namespace fs = std::filesystem;

/// While it lives no file of this process can grow beyond `bytes`: what a full disk does, at a place of the test's choosing.
class LargestFile {
 public:
  explicit LargestFile(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before_) == 0);
    const rlimit limit{bytes, before_.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~LargestFile() {
    setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

/// A run with a model of about 200 KB, most of it in one table.
struct Run {
  test::TemporaryDirectory directory;
  CheckpointContext context;
  std::optional<ParameterTable> table;

  Run() {
    context.run = directory.path();
    context.model = default_model_config("bert");
    context.model.vocab_size = 2048;
    context.model.hidden_size = 16;
    context.model.num_hidden_layers = 1;
    context.model.num_attention_heads = 2;
    context.model.intermediate_size = 16;
    context.model.max_position_embeddings = 8;
    table = make_parameter_table(context.model);
  }

  void fill(Snapshot& snapshot, std::int64_t step) const {
    snapshot.state.step = step;
    for (auto* values : {&snapshot.weights, &snapshot.first_moments, &snapshot.second_moments}) {
      values->assign(static_cast<std::size_t>(table->flat_size()), static_cast<float>(step));
    }
  }
  SaveResult save(CheckpointWriter& writer, std::int64_t step) const {
    fill(writer.snapshot(), step);
    writer.start();
    CHECK(writer.wait());
    const std::optional<SaveResult> result = writer.take_result();
    REQUIRE(result);
    CHECK_FALSE(writer.take_result());
    CHECK(result->step == step);
    return *result;
  }
  std::set<std::string> entries() const {
    std::set<std::string> names;
    for (const fs::path& path : entries_of(context.run / "checkpoints")) names.insert(path.filename().string());
    return names;
  }
};

TEST_CASE("What is written in the background is what is written at once") {
  const Run run, other;
  CheckpointWriter writer(run.context, *run.table, 2, 0);
  CHECK(writer.wait(std::chrono::milliseconds(0)));
  CHECK_FALSE(writer.take_result());
  for (const std::int64_t step : {10, 20, 30}) {
    const SaveResult result = run.save(writer, step);
    CHECK(result.error.empty());
    CHECK(result.warning.empty());
    verify_checkpoint(result.checkpoint);
    Snapshot snapshot;
    other.fill(snapshot, step);
    const fs::path written = write_checkpoint(other.context, *other.table, snapshot);
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "manifest.json"}) {
      CHECK(read_file(result.checkpoint / file) == read_file(written / file));
    }
  }
  CHECK(run.entries() == std::set<std::string>{"step_00000020", "step_00000030"});
}

TEST_CASE("The end of a writer waits for its write") {
  const Run run;
  {
    CheckpointWriter writer(run.context, *run.table, 2, 0);
    run.fill(writer.snapshot(), 10);
    writer.start();
  }
  verify_checkpoint(run.context.run / "checkpoints" / "step_00000010");
}

TEST_CASE("A write that fails leaves the last checkpoint and nothing else, and the next one succeeds") {
  const Run run;
  CheckpointWriter writer(run.context, *run.table, 1, 0);
  REQUIRE(run.save(writer, 10).error.empty());
  for (const rlim_t bytes : {0, 1, 100, 4096, 100'000, 200'000}) {
    const LargestFile limit(bytes);
    const SaveResult failed = run.save(writer, 20);
    INFO(bytes << " bytes: " << failed.error);
    CHECK(failed.checkpoint.empty());
    CHECK_THAT(failed.error, Contains("cannot write") && Contains("step_00000020") && Contains("File too large"));
    CHECK(run.entries() == std::set<std::string>{"step_00000010"});
    verify_checkpoint(run.context.run / "checkpoints" / "step_00000010");
  }
  CHECK(run.save(writer, 30).error.empty());
  CHECK(run.entries() == std::set<std::string>{"step_00000030"});
}

TEST_CASE("A checkpoint replaces one of the same step, and a file in its way is told") {
  const Run run;
  CheckpointWriter writer(run.context, *run.table, 2, 0);
  const fs::path first = run.save(writer, 10).checkpoint;
  write_durable(first / "note.txt", "of another run");
  CHECK(run.save(writer, 10).checkpoint == first);
  CHECK_FALSE(fs::exists(first / "note.txt"));
  CHECK(run.entries() == std::set<std::string>{"step_00000010"});
  fs::remove_all(run.context.run / "checkpoints");
  write_durable(run.context.run / "checkpoints", "");
  CHECK_THAT(run.save(writer, 20).error, Contains("checkpoints"));
}

TEST_CASE("Leftovers of a crash are cleared, checkpoints and what was set aside are not") {
  const Run run;
  for (const char* name : {"step_00000010", "step_00000020.unfinished", "step_00000005.deleted", "step_00000030.superseded"}) {
    fs::create_directories(run.context.run / "checkpoints" / name);
  }
  remove_leftovers(run.context.run);
  CHECK(run.entries() == std::set<std::string>{"step_00000010", "step_00000030.superseded"});
}

TEST_CASE("Lines that a full disk does not take are written later, whole") {
  const test::TemporaryDirectory directory;
  const fs::path path = directory.path() / "metrics.jsonl";
  MetricsFile metrics(path, 0);
  metrics.write({{"step", 1}});
  CHECK(metrics.trouble().empty());
  {
    const LargestFile limit(15);  // in the middle of the second line
    metrics.write({{"step", 2}});
    CHECK_THAT(metrics.trouble(), Contains("metrics.jsonl: File too large"));
    CHECK(read_file(path) == "{\"step\":1}\n{\"st");
    metrics.write({{"step", 3}});
    const Error e = caught_error([&] { metrics.finish(); });
    CHECK(e.kind() == ErrorKind::io);
    CHECK_THAT(e.what(), Contains("are lost"));
  }
  metrics.write({{"step", 4}});
  CHECK(metrics.trouble().empty());
  metrics.finish();
  CHECK(read_file(path) == "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4}\n");
}

/// The objects of metrics.jsonl that tell of a save that failed.
std::vector<nlohmann::json> failures(const TinyCorpus& corpus) {
  std::vector<nlohmann::json> found;
  std::ifstream lines(corpus.path("run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_discarded() && object.contains("checkpoint_error")) found.push_back(object);
  }
  return found;
}

bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 800; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
  return false;
}

TEST_CASE("Training goes on when a checkpoint cannot be saved, and saves when it can") {
  const TinyCorpus corpus;
  auto config = corpus.config("bert", "run");
  config["training"]["steps"] = 1000000;
  config["checkpoint"]["interval"] = 20;
  config["logging"]["interval"] = 1000000;
  write_durable(corpus.path("config.json"), config.dump());
  // The moments have about twice as many bytes as the weights; every other file is far smaller.
  Process process("outeffhop", {"train", "--config", corpus.path("config.json")}, 100'000);
  REQUIRE(eventually([&] { return failures(corpus).size() >= 2; }));
  CHECK_FALSE(fs::exists(corpus.path("run/checkpoints/step_00000020")));
  const nlohmann::json failure = failures(corpus)[0];
  CHECK(failure["checkpoint_step"] == 20);
  CHECK(failure["step"] >= 20);
  CHECK_THAT(failure["checkpoint_error"].get<std::string>(),
             Contains("step_00000020.unfinished") && Contains("File too large"));

  rlimit limit{};
  REQUIRE(prlimit(process.pid(), RLIMIT_FSIZE, nullptr, &limit) == 0);
  limit.rlim_cur = limit.rlim_max;
  REQUIRE(prlimit(process.pid(), RLIMIT_FSIZE, &limit, nullptr) == 0);
  CHECK(eventually([&] { return !list_checkpoints(corpus.path("run")).empty(); }));
  process.signal(SIGTERM);
  CHECK(process.wait() == 75);
  CHECK_THAT(process.output(), Contains("step 20 could not be saved: cannot write " + corpus.path("run")) &&
                                   Contains("there is no checkpoint yet, and training goes on to the next try at step 40") &&
                                   Contains("is saved, and the same command goes on from there"));
  for (const fs::path& path : entries_of(corpus.path("run/checkpoints"))) verify_checkpoint(path);
}

TEST_CASE("A run that ends or stops without being saved is an error that says what is lost") {
  const TinyCorpus corpus;
  auto config = corpus.config("bert", "run");
  config["training"]["steps"] = 20;
  write_durable(corpus.path("config.json"), config.dump());
  const std::vector<std::string> command = {"train", "--config", corpus.path("config.json")};
  const auto with = [&](const std::string& option, const std::string& value) {
    std::vector<std::string> arguments = command;
    arguments.insert(arguments.end(), {option, value});
    return arguments;
  };
  Process stopped("outeffhop", with("--stop-after", "10"), 100'000);
  CHECK(stopped.wait() == 5);
  CHECK_THAT(stopped.error(), Contains("step 10 could not be saved: cannot write") && Contains("File too large") &&
                                  Contains("what was trained since the start is lost"));
  REQUIRE(failures(corpus).size() == 1);
  CHECK(entries_of(corpus.path("run/checkpoints")).empty());

  CHECK(test::run(with("--stop-after", "10")).code == 0);
  Process ended("outeffhop", command, 100'000);
  CHECK(ended.wait() == 5);
  const std::string error = ended.error();
  CHECK_THAT(error, Contains("step 20 could not be saved") && Contains("run/checkpoints/step_00000010, from which"));
  CHECK(std::count(error.begin(), error.end(), '\n') == 1);
  verify_checkpoint(corpus.path("run/checkpoints/step_00000010"));
  CHECK(test::run(command).code == 0);
  CHECK(failures(corpus).empty());  // step 20 was done again, and saved
  verify_checkpoint(corpus.path("run/checkpoints/step_00000020"));
}

TEST_CASE("A run that diverges while a checkpoint is being written leaves that checkpoint whole") {
  const TinyCorpus corpus;
  const Error e = caught_error([&] {
    train(test::quiet_options(corpus.config("bert", "run"),
                              {"optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "training.max_bad_steps=3",
                               "optimizer.weight_decay=1e10", "checkpoint.interval=1"}));
  });
  CHECK(e.kind() == ErrorKind::diverged);
  const std::vector<fs::path> entries = entries_of(corpus.path("run/checkpoints"));
  CHECK_FALSE(entries.empty());
  for (const fs::path& path : entries) verify_checkpoint(path);
}

}  // namespace
}  // namespace outeffhop
