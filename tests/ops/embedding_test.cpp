#include "kernels/embedding.h"

#include <array>
#include <cmath>

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

namespace {

using Ids = std::vector<std::int32_t>;

/// The ids of a call of the backward op, and how large the tables are. A table without ids is left out, but for the types:
/// with types and no ids every row has type 0.
struct Batch {
  std::int64_t rows = 0, C = 0;
  std::int64_t vocabulary = 0, positions = 0, types = 0;
  Ids token_ids, position_ids, type_ids;
  std::int32_t padding_id = -1;
};

void check_backward(const std::string& name, const Batch& batch) {
  auto rng = generator(31);
  OpCase op_case;
  op_case.name = name;
  op_case.thread_invariant = true;
  op_case.ints("token_ids", batch.token_ids);
  op_case.ints("position_ids", batch.position_ids);
  op_case.ints("type_ids", batch.type_ids);
  op_case.input("d_out", normal_values(rng, batch.rows * batch.C));
  // Of each table only the rows that occur are written.
  const auto declare = [&](const char* table, std::int64_t table_rows, const Ids& ids, std::int32_t left_out) {
    std::vector<bool> written(static_cast<std::size_t>(table_rows * batch.C), false);
    for (const std::int32_t id : ids)
      if (id != left_out) std::fill_n(written.begin() + id * batch.C, batch.C, true);
    op_case.update(table, normal_values(rng, table_rows * batch.C), Precision::statistic).region(table, written);
  };
  declare("d_tokens", batch.vocabulary, batch.token_ids, batch.padding_id);
  declare("d_positions", batch.positions, batch.position_ids, -1);
  declare("d_types", batch.types, batch.types != 0 && batch.type_ids.empty() ? Ids{0} : batch.type_ids, -1);
  op_case.call = [&batch](Device& device, const Operands& at) {
    EmbeddingBackward op;
    op.rows = batch.rows;
    op.C = batch.C;
    op.vocabulary = batch.vocabulary;
    op.positions = batch.positions;
    op.types = batch.types;
    op.padding_id = batch.padding_id;
    op.d_out = at["d_out"];
    if (!batch.token_ids.empty()) op.token_ids = at.ints("token_ids"), op.d_token_table = at["d_tokens"];
    if (!batch.position_ids.empty()) op.position_ids = at.ints("position_ids"), op.d_position_table = at["d_positions"];
    if (batch.types != 0) op.d_type_table = at["d_types"];
    if (!batch.type_ids.empty()) op.type_ids = at.ints("type_ids");
    device.run(op);
  };
  check(op_case);
}

/// count ids, the one of row r being function(r).
template <class Function>
Ids ids_of(std::int64_t count, Function function) {
  Ids ids(static_cast<std::size_t>(count));
  for (std::int64_t r = 0; r < count; ++r) ids[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(function(r));
  return ids;
}

}  // namespace

TEST_CASE("embedding backward") {
  for (const Shape& shape : kShapes)
    for (const int terms : kTermSets)
      for (const std::int32_t padding : {-1, 3}) {
        if (terms & kBase) continue;
        auto rng = generator(31 + static_cast<std::uint64_t>(terms));
        Batch batch{shape.rows, shape.C, kVocabulary, kPositions, kTypes, {}, {}, {}, padding};
        if (terms & kToken) batch.token_ids = random_ids(rng, shape.rows, kVocabulary);
        if (terms & kPosition) batch.position_ids = random_ids(rng, shape.rows, kPositions);
        if (terms & kTypeIds) batch.type_ids = random_ids(rng, shape.rows, kTypes);
        if (!(terms & kType)) batch.types = 0;
        check_backward(
            fmt::format("embedding backward, rows {}, C {}, terms {}, padding {}", shape.rows, shape.C, terms, padding),
            batch);
      }
}

// BERT's vocabulary with a few rows: most of the table is never named, and must not be read into the sum or written.
TEST_CASE("embedding backward of a large vocabulary") {
  auto rng = generator(41);
  Batch batch{256, 8, 30522, 0, 0, {}, {}, {}};
  batch.token_ids = ids_of(batch.rows, [&](std::int64_t r) { return r % 4 == 0 ? 103 : rng() % 30522; });  // 103: [MASK]
  check_backward("embedding backward, large vocabulary", batch);
}

// More ids than 16 bits tell apart: many that have their lower bits in common, the last one among them.
TEST_CASE("embedding backward of a vocabulary of more than 65536") {
  Batch batch{96, 8, 70000, 0, 0, {}, {}, {}};
  const std::array<std::int32_t, 8> ids = {69999, 4463, 4463 + 65536 - 256, 0, 65536, 65535, 256, 65536 + 256};
  batch.token_ids = ids_of(batch.rows, [&](std::int64_t r) { return ids[static_cast<std::size_t>(r % 8)]; });
  check_backward("embedding backward, vocabulary of 70000", batch);
}

// A batch as it is in training: few words make up most of the text, a fifth of the rows is [MASK], another fifth is padding,
// positions repeat with each sequence, and all rows have the same type.
TEST_CASE("embedding backward of skewed ids in thousands of rows") {
  constexpr std::int64_t kSequence = 150;
  for (const std::int64_t C : {24, 13}) {
    auto rng = generator(43);
    Batch batch{30 * kSequence, C, 300, 200, 2, {}, {}, {}, 0};
    batch.token_ids = ids_of(batch.rows, [&](std::int64_t r) {
      const double uniform = static_cast<double>(rng() % 65536) / 65536;
      return r % kSequence >= 120 ? 0.0 : r % 5 == 0 ? 103.0 : 300 * std::pow(uniform, 4);
    });
    batch.position_ids = ids_of(batch.rows, [](std::int64_t r) { return r % kSequence; });
    check_backward(fmt::format("embedding backward, skewed ids, C {}", C), batch);
  }
}

TEST_CASE("embedding backward of rows of one id, and of rows that share none") {
  Batch batch{3000, 8, 3001, 3, 2, {}, {}, {}};
  batch.token_ids = ids_of(batch.rows, [](std::int64_t r) { return 3000 - r; });
  batch.position_ids = ids_of(batch.rows, [](std::int64_t) { return 2; });
  batch.type_ids = ids_of(batch.rows, [](std::int64_t) { return 1; });
  check_backward("embedding backward, one id and none shared", batch);
  batch.padding_id = 2;
  batch.vocabulary = 3;
  batch.token_ids = batch.position_ids;
  check_backward("embedding backward, nothing but padding", batch);
}

// Backends sum in parts of so many rows: parts that end where ids change, one row before and one after.
TEST_CASE("embedding backward of runs as long as a power of two, and one row more or less") {
  for (const std::int64_t rows : {32, 64, 65, 1024, 1025, 2048, 2049})
    for (const std::int64_t run : {31, 32, 33, 64, 1023, 1024, 1025}) {
      if (run > rows) continue;
      Batch batch{rows, 8, (rows - 1) / run + 1, 0, 0, {}, {}, {}};
      batch.token_ids = ids_of(rows, [&](std::int64_t r) { return r / run; });
      check_backward(fmt::format("embedding backward, {} rows in runs of {}", rows, run), batch);
    }
}

}  // namespace outeffhop::test
