// Whole runs of the trainer on the CUDA backend, on the executor or a GPU, beside the same runs on the CPU.
#include "train/training.h"

#include <cmath>

#include "tests/cuda/kernel_order.h"
#include "tests/train/train_support.h"
#include "train/flops.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using test::quiet_options;
using test::read_losses;
using test::TinyCorpus;

constexpr int kSteps = 10;

std::string checkpoint(const TinyCorpus& corpus, const std::string& run, int step, const std::string& file) {
  return corpus.path(fmt::format("{}/checkpoints/step_{:08}/{}", run, step, file));
}

/// Trains for `steps` steps in the directory `run`, or goes on there.
void run_steps(const TinyCorpus& corpus, const std::string& type, const std::string& dtype, const std::string& device,
               const std::string& run, int steps = kSteps, const std::string& resume = "auto") {
  std::vector<std::string> changes = {fmt::format("training.steps={}", kSteps), "training.dtype=" + dtype};
  // In bf16 with heads of 32 channels, which run on tensor cores.
  if (dtype == "bf16") changes.insert(changes.end(), {"model.hidden_size=64", "model.num_attention_heads=2"});
  TrainOptions options = quiet_options(corpus.config(type, run), changes);
  options.device = device;
  options.stop_after = steps;
  options.resume = resume;
  REQUIRE(train(options) == 0);
}

/// Every tensor of a checkpoint's weights, one after the other.
std::vector<float> weights(const TinyCorpus& corpus, const std::string& run, int step) {
  const SafetensorsFile file(checkpoint(corpus, run, step, "model.safetensors"));
  std::vector<float> all;
  for (const TensorEntry& entry : file.tensors()) {
    const std::size_t begin = all.size();
    all.resize(begin + static_cast<std::size_t>(entry.count()));
    file.read_floats(entry, all.data() + begin);
  }
  return all;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum);
}

/// Fails unless the losses of two runs agree to 1e-6.
void check_losses(const TinyCorpus& corpus, const std::string& a, const std::string& b) {
  const std::vector<double> first = read_losses(corpus.path(a)), second = read_losses(corpus.path(b));
  REQUIRE(first.size() == kSteps);
  REQUIRE(second.size() == kSteps);
  for (int step = 0; step < kSteps; ++step) {
    INFO("step " << step + 1);
    CHECK(std::fabs(first[step] - second[step]) <= 1e-6 * first[step]);
  }
}

TEST_CASE("ten steps on CUDA are those of the CPU") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"}) {
    INFO(type);
    const std::string cpu = type + "_cpu", cuda = type + "_cuda";
    run_steps(corpus, type, "fp32", "cpu", cpu, 1);
    run_steps(corpus, type, "fp32", "cpu", cpu);
    run_steps(corpus, type, "fp32", "cuda", cuda);
    check_losses(corpus, cpu, cuda);
    // As far as the weights have come since the first step.
    const std::vector<float> begin = weights(corpus, cpu, 1), end = weights(corpus, cpu, kSteps);
    CHECK(distance(weights(corpus, cuda, kSteps), end) <= 1e-3 * distance(begin, end));
  }
}

// Both begin from one checkpoint, with its plans of matrix products: a GPU that measured them twice could choose
// differently.
TEST_CASE("a run on CUDA that is stopped and resumed is the run that was not, in whatever order lanes run") {
  const TinyCorpus corpus;
  for (const std::string type : {"bert", "opt"})
    for (const std::string dtype : {"fp32", "bf16"}) {
      INFO(type << " " << dtype);
      const std::string whole = type + dtype + "_whole", parts = type + dtype + "_parts";
      run_steps(corpus, type, dtype, "cuda", whole, 1);
      test::set_kernel_order(5);
      run_steps(corpus, type, dtype, "cuda", parts, 3, corpus.path(whole + "/checkpoints/step_00000001"));
      run_steps(corpus, type, dtype, "cuda", parts);
      test::set_kernel_order(0);
      run_steps(corpus, type, dtype, "cuda", whole);
      for (const char* file : {"model.safetensors", "optimizer.safetensors"})
        CHECK(read_file(checkpoint(corpus, whole, kSteps, file)) == read_file(checkpoint(corpus, parts, kSteps, file)));
      std::vector<double> losses = read_losses(corpus.path(whole));
      REQUIRE(losses.size() == kSteps);
      losses.erase(losses.begin());  // of the step that they share
      CHECK(read_losses(corpus.path(parts)) == losses);
    }
}

TEST_CASE("a checkpoint of one backend is resumed by the other") {
  const TinyCorpus corpus;
  run_steps(corpus, "bert", "fp32", "cpu", "cpu");
  for (const auto& [first, second] : {std::pair{"cuda", "cpu"}, {"cpu", "cuda"}}) {
    const std::string run = fmt::format("{}_then_{}", first, second);
    run_steps(corpus, "bert", "fp32", first, run, 5);
    run_steps(corpus, "bert", "fp32", second, run);
    check_losses(corpus, "cpu", run);
  }
}

TEST_CASE("A step's MFU is what its batches needed, of what the device could have done in that time") {
  const TinyCorpus corpus;
  run_steps(corpus, "opt", "fp32", "cuda", "cuda", 2);
  // A step has 8 windows of 16 tokens, each of which sees itself and those before it; all but the last of a window are
  // asked.
  ModelConfig config;
  config.model_type = "opt";
  config.vocab_size = 64;
  config.hidden_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.intermediate_size = 64;
  const double flops = training_flops(config, {8 * 16, 8 * 15, 8 * 16 * 17 / 2});
  const double peak = make_device({"cuda"})->peak_flops(DType::f32);
  const auto steps = test::read_metrics(corpus.path("cuda"));
  REQUIRE(steps.size() >= 2);
  for (std::size_t i = 0; i < 2; ++i) {
    if (peak == 0.0) {  // a GPU that the table does not know
      CHECK_FALSE(steps[i].contains("mfu"));
      continue;
    }
    const double seconds = 8 * 16 / steps[i]["tokens_per_second"].get<double>();
    CHECK(steps[i]["mfu"].get<double>() == Approx(flops / seconds / peak));
  }
  run_steps(corpus, "opt", "fp32", "cpu", "cpu", 1);
  CHECK_FALSE(test::read_metrics(corpus.path("cpu")).at(0).contains("mfu"));  // nobody knows a processor's peak
}

}  // namespace
}  // namespace outeffhop
