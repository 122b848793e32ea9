#include <cmath>

#include "kernels/attention.h"
#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

/// A block of query rows of a problem.
struct Observed {
  std::int64_t B = 2, H = 2, Tq = 60, Tk = 140, D = 32, row_begin = 0, rows = 60;
  float n = 1.0f;
  bool causal = false;
  std::int64_t causal_offset = 0;
  std::vector<std::int32_t> key_lengths;
  std::vector<std::int32_t> key_ranges;
  double logit = 1.0;

  std::string name() const {
    return fmt::format(
        "B {}, H {}, Tq {}, Tk {}, D {}, rows {} + {}, n {}, causal {} {:+}, {} key lengths, {} key ranges, logits {}", B, H,
        Tq, Tk, D, row_begin, rows, n, causal, causal_offset, key_lengths.size(), key_ranges.size() / 2, logit);
  }
  std::int64_t matrix() const { return B * H * rows * Tk; }
  HeadLayout queries() const { return HeadLayout::dense(B, Tq, H, D); }
  HeadLayout keys() const { return HeadLayout::dense(B, Tk, H, D); }
  AttentionProblem problem(const Operands& at) const {
    AttentionProblem p;
    p.B = B, p.H = H, p.Tq = Tq, p.Tk = Tk, p.D = D;
    p.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(D)));
    p.n = n;
    p.causal = causal;
    p.causal_offset = causal_offset;
    if (!key_lengths.empty()) p.key_lengths = at.ints("key_lengths");
    if (!key_ranges.empty()) p.key_ranges = at.ints("key_ranges");
    return p;
  }
  /// Elements of the (B, Tq, H, D) output in rows [row_begin, row_begin + rows).
  std::vector<bool> written() const {
    std::vector<bool> elements(static_cast<std::size_t>(queries().extent()), false);
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t t = row_begin; t < row_begin + rows; ++t)
        for (std::int64_t h = 0; h < H; ++h)
          for (std::int64_t d = 0; d < D; ++d) elements[static_cast<std::size_t>(queries().element(b, t, h, d))] = true;
    return elements;
  }
};

std::vector<Observed> grid() {
  std::vector<Observed> all;
  for (const float n : {0.0f, 0.5f, 1.0f, 4.0f}) {
    Observed o;
    o.n = n;
    all.push_back(o);
    o.row_begin = 11, o.rows = 3;
    o.causal = true, o.causal_offset = 20;
    all.push_back(o);
    o = {};
    o.n = n;
    o.Tq = o.rows = o.Tk = 7, o.D = 20;
    o.key_lengths = {0, 5};
    o.causal = true, o.causal_offset = -2;
    all.push_back(o);
    o.logit = 70;
    all.push_back(o);
    // Packed documents, the second sample with a tail of padding; then causal, large logits, a block of rows.
    o = {};
    o.n = n;
    o.Tq = o.rows = o.Tk = 150;
    append_key_ranges({1, 47, 85, 1, 16}, o.Tq, o.key_ranges);
    append_key_ranges({130, 1}, o.Tq, o.key_ranges);
    all.push_back(o);
    o.causal = true, o.logit = 70;
    o.row_begin = 40, o.rows = 100;
    all.push_back(o);
  }
  return all;
}

OpCase started(const Observed& s, const std::string& what) {
  OpCase op_case;
  op_case.name = "attention " + what + ", " + s.name();
  op_case.thread_invariant = true;
  if (!s.key_lengths.empty()) op_case.ints("key_lengths", s.key_lengths);
  if (!s.key_ranges.empty()) op_case.ints("key_ranges", s.key_ranges);
  return op_case;
}

}  // namespace

TEST_CASE("attention scores") {
  for (const Observed& s : grid()) {
    auto rng = generator(311);
    OpCase op_case = started(s, "scores");
    op_case.input("q", normal_values(rng, static_cast<std::size_t>(s.queries().extent()), s.logit));
    op_case.input("k", normal_values(rng, static_cast<std::size_t>(s.keys().extent())));
    op_case.output("scores", s.matrix());
    op_case.call = [s](Device& device, const Operands& at) {
      device.run(AttentionScores{s.problem(at), s.row_begin, s.rows, at.view("q", s.queries()), at.view("k", s.keys()),
                                 at["scores"]});
    };
    check(op_case);
  }
}

