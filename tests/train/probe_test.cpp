// `outeffhop probe`, run as a user runs it, against what Hugging Face transformers computes in float64
// (tests/fixtures/probe, scripts/make_fixtures.py).
#include "train/probe.h"

#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "model/model.h"
#include "tests/catch.h"
#include "tests/test_support.h"
#include "train/checkpoint.h"
#include "train/files.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

namespace fs = std::filesystem;

/// fp32 arithmetic against float64: PyTorch's own fp32 run stays within 2e-6 of these fixtures.
constexpr double kTolerance = 1e-5;

const std::vector<std::string> kFixtures = {"bert_vanilla", "bert_softmax1", "bert_softmax_n",
                                            "opt_vanilla",  "opt_softmax1",  "opt_projected_softmax1"};

fs::path fixture(const std::string& name) { return fs::path(OUTEFFHOP_SOURCE_DIR) / "tests/fixtures/probe" / name; }

struct Outcome {
  int exit_code = -1;
  std::string message;  ///< what went to standard error
};

Outcome run_probe(const std::string& program, const fs::path& checkpoint, const fs::path& batch, const fs::path& out) {
  const fs::path message = out.string() + ".stderr";
  const std::string command =
      fmt::format("'{}/{}' probe --attention --checkpoint '{}' --batch '{}' --out '{}' >/dev/null 2>'{}'",
                  OUTEFFHOP_BINARY_DIR, program, checkpoint.string(), batch.string(), out.string(), message.string());
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(message)};
}

std::vector<double> read_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  INFO(file.path() << " has no " << name);
  REQUIRE(entry);
  std::vector<float> values(static_cast<std::size_t>(entry->count()));
  file.read_floats(*entry, values.data());
  return {values.begin(), values.end()};
}

std::vector<std::int32_t> read_ids(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  REQUIRE(entry);
  std::vector<std::int32_t> values(static_cast<std::size_t>(entry->count()));
  file.read_integers(*entry, values.data());
  return values;
}

double largest(const std::vector<double>& values) {
  double m = 0.0;
  for (double v : values) m = std::max(m, std::abs(v));
  return m;
}

/// Largest absolute difference; NaN counts as infinite.
double difference(const std::vector<double>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  double m = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(got[i] - expected[i]);
    m = std::max(m, std::isnan(d) ? HUGE_VAL : d);
  }
  return m;
}

/// What the error of a gradient is measured against: its largest value. The key bias of a shift-invariant softmax has none
/// (a constant added to all scores of a row changes nothing), so it is measured by the query bias beside it.
double gradient_scale(const SafetensorsFile& expected, const std::string& name, bool shift_invariant) {
  if (shift_invariant) {
    for (const auto& [key, query] :
         {std::pair<std::string, std::string>{"key.bias", "query.bias"}, {"k_proj.bias", "q_proj.bias"}}) {
      if (name.size() > key.size() && name.compare(name.size() - key.size(), key.size(), key) == 0) {
        return largest(read_tensor(expected, name.substr(0, name.size() - key.size()) + query));
      }
    }
  }
  return largest(read_tensor(expected, name));
}

/// Sites by module name. The fixture has the visible tokens of the first sequence: (tokens, channels) of our (B, T,
/// channels), or (heads, tokens, tokens) of our (B, heads, T, T) for attention probabilities.
void compare_sites(const SafetensorsFile& got, const SafetensorsFile& expected, const std::string& name) {
  int compared = 0;
  for (const TensorEntry& entry : expected.tensors()) {
    if (entry.name.rfind("site.", 0) != 0) continue;
    const std::string site = entry.name.substr(5);
    INFO(name << ": " << site);
    REQUIRE(got.find(site));
    const std::vector<std::int64_t> shape = got.find(site)->shape;
    REQUIRE(shape.size() == entry.shape.size() + 1);
    const std::vector<double> all = read_tensor(got, site);
    const bool is_probabilities = entry.shape.size() == 3;
    const std::int64_t heads = is_probabilities ? entry.shape[0] : 1;
    const std::int64_t tokens = entry.shape[entry.shape.size() - 2], columns = entry.shape.back();
    const std::int64_t T = shape[shape.size() - 2], width = shape.back();
    REQUIRE((tokens <= T && columns <= width && (!is_probabilities || shape[1] == heads)));
    std::vector<double> values;
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        const auto row = all.begin() + (h * T + t) * width;
        values.insert(values.end(), row, row + columns);
      }
    }
    const std::vector<double> reference = read_tensor(expected, entry.name);
    CHECK(difference(values, reference) <= kTolerance * largest(reference));
    ++compared;
  }
  CHECK(compared >= 8);
}

