#include "train/spike_window.h"

#include <cmath>
#include <random>

#include "tests/train/train_support.h"
#include "train/checkpoint.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::quiet_options;
using test::TinyCorpus;
namespace fs = std::filesystem;

TEST_CASE("Limits are the mean and so many standard deviations of a full window") {
  SpikeWindow window(3.0, 4);
  for (const double value : {9.0, 1.0, 2.0, 3.0}) {
    CHECK(std::isinf(window.limits().loss));
    CHECK(window.zscores(1e9, 1e9).loss == 0.0);
    window.add(value, 10 * value);
  }
  window.add(4.0, 40.0);  // the 9 goes: 1 to 4, mean 2.5, sum of squares 5
  const double deviation = std::sqrt(5.0 / 3.0);
  CHECK(window.limits().loss == Approx(2.5 + 3 * deviation).epsilon(1e-14));
  CHECK(window.limits().gradient_norm == Approx(25 + 30 * deviation).epsilon(1e-14));
  CHECK(window.zscores(5.0, 25.0).loss == Approx(2.5 / deviation).epsilon(1e-14));
  CHECK(window.zscores(5.0, 25.0).gradient_norm == Approx(0.0).margin(1e-14));
  CHECK(window.history().losses == std::vector<double>{1, 2, 3, 4});
}

TEST_CASE("The deviation counts as at least one percent of the mean, and is exact far from zero") {
  SpikeWindow equal(5.0, 10), zero(5.0, 10), offset(5.0, 1000), large(5.0, 10);
  for (int i = 0; i < 10; ++i) {
    equal.add(2.0, 0.5);
    zero.add(0.0, 0.0);
    large.add(1e308, 1.0);
  }
  CHECK(equal.limits().loss == Approx(2.1).epsilon(1e-14));
  CHECK(equal.limits().gradient_norm == Approx(0.525).epsilon(1e-14));
  CHECK(zero.limits().loss == Approx(5e-6));
  CHECK(large.limits().loss >= 1e308);  // an infinite deviation of what is near the largest number: nothing is a spike
  // Values of 1e9 with a deviation of 1e8: a sum of squares minus a squared sum would have lost most of it.
  std::mt19937_64 rng(5);
  std::vector<long double> values;
  for (int i = 0; i < 5000; ++i) {
    const double value = std::normal_distribution<double>(1e9, 1e8)(rng);
    offset.add(value, value);
    values.push_back(value);
  }
  values.erase(values.begin(), values.end() - 1000);
  long double mean = 0, squares = 0;
  for (const long double value : values) mean += value / 1000;
  for (const long double value : values) squares += (value - mean) * (value - mean);
  CHECK(offset.limits().loss == Approx(static_cast<double>(mean + 5 * std::sqrt(squares / 999))).epsilon(1e-13));
}

TEST_CASE("A restored window has the same limits to the bit, and a smaller one keeps the newest") {
  SpikeWindow window(4.0, 10);
  std::mt19937_64 rng(6);
  for (int i = 0; i < 37; ++i) window.add(std::exponential_distribution<double>(1)(rng), 0.1 * i);
  SpikeWindow same(4.0, 10), smaller(4.0, 3), larger(4.0, 11), off(0.0, 10);
  same.restore(window.history());
  CHECK(same.limits().loss == window.limits().loss);
  CHECK(same.limits().gradient_norm == window.limits().gradient_norm);
  smaller.restore(window.history());
  CHECK(smaller.history().losses == std::vector<double>(window.history().losses.end() - 3, window.history().losses.end()));
  larger.restore(window.history());
  CHECK(std::isinf(larger.limits().loss));
  off.restore(window.history());
  CHECK(off.history().losses.empty());
  CHECK(std::isinf(off.limits().gradient_norm));
}

