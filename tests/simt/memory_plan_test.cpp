// What a plan says of a GPU's memory, against what is then allocated on the executor's.
#include "data/loader.h"
#include "kernels/device.h"
#include "tests/simt/runtime.h"
#include "tests/train/train_support.h"
#include "train/evaluation.h"
#include "train/run_plan.h"
#include "train/sampling.h"
#include "train/training_step.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::TinyCorpus;

/// Large enough for the model to count beside what ops work in: 1.6 M parameters.
const std::vector<std::string> kChanges = {"model.hidden_size=256", "model.intermediate_size=1024", "training.dtype=bf16"};

std::size_t bytes_of(const std::vector<MemoryPart>& parts, const std::string& name) {
  for (const MemoryPart& part : parts)
    if (part.name == name) return part.bytes;
  FAIL("the plan has no part \"" << name << "\"");
  return 0;
}

TEST_CASE("A step takes of the GPU's memory what the plan says, ops included") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"}) {
    INFO(type);
    Config config = test::quiet_options(corpus.config(type, "run"), kChanges).config;
    const ShardSet shards(config.data.train);
    resolve(config, shards.metadata());
    const auto sampler = make_sampler(config, shards, 7, true);
    const auto objective = make_objective(config.data, config.model.vocab_size, 7);
    ModelOptions options;
    options.dtype = DType::bf16;
    options.max_batch = config.training.micro_batch_size;
    options.max_sequence = config.data.sequence_length;

    const auto device = make_device({"cuda"});
    const std::size_t before = device->memory().available + device->workspace_bytes();
    const auto model = make_model(config.model, options, *device);
    Optimizer optimizer(*device, *model, config.optimizer);
    DeviceBatch device_batch(*device, config.model, options.max_batch, options.max_sequence);
    const RunMemory plan = plan_memory({config, shards, *sampler, *objective}, *model, device_batch, *device, 0);
    const std::vector<Batch> batches = {
        make_batch(*sampler, *objective, options.max_batch, options.max_sequence, config.model.vocab_size, 0)};
    TrainingStep step(*device, *model, optimizer, device_batch);
    step.start(batches, 1e-4, 0, {});
    (void)step.finish();
    const auto taken = static_cast<double>(before - device->memory().available);
    CHECK(taken == Approx(static_cast<double>(total_bytes(plan.device))).epsilon(0.05));
    const auto ops = static_cast<double>(device->workspace_bytes());
    const auto planned_ops = static_cast<double>(bytes_of(plan.device, "inside ops"));
    CHECK(ops > planned_ops);  // what kernels that add up in two steps asked for
    CHECK(taken - ops == Approx(static_cast<double>(total_bytes(plan.device)) - planned_ops).epsilon(0.01));
    CHECK(taken > 1.5 * ops);
  }
}

TEST_CASE("A dry run on a GPU times steps that are recorded and replayed") {
  const TinyCorpus corpus;
  Config config = test::quiet_options(corpus.config("opt", "run")).config;
  const ShardSet shards(config.data.train);
  resolve(config, shards.metadata());
  const auto sampler = make_sampler(config, shards, 7, true);
  const auto objective = make_objective(config.data, config.model.vocab_size, 7);
  const RunInputs inputs{config, shards, *sampler, *objective};
  ModelOptions options;
  options.max_batch = config.training.micro_batch_size;
  options.max_sequence = config.data.sequence_length;
  const auto device = make_device({"cuda"});
  const StepTiming timing = time_step(inputs, options, *device);
  CHECK_THAT(timing.measured, Contains(", after 3 to warm up"));
  CHECK(timing.tokens_per_second == Approx(8 * 16 / timing.seconds));
  CHECK(timing.mfu == Approx(timing.flops_per_second / device->peak_flops(DType::f32)));
  CHECK_THAT(time_text(timing, 10), Contains("% MFU)"));
}

TEST_CASE("A run that the GPU has no room for is refused in a sentence, before anything of it is allocated") {
  const TinyCorpus corpus;
  simt::set_devices(1, std::size_t{48} << 20);
  TrainOptions options = test::quiet_options(corpus.config("bert", "run"), kChanges);
  options.device = "cuda";
  CHECK_THROWS_WITH(train(options), Contains("training.micro_batch_size") && Contains("this GPU has"));
  CHECK_FALSE(std::filesystem::exists(corpus.path("run")));
  CHECK(simt::live_objects() == std::vector<std::string>{});
  simt::set_devices(1, std::size_t{4} << 30);
}

}  // namespace
}  // namespace outeffhop
