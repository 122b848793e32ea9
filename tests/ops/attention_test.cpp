#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "tests/catch.h"
#include "tests/ops/op_harness.h"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

const std::vector<std::uint64_t> kSamples = {3, (1ull << 40) + 1, 17};

enum class Layout { dense, packed };

/// One attention problem and how its tensors lie in memory.
struct Setting {
  std::int64_t B = 2, H = 2, Tq = 7, Tk = 7, D = 32;
  float n = 1.0f;
  bool causal = false;
  std::int64_t causal_offset = 0;
  std::vector<std::int32_t> key_lengths;  ///< of the B samples; empty: all keys
  std::string packing;                    ///< what key_ranges are, in words
  std::vector<std::int32_t> key_ranges;   ///< (B, Tq, 2); empty: every key
  double dropout = 0.0;
  double logit = 1.0;  ///< standard deviation of the logits
  double beta = 1.0;   ///< of the scale, in 1 / sqrt(D)
  Layout layout = Layout::dense;
  bool shared_queries = false, shared_keys = false;  ///< batch stride 0
  bool accumulate = false;

  std::string name() const {
    std::string lengths;
    for (const std::int32_t length : key_lengths) lengths += fmt::format(" {}", length);
    return fmt::format(
        "B {}, H {}, Tq {}, Tk {}, D {}, n {}, causal {} {:+}, key lengths{}, key ranges {}, dropout {}, logits {}, beta "
        "{}, "
        "packed {}, shared q {} k {}, accumulate {}",
        B, H, Tq, Tk, D, n, causal, causal_offset, lengths, packing, dropout, logit, beta, layout == Layout::packed,
        shared_queries, shared_keys, accumulate);
  }

  AttentionProblem problem(const Operands& at) const {
    AttentionProblem p;
    p.B = B, p.H = H, p.Tq = Tq, p.Tk = Tk, p.D = D;
    p.scale = static_cast<float>(beta / std::sqrt(static_cast<double>(D)));
    p.n = n;
    p.causal = causal;
    p.causal_offset = causal_offset;
    if (!key_lengths.empty()) p.key_lengths = at.ints("key_lengths");
    if (!key_ranges.empty()) p.key_ranges = at.ints("key_ranges");
    if (dropout > 0) p.dropout = Dropout::make(dropout, 77, 5, at.samples("samples"));
    return p;
  }
};

/// Which tensor and which part of it holds an operand.
struct Place {
  std::string tensor;
  HeadLayout layout;
};

/// Places of q, k, v (which = 0, 1, 2) or, with a prefix, of their gradients.
Place place(const Setting& s, int which, const std::string& prefix = "") {
  if (s.layout == Layout::packed) return {prefix + "qkv", HeadLayout::packed(s.B, s.Tq, s.H, s.D, which)};
  const std::string name = prefix + std::string(1, "qkv"[which]);
  const std::int64_t T = which == 0 ? s.Tq : s.Tk;
  const bool shared = which == 0 ? s.shared_queries : s.shared_keys;
  return {name, shared ? HeadLayout::shared(s.B, T, s.H, s.D) : HeadLayout::dense(s.B, T, s.H, s.D)};
}

HeadLayout output_layout(const Setting& s) { return HeadLayout::dense(s.B, s.Tq, s.H, s.D); }

