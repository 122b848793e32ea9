#include "train/training.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/model.h"
#include "tests/train/train_support.h"
#include "train/checkpoint.h"
#include "train/eval_command.h"
#include "train/optimizer.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;
using test::quiet_options;
using test::read_losses;
using test::TinyCorpus;
namespace fs = std::filesystem;

TEST_CASE("A run that is stopped and resumed is the run that was not, bit for bit") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"}) {
    for (const std::string dtype : {"fp32", "bf16"}) {
      INFO(type << " " << dtype);
      // Two threads once, where there are two: where they are not alone on the machine, waiting for each other is slow.
      const int most = std::min(2, omp_get_num_procs());
      const std::string threads = fmt::format("training.threads={}", type + dtype == "bertbf16" ? most : 1);
      const std::string name = type + dtype;
      const auto whole = corpus.config(type, name + "_whole"), parts = corpus.config(type, name + "_parts");
      CHECK(train(quiet_options(whole, {"training.dtype=" + dtype, threads})) == 0);
      // What is kept for the backward and what is made again decides no bit, and may change on the way.
      TrainOptions options = quiet_options(parts, {"training.dtype=" + dtype, threads, "training.recompute=cheap"});
      options.stop_after = 20;
      CHECK(train(options) == 0);
      CHECK(fs::exists(corpus.path(name + "_parts/checkpoints/step_00000020")));
      CHECK(train(quiet_options(parts, {"training.dtype=" + dtype, threads, "training.recompute=block"})) == 0);
      for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
        CHECK(read_file(corpus.path(name + "_whole/checkpoints/step_00000040/" + file)) ==
              read_file(corpus.path(name + "_parts/checkpoints/step_00000040/" + file)));
      }
      const std::vector<double> losses = read_losses(corpus.path(name + "_whole"));
      CHECK(losses.size() == 40);
      const auto metrics = test::read_metrics(corpus.path(name + "_parts"));
      const auto resumes = std::count_if(metrics.begin(), metrics.end(), [](const nlohmann::json& object) {
        return object.contains("resumed") && object["step"] == 20;
      });
      CHECK(resumes == 1);
      CHECK(losses == read_losses(corpus.path(name + "_parts")));
      CHECK(read_file(corpus.path(name + "_parts/checkpoints/step_00000020/model.safetensors")) !=
            read_file(corpus.path(name + "_parts/checkpoints/step_00000040/model.safetensors")));
    }
  }
}

TEST_CASE("A resume redoes what came after its checkpoint, and cuts the metrics back to it") {
  const TinyCorpus corpus;
  const auto config = corpus.config("bert", "run");
  TrainOptions options = quiet_options(config, {"training.steps=12", "checkpoint.interval=4"});
  REQUIRE(train(options) == 0);
  const std::string weights = read_file(corpus.path("run/checkpoints/step_00000012/model.safetensors"));
  const std::vector<double> losses = read_losses(corpus.path("run"));
  REQUIRE(losses.size() == 12);

  fs::resize_file(corpus.path("run/checkpoints/step_00000012/model.safetensors"), 1000);
  REQUIRE(train(options) == 0);
  CHECK(read_losses(corpus.path("run")) == losses);
  CHECK(read_file(corpus.path("run/checkpoints/step_00000012/model.safetensors")) == weights);

  fs::resize_file(corpus.path("run/checkpoints/step_00000012/model.safetensors"), 1000);
  fs::resize_file(corpus.path("run/checkpoints/step_00000008/model.safetensors"), 1000);
  const Error e = caught_error([&] { train(options); });
  CHECK(e.kind() == ErrorKind::checkpoint);
  CHECK_THAT(e.what(), Contains("no checkpoint") && Contains("is sound"));
}

