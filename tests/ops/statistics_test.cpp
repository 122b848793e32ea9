#include "kernels/statistics.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Moments* moments_at(const Operands& at) { return reinterpret_cast<Moments*>(at.double_pointer("moments")); }

std::vector<Moments> moments_of(Device& device, const std::vector<float>& values, std::int64_t rows) {
  Buffer x(device, values.size() * sizeof(float)), result(device, static_cast<std::size_t>(rows) * sizeof(Moments));
  device.copy_in(x.data(), values.data(), values.size() * sizeof(float));
  device.run(
      RowMoments{rows, static_cast<std::int64_t>(values.size()) / rows, {x.data(), DType::f32}, result.as<Moments>()});
  device.synchronize();
  std::vector<Moments> moments(static_cast<std::size_t>(rows));
  device.copy_out(moments.data(), result.data(), moments.size() * sizeof(Moments));
  return moments;
}

}  // namespace

TEST_CASE("row moments") {
  struct Shape {
    std::int64_t rows, C;
  };
  for (const Shape& shape : {Shape{1, 1}, Shape{5, 7}, Shape{3, 64}, Shape{17, 200}, Shape{2, 768}, Shape{1, 100000}})
    for (const double mean : {0.0, 1000.0}) {
      auto rng = generator(161);
      OpCase op_case;
      op_case.name = fmt::format("row moments, rows {}, C {}, mean {}", shape.rows, shape.C, mean);
      auto x = normal_values(rng, shape.rows * shape.C, 2.0);
      for (double& value : x) value += mean;
      x.back() = -mean * 3 - 40;  // an outlier whose magnitude is the largest though it is negative
      op_case.input("x", x);
      auto& moments = op_case.output("moments", shape.rows * 4, Precision::fp64);
      const std::array<const char*, 4> names{"max_abs", "mean", "square_sum", "fourth_sum"};
      for (std::size_t field = 0; field < 4; ++field) {
        std::vector<bool> elements(static_cast<std::size_t>(shape.rows) * 4, false);
        for (std::size_t i = field; i < elements.size(); i += 4) elements[i] = true;
        moments.region(names[field], elements);
      }
      // The contract computes in double, and so does the truth: sums of C terms in two orders differ by at most 2 (C - 1)
      // roundings of 2^-53 of the sum of magnitudes.
      op_case.perturbation = static_cast<double>(shape.C) * 0x1p-52;
      op_case.call = [=](Device& device, const Operands& at) {
        device.run(RowMoments{shape.rows, shape.C, at["x"], moments_at(at)});
      };
      op_case.also = [=](const Results& results) {
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          double largest = 0;
          for (std::int64_t c = 0; c < shape.C; ++c)
            largest = std::max(largest, std::fabs(results["x"].values[r * shape.C + c]));
          CHECK(results["moments"].values[r * 4] == largest);
        }
      };
      check(op_case);
    }
}

// Kurtosis of the outlier metrics: mean((x - mean)^4) / (s^4 + 1e-6) with the unbiased s.
TEST_CASE("row moments give the published kurtosis of 1, 2, 3, 4, 10") {
  for (DeviceUnderTest& under_test : devices_under_test()) {
    const Moments m = moments_of(*under_test.device, {1, 2, 3, 4, 10}, 1).front();
    CHECK(m.max_abs == 10);
    CHECK(m.mean == Approx(4).epsilon(1e-15));
    CHECK(m.square_sum == Approx(50).epsilon(1e-14));
    CHECK(m.fourth_sum == Approx(1394).epsilon(1e-14));
    const double variance = m.square_sum / 4;
    CHECK(m.fourth_sum / 5 / (variance * variance + 1e-6) == Approx(1.7843200).epsilon(1e-7));
  }
}