void add_inputs(OpCase& op_case, const Setting& s, std::mt19937_64& rng) {
  require(s.layout == Layout::dense || s.Tq == s.Tk, "packed projections have as many queries as keys");
  op_case.samples("samples", kSamples);
  if (!s.key_lengths.empty()) op_case.ints("key_lengths", s.key_lengths);
  if (!s.key_ranges.empty()) op_case.ints("key_ranges", s.key_ranges);
  if (s.layout == Layout::packed) {
    auto values = normal_values(rng, static_cast<std::size_t>(s.B * s.Tq * 3 * s.H * s.D));
    const HeadLayout queries = place(s, 0).layout;
    const std::vector<bool> is_query = queries.elements(static_cast<std::int64_t>(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i)
      if (is_query[i]) values[i] *= s.logit;
    op_case.input("qkv", values);
    return;
  }
  for (int which = 0; which < 3; ++which)
    op_case.input(place(s, which).tensor,
                  normal_values(rng, static_cast<std::size_t>(place(s, which).layout.extent()), which == 0 ? s.logit : 1.0));
}

AttentionForward forward_op(const Setting& s, const Operands& at) {
  const auto view = [&](int which) { return at.view(place(s, which).tensor, place(s, which).layout); };
  return {s.problem(at), view(0), view(1), view(2), at.view("o", output_layout(s)), at["lse"]};
}

/// As the attention that this program is built with can compute it: a vanilla-only build knows n = 0 alone.
Setting served(Setting s) {
  if (attention_build().vanilla_only) s.n = 0;
  return s;
}

OpCase forward_case(const Setting& given) {
  const Setting s = served(given);
  auto rng = generator(301);
  OpCase op_case;
  op_case.name = "attention forward, " + s.name();
  op_case.thread_invariant = true;
  add_inputs(op_case, s, rng);
  op_case.output("o", output_layout(s).extent()).with_exact_zeros();
  op_case.output("lse", s.B * s.H * s.Tq, Precision::statistic);
  op_case.call = [s](Device& device, const Operands& at) { device.run(forward_op(s, at)); };
  return op_case;
}

bool sees(const Setting& s, std::int64_t b, std::int64_t query, std::int64_t key) {
  if (s.causal && key > query + s.causal_offset) return false;
  if (!s.key_lengths.empty() && key >= s.key_lengths[static_cast<std::size_t>(b)]) return false;
  const auto row = static_cast<std::size_t>(2 * (b * s.Tq + query));
  return s.key_ranges.empty() || (key >= s.key_ranges[row] && key < s.key_ranges[row + 1]);
}

/// How many keys each query sees, and how many queries each key is seen by: (B, Tq) and (B, Tk).
struct Seen {
  std::vector<std::int64_t> keys, queries;
  explicit Seen(const Setting& s)
      : keys(static_cast<std::size_t>(s.B * s.Tq)), queries(static_cast<std::size_t>(s.B * s.Tk)) {
    for (std::int64_t b = 0; b < s.B; ++b)
      for (std::int64_t i = 0; i < s.Tq; ++i)
        for (std::int64_t j = 0; j < s.Tk; ++j) {
          if (!sees(s, b, i, j)) continue;
          ++keys[static_cast<std::size_t>(b * s.Tq + i)];
          ++queries[static_cast<std::size_t>(b * s.Tk + j)];
        }
  }
};

/// Gradients of queries that see no key, and of keys that no query sees, are exactly 0. (Where a row sees one key and n is 0
/// the gradient of its query is 0 too, but by cancellation, which rounds.)
void check_unseen(const Setting& s, const Results& results) {
  const Seen seen(s);
  for (int which = 0; which < 3; ++which) {
    const Place gradient = place(s, which, "d_");
    const std::vector<double>& values = results[gradient.tensor].values;
    std::vector<bool> may_differ(values.size(), false);
    for (std::int64_t b = 0; b < s.B; ++b)
      for (std::int64_t t = 0; t < gradient.layout.T; ++t) {
        const auto row = static_cast<std::size_t>(b * gradient.layout.T + t);
        const bool any = (which == 0 ? seen.keys : seen.queries)[row] > 0;
        for (std::int64_t i = 0; any && i < s.H * s.D; ++i)
          may_differ[static_cast<std::size_t>(gradient.layout.element(b, t, i / s.D, i % s.D))] = true;
      }
    const std::vector<bool> written = gradient.layout.elements(static_cast<std::int64_t>(values.size()));
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) wrong += written[i] && !may_differ[i] && values[i] != 0.0;
    INFO(s.name() << ": " << gradient.tensor << " of what is masked");
    CHECK(wrong == 0);
  }
}

