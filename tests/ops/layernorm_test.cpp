#include "kernels/layernorm.h"

#include <cmath>
#include <utility>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

const std::vector<std::uint64_t> kSamples = {3, 1ull << 40, 17};
constexpr double kEpsilon = 1e-5, kDropoutProbability = 0.1, kDropoutScale = 1 / (1 - kDropoutProbability);

struct Shape {
  std::int64_t B, T, C;
  std::int64_t count() const { return B * T * C; }
  std::int64_t rows() const { return B * T; }
};
// The widths are also of each way that a backend has to share a row among threads.
const std::vector<Shape> kShapes = {{1, 1, 1},   {2, 3, 1},   {3, 5, 7},    {2, 8, 24},   {3, 7, 64},
                                    {2, 3, 200}, {2, 5, 768}, {1, 3, 1000}, {1, 2, 2056}, {1, 1, 16392}};

std::vector<double> shifted(std::vector<double> values, double by) {
  for (double& v : values) v += by;
  return values;
}

enum class Alias { none, sum_is_x, sum_is_residual };

struct Forward {
  bool residual = true, dropout = false, sum = true, statistics = true;
  Alias alias = Alias::none;
  double mean = 0, deviation = 1;
};

OpCase forward_case(const Shape& shape, const Forward& f) {
  auto rng = generator(51);
  OpCase op_case;
  op_case.name =
      fmt::format("layer norm forward, B {}, T {}, C {}, residual {}, dropout {}, sum {}, alias {}, mean {}, deviation {}",
                  shape.B, shape.T, shape.C, f.residual, f.dropout, f.sum, static_cast<int>(f.alias), f.mean, f.deviation);
  op_case.samples("samples", kSamples);
  const auto x = shifted(normal_values(rng, shape.count(), f.deviation), f.mean);
  const auto residual = normal_values(rng, shape.count(), f.deviation);
  f.alias == Alias::sum_is_x ? op_case.update("x", x) : op_case.input("x", x);
  f.alias == Alias::sum_is_residual ? op_case.update("residual", residual) : op_case.input("residual", residual);
  op_case.input("weight", shifted(normal_values(rng, shape.C, 0.2), 1));
  op_case.input("bias", normal_values(rng, shape.C));
  if (f.sum && f.alias == Alias::none) op_case.output("sum", shape.count());
  op_case.output("out", shape.count());
  if (f.statistics) {
    op_case.output("mean", shape.rows(), Precision::statistic);
    op_case.output("rstd", shape.rows(), Precision::statistic);
  }
  const bool again = f.sum && f.statistics;  // made from the sum alone
  const char* sum = f.alias == Alias::sum_is_x ? "x" : f.alias == Alias::sum_is_residual ? "residual" : "sum";
  if (again) {
    op_case.output("out_again", shape.count());
    op_case.output("mean_again", shape.rows(), Precision::statistic);
    op_case.output("rstd_again", shape.rows(), Precision::statistic);
    op_case.also = [](const Results& results) {
      for (const std::string name : {"out", "mean", "rstd"}) CHECK(results[name + "_again"].bytes == results[name].bytes);
    };
  }
  op_case.call = [=](Device& device, const Operands& at) {
    LayerNormForward op;
    op.B = shape.B;
    op.T = shape.T;
    op.C = shape.C;
    op.epsilon = kEpsilon;
    op.x = at["x"];
    if (f.residual) op.residual = at["residual"];
    op.weight = at["weight"];
    op.bias = at["bias"];
    if (f.dropout) op.dropout = Dropout::make(kDropoutProbability, 77, 5, at.samples("samples"));
    if (f.sum) op.sum = at[sum];
    op.out = at["out"];
    if (f.statistics) op.mean = at["mean"], op.rstd = at["rstd"];
    device.run(op);
    if (!again) return;
    op.x = op.sum;
    op.residual = {};
    op.dropout = {};
    op.sum = {};
    op.out = at["out_again"];
    op.mean = at["mean_again"];
    op.rstd = at["rstd_again"];
    device.run(op);
  };
  return op_case;
}

enum class BackwardAlias { none, d_sum_is_d_sum_in, d_sum_is_d_out };

struct Backward {
  bool d_sum_in = false, dropout = false, d_x = true;
  BackwardAlias alias = BackwardAlias::none;
};

