// Published values of softmax and softmax1, through the attention ops of the fp64 reference: one query e_0, keys x_j e_0,
// values e_j, so that the scores are x and the output is p. The table has nine significant digits.
#include <algorithm>
#include <cmath>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

using Values = std::vector<double>;

struct Row {
  Values p, d_x;
};

Row softmax_by_attention(const Values& x, float n, const Values& upstream) {
  const auto device = make_reference_device();
  const auto S = static_cast<std::int64_t>(x.size());
  Values q(S, 0.0), k(S * S, 0.0), v(S * S, 0.0), o(S), lse(1), d_q(S), d_k(S * S), d_v(S * S);
  q[0] = 1;
  for (std::int64_t j = 0; j < S; ++j) {
    k[j * S] = x[j];
    v[j * S + j] = 1;
  }
  AttentionProblem problem;
  problem.B = problem.H = problem.Tq = 1;
  problem.Tk = problem.D = S;
  problem.n = n;
  const auto view = [&](Values& values) { return HeadView{values.data(), DType::f64, 0, S, S}; };
  device->run(AttentionForward{problem, view(q), view(k), view(v), view(o), {lse.data(), DType::f64}});
  Values d_o = upstream;
  AttentionBackward backward;
  backward.problem = problem;
  backward.q = view(q);
  backward.k = view(k);
  backward.v = view(v);
  backward.o = view(o);
  backward.d_o = view(d_o);
  backward.lse = {lse.data(), DType::f64};
  backward.d_q = view(d_q);
  backward.d_k = view(d_k);
  backward.d_v = view(d_v);
  device->run(backward);

  long double total = n;  // its range holds exp(900)
  for (const double score : x) total += std::exp(static_cast<long double>(score));
  CHECK(lse[0] == Approx(static_cast<double>(std::log(total))).epsilon(1e-14).margin(1e-15));
  Row row{o, {}};
  for (std::int64_t j = 0; j < S; ++j) row.d_x.push_back(d_k[j * S]);  // k_j0 = x_j, q_0 = 1
  return row;
}

void check_close(const Values& got, const Values& wanted) {
  REQUIRE(got.size() == wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::fabs(got[i] - wanted[i]) <= 5e-9 * std::fabs(wanted[i]));
}

struct Vector {
  Values x, softmax, softmax1;
};

}  // namespace

TEST_CASE("softmax and softmax1 have the published values") {
  const std::vector<Vector> vectors = {
      {{0, 0}, {.5, .5}, {.3333333333, .3333333333}},
      {{1, 2, 3}, {.0900305732, .244728471, .665240956}, {.0871443187, .236882818, .64391426}},
      {{-10, -11, -12}, {.665240956, .244728471, .0900305732}, {4.53968316e-5, 1.6700561e-5, 6.14379306e-6}},
      {{100, 99}, {.731058579, .268941421}, {.731058579, .268941421}},
      {{.5, -1, 2, -3},
       {.174367411, .0389066284, .781460521, .00526543957},
       {.157690222, .0351854446, .706718546, .00476183211}},
  };
  for (const Vector& vector : vectors) {
    const Values upstream(vector.x.size(), 0.0);
    check_close(softmax_by_attention(vector.x, 0, upstream).p, vector.softmax);
    check_close(softmax_by_attention(vector.x, 1, upstream).p, vector.softmax1);
  }
}

TEST_CASE("softmax and softmax1 have the published gradients") {
  const Values x{.5, -1, 2, -3}, upstream{1, 2, 3, 4};
  check_close(softmax_by_attention(x, 0, upstream).d_x, {-.282060907, -.024029667, .298811757, .00727881735});
  check_close(softmax_by_attention(x, 1, upstream).d_x, {-.215604177, -.0129223499, .44716621, .00777481433});
}

// softmax_n(x) is softmax over x and one more key with logit log n and value 0.
TEST_CASE("softmax_n is softmax with one more key that says nothing") {
  const Values x{.5, -1, 2, -3};
  for (const double n : {0.5, 1.0, 4.0}) {
    Values longer = x;
    longer.push_back(std::log(n));
    Values with_key = softmax_by_attention(longer, 0, Values(5, 0.0)).p;
    const Values p = softmax_by_attention(x, static_cast<float>(n), Values(4, 0.0)).p;
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(p[i] == Approx(with_key[i]).epsilon(1e-13));
  }
}

// Far below zero softmax1 says nothing, far above it is softmax; neither overflows, nor do the gradients.
TEST_CASE("softmax1 neither overflows nor underflows into NaN") {
  const Values upstream{1, 2};
  const Row low = softmax_by_attention({-800, -900}, 1, upstream), high = softmax_by_attention({900, 899}, 1, upstream);
  CHECK(low.p == Values{0, 0});
  CHECK(low.d_x == Values{0, 0});
  check_close(high.p, {.731058579, .268941421});
  check_close(high.d_x, {-.196611933, .196611933});
}