/// Where n is 0 and no query sees more than one key, the gradients of queries and keys are 0: o is that key's value times
/// what dropout makes of it, so that d_o . v and D cancel. This is how large what the difference is multiplied by makes
/// their terms: scale |k| sum_d |d_o v| for a query, scale |q| sum_d |d_o v| for a key.
double cancelling(const Setting& s, const OpCase& op_case) {
  const std::vector<std::int64_t> keys = Seen(s).keys;
  if (s.n > 0 || std::any_of(keys.begin(), keys.end(), [](std::int64_t count) { return count > 1; })) return 0;
  const auto values = [&](const std::string& name) -> const std::vector<double>& {
    for (const auto& tensor : op_case.tensors)
      if (tensor->name == name) return tensor->values;
    throw std::logic_error(name);
  };
  const double scale = (s.dropout > 0 ? 1 / (1 - s.dropout) : 1.0) / std::sqrt(static_cast<double>(s.D));
  double largest = 0;
  for (std::int64_t b = 0; b < s.B; ++b)
    for (std::int64_t i = 0; i < s.Tq; ++i)
      for (std::int64_t j = 0; j < s.Tk; ++j) {
        if (!sees(s, b, i, j)) continue;
        for (std::int64_t h = 0; h < s.H; ++h) {
          double terms = 0, factor = 0;
          for (std::int64_t d = 0; d < s.D; ++d) {
            const auto at = [&](int which, std::int64_t t) {
              return std::fabs(
                  values(place(s, which).tensor)[static_cast<std::size_t>(place(s, which).layout.element(b, t, h, d))]);
            };
            terms += std::fabs(values("d_o")[static_cast<std::size_t>(output_layout(s).element(b, i, h, d))]) * at(2, j);
            factor = std::max({factor, at(0, i), at(1, j)});
          }
          largest = std::max(largest, scale * factor * terms);
        }
      }
  return largest;
}

/// Forward, then backward from what it left.
OpCase backward_case(const Setting& given) {
  const Setting s = served(given);
  auto rng = generator(302);
  OpCase op_case;
  op_case.name = "attention backward, " + s.name();
  op_case.thread_invariant = true;
  add_inputs(op_case, s, rng);
  op_case.input("d_o", normal_values(rng, static_cast<std::size_t>(output_layout(s).extent())));
  op_case.output("o", output_layout(s).extent());
  op_case.output("lse", s.B * s.H * s.Tq, Precision::statistic);
  for (int which = 0; which < 3; ++which) {
    const Place gradient = place(s, which, "d_");
    if (s.layout == Layout::packed && which > 0) {
      op_case.tensors.back()->region(gradient.tensor + " part " + "qkv"[which], gradient.layout);
      continue;
    }
    const std::int64_t count = s.layout == Layout::packed ? s.B * s.Tq * 3 * s.H * s.D : gradient.layout.extent();
    TensorCase& tensor = s.accumulate ? op_case.update(gradient.tensor, normal_values(rng, static_cast<std::size_t>(count)))
                                      : op_case.output(gradient.tensor, count);
    tensor.region(gradient.tensor + " part " + "qkv"[which], gradient.layout);
  }
  if (const double magnitude = cancelling(s, op_case); magnitude > 0)
    for (const auto& tensor : op_case.tensors)
      if (tensor->name == "d_q" || tensor->name == "d_k" || tensor->name == "d_qkv") tensor->cancels(magnitude);
  op_case.call = [s](Device& device, const Operands& at) {
    const AttentionForward forward = forward_op(s, at);
    device.run(forward);
    const auto gradient = [&](int which) { return at.view(place(s, which, "d_").tensor, place(s, which, "d_").layout); };
    AttentionBackward op;
    op.problem = forward.problem;
    op.q = forward.q, op.k = forward.k, op.v = forward.v, op.o = forward.o;
    op.d_o = at.view("d_o", output_layout(s));
    op.lse = forward.lse;
    op.d_q = gradient(0), op.d_k = gradient(1), op.d_v = gradient(2);
    op.accumulate_d_q = op.accumulate_d_k = op.accumulate_d_v = s.accumulate;
    device.run(op);
  };
  if (!s.accumulate) op_case.also = [s](const Results& results) { check_unseen(s, results); };
  return op_case;
}

void check_both(const Setting& s) {
  check(forward_case(s));
  check(backward_case(s));
}

void check_bf16(OpCase op_case) {
  op_case.storages = {DType::bf16};
  check(op_case);
}