TEST_CASE("attention probabilities") {
  for (const Observed& s : grid())
    for (const bool in_place : {false, true}) {
      auto rng = generator(312);
      OpCase op_case = started(s, in_place ? "probabilities in place" : "probabilities");
      const auto scores = normal_values(rng, static_cast<std::size_t>(s.matrix()), s.logit);
      if (in_place) {
        op_case.update("scores", scores).with_exact_zeros();
      } else {
        op_case.input("scores", scores);
        op_case.output("probabilities", s.matrix()).with_exact_zeros();
      }
      op_case.call = [=](Device& device, const Operands& at) {
        device.run(AttentionProbabilities{s.problem(at), s.row_begin, s.rows, at["scores"],
                                          at[in_place ? "scores" : "probabilities"]});
      };
      check(op_case);
    }
}

TEST_CASE("attention context") {
  for (const Observed& s : grid()) {
    auto rng = generator(313);
    OpCase op_case = started(s, "context");
    op_case.input("probabilities", normal_values(rng, static_cast<std::size_t>(s.matrix())));
    op_case.input("v", normal_values(rng, static_cast<std::size_t>(s.keys().extent())));
    op_case.output("o", s.queries().extent()).region("o", s.written());
    op_case.call = [s](Device& device, const Operands& at) {
      device.run(AttentionContext{s.problem(at), s.row_begin, s.rows, at["probabilities"], at.view("v", s.keys()),
                                  at.view("o", s.queries())});
    };
    check(op_case);
  }
}

TEST_CASE("scores, probabilities and context compose to the fused attention") {
  for (const Observed& s : grid()) {
    auto rng = generator(314);
    OpCase op_case = started(s, "composed");
    op_case.input("q", normal_values(rng, static_cast<std::size_t>(s.queries().extent()), s.logit));
    op_case.input("k", normal_values(rng, static_cast<std::size_t>(s.keys().extent())));
    op_case.input("v", normal_values(rng, static_cast<std::size_t>(s.keys().extent())));
    op_case.output("scores", s.matrix(), Precision::statistic).not_judged();
    op_case.output("composed", s.queries().extent()).with_exact_zeros().region("composed", s.written());
    op_case.output("fused", s.queries().extent()).with_exact_zeros();
    op_case.call = [s](Device& device, const Operands& at) {
      const AttentionProblem p = s.problem(at);
      const HeadView q = at.view("q", s.queries()), k = at.view("k", s.keys()), v = at.view("v", s.keys());
      const HeadView composed = at.view("composed", s.queries());
      device.run(AttentionScores{p, s.row_begin, s.rows, q, k, at["scores"]});
      device.run(AttentionProbabilities{p, s.row_begin, s.rows, at["scores"], at["scores"]});
      device.run(AttentionContext{p, s.row_begin, s.rows, at["scores"], v, composed});
      device.run(AttentionForward{p, q, k, v, at.view("fused", s.queries()), {}});
    };
    // Both are within the bound of the same truth; of each other they differ by what two orders of summation differ.
    op_case.also = [s](const Results& results) {
      const std::vector<bool> written = s.written();
      double difference = 0, magnitude = 0;
      for (std::size_t i = 0; i < written.size(); ++i) {
        if (!written[i]) continue;
        difference = std::max(difference, std::fabs(results["composed"].values[i] - results["fused"].values[i]));
        magnitude = std::max(magnitude, std::fabs(results["fused"].values[i]));
      }
      // One rounding to storage each; in fp32 the logits (up to about 4 logit) carry their own rounding into exp.
      const double unit = results["fused"].dtype == DType::bf16 ? 0x1p-8 : 0x1p-20 * (1 + s.logit);
      CHECK(difference <= 2 * unit * magnitude);
    };
    check(op_case);
  }
}

}  // namespace outeffhop::test
