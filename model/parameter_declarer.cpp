#include "model/parameter_declarer.h"

#include <cmath>
#include <utility>

namespace outeffhop {
namespace {

Parameter zero_bias(const std::string& full_name, std::int64_t size) {
  Parameter p;
  p.name = full_name;
  p.shape = {size};
  p.decay = false;
  return p;
}

}  // namespace

Parameter ParameterDeclarer::normal_weight(const std::string& name, std::int64_t out, std::int64_t in) const {
  Parameter p;
  p.name = name + ".weight";
  p.shape = {out, in};
  p.init = Init::normal;
  p.init_scale = config_.initializer_range;
  return p;
}

Parameter ParameterDeclarer::attention_weight(const std::string& name, std::int64_t size) const {
  Parameter p = normal_weight(name, size, size);
  if (config_.attention_init == "linear") {
    p.init = Init::uniform_fan_in;
    p.init_scale = 1.0 / std::sqrt(static_cast<double>(size));
  }
  return p;
}

Parameter ParameterDeclarer::attention_bias(const std::string& name, std::int64_t size) const {
  Parameter p = zero_bias(name + ".bias", size);
  if (config_.attention_init == "linear") {
    p.init = Init::uniform_fan_in;
    p.init_scale = 1.0 / std::sqrt(static_cast<double>(size));
  }
  return p;
}

void ParameterDeclarer::embedding(const std::string& name, std::int64_t rows, std::int64_t columns, std::int64_t zero_row) {
  Parameter p = normal_weight(name, rows, columns);
  p.zero_row = zero_row;
  table_.add(std::move(p));
}

void ParameterDeclarer::linear(const std::string& name, std::int64_t out, std::int64_t in, bool with_bias) {
  table_.add(normal_weight(name, out, in));
  if (with_bias) table_.add(zero_bias(name + ".bias", out));
}

void ParameterDeclarer::attention_linear(const std::string& name, std::int64_t size) {
  table_.add(attention_weight(name, size));
  table_.add(attention_bias(name, size));
}

void ParameterDeclarer::query_key_value(const std::array<std::string, 3>& names, std::int64_t size) {
  std::vector<Parameter> weights, biases;
  for (const std::string& name : names) {
    weights.push_back(attention_weight(name, size));
    biases.push_back(attention_bias(name, size));
  }
  table_.add_fused(std::move(weights));
  table_.add_fused(std::move(biases));
}

void ParameterDeclarer::layernorm(const std::string& name, std::int64_t size) {
  Parameter weight;
  weight.name = name + ".weight";
  weight.shape = {size};
  weight.decay = false;
  weight.layernorm_weight = true;
  weight.init = Init::one;
  table_.add(std::move(weight));
  table_.add(zero_bias(name + ".bias", size));
}

void ParameterDeclarer::bias(const std::string& full_name, std::int64_t size) { table_.add(zero_bias(full_name, size)); }

}  // namespace outeffhop