/// Packs each row with the documents, sample b from number b on, so that the rows differ; the rest is padding.
void pack(Setting& s, const std::vector<std::int64_t>& documents) {
  s.packing = "of documents";
  for (const std::int64_t length : documents) s.packing += fmt::format(" {}", length);
  for (std::int64_t b = 0; b < s.B; ++b) {
    std::vector<std::int64_t> row = documents;
    if (!row.empty()) std::rotate(row.begin(), row.begin() + b % static_cast<std::int64_t>(row.size()), row.end());
    append_key_ranges(row, s.Tq, s.key_ranges);
  }
}

/// Query i of sample b sees up to `width` keys around its share of the keys.
void slide(Setting& s, std::int64_t width) {
  s.packing = fmt::format("windows of {}", width);
  for (std::int64_t b = 0; b < s.B; ++b)
    for (std::int64_t i = 0; i < s.Tq; ++i) {
      const std::int64_t centre = i * s.Tk / s.Tq + b, begin = std::clamp<std::int64_t>(centre - width / 2, 0, s.Tk);
      s.key_ranges.push_back(static_cast<std::int32_t>(begin));
      s.key_ranges.push_back(static_cast<std::int32_t>(std::clamp(centre + (width + 1) / 2, begin, s.Tk)));
    }
}

Setting with(Setting s, const std::function<void(Setting&)>& change) {
  change(s);
  return s;
}

}  // namespace

TEST_CASE("attention of ragged lengths, head sizes and constants") {
  // Every length with every head size, the constants in turn, and both layouts, of long sequences in turn.
  const float constants[] = {0.0f, 1.0f, 0.5f, 4.0f};
  int turn = 0;
  for (const std::int64_t T : {1, 7, 127, 200})
    for (const std::int64_t D : {8, 32, 64, 80}) {
      Setting s;
      s.B = T > 100 ? 1 : 3;
      s.H = T > 127 ? 1 : s.H;
      s.Tq = s.Tk = T;
      s.D = D;
      for (const Layout layout : {Layout::dense, Layout::packed}) {
        s.n = constants[turn++ % 4];
        s.layout = layout;
        if (T < 100 || (D % 64 == 0) == (layout == Layout::dense)) check_both(s);
      }
      ++turn;
    }
  check_both(with({}, [](Setting& s) { s.B = 1, s.H = 1, s.Tq = s.Tk = 200, s.D = 64; }));
  check_both(with({}, [](Setting& s) { s.B = 1, s.H = 2, s.Tq = s.Tk = 200, s.D = 20, s.n = 0; }));
}

// Tiles of 64 are whole, one row over, or several; where they are, what a warp's queries all see is not masked.
TEST_CASE("attention at the edges of tiles, with the head sizes that tensor cores take") {
  int turn = 0;
  for (const std::int64_t D : {32, 64, 80, 96, 128})
    for (const std::int64_t T : {64, 129}) {
      Setting s;
      s.B = 1;
      s.H = T > 64 ? 1 : 2;
      s.Tq = s.Tk = T;
      s.D = D;
      s.layout = Layout::packed;
      s.n = static_cast<float>(turn % 3);
      s.causal = turn % 2 == 1;
      s.dropout = turn % 4 == 2 ? 0.1 : 0.0;
      ++turn;
      check_bf16(forward_case(s));
      check_bf16(backward_case(s));
    }
}

// Up to 512 queries and keys the backward on CUDA is a kernel of its own, which has 32 keys a warp and 128 or 256 a block.
TEST_CASE("attention backward of short sequences with heads of 64 channels") {
  const auto check_backward = [](std::int64_t Tq, std::int64_t Tk, const std::function<void(Setting&)>& change) {
    Setting s;
    s.B = s.H = 1, s.Tq = Tq, s.Tk = Tk, s.D = 64;
    change(s);
    check_bf16(backward_case(s));
  };
  check_backward(128, 128, [](Setting& s) { s.layout = Layout::packed, s.dropout = 0.1; });
  check_backward(512, 512, [](Setting& s) { s.layout = Layout::packed, s.causal = true, s.dropout = 0.1; });
  check_backward(513, 513, [](Setting& s) { s.causal = true, s.n = 0; });  // one too many
  check_backward(64, 512, [](Setting& s) { s.n = 4, s.dropout = 0.3; });
  check_backward(200, 300, [](Setting& s) { s.causal = true, s.causal_offset = 100; });
  check_backward(60, 60, [](Setting& s) { s.H = 2, s.causal = true, s.causal_offset = -3, s.n = 0; });
  check_backward(512, 33, [](Setting& s) { s.n = 0.5f, s.key_lengths = {20}; });
  check_backward(7, 270, [](Setting& s) { s.B = 3, s.n = 0, s.key_lengths = {0, 1, 260}; });
  check_backward(140, 290, [](Setting& s) { s.B = 2, s.n = 0, s.logit = 70, s.key_lengths = {280, 17}; });
  check_backward(100, 100, [](Setting& s) { s.n = 1e-30f, s.logit = 70, s.causal = true; });
  check_backward(150, 300, [](Setting& s) { s.B = 2, s.dropout = 0.1, slide(s, 131); });
  check_backward(150, 300, [](Setting& s) { s.n = 0, slide(s, 3); });
  check_backward(330, 330, [](Setting& s) {
    s.dropout = 0.2, s.causal = true, pack(s, {140, 1, 126, 20});
  });  // a tail of padding
}