OpCase backward_case(const Shape& shape, const Backward& b) {
  auto rng = generator(61);
  OpCase op_case;
  op_case.name = fmt::format("layer norm backward, B {}, T {}, C {}, d_sum_in {}, dropout {}, d_x {}, alias {}", shape.B,
                             shape.T, shape.C, b.d_sum_in, b.dropout, b.d_x, static_cast<int>(b.alias));
  op_case.samples("samples", kSamples);
  const auto sum = shifted(normal_values(rng, shape.count(), 1.5), 0.5);
  std::vector<double> means, rstds;
  for (std::int64_t row = 0; row < shape.rows(); ++row) {
    double mean = 0, variance = 0;
    for (std::int64_t c = 0; c < shape.C; ++c) mean += sum[row * shape.C + c] / shape.C;
    for (std::int64_t c = 0; c < shape.C; ++c) variance += std::pow(sum[row * shape.C + c] - mean, 2) / shape.C;
    means.push_back(mean);
    rstds.push_back(1 / std::sqrt(variance + kEpsilon));
  }
  const auto d_out = normal_values(rng, shape.count()), d_sum_in = normal_values(rng, shape.count());
  auto& d_out_tensor =
      b.alias == BackwardAlias::d_sum_is_d_out ? op_case.update("d_out", d_out) : op_case.input("d_out", d_out);
  auto& d_in_tensor = b.alias == BackwardAlias::d_sum_is_d_sum_in ? op_case.update("d_sum_in", d_sum_in)
                                                                  : op_case.input("d_sum_in", d_sum_in);
  op_case.input("sum", sum);
  op_case.input("mean", means, Precision::statistic);
  op_case.input("rstd", rstds, Precision::statistic);
  const auto weight = shifted(normal_values(rng, shape.C, 0.2), 1);
  op_case.input("weight", weight);
  auto* d_sum_tensor = b.alias == BackwardAlias::none ? &op_case.output("d_sum", shape.count()) : nullptr;
  auto* d_x_tensor = b.d_x ? &op_case.output("d_x", shape.count()) : nullptr;
  if (d_x_tensor && b.dropout && shape.C > 1) d_x_tensor->with_exact_zeros();
  if (shape.C == 1) {
    // One channel is its own mean: rstd (g - mean g) is 0 for any g, but for the rounding of g.
    double largest = 0;
    for (std::size_t i = 0; i < d_out.size(); ++i) largest = std::max(largest, std::fabs(rstds[i] * d_out[i] * weight[0]));
    for (TensorCase* tensor : {&d_out_tensor, &d_in_tensor, d_sum_tensor, d_x_tensor})
      if (tensor) tensor->cancels(largest * (tensor == d_x_tensor && b.dropout ? kDropoutScale : 1.0));
  }
  op_case.update("d_weight", normal_values(rng, shape.C), Precision::statistic);
  op_case.update("d_bias", normal_values(rng, shape.C), Precision::statistic);
  op_case.call = [=](Device& device, const Operands& at) {
    LayerNormBackward op;
    op.B = shape.B;
    op.T = shape.T;
    op.C = shape.C;
    op.d_out = at["d_out"];
    if (b.d_sum_in) op.d_sum_in = at["d_sum_in"];
    op.sum = at["sum"];
    op.mean = at["mean"];
    op.rstd = at["rstd"];
    op.weight = at["weight"];
    if (b.dropout) op.dropout = Dropout::make(kDropoutProbability, 77, 5, at.samples("samples"));
    op.d_sum = at[b.alias == BackwardAlias::d_sum_is_d_out      ? "d_out"
                  : b.alias == BackwardAlias::d_sum_is_d_sum_in ? "d_sum_in"
                                                                : "d_sum"];
    if (b.d_x) op.d_x = at["d_x"];
    op.d_weight = at["d_weight"];
    op.d_bias = at["d_bias"];
    device.run(op);
  };
  return op_case;
}

}  // namespace

TEST_CASE("layer norm forward") {
  for (const Shape& shape : kShapes) {
    check(forward_case(shape, {}));
    check(forward_case(shape, {.residual = false}));
    check(forward_case(shape, {.residual = true, .dropout = true}));
    check(forward_case(shape, {.residual = false, .dropout = true}));
    check(forward_case(shape, {.residual = false, .sum = false}));
    check(forward_case(shape, {.sum = false, .statistics = false}));
    check(forward_case(shape, {.dropout = true, .alias = Alias::sum_is_x}));
    check(forward_case(shape, {.dropout = true, .alias = Alias::sum_is_residual}));
  }
}

// The variance as E[x^2] - E[x]^2 would lose all of its digits here: its error is about 1e8 2^-24 = 6 beside a variance
// of 1.
TEST_CASE("layer norm forward of a huge mean and a tiny variance") {
  for (const Shape& shape : kShapes) {
    check(forward_case(shape, {.residual = false, .mean = 1e4, .deviation = 1}));
    check(forward_case(shape, {.residual = false, .mean = -1e3, .deviation = 0.05}));
    check(forward_case(shape, {.residual = true, .mean = 1e4, .deviation = 1}));
    check(forward_case(shape, {.residual = false, .mean = 0, .deviation = 1e-6}));
  }
}

TEST_CASE("layer norm backward") {
  for (const Shape& shape : kShapes) {
    check(backward_case(shape, {}));
    check(backward_case(shape, {.d_x = false}));
    check(backward_case(shape, {.d_sum_in = true, .d_x = false}));
    check(backward_case(shape, {.d_sum_in = false, .dropout = true}));
    check(backward_case(shape, {.d_sum_in = true, .dropout = true}));
    check(backward_case(shape, {.d_sum_in = true, .dropout = true, .alias = BackwardAlias::d_sum_is_d_sum_in}));
    check(backward_case(shape, {.d_sum_in = true, .dropout = true, .alias = BackwardAlias::d_sum_is_d_out}));
    check(backward_case(shape, {.d_x = false, .alias = BackwardAlias::d_sum_is_d_out}));
  }
}

// Enough rows for every thread to own several, and for d_weight to be summed from more than one of them.
TEST_CASE("layer norm of many rows") {
  const Shape shape{3, 171, 72};
  check(forward_case(shape, {.dropout = true}));
  check(backward_case(shape, {.d_sum_in = true, .dropout = true}));
}

// A GPU's 49,152 threads take eight channels each, of four rows at a time in bf16 and of two in fp32: enough rows for a
// second turn, with two warps a row.
TEST_CASE("layer norm backward of more rows than a GPU takes at once") {
  for (const auto& [shape, storage] :
       {std::pair{Shape{3, 1030, 264}, DType::bf16}, std::pair{Shape{3, 520, 264}, DType::f32}}) {
    OpCase op_case = backward_case(shape, {.d_sum_in = true, .dropout = true});
    op_case.storages = {storage};
    check(op_case);
  }
}

}  // namespace outeffhop::test
