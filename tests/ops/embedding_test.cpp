#include "kernels/embedding.h"

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

std::vector<std::int32_t> random_ids(std::mt19937_64& rng, std::int64_t count, std::int32_t below) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  for (auto& id : ids) id = static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(below));
  return ids;
}

constexpr std::int64_t kVocabulary = 11, kPositions = 9, kTypes = 2;

struct Shape {
  std::int64_t rows, C;
};
const std::vector<Shape> kShapes = {{1, 1}, {7, 7}, {64, 24}, {33, 200}, {5, 768}, {300, 64}};

/// Terms of the sum, as bits: token, position, type table, type ids, base.
enum Terms { kToken = 1, kPosition = 2, kType = 4, kTypeIds = 8, kBase = 16 };
const std::vector<int> kTermSets = {kToken,
                                    kToken | kPosition,
                                    kPosition | kBase,
                                    kToken | kPosition | kType,
                                    kToken | kPosition | kType | kTypeIds,
                                    kToken | kPosition | kType | kTypeIds | kBase};

void declare_ids(OpCase& op_case, std::mt19937_64& rng, const Shape& shape) {
  op_case.ints("token_ids", random_ids(rng, shape.rows, kVocabulary));
  op_case.ints("position_ids", random_ids(rng, shape.rows, kPositions));
  op_case.ints("type_ids", random_ids(rng, shape.rows, kTypes));
}

}  // namespace

TEST_CASE("embedding forward") {
  for (const Shape& shape : kShapes)
    for (const int terms : kTermSets) {
      auto rng = generator(21 + static_cast<std::uint64_t>(terms));
      OpCase op_case;
      op_case.name = fmt::format("embedding forward, rows {}, C {}, terms {}", shape.rows, shape.C, terms);
      declare_ids(op_case, rng, shape);
      op_case.input("base", normal_values(rng, shape.rows * shape.C));
      op_case.input("tokens", normal_values(rng, kVocabulary * shape.C));
      op_case.input("positions", normal_values(rng, kPositions * shape.C));
      op_case.input("types", normal_values(rng, kTypes * shape.C));
      op_case.output("out", shape.rows * shape.C);
      op_case.call = [=](Device& device, const Operands& at) {
        EmbeddingForward op;
        op.rows = shape.rows;
        op.C = shape.C;
        if (terms & kToken) op.token_ids = at.ints("token_ids"), op.token_table = at["tokens"];
        if (terms & kPosition) op.position_ids = at.ints("position_ids"), op.position_table = at["positions"];
        if (terms & kType) op.type_table = at["types"];
        if (terms & kTypeIds) op.type_ids = at.ints("type_ids");
        if (terms & kBase) op.base = at["base"];
        op.out = at["out"];
        device.run(op);
      };
      check(op_case);
    }
}

TEST_CASE("embedding backward") {
  for (const Shape& shape : kShapes)
    for (const int terms : kTermSets)
      for (const std::int32_t padding : {-1, 3}) {
        if (terms & kBase) continue;
        auto rng = generator(31 + static_cast<std::uint64_t>(terms));
        OpCase op_case;
        op_case.name =
            fmt::format("embedding backward, rows {}, C {}, terms {}, padding {}", shape.rows, shape.C, terms, padding);
        op_case.thread_invariant = true;
        declare_ids(op_case, rng, shape);
        op_case.input("d_out", normal_values(rng, shape.rows * shape.C));
        auto& tokens = op_case.update("d_tokens", normal_values(rng, kVocabulary * shape.C), Precision::statistic);
        auto& positions = op_case.update("d_positions", normal_values(rng, kPositions * shape.C), Precision::statistic);
        auto& types = op_case.update("d_types", normal_values(rng, kTypes * shape.C), Precision::statistic);
        // Of each table only the rows that occur are touched; a table that is left out is not.
        const auto rows_of = [&](const char* ids, std::int64_t table_rows, bool used, std::int32_t skipped) {
          std::vector<bool> touched(static_cast<std::size_t>(table_rows * shape.C), false);
          for (const auto& [name, values] : op_case.int_arrays)
            if (used && name == ids)
              for (const std::int32_t id : values)
                if (id != skipped) std::fill_n(touched.begin() + id * shape.C, shape.C, true);
          return touched;
        };
        tokens.region("d_tokens", rows_of("token_ids", kVocabulary, terms & kToken, padding));
        positions.region("d_positions", rows_of("position_ids", kPositions, terms & kPosition, -1));
        auto type_rows = rows_of("type_ids", kTypes, (terms & kType) && (terms & kTypeIds), -1);
        if ((terms & kType) && !(terms & kTypeIds)) std::fill_n(type_rows.begin(), shape.C, true);
        types.region("d_types", type_rows);
        op_case.call = [=](Device& device, const Operands& at) {
          EmbeddingBackward op;
          op.rows = shape.rows;
          op.C = shape.C;
          op.vocabulary = kVocabulary;
          op.positions = kPositions;
          op.types = kTypes;
          op.padding_id = padding;
          if (terms & kToken) op.token_ids = at.ints("token_ids"), op.d_token_table = at["d_tokens"];
          if (terms & kPosition) op.position_ids = at.ints("position_ids"), op.d_position_table = at["d_positions"];
          if (terms & kType) op.d_type_table = at["d_types"];
          if (terms & kTypeIds) op.type_ids = at.ints("type_ids");
          op.d_out = at["d_out"];
          device.run(op);
        };
        check(op_case);
      }
}

// BERT's vocabulary with a few rows: most of the table is never named, and must not be read into the sum or written.
TEST_CASE("embedding backward of a large vocabulary") {
  constexpr std::int64_t kLarge = 30522, kRows = 256, C = 8;
  auto rng = generator(41);
  OpCase op_case;
  op_case.name = "embedding backward, large vocabulary";
  op_case.thread_invariant = true;
  std::vector<std::int32_t> ids(kRows);
  std::vector<bool> touched(kLarge * C, false);
  for (std::size_t r = 0; r < ids.size(); ++r) {
    ids[r] = static_cast<std::int32_t>(r % 4 == 0 ? 103 : rng() % kLarge);  // a quarter of them [MASK]
    std::fill_n(touched.begin() + ids[r] * C, C, true);
  }
  op_case.ints("ids", ids);
  op_case.input("d_out", normal_values(rng, kRows * C));
  op_case.update("d_tokens", normal_values(rng, kLarge * C), Precision::statistic).region("d_tokens", touched);
  op_case.call = [](Device& device, const Operands& at) {
    EmbeddingBackward op;
    op.rows = kRows;
    op.C = C;
    op.vocabulary = kLarge;
    op.token_ids = at.ints("ids");
    op.d_out = at["d_out"];
    op.d_token_table = at["d_tokens"];
    device.run(op);
  };
  check(op_case);
}

}  // namespace outeffhop::test