TEST_CASE("A step without a token to predict is skipped and said to be one, and is no bad step") {
  const TinyCorpus corpus;
  // One window of two tokens a step, of which 15 % are masked: most steps have no label.
  const auto config = corpus.config("bert", "run");
  REQUIRE(train(quiet_options(config, {"data.sequence_length=2", "training.global_batch_size=1",
                                       "training.micro_batch_size=1", "training.max_bad_steps=1"})) == 0);
  std::int64_t without = 0;
  for (const nlohmann::json& object : test::read_metrics(corpus.path("run"))) {
    if (!object.contains("skipped")) continue;
    CHECK(object["skipped"] == object["loss"].is_null());
    if (object["skipped"] == false) continue;
    CHECK(object["skip_reason"] == "no labels");
    ++without;
  }
  CHECK(without > 10);
  CHECK(without < 40);
}

TEST_CASE("The same command with --resume DIR begins there once, and then goes on") {
  const TinyCorpus corpus;
  const std::vector<std::string> changes = {"training.steps=12", "checkpoint.interval=4", "checkpoint.keep_last=1",
                                            "checkpoint.keep_every=4"};
  REQUIRE(train(quiet_options(corpus.config("bert", "first"), changes)) == 0);
  const fs::path begin = corpus.path("first/checkpoints/step_00000004");
  TrainOptions options = quiet_options(corpus.config("bert", "second"), changes);
  options.resume = begin.string();
  options.stop_after = 3;
  REQUIRE(train(options) == 0);
  CHECK(fs::exists(corpus.path("second/checkpoints/step_00000007")));
  fs::rename(begin, corpus.path("gone"));  // what the course began from is not needed any more
  REQUIRE(train(options) == 0);
  CHECK(fs::exists(corpus.path("second/checkpoints/step_00000010")));
  REQUIRE(train(options) == 0);
  fs::rename(corpus.path("gone"), begin);
  CHECK(read_file(corpus.path("second/checkpoints/step_00000012/model.safetensors")) ==
        read_file(corpus.path("first/checkpoints/step_00000012/model.safetensors")));
  for (const auto& entry : fs::directory_iterator(corpus.path("second/checkpoints"))) {
    CHECK_THAT(entry.path().string(), !Contains("superseded"));
  }

  // Another beginning, from outside: refused, with everything as it was.
  options.resume = corpus.path("first/checkpoints/step_00000008");
  const Error e = caught_error([&] { train(options); });
  CHECK(e.kind() == ErrorKind::usage);
  CHECK_THAT(e.what(), Contains("already holds checkpoints") && Contains("--resume auto"));
  CHECK(read_losses(corpus.path("second")).size() == 8);

  // From inside: later checkpoints are set aside, each time under names of their own.
  const fs::path checkpoints = corpus.path("first/checkpoints");
  TrainOptions back = quiet_options(corpus.config("bert", "first"), changes);
  for (const char* step : {"step_00000008", "step_00000004"}) {
    back.resume = (checkpoints / step).string();
    REQUIRE(train(back) == 0);
  }
  CHECK(fs::exists(checkpoints / "step_00000012.superseded"));
  CHECK(fs::exists(checkpoints / "step_00000012.superseded.2"));
  CHECK(fs::exists(checkpoints / "step_00000008.superseded"));
}

TEST_CASE("A resume that would be another run is refused by the key that differs") {
  const TinyCorpus corpus;
  const auto config = corpus.config("bert", "run");
  REQUIRE(train(quiet_options(config, {"training.steps=2"})) == 0);
  CHECK_THAT(caught_error([&] { train(quiet_options(config, {"training.seed=8"})); }).what(),
             Contains("\"training.seed\" was 7"));
  CHECK_THAT(caught_error([&] { train(quiet_options(config, {"data.train=" + corpus.path("tiny_val_*.bin")})); }).what(),
             Contains("not those it was trained on"));
  TrainOptions never = quiet_options(config);
  never.resume = "never";
  CHECK_THAT(caught_error([&] { train(never); }).what(), Contains("already holds checkpoints"));
  // Longer, and with another learning rate, it may go on.
  CHECK(train(quiet_options(config, {"training.steps=3", "optimizer.learning_rate=1e-3", "schedule.warmup_steps=1"})) == 0);
  CHECK(read_losses(corpus.path("run")).size() == 3);
}

