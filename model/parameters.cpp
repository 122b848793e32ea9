#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

#include "kernels/error.h"
#include "kernels/random.h"

namespace outeffhop {
namespace {

constexpr std::int64_t kManyValues = 1 << 15;  // from here on a team of threads pays
constexpr std::int64_t kAlignment = 64;        // elements: whole cache lines in every dtype

std::int64_t aligned(std::int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }

/// FNV-1a (Fowler, Noll, Vo), 64 bits. A parameter's initial values depend on its name through this alone, so it is frozen.
constexpr std::uint64_t hash_of(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

/// The Philox block of element pair `pair` of a parameter. Two elements share a block: four words are two 53-bit uniforms.
PhiloxBlock pair_block(PhiloxKey key, std::uint64_t name_hash, std::int64_t pair) {
  const auto index = static_cast<std::uint64_t>(pair);
  return sample_block(key, name_hash, static_cast<std::uint32_t>(index >> 32), static_cast<std::uint32_t>(index));
}

void fill_normal(const Parameter& parameter, PhiloxKey key, float* values) {
  const std::uint64_t name_hash = hash_of(parameter.name);
  const std::int64_t count = parameter.count;
#pragma omp parallel for schedule(static) if (count >= kManyValues)
  for (std::int64_t pair = 0; pair < (count + 1) / 2; ++pair) {
    const PhiloxBlock b = pair_block(key, name_hash, pair);
    const double u = 1.0 - uniform53(b.w[0], b.w[1]);  // (0, 1]: the logarithm is finite
    const double angle = 2.0 * std::numbers::pi * uniform53(b.w[2], b.w[3]);
    const double radius = parameter.init_scale * std::sqrt(-2.0 * std::log(u));
    values[2 * pair] = static_cast<float>(radius * std::cos(angle));
    if (2 * pair + 1 < count) values[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

void fill_uniform(const Parameter& parameter, PhiloxKey key, float* values) {
  const std::uint64_t name_hash = hash_of(parameter.name);
  const std::int64_t count = parameter.count;
#pragma omp parallel for schedule(static) if (count >= kManyValues)
  for (std::int64_t pair = 0; pair < (count + 1) / 2; ++pair) {
    const PhiloxBlock b = pair_block(key, name_hash, pair);
    for (std::int64_t e = 2 * pair; e < std::min(2 * pair + 2, count); ++e) {
      const double u = uniform53(b.w[2 * (e % 2)], b.w[2 * (e % 2) + 1]);
      values[e] = static_cast<float>(parameter.init_scale * (2.0 * u - 1.0));
    }
  }
}

}  // namespace

std::size_t ParameterTable::add(Parameter parameter) {
  std::vector<Parameter> one;
  one.push_back(std::move(parameter));
  return add_fused(std::move(one));
}

std::size_t ParameterTable::add_fused(std::vector<Parameter> parameters) {
  const std::size_t first = parameters_.size();
  flat_size_ = aligned(flat_size_);
  for (Parameter& parameter : parameters) {
    require(!find(parameter.name), "parameter {} was declared twice", parameter.name);
    parameter.count = 1;
    for (const std::int64_t extent : parameter.shape) parameter.count *= extent;
    parameter.offset = flat_size_;
    flat_size_ += parameter.count;
    parameters_.push_back(std::move(parameter));
  }
  return first;
}

const Parameter* ParameterTable::find(const std::string& name) const {
  for (const Parameter& parameter : parameters_) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

std::int64_t ParameterTable::total() const {
  std::int64_t sum = 0;
  for (const Parameter& parameter : parameters_) sum += parameter.count;
  return sum;
}

void initialise(const ParameterTable& table, std::uint64_t seed, float* flat) {
  const PhiloxKey key = stream_key(seed, kStreamInitialisation);
  std::fill_n(flat, table.flat_size(), 0.0f);
  for (const Parameter& parameter : table.all()) {
    float* values = flat + parameter.offset;
    switch (parameter.init) {
      case Init::zero:
        break;
      case Init::one:
        std::fill_n(values, parameter.count, 1.0f);
        break;
      case Init::normal:
        fill_normal(parameter, key, values);
        break;
      case Init::uniform_fan_in:
        fill_uniform(parameter, key, values);
        break;
    }
    if (parameter.zero_row >= 0) {
      const std::int64_t columns = parameter.shape.at(1);
      std::fill_n(values + parameter.zero_row * columns, columns, 0.0f);
    }
  }
}

}  // namespace outeffhop