TEST_CASE("Spikes are skipped and logged, do not enter the window, and a resumed run skips the same") {
  const TinyCorpus corpus;
  // With such a limit many a step is a spike: the test is about which.
  const std::vector<std::string> changes = {"training.spike_zscore=0.5", "training.spike_window=10",
                                            "training.max_bad_steps=1000", "schedule.type=constant"};
  const auto whole = corpus.config("bert", "whole"), parts = corpus.config("bert", "parts");
  REQUIRE(train(quiet_options(whole, changes)) == 0);
  TrainOptions options = quiet_options(parts, changes);
  options.stop_after = 13;
  for (int part = 0; part < 4; ++part) REQUIRE(train(options) == 0);
  const fs::path last = "checkpoints/step_00000040";
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    CHECK(read_file(corpus.path("whole") / last / file) == read_file(corpus.path("parts") / last / file));
  }

  std::vector<double> losses, norms;
  std::int64_t taken = 0, skipped = 0;
  const auto metrics = test::read_metrics(corpus.path("whole"));
  auto again = test::read_metrics(corpus.path("parts"));
  std::erase_if(again, [](const nlohmann::json& object) { return object.contains("resumed"); });
  REQUIRE(metrics.size() == again.size());
  for (std::size_t i = 0; i < 40; ++i) {
    const nlohmann::json& object = metrics[i];
    for (const char* key : {"step", "loss", "gradient_norm", "learning_rate", "skipped"}) CHECK(object[key] == again[i][key]);
    const double loss = object["loss"].get<double>(), norm = object["gradient_norm"].get<double>();
    const auto zscore = [](const std::vector<double>& all, double value) {
      if (all.size() < 10) return -1.0;
      const std::vector<double> window(all.end() - 10, all.end());
      double mean = 0, squares = 0;
      for (const double v : window) mean += v / 10;
      for (const double v : window) squares += (v - mean) * (v - mean);
      return (value - mean) / std::max(std::sqrt(squares / 9), 0.01 * mean);
    };
    const bool spike = std::max(zscore(losses, loss), zscore(norms, norm)) > 0.5;
    INFO("step " << i + 1);
    CHECK(object["skipped"] == spike);
    if (spike) {
      ++skipped;
      CHECK(object["skip_reason"] == "spike");
      CHECK(object["samples"] == nlohmann::json::array({8 * i, 8 * i + 7}));
      CHECK(object["loss_zscore"].get<double>() == Approx(zscore(losses, loss)).epsilon(1e-9));
      CHECK(object["gradient_norm_zscore"].get<double>() == Approx(zscore(norms, norm)).epsilon(1e-9));
    } else {
      ++taken;
      losses.push_back(loss);
      norms.push_back(norm);
    }
  }
  CHECK(skipped > 0);
  const Resumable end = read_checkpoint_state(corpus.path("whole") / last);
  CHECK(end.snapshot.state.updates == taken);
  CHECK(end.snapshot.state.samples == 320);
  CHECK(end.snapshot.state.spikes.losses == std::vector<double>(losses.end() - 10, losses.end()));
}

TEST_CASE("Spikes count towards the bad steps that end a run, and an ordinary run has none") {
  const TinyCorpus corpus;
  const std::vector<std::string> usual = {"training.spike_zscore=8", "training.spike_window=10"};
  REQUIRE(train(quiet_options(corpus.config("opt", "usual"), usual)) == 0);
  for (const nlohmann::json& object : test::read_metrics(corpus.path("usual"))) CHECK(object.value("skipped", false) == false);

  // From the eleventh step on the model is another one: a resumed run with a rate that ruins it, by one update.
  const auto config = corpus.config("bert", "run");
  TrainOptions options = quiet_options(config, {usual[0], usual[1], "schedule.type=constant"});
  options.stop_after = 10;
  REQUIRE(train(options) == 0);
  options = quiet_options(
      config, {usual[0], usual[1], "schedule.type=constant", "optimizer.learning_rate=5", "training.max_bad_steps=4"});
  const Error e = test::caught_error([&] { train(options); });
  CHECK(e.kind() == ErrorKind::diverged);
  CHECK_THAT(e.what(), Contains("4 steps in a row"));
  const nlohmann::json last = test::read_metrics(corpus.path("run")).back();
  CHECK(last["skip_reason"] == "spike");
  CHECK(last["loss_zscore"].get<double>() > 8.0);
}

}  // namespace
}  // namespace outeffhop