TEST_CASE("Accumulating micro-batches is the same as one large batch") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"}) {
    std::vector<std::vector<double>> losses;
    for (const char* size : {"8", "2", "1"}) {
      const std::string run = type + "_micro_" + size;
      REQUIRE(train(quiet_options(corpus.config(type, run),
                                  {std::string("training.micro_batch_size=") + size, "training.steps=6"})) == 0);
      losses.push_back(read_losses(corpus.path(run)));
    }
    for (std::size_t i = 0; i < losses[0].size(); ++i) {
      INFO(type << " step " << i + 1);
      CHECK(losses[1][i] == Approx(losses[0][i]).epsilon(1e-6));
      CHECK(losses[2][i] == Approx(losses[0][i]).epsilon(1e-6));
    }
  }
}

TEST_CASE("A tiny model learns a corpus that can be learnt") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"}) {
    const std::string run = type, softmax = type == "bert" ? "softmax1" : "softmax_n(4)";
    INFO(type << " " << softmax);
    REQUIRE(train(quiet_options(corpus.config(type, run),
                                {"training.steps=500", "model.initializer_range=0.1", "training.global_batch_size=16",
                                 "training.micro_batch_size=16", "optimizer.learning_rate=1e-2", "schedule.warmup_steps=20",
                                 "model.hidden_dropout_prob=0", "evaluation.batches=0",
                                 "model.attention_probs_dropout_prob=0", "model.attn_softmax=" + softmax})) == 0);
    const auto metrics = test::read_metrics(corpus.path(run));
    const nlohmann::json& last = metrics.back();
    CHECK(last["step"] == 500);
    // A model that knows only frequencies has log 58 = 4.1.
    CHECK(last["validation_loss"].get<double>() < (type == "bert" ? 1.0 : 0.3));
    CHECK(last["validation_perplexity"].get<double>() == Approx(std::exp(last["validation_loss"].get<double>())));

    EvalOptions options;
    options.checkpoint = corpus.path(run);
    options.data = corpus.path("tiny_val_*.bin");
    options.batch_size = 16;
    options.batches = std::numeric_limits<std::int64_t>::max();  // more than there are: all of them
    options.outliers = true;
    const nlohmann::ordered_json result = run_eval(options);
    CHECK(result["loss"].get<double>() == Approx(last["validation_loss"].get<double>()).epsilon(1e-5));
    CHECK(result["reference_perplexity"].get<double>() == Approx(result["perplexity"].get<double>()).epsilon(0.1));
    CHECK(result["outliers"]["modules"].size() == (type == "bert" ? 6u : 11u));
    CHECK(result["outliers"]["average_kurtosis"].get<double>() > 1.0);
    CHECK(result["outliers"]["max_inf_norm"].get<double>() > 0.1);
  }
}

TEST_CASE("A run that logs outliers with its evaluations logs what eval says of its checkpoint, and trains as one that does not") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"}) {
    INFO(type);
    const std::vector<std::string> changes = {"training.steps=4", "evaluation.interval=2", "evaluation.batches=0",
                                              "evaluation.batch_size=4"};
    std::vector<std::string> with = changes;
    with.push_back("evaluation.outliers=true");
    REQUIRE(train(quiet_options(corpus.config(type, type + "_with"), with)) == 0);
    REQUIRE(train(quiet_options(corpus.config(type, type + "_without"), changes)) == 0);
    CHECK(read_losses(corpus.path(type + "_with")) == read_losses(corpus.path(type + "_without")));

    const auto metrics = test::read_metrics(corpus.path(type + "_with"));
    REQUIRE(metrics.size() == 6);
    CHECK(metrics[2]["outliers"].size() == 4);  // two modules in each of two layers
    const nlohmann::json& last = metrics.back();
    EvalOptions options;
    options.checkpoint = corpus.path(type + "_with");
    options.data = corpus.path("tiny_val_*.bin");
    options.batch_size = 4;
    options.threads = 1;
    options.outliers = true;
    const nlohmann::ordered_json expected = run_eval(options)["outliers"];
    CHECK(last["max_inf_norm"].get<double>() == Approx(expected["max_inf_norm"].get<double>()).epsilon(1e-5));
    CHECK(last["average_kurtosis"].get<double>() == Approx(expected["average_kurtosis"].get<double>()).epsilon(1e-5));
    std::size_t compared = 0;
    for (const auto& module : expected["modules"]) {
      const auto norm = last["outliers"].find(module["name"].get<std::string>());
      if (norm == last["outliers"].end()) continue;
      CHECK(norm->get<double>() == Approx(module["inf_norm"].get<double>()).epsilon(1e-5));
      ++compared;
    }
    CHECK(compared == 4);
    CHECK_FALSE(test::read_metrics(corpus.path(type + "_without")).back().contains("outliers"));
  }
}

