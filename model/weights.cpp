#include "model/weights.h"

#include <utility>

namespace outeffhop {
namespace {

std::size_t flat_bytes(const ParameterTable& table, DType dtype) {
  return static_cast<std::size_t>(table.flat_size()) * size_of(dtype);
}

}  // namespace

Weights::Weights(Device& device, ParameterTable table, DType dtype, bool training)
    : device_(device),
      table_(std::move(table)),
      dtype_(dtype),
      master_(device, flat_bytes(table_, unrounded(dtype))),
      storage_(device, dtype == unrounded(dtype) ? 0 : flat_bytes(table_, dtype)),
      gradients_(device, training ? flat_bytes(table_, unrounded(dtype)) : 0) {}

Weight Weights::operator[](const std::string& name) const {
  const Parameter* parameter = table_.find(name);
  require(parameter != nullptr, "the model reads a parameter {} that its table does not have", name);
  return {storage().at(parameter->offset), gradients().at(parameter->offset)};
}

LinearLayer Weights::linear(const std::string& name, std::int64_t in, std::int64_t out, bool bias) const {
  LinearLayer layer{(*this)[name + ".weight"], {}, in, out};
  if (bias) layer.bias = (*this)[name + ".bias"];
  return layer;
}

void Weights::round_to_storage() {
  if (!storage_.data()) return;
  Cast op;
  op.count = table_.flat_size();
  op.from = master();
  op.to = storage();
  device_.run(op);
}

}  // namespace outeffhop