TEST_CASE("the observed stages compose to the fused forward") {
  const auto device = make_reference_device();
  auto rng = generator(5);
  constexpr std::int64_t B = 2, H = 3, Tq = 5, Tk = 7, D = 4;
  Values q = normal_values(rng, B * Tq * H * D), k = normal_values(rng, B * Tk * H * D),
         v = normal_values(rng, B * Tk * H * D);
  const std::vector<std::int32_t> lengths{4, 0};
  for (const float n : {0.0f, 1.0f})
    for (const bool causal : {false, true}) {
      AttentionProblem problem;
      problem.B = B;
      problem.H = H;
      problem.Tq = Tq;
      problem.Tk = Tk;
      problem.D = D;
      problem.scale = 0.5f;
      problem.n = n;
      problem.causal = causal;
      problem.causal_offset = 1;
      problem.key_lengths = lengths.data();
      const auto queries = [&](Values& x) { return HeadView{x.data(), DType::f64, Tq * H * D, H * D, D}; };
      const auto keys = [&](Values& x) { return HeadView{x.data(), DType::f64, Tk * H * D, H * D, D}; };
      Values fused(q.size()), observed(q.size()), lse(B * H * Tq);
      device->run(AttentionForward{problem, queries(q), keys(k), keys(v), queries(fused), {lse.data(), DType::f64}});
      for (std::int64_t begin = 0; begin < Tq; begin += 2) {
        const std::int64_t rows = std::min<std::int64_t>(2, Tq - begin);
        Values scores(B * H * rows * Tk);
        const Tensor stage{scores.data(), DType::f64};
        device->run(AttentionScores{problem, begin, rows, queries(q), keys(k), stage});
        device->run(AttentionProbabilities{problem, begin, rows, stage, stage});
        device->run(AttentionContext{problem, begin, rows, stage, keys(v), queries(observed)});
      }
      for (std::size_t i = 0; i < fused.size(); ++i) CHECK(fused[i] == Approx(observed[i]).epsilon(1e-13).margin(1e-15));
      for (std::size_t i = fused.size() / 2; i < fused.size(); ++i) CHECK(fused[i] == 0.0);  // no visible key
    }
}

// Equal logits and values e_j, n = 0: o_ij is 1 / (keys that i sees), times the dropout factor of (sample, h Tq + i, j).
TEST_CASE("attention drops and masks what the contract says") {
  constexpr std::int64_t B = 2, H = 3, Tq = 4, Tk = 40;
  const auto device = make_reference_device();
  const std::vector<std::uint64_t> samples{9, (7ull << 32) + 5};
  const std::vector<std::int32_t> lengths{Tk, 6};
  Values zeros(B * Tk * H * Tk, 0.0), v(B * Tk * H * Tk, 0.0), o(B * Tq * H * Tk);
  for (std::int64_t bj = 0; bj < B * Tk; ++bj)
    for (std::int64_t h = 0; h < H; ++h) v[(bj * H + h) * Tk + bj % Tk] = 1;
  AttentionProblem problem;
  problem.B = B;
  problem.H = H;
  problem.Tq = Tq;
  problem.Tk = problem.D = Tk;
  problem.n = 0;
  problem.causal = true;
  problem.causal_offset = 5;
  problem.key_lengths = lengths.data();
  problem.dropout = Dropout::make(0.4, 3, 8, samples.data());
  const auto view = [&](Values& x, std::int64_t T) { return HeadView{x.data(), DType::f64, T * H * Tk, H * Tk, Tk}; };
  device->run(AttentionForward{problem, view(zeros, Tq), view(zeros, Tk), view(v, Tk), view(o, Tq), {}});
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t i = 0; i < Tq; ++i)
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t seen = std::min<std::int64_t>(i + 6, lengths[b]);  // keys 0 .. i + 5
        for (std::int64_t j = 0; j < Tk; ++j) {
          const auto bits = dropout_bits_tiled(problem.dropout.key, samples[b], static_cast<std::uint32_t>(h * Tq + i),
                                               static_cast<std::uint32_t>(j));
          const double factor = bits < problem.dropout.threshold ? 0.0 : static_cast<double>(problem.dropout.scale);
          CHECK(o[((b * Tq + i) * H + h) * Tk + j] == Approx(j < seen ? factor / seen : 0.0).epsilon(1e-14));
        }
      }
}

}  // namespace outeffhop::test
