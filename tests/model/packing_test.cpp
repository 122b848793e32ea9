// Documents packed in one row are what they are in rows of their own: the same logits, loss and gradients; and none can tell
// what its neighbours are. The batches come from the device batch that training and evaluation use.
#include <cmath>
#include <numeric>

#include "data/batch.h"
#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"
#include "tests/test_support.h"
#include "train/device_batch.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

const std::vector<std::vector<std::int64_t>> kRows = {{3, 1, 4}, {1, 1, 5}};  // of 9 tokens: one and two of padding

std::vector<ModelConfig> configs() { return {tiny_bert(), tiny_bert("vanilla"), tiny_opt(), tiny_opt("vanilla", 7)}; }

/// Random tokens and labels, row b packed with the documents rows[b].
Batch packed_batch(const ModelConfig& config, std::mt19937_64& rng, std::int64_t T) {
  Batch batch;
  batch.B = static_cast<std::int64_t>(kRows.size());
  batch.T = T;
  std::uniform_int_distribution<std::int32_t> token(4, static_cast<std::int32_t>(config.vocab_size) - 1);
  for (std::int64_t b = 0; b < batch.B; ++b) {
    const std::vector<std::int64_t>& documents = kRows[static_cast<std::size_t>(b)];
    append_key_ranges(documents, T, batch.key_ranges);
    const std::int64_t length = std::accumulate(documents.begin(), documents.end(), std::int64_t{0});
    batch.key_lengths.push_back(static_cast<std::int32_t>(length));
    batch.sample_ids.push_back(static_cast<std::uint64_t>(b));
    for (std::int64_t t = 0; t < T; ++t) {
      batch.input_ids.push_back(t < length ? token(rng) : static_cast<std::int32_t>(config.pad_token_id));
      batch.labels.push_back(t < length && rng() % 3 ? token(rng) : kIgnoredLabel);
    }
  }
  return batch;
}

/// The same documents, a row each, padded on the right. `origin[b T + t]` is the token's place in the packed batch, or -1.
Batch unpacked(const Batch& packed, const ModelConfig& config, std::vector<std::int64_t>& origin) {
  Batch batch;
  batch.T = packed.T;
  for (std::int64_t b = 0; b < packed.B; ++b) {
    std::int64_t begin = b * packed.T;
    for (const std::int64_t length : kRows[static_cast<std::size_t>(b)]) {
      ++batch.B;
      batch.key_lengths.push_back(static_cast<std::int32_t>(length));
      batch.sample_ids.push_back(static_cast<std::uint64_t>(batch.B));
      for (std::int64_t t = 0; t < packed.T; ++t) {
        const bool there = t < length;
        const auto from = static_cast<std::size_t>(begin + t);
        origin.push_back(there ? begin + t : -1);
        batch.input_ids.push_back(there ? packed.input_ids[from] : static_cast<std::int32_t>(config.pad_token_id));
        batch.labels.push_back(there ? packed.labels[from] : kIgnoredLabel);
      }
      begin += length;
    }
  }
  return batch;
}

/// A model and the device batch that feeds it.
struct Fed {
  Device& device;
  ModelUnderTest model;
  outeffhop::DeviceBatch batch;
  Buffer loss;

  Fed(const ModelConfig& config, DType dtype, Device& d)
      : device(d), model(config, {dtype, 6, 9, true, 1}, d), batch(d, config, 6, 9), loss(d, sizeof(double)) {}

  LossAndGradient forward_backward(const Batch& host) {
    const Tensor gradients = model->gradients();
    const std::int64_t count = model->parameters().flat_size();
    device.zero(gradients.data, static_cast<std::size_t>(count) * size_of(gradients.dtype));
    device.zero(loss.data(), sizeof(double));
    model->forward_backward(batch.upload(host), loss.as<double>(), false);
    return {read_loss(), read_tensor(device, gradients, count)};
  }
  double forward(const Batch& host, SiteVisitor* visitor) {
    device.zero(loss.data(), sizeof(double));
    model->forward(batch.upload(host), loss.as<double>(), visitor);
    return read_loss();
  }
  std::vector<double> logits(const Batch& host) {
    const auto count = static_cast<std::size_t>(host.B * host.T * model->config().vocab_size);
    if (model->master().dtype == DType::f64) {
      std::vector<double> values(count);
      model->logits(batch.upload(host), values.data());
      return values;
    }
    std::vector<float> values(count);
    model->logits(batch.upload(host), values.data());
    return {values.begin(), values.end()};
  }

 private:
  double read_loss() { return read_tensor(device, {loss.data(), DType::f64}, 1)[0]; }
};

/// Wants every site, so that attention is materialised.
struct Everything : SiteVisitor {
  bool wants(const Site&) const override { return true; }
  void visit(const Site&, const SiteValue&) override {}
};

}  // namespace

