// Gradients of whole models by finite differences, in the fp64 composition of the reference ops: no backend is involved, so
// a failure here is a mistake in how the model puts the ops together.
#include <cmath>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"
#include "tests/test_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

ModelOptions fp64(const HostBatch& batch) {
  ModelOptions options;
  options.dtype = DType::f64;
  options.max_batch = batch.B;
  options.max_sequence = batch.T;
  options.seed = 77;
  return options;
}

/// The embedding whose look-up leaves out the padding token's row.
bool is_word_embedding(const Parameter& p) {
  return p.name == "bert.embeddings.word_embeddings.weight" || p.name == "model.decoder.embed_tokens.weight";
}

class GradientCheck {
 public:
  GradientCheck(const ModelConfig& config, const HostBatch& batch, bool dropout, std::uint64_t seed)
      : config_(config),
        device_(make_reference_device()),
        model_(config, fp64(batch), *device_),
        batch_(batch),
        dropout_(dropout),
        rng_(generator(seed)),
        parameters_(random_parameters(model_->parameters(), rng_)) {}

  ModelUnderTest& model() { return model_; }
  const std::vector<double>& parameters() const { return parameters_; }

  void run() {
    model_.set_parameters(parameters_);
    gradient_ = model_.forward_backward(batch_, dropout_).gradient;
    for (const Parameter& p : model_->parameters().all()) {
      INFO(p.name);
      check_direction(p);
      for (int i = 0; i < 2; ++i) check_element(p);
    }
  }

 private:
  /// Elements that the finite difference must leave alone: the padding row, where a look-up counts in the loss but, as in
  /// PyTorch, not in the gradient.
  bool frozen(const Parameter& p, std::int64_t element) const {
    if (!is_word_embedding(p)) return false;
    const std::int64_t pad = config_.pad_token_id;
    if (element / p.shape[1] != pad) return false;
    for (const std::int32_t id : batch_.input_ids) {
      if (id == pad) return true;
    }
    return false;
  }

  double loss_at(const std::vector<double>& direction, std::int64_t offset, double step) {
    std::vector<double> moved = parameters_;
    for (std::size_t i = 0; i < direction.size(); ++i) moved[static_cast<std::size_t>(offset) + i] += step * direction[i];
    model_.set_parameters(moved);
    return dropout_ ? model_.forward_backward(batch_, true).loss : model_.forward(batch_);
  }

  void check(const Parameter& p, const std::vector<double>& direction) {
    constexpr double h = 1e-5;
    const double difference = (loss_at(direction, p.offset, h) - loss_at(direction, p.offset, -h)) / (2 * h);
    double derivative = 0.0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      derivative += direction[i] * gradient_[static_cast<std::size_t>(p.offset) + i];
    }
    // The loss is about 50: two roundings of it over 2h leave 1e-9, the third derivative h^2 = 1e-10 times its size.
    CHECK(std::abs(difference - derivative) <= 3e-8 + 1e-7 * norm(p, gradient_));
  }

  void check_direction(const Parameter& p) {
    std::normal_distribution<double> normal;
    std::vector<double> direction(static_cast<std::size_t>(p.count));
    for (std::int64_t e = 0; e < p.count; ++e) direction[static_cast<std::size_t>(e)] = frozen(p, e) ? 0.0 : normal(rng_);
    const double length = norm(direction);
    for (double& d : direction) d /= length;
    check(p, direction);
  }

  void check_element(const Parameter& p) {
    std::uniform_int_distribution<std::int64_t> any(0, p.count - 1);
    std::int64_t element = any(rng_);
    while (frozen(p, element)) element = any(rng_);
    std::vector<double> direction(static_cast<std::size_t>(p.count), 0.0);
    direction[static_cast<std::size_t>(element)] = 1.0;
    check(p, direction);
  }

  ModelConfig config_;
  std::unique_ptr<Device> device_;
  ModelUnderTest model_;
  HostBatch batch_;
  bool dropout_;
  std::mt19937_64 rng_;
  std::vector<double> parameters_, gradient_;
};

void check_gradients(const ModelConfig& config, bool padded, bool dropout, std::uint64_t seed) {
  INFO(config.model_type << ", " << config.attn_softmax << ", " << config.hidden_act << (padded ? ", padded" : "")
                         << (dropout ? ", dropout" : "") << ", word_embed_proj_dim " << config.word_embed_proj_dim);
  std::mt19937_64 rng = generator(seed);
  const HostBatch batch = padded ? random_batch(config, rng, 4, 6, {6, 2, 1, 4}) : random_batch(config, rng, 3, 6);
  GradientCheck(config, batch, dropout, seed + 1).run();
}

/// The smallest distance of a pre-activation from the kink of ReLU.
struct KinkDistance : SiteVisitor {
  Device& device;
  double smallest = INFINITY;

