// What a run's checkpoint keeps of how matrix products are run, where what is measured is up to the test.
#include <string>

#include "tests/simt/cublaslt.h"
#include "tests/train/train_support.h"
#include "train/training.h"

namespace outeffhop {
namespace {

constexpr int kSteps = 4;

/// Trains in the directory `run` until `step`, or goes on there; returns its weights then.
std::string weights_at(const test::TinyCorpus& corpus, const std::string& run, int step) {
  TrainOptions options =
      test::quiet_options(corpus.config("opt", run), {fmt::format("training.steps={}", kSteps), "training.dtype=fp32"});
  options.device = "cuda";
  options.stop_after = step;
  REQUIRE(train(options) == 0);
  return read_file(corpus.path(fmt::format("{}/checkpoints/step_{:08}/model.safetensors", run, step)));
}

}  // namespace

TEST_CASE("a run that is resumed has the plans that it began with") {
  const test::TinyCorpus corpus;
  simt::cublaslt_offer({2, 1});
  const std::string whole = weights_at(corpus, "whole", kSteps);
  weights_at(corpus, "parts", 2);
  weights_at(corpus, "elsewhere", 2);
  simt::cublaslt_offer({1, 2});  // what a new measurement would choose
  CHECK(weights_at(corpus, "parts", kSteps) == whole);
  simt::cublaslt_set_version(130001);
  CHECK(weights_at(corpus, "elsewhere", kSteps) != whole);
  simt::cublaslt_set_version(130000);
  simt::cublaslt_offer({1});
}

}  // namespace outeffhop