// A CUDA device keeps 129 to 512 keys of head size 64 or 32 in shared memory where there are heads enough, four on the
// tests' executor; queries come in groups of 32, which four or eight warps take in turns.
TEST_CASE("attention of many heads, with the numbers of keys that fit into shared memory") {
  const auto check_forward = [](const std::function<void(Setting&)>& change) {
    check_bf16(forward_case(with({}, [&](Setting& s) { s.H = 4, s.B = 1, s.D = 64, change(s); })));
  };
  check_forward([](Setting& s) { s.Tq = s.Tk = 129, s.layout = Layout::packed, s.causal = true, s.dropout = 0.1; });
  check_forward([](Setting& s) { s.Tq = 300, s.Tk = 200, s.n = 0, s.causal = true, s.causal_offset = -70; });
  check_forward([](Setting& s) { s.B = 4, s.H = 1, s.Tq = s.Tk = 200, s.key_lengths = {200, 0, 1, 130}, s.logit = 70; });
  check_forward([](Setting& s) { s.Tq = 7, s.Tk = 512, s.n = 4, s.dropout = 0.3; });
  check_forward([](Setting& s) { s.Tq = 290, s.Tk = 400, s.causal = true, s.causal_offset = 110, s.dropout = 0.1; });
  check_forward([](Setting& s) { s.Tq = s.Tk = 161, s.D = 32, s.n = 0, pack(s, {48, 1, 47, 32, 1, 1, 17}); });
  check_forward([](Setting& s) { s.Tq = 60, s.Tk = 450, s.n = 0, slide(s, 80); });
}

TEST_CASE("attention of a sequence beyond 512") {
  for (const bool causal : {false, true}) {
    const Setting s = with({}, [&](Setting& x) {
      x.B = x.H = 1, x.Tq = x.Tk = 513, x.D = 64, x.causal = causal, x.layout = Layout::packed,
      x.dropout = causal ? 0.1 : 0.0;
    });
    check_bf16(forward_case(s));
  }
}

TEST_CASE("attention scaled by nothing, and by a negative number") {
  for (const double beta : {0.0, -1.0, -70.0}) {
    check_both(with({}, [&](Setting& s) { s.B = 3, s.H = 1, s.Tq = s.Tk = 40, s.beta = beta, s.key_lengths = {40, 9, 0}; }));
    check_both(with({}, [&](Setting& s) { s.B = 1, s.Tq = s.Tk = 70, s.beta = beta, s.n = 0, s.causal = true; }));
  }
}

TEST_CASE("attention of queries and keys of different lengths") {
  for (const float n : {0.0f, 1.0f}) {
    check_both(with({}, [&](Setting& s) { s.B = 3, s.Tq = 1, s.Tk = 150, s.D = 64, s.n = n; }));
    check_both(with({}, [&](Setting& s) { s.B = 1, s.Tq = 127, s.Tk = 7, s.D = 32, s.n = n; }));
    check_both(with({}, [&](Setting& s) { s.B = 1, s.H = 1, s.Tq = 50, s.Tk = 513, s.D = 16, s.n = n; }));
    check_both(with({}, [&](Setting& s) { s.B = 2, s.Tq = 5, s.Tk = 0, s.D = 16, s.n = n; }));
  }
}

