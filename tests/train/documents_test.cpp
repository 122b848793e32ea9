// Runs on documents: packed and padded, resumed, evaluated.
#include "tests/train/train_support.h"
#include "train/eval_command.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;
using test::quiet_options;
using test::TinyCorpus;

/// Fills the shards anew, with a delimiter (token 1) at every few tokens: documents of 3 to 21 tokens.
void part_documents(const TinyCorpus& corpus) {
  for (const char* name : {"tiny_train_000.bin", "tiny_train_001.bin", "tiny_val_000.bin"}) {
    std::vector<std::uint16_t> tokens = test::chained_tokens(2048);
    for (std::size_t at = 0, i = 0; at < tokens.size(); at += 3 + i * 7 % 19, ++i) tokens[at] = 1;
    test::write_shard(corpus.path(name), tokens);
  }
}

}  // namespace

TEST_CASE("Runs on documents, packed and padded, resume bit for bit and count tokens without padding") {
  const TinyCorpus corpus;
  part_documents(corpus);
  for (const std::string type : {"bert", "opt"}) {
    for (const std::string packing : {"true", "false"}) {
      INFO(type << " packing " << packing);
      const std::vector<std::string> changes = {"training.steps=10", "data.sampling=documents", "data.document_delimiter=1",
                                                "data.packing=" + packing};
      const std::string name = type + packing;
      REQUIRE(train(quiet_options(corpus.config(type, name + "_whole"), changes)) == 0);
      TrainOptions options = quiet_options(corpus.config(type, name + "_parts"), changes);
      options.stop_after = 4;
      REQUIRE(train(options) == 0);
      REQUIRE(train(options) == 0);
      options.stop_after = 0;
      REQUIRE(train(options) == 0);
      for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
        CHECK(read_file(corpus.path(name + "_whole/checkpoints/step_00000010/" + file)) ==
              read_file(corpus.path(name + "_parts/checkpoints/step_00000010/" + file)));
      }
      std::vector<std::int64_t> tokens;
      for (const nlohmann::json& object : test::read_metrics(corpus.path(name + "_parts"))) {
        if (object.contains("tokens")) tokens.push_back(object["tokens"].get<std::int64_t>());
      }
      REQUIRE(tokens.size() == 10);
      CHECK(tokens.back() < 10 * 8 * 16);
      CHECK(tokens.back() > 10 * 8 * (packing == "true" ? 15 : 7));
      for (std::size_t i = 1; i < tokens.size(); ++i) CHECK(tokens[i] > tokens[i - 1]);

      EvalOptions eval;
      eval.checkpoint = corpus.path(name + "_whole");
      eval.data = corpus.path("tiny_val_*.bin");
      const auto result = run_eval(eval);
      CHECK(result["sampling"] == "documents");
      eval.sampling = "stream";
      CHECK(run_eval(eval)["samples"] == 2048 / 16);
    }
  }
}

TEST_CASE("Other documents, or another way to sample them, is another run") {
  const TinyCorpus corpus;
  part_documents(corpus);
  const auto config = corpus.config("opt", "run");
  const std::string by = "data.sampling=documents";
  REQUIRE(train(quiet_options(config, {"training.steps=2", by, "data.document_delimiter=1"})) == 0);
  const auto refusal = [&](const std::vector<std::string>& changes) {
    return std::string(caught_error([&] { train(quiet_options(config, changes)); }).what());
  };
  CHECK_THAT(refusal({}), Contains("\"data.sampling\" was \"documents\""));
  CHECK_THAT(refusal({by, "data.document_delimiter=1", "data.packing=false"}), Contains("\"data.packing\" was true"));
  CHECK_THAT(refusal({by, "data.document_delimiter=1", "data.delimiter_at=end"}), Contains("\"data.delimiter_at\""));
  CHECK_THAT(refusal({by, "data.document_delimiter=64"}), Contains("beyond model.vocab_size 64"));
}

}  // namespace outeffhop
