#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

struct Shape {
  std::int64_t rows, V, row_stride;
};
const std::vector<Shape> kShapes = {{1, 1, 1}, {5, 7, 7}, {6, 127, 128}, {9, 200, 264}, {40, 33, 48}, {3, 30522, 30528}};

struct Variant {
  bool write_gradient = true, losses = true, loss_sum = true, all_ignored = false;
  double spread = 3;  ///< standard deviation of the logits
};

OpCase make_case(const Shape& shape, const Variant& variant) {
  auto rng = generator(131);
  OpCase op_case;
  op_case.name =
      fmt::format("cross-entropy, rows {}, V {}, stride {}, gradient {}, losses {}, loss_sum {}, ignored {}, spread {}",
                  shape.rows, shape.V, shape.row_stride, variant.write_gradient, variant.losses, variant.loss_sum,
                  variant.all_ignored, variant.spread);
  std::vector<std::int32_t> targets(shape.rows);
  std::vector<bool> ignored(shape.rows);
  for (std::int64_t r = 0; r < shape.rows; ++r) {
    ignored[r] = variant.all_ignored || r % 4 == 2;
    targets[r] =
        ignored[r] ? (r % 8 == 2 ? -100 : -1) : static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(shape.V));
  }
  if (shape.rows > 1 && !ignored[1]) targets[1] = static_cast<std::int32_t>(shape.V - 1);
  op_case.ints("targets", targets);
  auto logits = normal_values(rng, shape.rows * shape.row_stride, variant.spread);
  std::vector<bool> columns(logits.size(), false);
  for (std::int64_t r = 0; r < shape.rows; ++r) {
    std::fill_n(columns.begin() + r * shape.row_stride, shape.V, true);
    // Beyond V lies something that would win every maximum.
    for (std::int64_t c = shape.V; c < shape.row_stride; ++c) logits[r * shape.row_stride + c] = 1e30;
  }
  if (variant.write_gradient) {
    op_case.update("logits", logits).region("gradient", columns);
  } else {
    op_case.input("logits", logits);
  }
  if (variant.losses) op_case.output("losses", shape.rows, Precision::statistic).with_exact_zeros();
  if (variant.loss_sum) op_case.update("loss_sum", {2.5}, Precision::fp64);
  op_case.also = [=](const Results& results) {
    for (std::int64_t r = 0; r < shape.rows && variant.write_gradient; ++r)
      for (std::int64_t c = 0; c < shape.V && ignored[r]; ++c)
        if (results["logits"].values[r * shape.row_stride + c] != 0.0) FAIL_CHECK("an ignored row has a gradient");
    if (variant.loss_sum && variant.all_ignored) CHECK(results["loss_sum"].values[0] == 2.5);
  };
  op_case.call = [=](Device& device, const Operands& at) {
    CrossEntropy op;
    op.rows = shape.rows;
    op.V = shape.V;
    op.row_stride = shape.row_stride;
    op.logits = at["logits"];
    op.targets = at.ints("targets");
    op.write_gradient = variant.write_gradient;
    op.gradient_scale = 0.125f;
    if (variant.losses) op.losses = at["losses"];
    if (variant.loss_sum) op.loss_sum = at.double_pointer("loss_sum");
    device.run(op);
  };
  return op_case;
}

}  // namespace

TEST_CASE("cross-entropy") {
  for (const Shape& shape : kShapes) {
    check(make_case(shape, {}));
    check(make_case(shape, {.write_gradient = false}));
    check(make_case(shape, {.losses = false}));
    check(make_case(shape, {.write_gradient = false, .losses = false}));
    check(make_case(shape, {.losses = false, .loss_sum = false}));
    check(make_case(shape, {.all_ignored = true}));
  }
}

// exp(200) is beyond fp32: only a shifted softmax survives.
TEST_CASE("cross-entropy of logits around 200") {
  for (const Shape& shape : kShapes) check(make_case(shape, {.spread = 200}));
}

// 256,000 is the largest vocabulary in use; a multiprocessor's shared memory has room for 116,000 bf16 logits.
TEST_CASE("cross-entropy over a vocabulary that no cache near the arithmetic holds") {
  check(make_case({2, 130001, 130008}, {}));
}

// Logits of minus infinity are candidates that are ruled out, wherever in the row they lie.
TEST_CASE("cross-entropy with candidates ruled out") {
  const std::int64_t V = 600;
  auto rng = generator(137);
  OpCase op_case;
  op_case.name = "cross-entropy, columns of minus infinity";
  auto logits = normal_values(rng, 2 * V, 3);
  for (std::int64_t c = 0; c < V; ++c)
    if (c < 40 || c % 3 == 0) logits[static_cast<std::size_t>(c)] = -std::numeric_limits<double>::infinity();
  op_case.update("logits", logits).with_exact_zeros();
  op_case.ints("targets", {599, 0});
  op_case.output("losses", 2, Precision::statistic);
  op_case.call = [=](Device& device, const Operands& at) {
    CrossEntropy op;
    op.rows = 2;
    op.V = op.row_stride = V;
    op.logits = at["logits"];
    op.targets = at.ints("targets");
    op.write_gradient = true;
    op.losses = at["losses"];
    device.run(op);
  };
  check(op_case);
}

// What is not finite has to reach the loss: the step is skipped for it.
TEST_CASE("cross-entropy shows logits that are no numbers") {
  const std::int64_t rows = 3, V = 100;
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> logits(rows * V, 0.5f);
  logits[7] = nan;
  logits[V + 99] = infinity;
  std::fill_n(logits.begin() + 2 * V, V, -infinity);
  const std::vector<std::int32_t> targets{5, 6, 7};
  for (DeviceUnderTest& under_test : devices_under_test()) {
    Device& device = *under_test.device;
    Buffer logits_memory(device, logits.size() * sizeof(float)),
        targets_memory(device, targets.size() * sizeof(std::int32_t));
    Buffer losses_memory(device, rows * sizeof(float));
    device.copy_in(logits_memory.data(), logits.data(), logits.size() * sizeof(float));
    device.copy_in(targets_memory.data(), targets.data(), targets.size() * sizeof(std::int32_t));
    CrossEntropy op;
    op.rows = rows;
    op.V = op.row_stride = V;
    op.logits = {logits_memory.data(), DType::f32};
    op.targets = targets_memory.as<std::int32_t>();
    op.losses = {losses_memory.data(), DType::f32};
    device.run(op);
    std::vector<float> losses(rows);
    device.copy_out(losses.data(), losses_memory.data(), rows * sizeof(float));
    for (const float loss : losses) CHECK_FALSE(std::isfinite(loss));
  }
}

TEST_CASE("cross-entropy of an even bet is the logarithm of the number of classes") {
  OpCase op_case;
  op_case.name = "cross-entropy of equal logits";
  op_case.input("logits", std::vector<double>(2 * 1024, -3.0));
  op_case.ints("targets", {7, 1023});
  op_case.output("losses", 2, Precision::statistic);
  op_case.call = [](Device& device, const Operands& at) {
    CrossEntropy op;
    op.rows = 2;
    op.V = op.row_stride = 1024;
    op.logits = at["logits"];
    op.targets = at.ints("targets");
    op.losses = at["losses"];
    device.run(op);
  };
  op_case.also = [](const Results& results) {
    for (const double loss : results["losses"].values) CHECK(loss == Approx(std::log(1024.0)).epsilon(1e-6));
  };
  check(op_case);
}

}  // namespace outeffhop::test
