#include "kernels/dropout.h"

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

struct Shape {
  std::int64_t B, T, C;
  std::int64_t count() const { return B * T * C; }
};
const std::vector<Shape> kShapes = {{1, 1, 1}, {2, 3, 7}, {3, 5, 9}, {2, 7, 130}, {1, 4, 768}, {3, 33, 64}};
const std::vector<std::uint64_t> kSamples = {0, (5ull << 32) + 1, ~0ull};
constexpr std::uint64_t kSeed = 12345;
constexpr std::uint32_t kSite = 6;

enum class Alias { none, out_is_x, out_is_residual };

}  // namespace

TEST_CASE("dropout add") {
  for (const Shape& shape : kShapes)
    for (const double probability : {0.0, 0.1, 0.5})
      for (const bool residual : {false, true})
        for (const Alias alias : {Alias::none, Alias::out_is_x, Alias::out_is_residual}) {
          if (alias == Alias::out_is_residual && !residual) continue;
          auto rng = generator(101);
          OpCase op_case;
          op_case.name = fmt::format("dropout add, B {}, T {}, C {}, p {}, residual {}, alias {}", shape.B, shape.T, shape.C,
                                     probability, residual, static_cast<int>(alias));
          op_case.samples("samples", kSamples);
          const auto x = normal_values(rng, shape.count()), r = normal_values(rng, shape.count());
          alias == Alias::out_is_x ? op_case.update("x", x) : op_case.input("x", x);
          alias == Alias::out_is_residual ? op_case.update("residual", r) : op_case.input("residual", r);
          if (alias == Alias::none) op_case.output("out", shape.count()).exact_zeros = !residual;
          op_case.call = [=](Device& device, const Operands& at) {
            DropoutAdd op{shape.B, shape.T, shape.C, at["x"], {}, {}, {}};
            if (residual) op.residual = at["residual"];
            if (probability > 0) op.dropout = Dropout::make(probability, kSeed, kSite, at.samples("samples"));
            op.out = at[alias == Alias::out_is_x ? "x" : alias == Alias::out_is_residual ? "residual" : "out"];
            device.run(op);
          };
          check(op_case);
        }
}

TEST_CASE("the dropout mask is exactly that of random.h") {
  for (const Shape& shape : kShapes)
    for (const double probability : {0.1, 0.75}) {
      const Dropout dropout = Dropout::make(probability, kSeed, kSite, nullptr);
      OpCase op_case;
      op_case.name = fmt::format("dropout mask, B {}, T {}, C {}, p {}", shape.B, shape.T, shape.C, probability);
      op_case.samples("samples", kSamples);
      op_case.input("x", std::vector<double>(shape.count(), 1.0));
      op_case.output("out", shape.count());
      op_case.call = [=](Device& device, const Operands& at) {
        device.run(DropoutAdd{shape.B,
                              shape.T,
                              shape.C,
                              at["x"],
                              {},
                              at["out"],
                              Dropout::make(probability, kSeed, kSite, at.samples("samples"))});
      };
      op_case.also = [=](const Results& results) {
        std::int64_t wrong = 0;
        for (std::int64_t b = 0, i = 0; b < shape.B; ++b)
          for (std::int64_t t = 0; t < shape.T; ++t)
            for (std::int64_t c = 0; c < shape.C; ++c, ++i) {
              const bool kept = dropout_bits_linear(dropout.key, kSamples[b], static_cast<std::uint32_t>(t),
                                                    static_cast<std::uint32_t>(c)) >= dropout.threshold;
              const double scale =
                  results["out"].dtype == DType::bf16 ? static_cast<float>(bf16(dropout.scale)) : dropout.scale;
              wrong += results["out"].values[i] != (kept ? scale : 0.0);
            }
        CHECK(wrong == 0);
      };
      check(op_case);
    }
}

}  // namespace outeffhop::test
