#include "model/head.h"

#include <algorithm>

namespace outeffhop {

void Head::plan(Arena& workspace, const Capacity& capacity, std::int64_t logit_bytes) {
  const auto row_bytes = logit_stride() * static_cast<std::int64_t>(size_of(capacity.dtype));
  // Where there is room for them, whole blocks of the products: 512 or 1,024 rows cost up to 7 % less a row than 640.
  const std::int64_t affordable = logit_bytes / row_bytes, step = affordable >= kProductRows ? kProductRows : kBucket;
  const std::int64_t within_budget = std::max(kBucket, affordable / step * step);
  chunk_rows_ = std::min(padded_rows(capacity.rows()), within_budget);
  const DType dtype = capacity.dtype;
  gathered_ = workspace.take(chunk_rows_ * C, dtype);
  logits_ = workspace.take(chunk_rows_ * logit_stride(), dtype);
  if (projection) {
    pre_ = workspace.take(chunk_rows_ * E, dtype);
    post_ = workspace.take(chunk_rows_ * E, dtype);
  }
  if (norm) {
    normed_ = workspace.take(chunk_rows_ * E, dtype);
    mean_ = workspace.take(chunk_rows_, unrounded(dtype));
    rstd_ = workspace.take(chunk_rows_, unrounded(dtype));
  }
  if (capacity.training) d_transformed_ = workspace.take(chunk_rows_ * E, dtype);
}

Head::Chunk Head::chunk_at(std::int64_t begin, std::int64_t label_count) const {
  const std::int64_t total = padded_rows(label_count);
  if (begin == total) return {};
  // Of equal sizes: a small last chunk would read and write all of the decoder's gradient for few rows.
  const std::int64_t chunks = (total + chunk_rows_ - 1) / chunk_rows_;
  const std::int64_t rows = std::min(padded_rows((total + chunks - 1) / chunks), total - begin);
  return {begin, rows, std::min(rows, label_count - begin)};
}

/// Observers see the rows of labels, not the padding.
void Head::show(const Pass& pass, std::size_t site, Tensor data, std::int64_t channels, const Chunk& chunk) const {
  pass.show(site, {data, 1, chunk.labels, channels, chunk.begin});
}

ConstTensor Head::gather(const Pass& pass, ConstTensor hidden, const Chunk& chunk) const {
  GatherRows op;
  op.count = chunk.rows;
  op.C = C;
  op.index = pass.batch.label_rows + chunk.begin;
  op.x = hidden;
  op.out = gathered_;  // (chunk, C)
  pass.device.run(op);
  return gathered_;
}

/// Everything before the decoder: rows (chunk, C) -> (chunk, E).
ConstTensor Head::transform(const Pass& pass, ConstTensor rows, const Chunk& chunk) const {
  if (!projection) return rows;
  if (activation == Activation::none) {
    linear_forward(pass.device, *projection, chunk.rows, rows, post_);
    show(pass, projection_site, post_, E, chunk);
  } else if (pass.wants(projection_site)) {
    linear_forward(pass.device, *projection, chunk.rows, rows, pre_);
    show(pass, projection_site, pre_, E, chunk);
    pass.device.run(ActivationForward{chunk.rows * E, activation, pre_, post_});
  } else {
    linear_forward(pass.device, *projection, chunk.rows, rows, post_, activation, pass.backward_follows ? pre_ : Tensor{});
  }
  if (activation != Activation::none) show(pass, activation_site, post_, E, chunk);
  if (!norm) return post_;
  LayerNormForward op;
  op.B = 1;
  op.T = chunk.rows;
  op.C = E;
  op.epsilon = epsilon;
  op.x = post_;
  op.weight = norm->weight.value;
  op.bias = norm->bias.value;
  op.out = normed_;
  if (pass.backward_follows) {
    op.mean = mean_;
    op.rstd = rstd_;
  }
  pass.device.run(op);
  show(pass, norm_site, normed_, E, chunk);
  return normed_;
}

void Head::decode(const Pass& pass, ConstTensor transformed, std::int64_t rows, Tensor logits, std::int64_t stride) const {
  linear_forward(pass.device, decoder, rows, transformed, logits, Activation::none, {}, stride);  // (rows, V)
}

void Head::cross_entropy(const Pass& pass, const Chunk& chunk, std::int64_t stride, double* loss_sum,
                         bool write_gradient) const {
  CrossEntropy op;
  op.rows = chunk.rows;
  op.V = V;
  op.row_stride = stride;
  op.logits = logits_;
  op.targets = pass.batch.label_ids + chunk.begin;
  op.write_gradient = write_gradient;
  op.loss_sum = loss_sum;
  pass.device.run(op);
}

void Head::forward(const Pass& pass, ConstTensor hidden, double* loss_sum) const {
  const Range range(pass.device, "head");
  const std::int64_t N = pass.batch.label_count;
  const std::int64_t stride = pass.wants(logits_site) ? V : logit_stride();  // a visitor is shown rows end to end
  for (Chunk chunk = chunk_at(0, N); chunk.rows > 0; chunk = chunk_at(chunk.begin + chunk.rows, N)) {
    const ConstTensor gathered = gather(pass, hidden, chunk);
    decode(pass, transform(pass, gathered, chunk), chunk.rows, logits_, stride);
    show(pass, logits_site, logits_, V, chunk);
    cross_entropy(pass, chunk, stride, loss_sum, false);
  }
}

void Head::forward_backward(const Pass& pass, ConstTensor hidden, double* loss_sum, Tensor d_rows) const {
  const Range range(pass.device, "head");
  const std::int64_t N = pass.batch.label_count;
  for (Chunk chunk = chunk_at(0, N); chunk.rows > 0; chunk = chunk_at(chunk.begin + chunk.rows, N)) {
    const ConstTensor gathered = gather(pass, hidden, chunk);
    const ConstTensor transformed = transform(pass, gathered, chunk);
    decode(pass, transformed, chunk.rows, logits_, logit_stride());
    cross_entropy(pass, chunk, logit_stride(), loss_sum, true);
    chunk_backward(pass, gathered, transformed, chunk, d_rows.at(chunk.begin * C));
  }
}

/// From the gradient of the logits, which lies where they were, to that of the gathered rows.
void Head::chunk_backward(const Pass& pass, ConstTensor gathered, ConstTensor transformed, const Chunk& chunk,
                          Tensor d_rows) const {
  const Tensor d = projection ? d_transformed_ : d_rows;  // (chunk, E)
  linear_backward(pass.device, decoder, chunk.rows, transformed, logits_, {d}, logit_stride());
  if (!projection) return;
  if (norm) {
    LayerNormBackward op;
    op.B = 1;
    op.T = chunk.rows;
    op.C = E;
    op.d_out = d;
    op.sum = post_;
    op.mean = mean_;
    op.rstd = rstd_;
    op.weight = norm->weight.value;
    op.d_sum = d;
    op.d_weight = norm->weight.gradient;
    op.d_bias = norm->bias.gradient;
    pass.device.run(op);
  }
  if (activation != Activation::none) {
    ActivationBackward op;
    op.count = chunk.rows * E;
    op.activation = activation;
    op.pre = pre_;
    op.d_out = d;
    op.d_pre = d;
    pass.device.run(op);
  }
  linear_backward(pass.device, *projection, chunk.rows, gathered, d, {d_rows});
}

void Head::all_logits(const Pass& pass, ConstTensor hidden, void* host_out) const {
  const Tensor logits{logits_.data, unrounded(logits_.dtype)};
  const std::size_t row_bytes = static_cast<std::size_t>(V) * size_of(logits.dtype);
  // As many rows as the planned logits hold in the wider dtype.
  const auto storage_row_bytes = static_cast<std::int64_t>(static_cast<std::size_t>(V) * size_of(logits_.dtype));
  const std::int64_t block = chunk_rows_ * storage_row_bytes / static_cast<std::int64_t>(row_bytes);
  for (std::int64_t begin = 0; begin < pass.rows(); begin += block) {
    const std::int64_t rows = std::min(block, pass.rows() - begin);
    const Chunk chunk{begin, rows, rows};
    decode(pass, transform(pass, hidden.at(begin * C), chunk), rows, logits, V);
    pass.device.copy_out(static_cast<char*>(host_out) + static_cast<std::size_t>(begin) * row_bytes, logits.data,
                         static_cast<std::size_t>(rows) * row_bytes);
  }
  pass.device.synchronize();
}

}  // namespace outeffhop
