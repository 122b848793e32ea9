// The programs themselves, as processes: exit codes, one-line messages, signals.
#include <sched.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "tests/train/process.h"
#include "tests/train/train_support.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::Process;
using test::Result;
using test::run;
using test::TinyCorpus;
namespace fs = std::filesystem;

std::string write_config_file(const TinyCorpus& corpus, const nlohmann::json& config) {
  const std::string path = corpus.path("config.json");
  write_durable(path, config.dump(2));
  return path;
}

TEST_CASE("Help and version") {
  CHECK(run({"--help"}).code == 0);
  CHECK_THAT(run({"train", "--help"}).output, Contains("--config") && Contains("Examples:"));
  const Result version = run({"--version"});
  CHECK(version.code == 0);
  CHECK_THAT(version.output, Contains("outeffhop 0.") && Contains("\nbuilt for: CPU") && Contains("\ndevice: CPU"));
  CHECK(run({}).code == 2);
  CHECK(run({"frobnicate"}).code == 2);
  CHECK_THAT(run({"train"}).error, Contains("--config"));
}

TEST_CASE("The options that the README gives are there") {
  std::istringstream readme(read_file(OUTEFFHOP_SOURCE_DIR "/README.md"));
  std::map<std::string, std::string> help;
  int options = 0;
  std::string line, command;
  while (std::getline(readme, line)) {
    // A command may go on in the next lines.
    const bool goes_on = !command.empty() && command.back() == '\\';
    command = goes_on ? command.substr(0, command.size() - 1) + line : line;
    if (command.ends_with('\\')) continue;
    std::istringstream words(command);
    std::string word, subcommand;
    if (!(words >> word && word == "build/outeffhop" && words >> subcommand)) continue;
    if (!help.contains(subcommand)) help[subcommand] = run({subcommand, "--help"}).output;
    while (words >> word && word != "#") {
      if (!word.starts_with("--")) continue;
      INFO(subcommand << ' ' << word);
      CHECK_THAT(help[subcommand], Contains(" " + word + " ") || Contains(" " + word + "\n"));
      ++options;
    }
  }
  CHECK(options > 10);
}

TEST_CASE("A user's mistake is one line and has its exit code") {
  const TinyCorpus corpus;
  const auto expect = [](const Result& result, int code, const std::string& words) {
    CHECK(result.code == code);
    CHECK(result.error.starts_with("outeffhop: "));
    CHECK(std::count(result.error.begin(), result.error.end(), '\n') == 1);
    CHECK_THAT(result.error, Contains(words));
  };
  expect(run({"train", "--config", corpus.path("none.json")}), 5, "none.json");
  const std::string config = write_config_file(corpus, corpus.config("bert", "run"));
  expect(run({"train", "--config", config, "--set", "training.stpes=3"}), 2, "did you mean \"training.steps\"?");
  expect(run({"train", "--config", config, "--set", "nonsense"}), 2, "KEY=VALUE");
  expect(run({"train", "--config", config, "--set", "data.train=" + corpus.path("none_*.bin")}), 3, "none_*.bin");
  expect(run({"train", "--config", config, "--device", "abacus"}), 2, "abacus");
  expect(run({"train", "--config", config, "--out", corpus.path("caf\xe9")}), 2, "not UTF-8");
  fs::create_symlink("loop", corpus.path("loop"));
  expect(run({"train", "--config", config, "--out", corpus.path("loop/run")}), 5, "loop");
  expect(run({"eval", "--checkpoint", corpus.path("none"), "--data", corpus.path("tiny_val_*.bin")}), 5, "none");
  fs::create_directories(corpus.path("empty"));
  expect(run({"eval", "--checkpoint", corpus.path("empty"), "--data", corpus.path("tiny_val_*.bin")}), 4, "config.json");
  fs::resize_file(corpus.path("tiny_train_000.bin"), 2000);
  expect(run({"train", "--config", config}), 3, "tiny_train_000.bin");
}

TEST_CASE("The device \"cuda\" without a driver is one sentence, and the CPU trains all the same") {
  if (fs::exists("/dev/nvidiactl")) return;  // where there is one
  const std::string version = run({"--version"}).output;
  const bool built = version.find("\nbuilt for: CPU, CUDA (toolkit ") != std::string::npos;
  CHECK(built == OUTEFFHOP_BUILT_WITH_CUDA);
  if (built) CHECK_THAT(version, Contains(" for sm_"));
  const TinyCorpus corpus;
  const std::string config = write_config_file(corpus, corpus.config("bert", "run"));
  for (const char* program : {"outeffhop", "outeffhop_vanilla"}) {
    const std::vector<std::string> command = {"train", "--config", config, "--set", "training.steps=2"};
    std::vector<std::string> on_cuda = command;
    on_cuda.insert(on_cuda.end(), {"--device", "cuda"});
    const Result refused = run(on_cuda, program);
    CHECK(refused.code == 6);
    CHECK(refused.output.empty());
    CHECK(std::count(refused.error.begin(), refused.error.end(), '\n') == 1);
    CHECK_THAT(refused.error, Contains(built ? "outeffhop: device \"cuda\" needs a driver"
                                             : "outeffhop: device \"cuda\" is not in this build"));
    CHECK_THAT(refused.error, Contains("cpu"));
    CHECK_FALSE(fs::exists(corpus.path("run/metrics.jsonl")));
  }
  CHECK(run({"train", "--config", config, "--set", "training.steps=2"}).code == 0);
  CHECK(run({"eval", "--checkpoint", corpus.path("run"), "--data", corpus.path("tiny_val_*.bin"), "--device", "cuda"}).code ==
        6);
}

