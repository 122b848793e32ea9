// A linear layer on the CUDA backend, and what the stand-in for cuBLASLt is told for as long as a test takes.
#pragma once

#include <cublasLt.h>

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "kernels/reference/values.h"
#include "tests/catch.h"
#include "tests/simt/cublaslt.h"
#include "tests/test_support.h"

namespace outeffhop::test {

/// A linear layer on a device of its own, with random operands.
struct Layer {
  std::unique_ptr<Device> device = make_device({"cuda", 0});
  LinearForward op;
  LinearBackward backward;
  std::vector<Buffer> buffers;

  Layer(DType dtype, std::int64_t rows, std::int64_t in, std::int64_t out) {
    op.rows = backward.rows = rows;
    op.in = backward.in = in;
    op.out_features = backward.out_features = out;
    op.x = Operand(filled(dtype, rows * in));
    op.weight = Operand(filled(dtype, out * in));
    op.bias = filled(dtype, out);
    op.out = filled(dtype, rows * out);
    backward.x = op.x;
    backward.weight = op.weight;
    backward.d_out = filled(dtype, rows * out);
    backward.d_x = filled(dtype, rows * in);
    backward.d_weight = filled(DType::f32, out * in);
    backward.d_bias = filled(DType::f32, out);
  }

  /// Random values, `offset` elements into a buffer.
  Tensor filled(DType dtype, std::int64_t count, std::int64_t offset = 0) {
    const std::size_t bytes = static_cast<std::size_t>(count + offset) * size_of(dtype);
    std::vector<std::byte> host(bytes);
    auto rng = generator(buffers.size());
    const auto values = normal_values(rng, static_cast<std::size_t>(count + offset));
    for (std::size_t i = 0; i < values.size(); ++i)
      reference::write(Tensor{host.data(), dtype}, static_cast<std::int64_t>(i), values[i]);
    buffers.emplace_back(*device, bytes);
    device->copy_in(buffers.back().data(), host.data(), bytes);
    return Tensor{buffers.back().data(), dtype}.at(offset);
  }
  std::vector<double> fetch(ConstTensor tensor, std::int64_t count) {
    std::vector<std::byte> host(static_cast<std::size_t>(count) * size_of(tensor.dtype));
    device->copy_out(host.data(), tensor.data, host.size());
    return reference::load<double>({host.data(), tensor.dtype}, count);
  }
  std::vector<double> run() {
    device->run(op);
    return fetch(op.out, op.rows * op.out_features);
  }
  /// x weight^T + bias in fp64.
  std::vector<double> expected() {
    const auto x = fetch(op.x, op.rows * op.in), weight = fetch(op.weight, op.out_features * op.in);
    const auto bias = op.bias ? fetch(op.bias, op.out_features) : std::vector<double>(64, 0.0);
    std::vector<double> out;
    for (std::int64_t r = 0; r < op.rows; ++r)
      for (std::int64_t o = 0; o < op.out_features; ++o) {
        double sum = bias[static_cast<std::size_t>(o)];
        for (std::int64_t i = 0; i < op.in; ++i)
          sum += x[static_cast<std::size_t>(r * op.in + i)] * weight[static_cast<std::size_t>(o * op.in + i)];
        out.push_back(sum);
      }
    return out;
  }
};

inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest;
}

struct RefusedEpilogues {
  explicit RefusedEpilogues(std::uint32_t bits, cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED) {
    simt::cublaslt_refuse_epilogues(bits, status);
  }
  ~RefusedEpilogues() { simt::cublaslt_refuse_epilogues(0); }
};

/// What searches find, for as long as it lives: algorithms of these times.
struct Offered {
  explicit Offered(std::vector<double> milliseconds) { simt::cublaslt_offer(std::move(milliseconds)); }
  ~Offered() { simt::cublaslt_offer({1.0}); }
};

}  // namespace outeffhop::test