void compare_with_fixture(const SafetensorsFile& got, const std::string& name) {
  const SafetensorsFile expected(fixture(name) / "expected.safetensors");
  const SafetensorsFile batch(fixture(name) / "batch.safetensors");

  const double loss = read_tensor(expected, "loss").at(0);
  CHECK(std::abs(read_tensor(got, "loss").at(0) - loss) <= kTolerance * loss);

  // What the output says where nothing was put in is nobody's business.
  const std::vector<std::int32_t> visible = read_ids(batch, "attention_mask");
  const std::vector<std::int64_t> shape = expected.find("logits")->shape;
  REQUIRE(got.find("logits"));
  REQUIRE(got.find("logits")->shape == shape);
  const std::vector<double> all_got = read_tensor(got, "logits"), all_expected = read_tensor(expected, "logits");
  std::vector<double> logits_got, logits_expected;
  for (std::size_t i = 0; i < all_expected.size(); ++i) {
    if (!visible[i / static_cast<std::size_t>(shape[2])]) continue;
    logits_got.push_back(all_got[i]);
    logits_expected.push_back(all_expected[i]);
  }
  CHECK(difference(logits_got, logits_expected) <= kTolerance * largest(logits_expected));

  compare_sites(got, expected, name);

  const bool shift_invariant = name.find("vanilla") != std::string::npos;
  int compared = 0;
  for (const TensorEntry& entry : expected.tensors()) {
    if (entry.name.rfind("grad.", 0) != 0) continue;
    INFO(name << ": " << entry.name);
    REQUIRE(got.find(entry.name));
    CHECK(got.find(entry.name)->shape == entry.shape);
    CHECK(difference(read_tensor(got, entry.name), read_tensor(expected, entry.name)) <=
          kTolerance * gradient_scale(expected, entry.name, shift_invariant));
    ++compared;
  }
  CHECK(compared > 30);
  for (const TensorEntry& entry : got.tensors()) {
    INFO(name << ": a gradient that no parameter has: " << entry.name);
    CHECK((entry.name.rfind("grad.", 0) != 0 || expected.find(entry.name)));
  }
}

/// The batch of a fixture with another mask.
void write_batch(const fs::path& path, const std::string& name, const std::vector<std::int32_t>& mask) {
  const SafetensorsFile batch(fixture(name) / "batch.safetensors");
  const std::vector<std::int32_t> ids = read_ids(batch, "input_ids"), labels = read_ids(batch, "labels");
  REQUIRE(mask.size() == ids.size());
  const std::vector<std::int64_t> shape = batch.find("input_ids")->shape;
  write_safetensors(path, {{"input_ids", FileType::i32, shape, ids.data()},
                           {"attention_mask", FileType::i32, shape, mask.data()},
                           {"labels", FileType::i32, shape, labels.data()}});
}

}  // namespace

TEST_CASE("probe agrees with transformers") {
  test::TemporaryDirectory directory;
  for (const std::string& name : kFixtures) {
    DYNAMIC_SECTION(name) {
      const fs::path out = directory.path() / "out.safetensors";
      const Outcome outcome = run_probe("outeffhop", fixture(name), fixture(name) / "batch.safetensors", out);
      INFO(outcome.message);
      REQUIRE(outcome.exit_code == 0);
      compare_with_fixture(SafetensorsFile(out), name);
    }
  }
}

TEST_CASE("the binary compiled for the ordinary softmax agrees too, and refuses softmax1") {
  test::TemporaryDirectory directory;
  const fs::path out = directory.path() / "out.safetensors";
  for (const std::string name : {"bert_vanilla", "opt_vanilla"}) {
    DYNAMIC_SECTION(name) {
      const Outcome outcome = run_probe("outeffhop_vanilla", fixture(name), fixture(name) / "batch.safetensors", out);
      INFO(outcome.message);
      REQUIRE(outcome.exit_code == 0);
      compare_with_fixture(SafetensorsFile(out), name);
    }
  }
  SECTION("softmax1 is refused in a sentence") {
    const Outcome outcome =
        run_probe("outeffhop_vanilla", fixture("bert_softmax1"), fixture("bert_softmax1") / "batch.safetensors", out);
    INFO(outcome.message);
    CHECK(outcome.exit_code == static_cast<int>(ErrorKind::unsupported));
    CHECK(outcome.message.find("softmax1") != std::string::npos);
    CHECK_FALSE(fs::exists(out));
  }
}