TEST_CASE("A dry run says what would be done and does nothing") {
  const TinyCorpus corpus;
  const Result result = run({"train", "--config", write_config_file(corpus, corpus.config("opt", "run")), "--dry-run"});
  CHECK(result.code == 0);
  CHECK_THAT(result.output, Contains("parameters") && Contains("gradients") && Contains("40 steps of 8 sequences"));
  CHECK_FALSE(fs::exists(corpus.path("run")));

  // Far more than a test may allocate.
  const std::string large = std::string(OUTEFFHOP_SOURCE_DIR) + "/configs/opt_1.3b.json";
  const Result planned =
      run({"train", "--config", large, "--dry-run", "--set", "data.train=" + corpus.path("tiny_train_*.bin"), "--set",
           "data.validation=" + corpus.path("tiny_val_*.bin")});
  CHECK(planned.code == 0);
  CHECK_THAT(planned.output, Contains("G parameters") && Contains("252 sequences (18 x 14 at a time)"));
}

TEST_CASE("Train, evaluate, probe") {
  const TinyCorpus corpus;
  const std::string config = write_config_file(corpus, corpus.config("bert", "run"));
  const Result trained = run({"train", "--config", config, "--set", "training.steps=5", "--out", corpus.path("other")});
  CHECK(trained.code == 0);
  CHECK_THAT(trained.output, Contains("step 5/5") && Contains("validation") && Contains("perplexity") &&
                                 Contains(corpus.path("other/checkpoints/step_00000005")));
  const Result evaluated = run({"eval", "--checkpoint", corpus.path("other"), "--data", corpus.path("tiny_val_*.bin"),
                                "--outliers", "--json", corpus.path("eval.json")});
  CHECK(evaluated.code == 0);
  CHECK_THAT(evaluated.output, Contains("perplexity") && Contains("average kurtosis"));
  CHECK(nlohmann::json::parse(read_file(corpus.path("eval.json")))["outliers"]["modules"].size() == 6);

  const std::vector<std::int32_t> ids = {4, 5, 6, 7, 8, 9, 10, 11};
  const std::vector<std::int32_t> mask = {1, 1, 1, 1, 1, 1, 1, 0}, holes = {1, 0, 1, 1, 1, 1, 1, 1};
  const std::vector<std::int32_t> labels = {-100, 5, -100, -100, 8, 9, -100, -100};
  const auto write_batch = [&](const std::vector<std::int32_t>& attention_mask) {
    write_safetensors(corpus.path("batch.safetensors"), {{"input_ids", FileType::i32, {2, 4}, ids.data()},
                                                         {"attention_mask", FileType::i32, {2, 4}, attention_mask.data()},
                                                         {"labels", FileType::i32, {2, 4}, labels.data()}});
    return run({"probe", "--checkpoint", corpus.path("other"), "--batch", corpus.path("batch.safetensors"), "--attention",
                "--out", corpus.path("probe.safetensors")});
  };
  CHECK(write_batch(mask).code == 0);
  const SafetensorsFile probe(corpus.path("probe.safetensors"));
  REQUIRE(probe.find("loss"));
  CHECK(probe.find("logits")->shape == std::vector<std::int64_t>{2, 4, 64});
  CHECK(probe.find("bert.encoder.layer.1.attention.self.probabilities")->shape == std::vector<std::int64_t>{2, 4, 4, 4});
  CHECK(probe.find("grad.bert.encoder.layer.0.output.dense.weight")->shape == std::vector<std::int64_t>{32, 64});
  // The loss follows from the logits.
  std::vector<float> loss(1), logits(2 * 4 * 64);
  probe.read_floats(*probe.find("loss"), loss.data());
  probe.read_floats(*probe.find("logits"), logits.data());
  double expected = 0.0;
  for (const std::size_t row : {1u, 4u, 5u}) {
    double sum = 0.0;
    for (std::size_t v = 0; v < 64; ++v) sum += std::exp(logits[row * 64 + v]);
    expected += (std::log(sum) - logits[row * 64 + static_cast<std::size_t>(labels[row])]) / 3.0;
  }
  CHECK(loss[0] == Approx(expected).epsilon(1e-5));

  fs::resize_file(corpus.path("batch.safetensors"), 40);
  const Result damaged = run({"probe", "--checkpoint", corpus.path("other"), "--batch", corpus.path("batch.safetensors"),
                              "--out", corpus.path("none.safetensors")});
  CHECK(damaged.code == 3);
  CHECK_THAT(damaged.error, Contains("batch.safetensors"));
  const Result refused = write_batch(holes);
  CHECK(refused.code == 3);
  CHECK_THAT(refused.error, Contains("row 0 of attention_mask"));
}