TEST_CASE("row moments show a NaN or an infinity wherever it stands") {
  for (DeviceUnderTest& under_test : devices_under_test())
    for (const std::int64_t C : {1, 5, 67})
      for (std::int64_t place = 0; place < C; ++place) {
        std::vector<float> values(static_cast<std::size_t>(3 * C), 2.0f);
        values[static_cast<std::size_t>(place)] = kNaN;
        values[static_cast<std::size_t>(C + place)] = -kInfinity;
        const auto moments = moments_of(*under_test.device, values, 3);
        CHECK(std::isnan(moments[0].max_abs));
        CHECK(moments[1].max_abs == kInfinity);
        CHECK(moments[2].max_abs == 2.0);
        CHECK(moments[2].square_sum == 0.0);
      }
}

TEST_CASE("cast rounds to the nearest value") {
  for (const std::int64_t count : {1, 7, 64, 1000, 4097}) {
    auto rng = generator(171);
    OpCase op_case;
    op_case.name = fmt::format("cast, count {}", count);
    op_case.input("from", normal_values(rng, count), Precision::fp32);
    op_case.output("to", count);
    op_case.output("back", count, Precision::fp32).not_judged();
    op_case.call = [=](Device& device, const Operands& at) {
      device.run(Cast{count, at["from"], at["to"]});
      device.run(Cast{count, at["to"], at["back"]});
    };
    op_case.also = [=](const Results& results) {
      std::int64_t wrong = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        const auto from = static_cast<float>(results["from"].values[i]);
        wrong += results["to"].values[i] != (results["to"].dtype == DType::bf16 ? static_cast<float>(bf16(from)) : from);
        wrong += results["back"].values[i] != results["to"].values[i];
      }
      CHECK(wrong == 0);
    };
    check(op_case);
  }
}

TEST_CASE("cast of ties, the edges of the range, subnormals, infinities and NaN") {
  const float smallest = std::numeric_limits<float>::denorm_min();
  // 1 + 2^-8 lies between the bf16 values 1 and 1 + 2^-7: to even. The largest fp32 rounds up to infinity.
  const std::vector<float> from = {1.0f,
                                   1.0f + 0x1p-8f,
                                   1.0f + 3 * 0x1p-8f,
                                   1.0f + 0x1p-8f + 0x1p-23f,
                                   -1.0f - 0x1p-8f,
                                   0.0f,
                                   -0.0f,
                                   kInfinity,
                                   -kInfinity,
                                   std::numeric_limits<float>::max(),
                                   0x1.fep127f,
                                   smallest,
                                   0x1p-133f,
                                   0x1p-134f * 3,
                                   kNaN};
  const std::vector<float> wanted = {1.0f,        1.0f,  1.0f + 0x1p-6f, 1.0f + 0x1p-7f, -1.0f,
                                     0.0f,        -0.0f, kInfinity,      -kInfinity,     kInfinity,
                                     0x1.fep127f, 0.0f,  0x1p-133f,      0x1p-132f,      kNaN};
  REQUIRE(from.size() == wanted.size());
  for (DeviceUnderTest& under_test : devices_under_test()) {
    Device& device = *under_test.device;
    const auto count = static_cast<std::int64_t>(from.size());
    Buffer source(device, from.size() * 4), small(device, from.size() * 2), back(device, from.size() * 4);
    device.copy_in(source.data(), from.data(), from.size() * 4);
    device.run(Cast{count, {source.data(), DType::f32}, {small.data(), DType::bf16}});
    device.run(Cast{count, {small.data(), DType::bf16}, {back.data(), DType::f32}});
    device.synchronize();
    std::vector<float> got(from.size());
    device.copy_out(got.data(), back.data(), got.size() * 4);
    for (std::size_t i = 0; i < from.size(); ++i) {
      INFO("element " << i << ": " << from[i]);
      if (std::isnan(wanted[i])) {
        CHECK(std::isnan(got[i]));
      } else {
        CHECK(std::bit_cast<std::uint32_t>(got[i]) == std::bit_cast<std::uint32_t>(wanted[i]));
      }
    }
  }
}

}  // namespace outeffhop::test