TEST_CASE("Steps without a finite loss are skipped, logged, and too many of them end the run") {
  const TinyCorpus corpus;
  const auto config = corpus.config("bert", "run");
  // After its first update with such a rate the model computes nothing finite.
  const Error e = caught_error([&] {
    train(quiet_options(config, {"optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "training.max_bad_steps=3",
                                 "optimizer.weight_decay=1e10"}));
  });
  CHECK(e.kind() == ErrorKind::diverged);
  CHECK_THAT(e.what(), Contains("3 steps in a row"));
  const auto metrics = test::read_metrics(corpus.path("run"));
  REQUIRE(metrics.size() >= 4);
  CHECK(metrics[0]["skipped"] == false);
  const nlohmann::json& last = metrics.back();
  CHECK(last["skipped"] == true);
  CHECK(last["samples"] == nlohmann::json::array({8 * (metrics.size() - 1), 8 * metrics.size() - 1}));
  CHECK(list_checkpoints(corpus.path("run")).empty());
}

TEST_CASE("Weights decay, biases do not, layer norm weights only when asked") {
  const TinyCorpus corpus;
  Config config = read_config(corpus.config("bert", "run"), "test", {{"model.vocab_size", "64"}});
  config.model.pad_token_id = 0;
  const ParameterTable table = make_parameter_table(config.model);
  for (const bool gamma : {false, true}) {
    config.optimizer.wd_LN_gamma = gamma;
    const std::vector<AdamWSegment> segments = decay_segments(table, config.optimizer);
    const auto decay_of = [&](const std::string& name) {
      const Parameter& p = *table.find(name);
      int holders = 0;
      float decay = -1.0f;
      for (const AdamWSegment& s : segments) {
        if (p.offset < s.begin || p.offset + p.count > s.begin + s.count) continue;
        decay = s.weight_decay;
        ++holders;
      }
      CHECK(holders == 1);
      return decay;
    };
    CHECK(decay_of("bert.encoder.layer.1.intermediate.dense.weight") == 0.01f);
    CHECK(decay_of("bert.embeddings.word_embeddings.weight") == 0.01f);
    CHECK(decay_of("bert.encoder.layer.1.intermediate.dense.bias") == 0.0f);
    CHECK(decay_of("bert.encoder.layer.0.attention.self.query.bias") == 0.0f);
    CHECK(decay_of("bert.encoder.layer.0.output.LayerNorm.bias") == 0.0f);
    CHECK(decay_of("bert.encoder.layer.0.output.LayerNorm.weight") == (gamma ? 0.01f : 0.0f));
  }
}

TEST_CASE("Positions beyond the sequence length get no gradient, and all of them decay") {
  const TinyCorpus corpus;
  const auto train_and_read = [&](const std::string& run, const std::string& steps, const std::string& decay) {
    REQUIRE(train(quiet_options(corpus.config("bert", run),
                                {"model.max_position_embeddings=40", "training.steps=" + steps, "schedule.warmup_steps=0",
                                 "optimizer.weight_decay=" + decay})) == 0);
    const auto checkpoints = list_checkpoints(corpus.path(run));
    REQUIRE_FALSE(checkpoints.empty());
    const SafetensorsFile file((checkpoints.back() / "model.safetensors").string());
    const TensorEntry* entry = file.find("bert.embeddings.position_embeddings.weight");
    REQUIRE(entry);
    REQUIRE(entry->shape == std::vector<std::int64_t>{40, 32});
    std::vector<float> weights(40 * 32);
    file.read_floats(*entry, weights.data());
    return weights;
  };
  const auto one = train_and_read("one", "1", "0"), more = train_and_read("more", "5", "0"),
             decayed = train_and_read("decayed", "5", "0.1");
  for (std::size_t i = 0; i < one.size(); ++i) {
    INFO("position " << i / 32 << " channel " << i % 32);
    if (i / 32 < 16) {
      CHECK(more[i] != one[i]);
    } else {
      CHECK(more[i] == one[i]);
      CHECK(std::abs(decayed[i]) < std::abs(one[i]));
    }
  }
}