TEST_CASE("probe has every labelled row of a head that works in several chunks") {
  const test::TemporaryDirectory directory;
  // A chunk of the head is 64 rows where 128 rows of logits would take more than 128 MiB.
  constexpr std::int64_t V = 262145, T = 66;
  ModelConfig config = default_model_config("bert");
  config.vocab_size = V;
  config.hidden_size = config.intermediate_size = 4;
  config.num_hidden_layers = config.num_attention_heads = 1;
  config.max_position_embeddings = T;
  const ParameterTable table = make_parameter_table(config);
  Snapshot snapshot;
  snapshot.first_moments.assign(static_cast<std::size_t>(table.flat_size()), 0.0f);
  snapshot.weights = snapshot.second_moments = snapshot.first_moments;
  initialise(table, 1, snapshot.weights.data());
  CheckpointContext context;
  context.run = directory.path();
  context.model = config;
  context.config = nlohmann::ordered_json::object();

  std::vector<std::int32_t> ids(T), labels(T);
  for (std::int32_t t = 0; t < T; ++t) {
    ids[static_cast<std::size_t>(t)] = 1 + 1000 * t;
    labels[static_cast<std::size_t>(t)] = t == 1 ? -100 : 7 * t;  // 65 labels
  }
  ProbeOptions options;
  options.checkpoint = write_checkpoint(context, table, snapshot);
  options.batch = directory.path() / "batch.safetensors";
  options.out = directory.path() / "out.safetensors";
  options.quiet = true;
  write_safetensors(options.batch,
                    {{"input_ids", FileType::i32, {1, T}, ids.data()}, {"labels", FileType::i32, {1, T}, labels.data()}});
  probe(options);

  const SafetensorsFile out(options.out);
  const TensorEntry* site = out.find("cls.predictions.decoder");
  REQUIRE(site);
  CHECK(site->shape == std::vector<std::int64_t>{T - 1, V});
  CHECK(out.find("cls.predictions.transform.LayerNorm")->shape == std::vector<std::int64_t>{1, T - 1, 4});
  const std::vector<double> seen = read_tensor(out, "cls.predictions.decoder"), logits = read_tensor(out, "logits");
  double largest = 0.0;
  for (std::int64_t row = 0; row < T - 1; ++row) {
    const std::int64_t position = row == 0 ? 0 : row + 1;
    for (std::int64_t v = 0; v < V; ++v) {
      largest = std::max(largest, std::abs(seen[static_cast<std::size_t>(row * V + v)] -
                                           logits[static_cast<std::size_t>(position * V + v)]));
    }
  }
  CHECK(largest < kTolerance);
}

TEST_CASE("probe refuses a mask that is not right padding") {
  test::TemporaryDirectory directory;
  const fs::path batch = directory.path() / "batch.safetensors", out = directory.path() / "out.safetensors";
  const std::string name = "bert_softmax1";
  std::vector<std::int32_t> mask = read_ids(SafetensorsFile(fixture(name) / "batch.safetensors"), "attention_mask");
  SECTION("the same mask written as int32 is taken") {
    write_batch(batch, name, mask);
    const Outcome outcome = run_probe("outeffhop", fixture(name), batch, out);
    INFO(outcome.message);
    REQUIRE(outcome.exit_code == 0);
    compare_with_fixture(SafetensorsFile(out), name);
  }
  SECTION("left padding") {
    mask.front() = 0;
    write_batch(batch, name, mask);
    const Outcome outcome = run_probe("outeffhop", fixture(name), batch, out);
    INFO(outcome.message);
    CHECK(outcome.exit_code == static_cast<int>(ErrorKind::data));
    CHECK(outcome.message.find("attention_mask") != std::string::npos);
    CHECK_FALSE(fs::exists(out));
  }
  SECTION("a hole") {
    mask.at(3) = 0;
    write_batch(batch, name, mask);
    const Outcome outcome = run_probe("outeffhop", fixture(name), batch, out);
    INFO(outcome.message);
    CHECK(outcome.exit_code == static_cast<int>(ErrorKind::data));
    CHECK(outcome.message.find("attention_mask") != std::string::npos);
  }
}

}  // namespace outeffhop