TEST_CASE("causal attention with offsets") {
  for (const float n : {0.0f, 1.0f}) {
    const auto causal = [&](std::int64_t Tq, std::int64_t Tk, std::int64_t offset) {
      check_both(
          with({}, [&](Setting& s) { s.B = 1, s.Tq = Tq, s.Tk = Tk, s.n = n, s.causal = true, s.causal_offset = offset; }));
    };
    causal(7, 7, 0);
    causal(127, 127, 0);
    causal(5, 140, 135);   // a cache precedes the queries
    causal(60, 60, -3);    // the first queries see nothing
    causal(7, 7, -100);    // no query sees anything
    causal(60, 20, 1000);  // every query sees everything
  }
}

TEST_CASE("attention with key lengths") {
  for (const float n : {0.0f, 1.0f, 4.0f}) {
    check_both(with({}, [&](Setting& s) { s.B = 3, s.n = n, s.key_lengths = {0, 1, 5}; }));
    check_both(with({}, [&](Setting& s) { s.B = 3, s.H = 1, s.Tq = s.Tk = 150, s.n = n, s.key_lengths = {130, 17, 0}; }));
    check_both(with({}, [&](Setting& s) {
      s.B = 2, s.H = 1, s.Tq = 60, s.Tk = 140, s.D = 80, s.n = n, s.key_lengths = {135, 9}, s.causal = true;
      s.causal_offset = -2;
    }));
  }
}

TEST_CASE("attention of logits of two hundred neither overflows nor loses its gradient") {
  for (const float n : {0.0f, 1e-30f, 1.0f, 1e30f}) {
    check_both(with({}, [&](Setting& s) { s.Tq = s.Tk = 40, s.n = n, s.logit = 70; }));
    check_both(with({}, [&](Setting& s) { s.B = 1, s.Tq = s.Tk = 140, s.n = n, s.logit = 70, s.causal = true; }));
    check_both(with({}, [&](Setting& s) {
      s.B = 3, s.H = 1, s.Tq = s.Tk = 140, s.n = n, s.logit = 70, s.key_lengths = {140, 0, 1};
    }));
  }
}

TEST_CASE("attention of packed documents") {
  // Documents of single tokens, ones that end on the borders of blocks of 48 queries and 128 keys, beside and across them.
  const std::vector<std::int64_t> small = {1, 1, 3, 2}, middle = {48, 1, 47, 32, 1, 1, 17}, large = {5, 123, 128, 49, 1, 30};
  for (const float n : {0.0f, 1.0f})
    for (const bool causal : {false, true}) {
      const auto packed = [&](std::int64_t B, std::int64_t T, std::int64_t D, const std::vector<std::int64_t>& documents,
                              double dropout) {
        return with({}, [&](Setting& s) {
          s.B = B, s.H = T > 100 ? 1 : 2, s.Tq = s.Tk = T, s.D = D, s.n = n, s.causal = causal, s.dropout = dropout;
          pack(s, documents);
        });
      };
      check_both(packed(3, 7, 32, small, 0.0));   // no padding
      check_both(packed(2, 20, 80, small, 0.3));  // a tail of padding
      check_both(packed(2, 161, 64, middle, 0.1));
      check_both(packed(1, 400, 20, large, 0.0));
      check_both(packed(2, 61, 64, std::vector<std::int64_t>(61, 1), 0.0));  // each token alone
      check_both(packed(2, 70, 32, {}, 0.0));                                // nothing but padding
      check_both(with(packed(2, 161, 32, middle, 0.2), [](Setting& s) { s.layout = Layout::packed, s.accumulate = true; }));
    }
}