TEST_CASE("A validation set without one window is refused before anything is trained") {
  const TinyCorpus corpus;
  test::write_shard(corpus.path("short_val_000.bin"), test::chained_tokens(15));
  const Error e = caught_error(
      [&] { train(quiet_options(corpus.config("bert", "run"), {"data.validation=" + corpus.path("short_val_*.bin")})); });
  CHECK(e.kind() == ErrorKind::data);
  CHECK_FALSE(fs::exists(corpus.path("run")));
}

TEST_CASE("Two processes cannot train in one directory") {
  const TinyCorpus corpus;
  const TrainOptions options = quiet_options(corpus.config("bert", "run"), {"training.steps=2"});
  fs::create_directories(corpus.path("run"));
  {
    const FileLock other(corpus.path("run/lock"));
    REQUIRE(other.held());
    const Error e = caught_error([&] { train(options); });
    CHECK(e.kind() == ErrorKind::usage);
    CHECK_THAT(e.what(), Contains("another process is training in " + corpus.path("run")));
    CHECK_FALSE(fs::exists(corpus.path("run/metrics.jsonl")));
  }
  CHECK(train(options) == 0);
}

TEST_CASE("The final evaluation is written once, whenever its step became the last") {
  const TinyCorpus corpus;
  const auto config = corpus.config("bert", "run");
  const auto evaluations = [&] {
    std::vector<std::int64_t> steps;
    for (const nlohmann::json& object : test::read_metrics(corpus.path("run"))) {
      if (object.contains("validation_loss")) steps.push_back(object["step"].get<std::int64_t>());
    }
    return steps;
  };
  TrainOptions options = quiet_options(config, {"training.steps=6"});
  options.stop_after = 3;
  REQUIRE(train(options) == 0);
  CHECK(evaluations().empty());
  for (int again = 0; again < 2; ++again) {
    REQUIRE(train(quiet_options(config, {"training.steps=3"})) == 0);
    CHECK(evaluations() == std::vector<std::int64_t>{3});
  }
  // One that is due at the step where a run was left, too, as where a signal cut it short.
  options.config.training.steps = 5;
  options.config.evaluation.interval = 3;
  fs::resize_file(corpus.path("run/metrics.jsonl"), 0);
  options.stop_after = 1;
  REQUIRE(train(options) == 0);
  CHECK(evaluations() == std::vector<std::int64_t>{3});
}

TEST_CASE("Shards of llm.c, which say nothing of their tokens, train an OPT") {
  const TinyCorpus corpus;
  fs::remove(corpus.path("metadata.json"));
  REQUIRE(train(quiet_options(corpus.config("opt", "run"), {"training.steps=2", "model.vocab_size=64"})) == 0);
  const auto written = nlohmann::json::parse(read_file(corpus.path("run/checkpoints/step_00000002/config.json")));
  CHECK(written["pad_token_id"].is_null());
  CHECK(written["eos_token_id"].is_null());
  EvalOptions options;
  options.checkpoint = corpus.path("run");
  options.data = corpus.path("tiny_val_*.bin");
  CHECK(std::isfinite(run_eval(options)["loss"].get<double>()));
}

TEST_CASE("Training without validation shards works") {
  const TinyCorpus corpus;
  auto config = corpus.config("opt", "run");
  config["data"]["validation"] = "";
  CHECK(train(quiet_options(config, {"training.steps=2"})) == 0);
  CHECK(test::read_metrics(corpus.path("run")).size() == 2);
}

}  // namespace
}  // namespace outeffhop
