#include "train/run_plan.h"

#include "data/loader.h"
#include "tests/train/process.h"
#include "tests/train/train_support.h"
#include "train/evaluation.h"
#include "train/progress.h"
#include "train/sampling.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::run;
using test::TinyCorpus;

/// A run of the tiny corpus, as the trainer has it before its first step.
struct Planned {
  Config config;
  ShardSet shards;
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<Objective> objective;

  Planned(const nlohmann::json& values, const std::vector<std::string>& changes = {})
      : config(test::quiet_options(values, changes).config), shards(config.data.train) {
    resolve(config, shards.metadata());
    sampler = make_sampler(config, shards, 7, true);
    objective = make_objective(config.data, config.model.vocab_size, 7);
  }
  RunInputs inputs() const { return {config, shards, *sampler, *objective}; }

  /// The mean of a row as batches have it.
  PassWork counted(std::int64_t rows) const {
    return count_work(make_batch(*sampler, *objective, rows, sampler->length(), config.model.vocab_size, 0),
                      config.model.model_type == "opt");
  }
};

TEST_CASE("The work of windows follows from their length") {
  const TinyCorpus corpus;
  const Planned opt(corpus.config("opt", "run")), bert(corpus.config("bert", "run"));
  const PassWork counted = opt.counted(8), expected = work_of_sequence(opt.inputs());
  CHECK(expected.rows == 16);
  CHECK(8 * expected.labels == counted.labels);
  CHECK(8 * expected.pairs == counted.pairs);

  const PassWork masked = work_of_sequence(bert.inputs());
  CHECK(masked.pairs == 16 * 16);
  CHECK(masked.labels == Approx(0.15 * 16));
  // 4,096 draws of a share of 0.15: a standard deviation of 23.
  CHECK(256 * masked.labels == Approx(bert.counted(256).labels).margin(4 * 23));
}

TEST_CASE("A dry run of a started run says what remains, and leaves it as it is") {
  const TinyCorpus corpus;
  const std::string config = corpus.path("config.json");
  write_durable(config, corpus.config("opt", "run").dump());
  const auto dry = [&] { return run({"train", "--config", config, "--dry-run"}); };
  const test::Result fresh = dry();
  INFO(fresh.error);
  REQUIRE(fresh.code == 0);
  CHECK_THAT(fresh.output,
             Contains("FLOPs a token") && Contains("s a step") && Contains("40 steps: ") && !Contains("to come"));
  CHECK_FALSE(std::filesystem::exists(corpus.path("run")));

  REQUIRE(run({"train", "--config", config, "--stop-after", "15"}).code == 0);
  const std::string metrics = read_file(corpus.path("run/metrics.jsonl"));
  const test::Result resumed = dry();
  CHECK(resumed.code == 0);
  CHECK_THAT(resumed.output, Contains("25 steps after step 15") && Contains("25 steps: "));
  CHECK(read_file(corpus.path("run/metrics.jsonl")) == metrics);

  const test::Result recomputing = run({"train", "--config", config, "--dry-run", "--set", "training.recompute=block"});
  CHECK(recomputing.code == 0);
  CHECK_THAT(recomputing.output, Contains("more to recompute") && Contains("activations (recompute: block) "));

  // What a resume would refuse, a dry run refuses too.
  CHECK(run({"train", "--config", config, "--dry-run", "--set", "training.seed=8"}).code == 2);
}

TEST_CASE("The time of a step is that of all its micro-batches") {
  const TinyCorpus corpus;
  const Planned planned(corpus.config("bert", "run"));
  const std::unique_ptr<Device> device = make_device({"cpu", 1});
  ModelOptions options;
  options.max_batch = 4;
  options.max_sequence = 16;
  const StepTiming timing = time_step(planned.inputs(), options, *device);
  CHECK(timing.seconds > 0);
  CHECK(timing.measured == "one step, after one to warm up");
  CHECK(timing.tokens_per_second == Approx(8 * 16 / timing.seconds));
  CHECK(timing.flops_per_second == Approx(flops_per_token(planned.inputs()) * 8 * 16 / timing.seconds));
  CHECK_THAT(time_text(timing, 10), Contains("10 steps: " + duration_text(10 * timing.seconds)));
}

}  // namespace
}  // namespace outeffhop