TEST_CASE("attention of key ranges with key lengths, causal offsets, shared tensors and large logits") {
  const std::vector<std::int64_t> documents = {20, 100, 25};
  int turn = 0;
  const auto check_next = [&](const std::function<void(Setting&)>& change) {
    check_both(with({}, [&](Setting& s) {
      s.B = 3, s.Tq = s.Tk = 150, s.H = 1, s.n = static_cast<float>(turn++ % 2), s.dropout = 0.1, change(s);
    }));
  };
  check_next([&](Setting& s) { pack(s, documents), s.key_lengths = {130, 20, 0}; });
  check_next([&](Setting& s) { pack(s, documents), s.causal = true, s.causal_offset = -3; });
  check_next([&](Setting& s) { pack(s, documents), s.causal = true, s.causal_offset = 5; });
  check_next([&](Setting& s) { pack(s, documents), s.shared_queries = true; });
  check_next([&](Setting& s) { pack(s, documents), s.shared_keys = true, s.accumulate = true; });
  check_next([&](Setting& s) { pack(s, documents), s.logit = 70; });
  // Ranges need not be documents: windows of keys that move along, other lengths of queries and keys.
  check_next([&](Setting& s) { slide(s, 40); });
  check_next([&](Setting& s) { s.Tk = 300, slide(s, 131); });
  check_next([&](Setting& s) { s.Tq = 60, s.Tk = 20, slide(s, 3); });
}

TEST_CASE("attention with dropout") {
  for (const float n : {0.0f, 1.0f}) {
    check_both(with({}, [&](Setting& s) { s.B = 3, s.n = n, s.dropout = 0.3; }));
    check_both(with({}, [&](Setting& s) { s.B = 2, s.H = 1, s.Tq = 50, s.Tk = 170, s.n = n, s.dropout = 0.1; }));
    check_both(with({}, [&](Setting& s) { s.B = 2, s.Tq = s.Tk = 60, s.n = n, s.dropout = 0.5, s.causal = true; }));
  }
}

TEST_CASE("attention drops exactly the probabilities that the frozen mapping says") {
  // Equal logits and values e_j: output element j is p_j, or 0 where it was dropped.
  constexpr std::int64_t T = 130, H = 2;
  OpCase op_case;
  op_case.name = "attention dropout mask";
  op_case.samples("samples", kSamples);
  op_case.input("q", std::vector<double>(3 * T * H * T, 0.0));
  std::vector<double> identity(static_cast<std::size_t>(3 * T * H * T), 0.0);
  const HeadLayout layout = HeadLayout::dense(3, T, H, T);
  for (std::int64_t b = 0; b < 3; ++b)
    for (std::int64_t h = 0; h < H; ++h)
      for (std::int64_t j = 0; j < T; ++j) identity[static_cast<std::size_t>(layout.element(b, j, h, j))] = 1.0;
  op_case.input("v", identity);
  op_case.output("o", layout.extent()).with_exact_zeros();
  const auto problem = [=](const std::uint64_t* samples) {
    AttentionProblem p;
    p.B = 3, p.H = H, p.Tq = p.Tk = p.D = T;
    p.dropout = Dropout::make(0.25, 1234567, 9, samples);
    return p;
  };
  op_case.call = [=](Device& device, const Operands& at) {
    device.run(AttentionForward{problem(at.samples("samples")),
                                at.view("q", layout),
                                at.view("q", layout),
                                at.view("v", layout),
                                at.view("o", layout),
                                {}});
  };
  op_case.also = [=](const Results& results) {
    const Dropout dropout = problem(kSamples.data()).dropout;
    std::int64_t wrong = 0;
    for (std::int64_t b = 0; b < 3; ++b)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < T; ++i)
          for (std::int64_t j = 0; j < T; ++j) {
            const auto bits = dropout_bits_tiled(dropout.key, kSamples[static_cast<std::size_t>(b)],
                                                 static_cast<std::uint32_t>(h * T + i), static_cast<std::uint32_t>(j));
            const bool kept = results["o"].values[static_cast<std::size_t>(layout.element(b, i, h, j))] != 0.0;
            wrong += kept != (bits >= dropout.threshold);
          }
    CHECK(wrong == 0);
  };
  check(op_case);
}

TEST_CASE("attention with queries or keys shared by the batch sums their gradients") {
  for (const bool accumulate : {false, true}) {
    const Setting base = with({}, [&](Setting& s) { s.B = 3, s.accumulate = accumulate, s.dropout = 0.1; });
    check_both(with(base, [](Setting& s) { s.shared_queries = true; }));
    check_both(with(base, [](Setting& s) { s.shared_keys = true, s.H = 1; }));
    check_both(with(base, [](Setting& s) { s.shared_queries = s.shared_keys = true, s.Tq = 60, s.Tk = 140; }));
    check_both(with(base, [](Setting& s) { s.shared_queries = true, s.key_lengths = {0, 7, 3}; }));
  }
}

