// What --dry-run says of memory, against what the program then takes. Left out under sanitizers, which take their own.
#include <regex>

#include "tests/train/process.h"
#include "tests/train/train_support.h"

namespace outeffhop {
namespace {

using test::Process;
using test::TinyCorpus;

/// The total of the line "memory      1.06 GB: ...", in bytes.
double planned_memory(const std::string& output) {
  std::smatch found;
  REQUIRE(std::regex_search(output, found, std::regex("memory +([0-9.]+) (MB|GB):")));
  return std::stod(found[1]) * (found[2] == "GB" ? 1e9 : 1e6);
}

TEST_CASE("A run takes the memory that its dry run says") {
  const TinyCorpus corpus;
  const std::string config = corpus.path("config.json");
  write_durable(config, corpus.config("bert", "run").dump());
  // Large enough for megabytes of code and threads not to hide an arena: 21 M parameters, and activations of 300 MB.
  std::vector<std::string> arguments = {"train", "--config", config};
  for (const char* change :
       {"model.hidden_size=512", "model.num_hidden_layers=4", "model.num_attention_heads=8", "model.intermediate_size=2048",
        "model.vocab_size=16384", "model.max_position_embeddings=64", "data.sequence_length=64", "data.validation=",
        "training.steps=2", "training.global_batch_size=32", "training.micro_batch_size=32"}) {
    arguments.insert(arguments.end(), {"--set", change});
  }
  Process run("outeffhop", arguments);
  REQUIRE(run.wait() == 0);
  arguments.emplace_back("--dry-run");
  Process dry("outeffhop", arguments);
  REQUIRE(dry.wait() == 0);
  const double planned = planned_memory(dry.output());
  INFO(dry.output());
  CHECK(planned > 600e6);
  CHECK(run.peak_memory() == Approx(planned).epsilon(0.1));
}

}  // namespace
}  // namespace outeffhop