  explicit KinkDistance(Device& d) : device(d) {}
  bool wants(const Site& site) const override {
    return site.name.ends_with("fc1") || site.name.ends_with("intermediate.dense");
  }
  void visit(const Site&, const SiteValue& value) override {
    for (const double v : read_tensor(device, value.data, value.samples * value.rows_per_sample * value.channels)) {
      smallest = std::min(smallest, std::abs(v));
    }
  }
};

}  // namespace

TEST_CASE("BERT's gradients are those of its loss") {
  for (const char* softmax : {"vanilla", "softmax1", "softmax_n(4)"}) {
    for (const bool padded : {false, true}) {
      check_gradients(tiny_bert(softmax), padded, false, 100);
      check_gradients(tiny_bert(softmax), padded, true, 200);
    }
  }
  ModelConfig tanh_form = tiny_bert();
  tanh_form.hidden_act = "gelu_new";
  check_gradients(tanh_form, true, true, 300);
}

TEST_CASE("OPT's gradients are those of its loss") {
  for (const char* softmax : {"vanilla", "softmax1", "softmax_n(4)"}) {
    for (const std::int64_t word_embed_proj_dim : {0, 7}) {
      check_gradients(tiny_opt(softmax, word_embed_proj_dim), false, true, 400);
      check_gradients(tiny_opt(softmax, word_embed_proj_dim), true, false, 500);
    }
  }
  check_gradients(tiny_opt("softmax1", 20), true, true, 600);  // embeddings wider than the model
}

TEST_CASE("gradients through ReLU, clear of its kink") {
  for (ModelConfig config : {tiny_opt(), tiny_bert()}) {
    config.hidden_act = "relu";
    // A step of 1e-5 in a parameter moves a pre-activation by a few times as much. The first seed that is clear will do.
    bool found = false;
    for (std::uint64_t seed = 700; seed < 740 && !found; ++seed) {
      std::mt19937_64 rng = generator(seed);
      const HostBatch batch = random_batch(config, rng, 2, 5, {5, 3});
      GradientCheck check(config, batch, false, seed + 1);
      check.model().set_parameters(check.parameters());
      KinkDistance distance(check.model().device());
      check.model().forward(batch, &distance);
      found = distance.smallest > 1e-3;
      if (found) check.run();
    }
    CHECK(found);
  }
}

TEST_CASE("the padding token's embedding learns from the head alone") {
  for (const ModelConfig& config : {tiny_bert(), tiny_opt(), tiny_opt("softmax1", 7)}) {
    INFO(config.model_type << " " << config.word_embed_proj_dim);
    std::mt19937_64 rng = generator(800);
    HostBatch batch = random_batch(config, rng, 2, 6);
    // Visible positions, so that the loss does depend on what is looked up there.
    for (const std::size_t position : {1u, 4u, 8u})
      batch.input_ids[position] = static_cast<std::int32_t>(config.pad_token_id);
    const std::unique_ptr<Device> device = make_reference_device();
    ModelUnderTest model(config, fp64(batch), *device);
    const std::vector<double> parameters = random_parameters(model->parameters(), rng);
    model.set_parameters(parameters);
    const std::vector<double> gradient = model.forward_backward(batch, false).gradient;

    // With the embedding sum held where it was, a change of the row reaches the loss through the head only.
    struct Hold : SiteVisitor {
      Device& device;
      std::vector<double> held;
      explicit Hold(Device& d) : device(d) {}
      bool wants(const Site& site) const override { return site.kind == Site::Kind::embedding_sum; }
      void visit(const Site&, const SiteValue& value) override {
        if (held.empty()) {
          held = read_tensor(device, value.data, value.samples * value.rows_per_sample * value.channels);
        } else {
          write_tensor(device, value.data, held);
        }
      }
    } hold(*device);
    model.forward(batch, &hold);

    const Parameter& words = *model->parameters().find(config.model_type == "bert" ? "bert.embeddings.word_embeddings.weight"
                                                                                   : "model.decoder.embed_tokens.weight");
    const std::int64_t columns = words.shape[1];
    for (std::int64_t c = 0; c < columns; ++c) {
      const auto element = static_cast<std::size_t>(words.offset + config.pad_token_id * columns + c);
      double losses[2];
      for (const int side : {0, 1}) {
        std::vector<double> moved = parameters;
        moved[element] += side ? 1e-5 : -1e-5;
        model.set_parameters(moved);
        losses[side] = model.forward(batch, &hold);
      }
      INFO("column " << c);
      CHECK(gradient[element] != 0.0);
      CHECK(std::abs((losses[1] - losses[0]) / 2e-5 - gradient[element]) < 1e-7);
    }
  }
}