TEST_CASE("attention gradients accumulate") {
  check(backward_case(with({}, [](Setting& s) { s.accumulate = true; })));
  check(backward_case(with({}, [](Setting& s) { s.accumulate = true, s.layout = Layout::packed, s.Tq = s.Tk = 60; })));
  check(backward_case(with({}, [](Setting& s) { s.accumulate = true, s.key_lengths = {0, 3}, s.D = 20; })));
  // Heads of 64 channels and more, with a block of rows and some over.
  for (const std::int64_t D : {64, 128}) {
    OpCase op_case = backward_case(with({}, [D](Setting& s) {
      s.accumulate = true, s.B = 2, s.H = 1, s.Tq = 70, s.Tk = 140, s.D = D, s.dropout = 0.1, s.key_lengths = {131, 33};
      s.causal = true, s.causal_offset = 66, s.shared_keys = D == 128;
    }));
    op_case.storages = {DType::bf16};
    check(op_case);
  }
}

TEST_CASE("a row of attention without a visible key is 0 and has no gradient") {
  for (const float n : {0.0f, 1.0f, 4.0f}) {
    for (const std::int64_t causal_offset : {-4, 0}) {
      // Sample 0 sees no key; of sample 1 the first -causal_offset queries see none.
      const Setting s = served(with({}, [&](Setting& x) {
        x.key_lengths = {0, 6}, x.n = n, x.causal = true, x.causal_offset = causal_offset, x.dropout = 0.2;
      }));
      check(backward_case(s));
      OpCase op_case = forward_case(s);
      op_case.also = [s](const Results& results) {
        const HeadLayout layout = output_layout(s);
        const Seen seen(s);
        for (std::int64_t b = 0; b < s.B; ++b)
          for (std::int64_t h = 0; h < s.H; ++h)
            for (std::int64_t t = 0; t < s.Tq; ++t) {
              if (seen.keys[static_cast<std::size_t>(b * s.Tq + t)] > 0) continue;
              for (std::int64_t d = 0; d < s.D; ++d)
                CHECK(results["o"].values[static_cast<std::size_t>(layout.element(b, t, h, d))] == 0.0);
              const double lse = results["lse"].values[static_cast<std::size_t>((b * s.H + h) * s.Tq + t)];
              CHECK(lse == Approx(s.n > 0 ? std::log(s.n) : 0.0).margin(1e-7));
            }
      };
      check(op_case);
    }
  }
}

TEST_CASE("attention without lse gives the same output") {
  Setting s;
  OpCase op_case = forward_case(s);
  op_case.name += ", lse null";
  op_case.output("o_without", output_layout(s).extent());
  op_case.call = [s](Device& device, const Operands& at) {
    AttentionForward op = forward_op(s, at);
    device.run(op);
    op.o = at.view("o_without", output_layout(s));
    op.lse = {};
    device.run(op);
  };
  op_case.also = [](const Results& results) { CHECK(results["o"].bytes == results["o_without"].bytes); };
  check(op_case);
}

TEST_CASE("attention leaves out gradients that nobody wants") {
  for (int wanted = 0; wanted < 3; ++wanted) {
    const Setting s = with({}, [](Setting& x) { x.B = 1, x.H = 1, x.Tq = 60, x.Tk = 140; });
    OpCase whole = backward_case(s);
    OpCase one = backward_case(s);
    const auto call = whole.call;
    const std::string gradient = place(s, wanted, "d_").tensor;
    one.name += ", only " + gradient;
    one.output("alone", place(s, wanted).layout.extent());
    one.call = [=](Device& device, const Operands& at) {
      call(device, at);
      const AttentionForward forward = forward_op(s, at);
      AttentionBackward op;
      op.problem = forward.problem;
      op.q = forward.q, op.k = forward.k, op.v = forward.v, op.o = forward.o;
      op.d_o = at.view("d_o", output_layout(s));
      op.lse = forward.lse;
      (wanted == 0 ? op.d_q : wanted == 1 ? op.d_k : op.d_v) = at.view("alone", place(s, wanted).layout);
      device.run(op);
    };
    one.also = [=](const Results& results) { CHECK(results["alone"].bytes == results[gradient].bytes); };
    check(one);
  }
}

}  // namespace outeffhop::test