TEST_CASE("packed documents are what they are in rows of their own") {
  struct Kind {
    std::unique_ptr<Device> device;
    DType dtype;
    double tolerance;  ///< relative, of sums in another order
  };
  Kind kinds[] = {{make_reference_device(), DType::f64, 1e-11}, {make_device({"cpu", 2}), DType::f32, 1e-5}};
  for (const Kind& kind : kinds)
    for (const ModelConfig& config : configs()) {
      INFO(config.model_type << " " << config.attn_softmax << " " << name_of(kind.dtype));
      std::mt19937_64 rng = generator(90);
      const Batch together = packed_batch(config, rng, 9);
      std::vector<std::int64_t> origin;
      const Batch apart = unpacked(together, config, origin);
      Fed fed(config, kind.dtype, *kind.device);
      fed.model.set_parameters(random_parameters(fed.model->parameters(), rng));

      const LossAndGradient packed = fed.forward_backward(together), single = fed.forward_backward(apart);
      CHECK(std::abs(packed.loss - single.loss) <= kind.tolerance * single.loss);
      for (const Parameter& p : fed.model->parameters().all()) {
        INFO(p.name);
        CHECK(distance(p, packed.gradient, single.gradient) <=
              kind.tolerance * error_scale(fed.model->parameters(), p, single.gradient));
      }
      const std::vector<double> packed_logits = fed.logits(together), single_logits = fed.logits(apart);
      const auto V = static_cast<std::size_t>(config.vocab_size);
      for (std::size_t row = 0; row < origin.size(); ++row) {
        if (origin[row] < 0) continue;
        double worst = 0.0;
        for (std::size_t v = 0; v < V; ++v)
          worst = std::max(
              worst, std::abs(single_logits[row * V + v] - packed_logits[static_cast<std::size_t>(origin[row]) * V + v]));
        CHECK(worst <= 10 * kind.tolerance);
      }
      Everything everything;
      CHECK(std::abs(fed.forward(together, &everything) - single.loss) <= kind.tolerance * single.loss);
    }
}

TEST_CASE("a document cannot tell what it is packed with") {
  const std::unique_ptr<Device> device = make_device({"cpu", 1});
  for (const ModelConfig& config : configs()) {
    INFO(config.model_type << " " << config.attn_softmax);
    std::mt19937_64 rng = generator(91);
    const Batch batch = packed_batch(config, rng, 9);
    Fed fed(config, DType::f32, *device);
    fed.model.set_parameters(random_parameters(fed.model->parameters(), rng));
    // Other tokens and labels in the last document of row 0 alone.
    Batch other = batch;
    for (std::size_t t = 4; t < 8; ++t) {
      other.input_ids[t] = 4 + (other.input_ids[t] - 3) % 15;
      other.labels[t] = 7;
    }
    const std::vector<double> before = fed.logits(batch), after = fed.logits(other);
    const auto V = static_cast<std::size_t>(config.vocab_size);
    for (std::size_t row = 0; row < 18; ++row) {
      const bool changed = !std::equal(before.begin() + static_cast<std::ptrdiff_t>(row * V),
                                       before.begin() + static_cast<std::ptrdiff_t>((row + 1) * V),
                                       after.begin() + static_cast<std::ptrdiff_t>(row * V));
      INFO("token " << row);
      CHECK(changed == (row >= 4 && row < 8));
    }

    // With labels in the first document alone, tokens that only the others hold get no gradient.
    Batch labelled = batch;
    std::fill(labelled.labels.begin(), labelled.labels.end(), kIgnoredLabel);
    for (std::size_t t = 0; t < 3; ++t) labelled.input_ids[t] = 4 + static_cast<std::int32_t>(t), labelled.labels[t] = 5;
    for (std::size_t t = 3; t < 18; ++t)
      if (labelled.input_ids[t] != config.pad_token_id) labelled.input_ids[t] = 10;
    const LossAndGradient first = fed.forward_backward(labelled);
    for (std::size_t t = 3; t < 18; ++t)
      if (labelled.input_ids[t] != config.pad_token_id) labelled.input_ids[t] = 12;
    const LossAndGradient second = fed.forward_backward(labelled);
    CHECK(first.loss > 0.0);
    CHECK(first.loss == second.loss);
    CHECK(first.gradient == second.gradient);
  }
}

TEST_CASE("positions start again at each document") {
  const std::unique_ptr<Device> device = make_reference_device();
  for (const ModelConfig& config : {tiny_bert(), tiny_opt()}) {
    std::mt19937_64 rng = generator(92);
    const Batch batch = packed_batch(config, rng, 9);
    outeffhop::DeviceBatch uploaded(*device, config, 2, 9);
    const ModelBatch view = uploaded.upload(batch);
    std::vector<std::int32_t> positions(18);
    device->copy_out(positions.data(), view.position_ids, positions.size() * sizeof positions[0]);
    const std::vector<std::int32_t> bert = {0, 1, 2, 0, 0, 1, 2, 3, 0, 0, 0, 0, 1, 2, 3, 4, 0, 1};
    const std::vector<std::int32_t> opt = {2, 3, 4, 2, 2, 3, 4, 5, 1, 2, 2, 2, 3, 4, 5, 6, 1, 1};
    CHECK(positions == (config.model_type == "bert" ? bert : opt));
    Batch plain = batch;
    plain.key_ranges.clear();
    CHECK(view.key_ranges != nullptr);
    CHECK(uploaded.upload(plain).key_ranges == nullptr);
  }
}

TEST_CASE("key ranges that are none of a packed row are refused") {
  const std::unique_ptr<Device> device = make_reference_device();
  const ModelConfig config = tiny_bert();
  std::mt19937_64 rng = generator(93);
  const Batch good = packed_batch(config, rng, 9);
  outeffhop::DeviceBatch uploaded(*device, config, 2, 9);
  const auto refused = [&](std::size_t token, std::int32_t begin, std::int32_t end) {
    Batch bad = good;
    bad.key_ranges[2 * token] = begin;
    bad.key_ranges[2 * token + 1] = end;
    return contains(error_message([&] { uploaded.upload(bad); }), "key range [" + std::to_string(begin));
  };
  CHECK(refused(0, -1, 3));
  CHECK(refused(2, 0, 2));   // its own token is outside
  CHECK(refused(7, 4, 10));  // longer than the row
  CHECK(refused(5, 3, 8));   // begins earlier than the token before it
  CHECK(refused(16, 8, 8));  // empty, yet ahead of its token
  Batch ragged = good;
  ragged.key_ranges.pop_back();
  CHECK(contains(error_message([&] { uploaded.upload(ragged); }), "two for each token"));
}
