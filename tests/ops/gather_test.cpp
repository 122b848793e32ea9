#include "kernels/gather.h"

#include <algorithm>
#include <numeric>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

struct Shape {
  std::int64_t rows, count, padded, C;  ///< `padded` indices, `count` of them not negative
};
const std::vector<Shape> kShapes = {{1, 1, 1, 1},    {5, 0, 4, 7},       {9, 3, 8, 24},   {64, 10, 16, 200},
                                    {33, 33, 33, 7}, {128, 20, 64, 768}, {7, 2, 2, 1000}, {6, 0, 3, 8}};

/// `count` distinct rows, and as many negative numbers as make `padded`.
std::vector<std::int32_t> some_rows(std::mt19937_64& rng, const Shape& shape) {
  std::vector<std::int32_t> rows(shape.rows);
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), rng);
  rows.resize(shape.count);
  while (std::ssize(rows) < shape.padded)  // among the others, and with more than one negative number
    rows.insert(rows.begin() + static_cast<std::ptrdiff_t>(rng() % (rows.size() + 1)), rows.size() % 2 ? -1 : -7);
  return rows;
}

/// Copies are exact: element i of `results[out]` is `results[in][source(i)]`, or 0 where source is negative.
void check_copied(const Results& results, const char* in, const char* out, const std::vector<std::int64_t>& source) {
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < source.size(); ++i)
    wrong += results[out].values[i] != (source[i] < 0 ? 0.0 : results[in].values[source[i]]);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("gather rows") {
  for (const Shape& shape : kShapes) {
    auto rng = generator(111);
    const auto index = some_rows(rng, shape);
    OpCase op_case;
    op_case.name = fmt::format("gather, rows {}, count {}, padded {}, C {}", shape.rows, shape.count, shape.padded, shape.C);
    op_case.ints("index", index);
    op_case.input("x", normal_values(rng, shape.rows * shape.C));
    op_case.output("out", shape.padded * shape.C);
    op_case.call = [=](Device& device, const Operands& at) {
      device.run(GatherRows{shape.padded, shape.C, at.ints("index"), at["x"], at["out"]});
    };
    op_case.also = [=](const Results& results) {
      std::vector<std::int64_t> source(shape.padded * shape.C, -1);
      for (std::int64_t i = 0; i < shape.padded; ++i)
        for (std::int64_t c = 0; c < shape.C && index[i] >= 0; ++c) source[i * shape.C + c] = index[i] * shape.C + c;
      check_copied(results, "x", "out", source);
    };
    check(op_case);
  }
}

TEST_CASE("scatter rows") {
  for (const Shape& shape : kShapes) {
    auto rng = generator(121);
    const auto index = some_rows(rng, shape);
    OpCase op_case;
    op_case.name =
        fmt::format("scatter, rows {}, count {}, padded {}, C {}", shape.rows, shape.count, shape.padded, shape.C);
    op_case.ints("index", index);
    op_case.input("d_out", normal_values(rng, shape.padded * shape.C));
    op_case.output("d_x", shape.rows * shape.C);
    op_case.call = [=](Device& device, const Operands& at) {
      device.run(ScatterRows{shape.padded, shape.rows, shape.C, at.ints("index"), at["d_out"], at["d_x"]});
    };
    op_case.also = [=](const Results& results) {
      std::vector<std::int64_t> source(shape.rows * shape.C, -1);
      for (std::int64_t i = 0; i < shape.padded; ++i)
        for (std::int64_t c = 0; c < shape.C && index[i] >= 0; ++c) source[index[i] * shape.C + c] = i * shape.C + c;
      check_copied(results, "d_out", "d_x", source);
    };
    check(op_case);
  }
}

}  // namespace outeffhop::test