void wait_for_metrics(const TinyCorpus& corpus) {
  const std::string file = corpus.path("run/metrics.jsonl");
  for (int i = 0; i < 400 && !(fs::exists(file) && fs::file_size(file) > 0); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
}

TEST_CASE("A signal finishes the step, saves and asks to be started again") {
  const int signal = GENERATE(SIGTERM, SIGUSR1);
  const TinyCorpus corpus;
  auto config = corpus.config("bert", "run");
  config["training"]["steps"] = 1000000;
  config["training"]["global_batch_size"] = 4;
  config["logging"]["interval"] = 1;
  Process process("outeffhop", {"train", "--config", write_config_file(corpus, config)});
  wait_for_metrics(corpus);
  process.signal(signal);
  CHECK(process.wait() == 75);
  CHECK_THAT(process.output(), Contains("is saved, and the same command goes on from there"));
  std::size_t checkpoints = 0;
  for (const auto& entry : fs::directory_iterator(corpus.path("run/checkpoints"))) {
    CHECK(fs::exists(entry.path() / "manifest.json"));
    ++checkpoints;
  }
  CHECK(checkpoints == 1);
  const std::size_t steps = test::read_losses(corpus.path("run")).size();
  const Result more = run({"train", "--config", corpus.path("config.json"), "--stop-after", "2"});
  CHECK(more.code == 0);
  CHECK_THAT(more.output, Contains("resumed"));
  CHECK(test::read_losses(corpus.path("run")).size() == steps + 2);
}

TEST_CASE("A signal does not wait for the end of an evaluation, which is made up for later") {
  const TinyCorpus corpus;
  auto config = corpus.config("bert", "run");
  // An evaluation that takes minutes.
  test::write_shard(corpus.path("long_val_000.bin"), test::chained_tokens(16 << 20));
  config["data"]["validation"] = corpus.path("long_val_*.bin");
  config["evaluation"] = {{"interval", 1}, {"batches", 0}, {"batch_size", 1}};
  Process process("outeffhop", {"train", "--config", write_config_file(corpus, config)});
  wait_for_metrics(corpus);
  process.signal(SIGTERM);
  CHECK(process.wait() == 75);
  REQUIRE(test::read_metrics(corpus.path("run")).size() == 1);
  CHECK_FALSE(test::read_metrics(corpus.path("run"))[0].contains("validation_loss"));
  CHECK(fs::exists(corpus.path("run/checkpoints/step_00000001/manifest.json")));

  CHECK(run({"train", "--config", corpus.path("config.json"), "--set", "evaluation.batches=1", "--stop-after", "1"}).code ==
        0);
  std::vector<std::string> written;
  for (const auto& object : test::read_metrics(corpus.path("run"))) {
    written.push_back(
        fmt::format("{} {}", object["step"].get<int>(),
                                  object.contains("validation_loss") ? "evaluated" : object.contains("resumed") ? "resumed" : ""));
  }
  CHECK(written == std::vector<std::string>{"1 ", "1 resumed", "1 evaluated", "2 ", "2 evaluated"});
}

TEST_CASE("A run that goes on with other threads says so") {
  cpu_set_t all, one;
  REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
  if (CPU_COUNT(&all) < 2) return;  // where there is no other number of threads
  const TinyCorpus corpus;
  const std::string config = write_config_file(corpus, corpus.config("bert", "run"));
  const std::vector<std::string> command = {"train", "--config", config, "--set", "training.threads=0", "--stop-after", "1"};
  CHECK(run(command).code == 0);
  CHECK_THAT(run(command).output, !Contains("note: the device"));
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  }
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  const Result other = run(command);
  REQUIRE(sched_setaffinity(0, sizeof all, &all) == 0);
  CHECK(other.code == 0);
  CHECK_THAT(other.output, Contains("note: the device was") && Contains("is now \"CPU, 1 thread,"));
}

TEST_CASE("The program built for the ordinary softmax says so and refuses another") {
  const TinyCorpus corpus;
  const std::string config = write_config_file(corpus, corpus.config("bert", "run"));
  CHECK_THAT(run({"--version"}, "outeffhop_vanilla").output,
             Contains("ordinary softmax alone") && Contains("default attn_softmax: vanilla"));
  const Result refused = run({"train", "--config", config, "--set", "model.attn_softmax=softmax1"}, "outeffhop_vanilla");
  CHECK(refused.code == 6);
  CHECK_THAT(refused.error, Contains("softmax1") && Contains("vanilla"));
  CHECK(run({"train", "--config", config, "--set", "training.steps=2"}, "outeffhop_vanilla").code == 0);
  const auto written = nlohmann::json::parse(read_file(corpus.path("run/config.json")));
  CHECK(written["model"]["attn_softmax"] == "vanilla");
}

}  // namespace
}  // namespace outeffhop
