// Products by trained matrices, and other operations on trained leaves.
//
// On a CPU, gradients of leaves are sums in fp64 of terms that are exact, or each of one row: such a sum hardly depends on how rows are
// divided among micro batches and processes. A leaf takes it if its gradient is in fp64 (lx_set_grad).

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "jobs.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

float* f32(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

template <typename T>
T* of(const Tensor& x) {
  return x.defined() ? static_cast<T*>(x.data_ptr()) : nullptr;
}

// Calls body with a number of x's kind.
template <typename F>
void by_kind(const Tensor& x, F&& body) {
  if (x.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    body(Bf16{});
  }
}

int64_t threads() { return at::get_num_threads(); }

using Blocks = std::vector<int64_t>;

bool are_even(const Blocks& blocks) {
  return std::all_of(blocks.begin(), blocks.end(), [&](int64_t length) { return length == blocks[0]; });
}

// x with at least ROWS rows on a CPU: products round those of fewer rows otherwise (src/torch/fused.rs).
constexpr int64_t ROWS = 4;
Tensor filled(const Tensor& x) {
  const int64_t rows = x.size(0);
  return x.is_cpu() && rows < ROWS ? at::constant_pad_nd(x, {0, 0, 0, ROWS - rows}) : x;
}
Tensor first(const Tensor& y, int64_t rows) { return y.size(0) == rows ? y : y.narrow(0, 0, rows).clone(); }

// x Mᵀ, of each run's rows with its M: x is [m, i], the matrices M are [k, o, i].
Tensor through_each(const Tensor& x, const Tensor& matrices, const Blocks& blocks) {
  const int64_t k = matrices.size(0);
  if (k == 1) return first(at::mm(filled(x), matrices[0].t()), x.size(0));
  if (are_even(blocks)) return at::bmm(x.reshape({k, blocks[0], x.size(1)}), matrices.transpose(1, 2)).flatten(0, 1);
  const variable_list parts = x.split_with_sizes(blocks);
  variable_list found;
  for (int64_t run = 0; run < k; ++run) {
    if (blocks[run] > 0) found.push_back(at::mm(parts[run], matrices[run].t()));
  }
  return at::cat(found, 0);
}

// yᵀ x of each run's rows: y is [m, o], x [m, i], the result [k, o, i].
Tensor products_of_each(const Tensor& y, const Tensor& x, const Blocks& blocks) {
  const int64_t k = blocks.size();
  if (k == 1) return at::mm(y.t(), x).unsqueeze(0);
  if (are_even(blocks)) {
    return at::bmm(y.view({k, blocks[0], y.size(1)}).transpose(1, 2), x.reshape({k, blocks[0], x.size(1)}));
  }
  const variable_list ys = y.split_with_sizes(blocks), xs = x.split_with_sizes(blocks);
  variable_list found;
  for (int64_t run = 0; run < k; ++run) found.push_back(at::mm(ys[run].t(), xs[run]));
  return at::stack(found, 0);
}

// Sums of products of fp32 or bf16 numbers in fp64, which hardly depend on how rows are divided, in place of products_of_each.
Tensor wide_products_of_each(const Tensor& y, const Tensor& x, const Blocks& blocks) {
  const bool is_known = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
  if (blocks.size() == 1 && is_known && y.scalar_type() == x.scalar_type() && y.stride(1) == 1 && x.stride(1) == 1) {
    const int64_t m = x.size(0), o = y.size(1), i = x.size(1);
    const Tensor product = at::empty({1, o, i}, x.options().dtype(at::kDouble));
    by_kind(x, [&](auto kind) {
      using T = decltype(kind);
      const WideProduct<T> job{of<T>(y), of<T>(x), static_cast<double*>(product.data_ptr()), m, o, i, y.stride(0), x.stride(0)};
      lx_wide_product(job, (o + kTall - 1) / kTall, m * i, threads());
    });
    return product;
  }
  return products_of_each(y.to(at::kDouble), x.to(at::kDouble), blocks);
}

// Where the gradient of a leaf is summed in fp64: in the leaf's own, if that is one, since to add all of another to it takes a share of a
// step that shows.
struct Sum {
  Tensor numbers;
  bool is_own;

  explicit Sum(const Tensor& leaf) : numbers(leaf.grad()) {
    is_own = numbers.defined() && numbers.scalar_type() == at::kDouble && numbers.is_contiguous();
    if (!is_own) numbers = at::zeros(leaf.sizes(), leaf.options().dtype(at::kDouble));
  }

  // What a backward pass returns.
  Tensor rest() const { return is_own ? Tensor() : numbers; }
};

// sum [o, i] += yᵀ x in fp64 over blocks of so many rows each, which are summed in fp32: y is [m, o], x [m, i].
void add_block_products(const Tensor& sum, const Tensor& y, const Tensor& x, const Blocks& blocks) {
  const int64_t o = y.size(1), i = x.size(1);
  Blocks bounds{0};
  for (const int64_t rows : blocks) bounds.push_back(bounds.back() + rows);
  by_kind(x, [&](auto kind) {
    using T = decltype(kind);
    const int64_t count = blocks.size();
    const BlockProduct<T> job{of<T>(y), of<T>(x), bounds.data(), static_cast<double*>(sum.data_ptr()), count, o, i};
    lx_block_product(job, (o + kTile - 1) / kTile, bounds.back() * i, threads());
  });
}

// Sums over the rows of dy [.., d], and of dy · x with x of its shape and kind, or (x − mean) · scale with a mean and a scale of each row.
struct Sums {
  Tensor of_dy, of_products;
};
Sums column_sums(const Tensor& gradient, const Tensor& x, const Tensor& mean = {}, const Tensor& scale = {}) {
  const Tensor dy = gradient.contiguous();
  const int64_t d = dy.size(-1), m = dy.numel() / std::max<int64_t>(d, 1);
  if (dy.scalar_type() != at::kFloat && dy.scalar_type() != at::kBFloat16) {
    return column_sums(dy.to(at::kFloat), x.defined() ? x.to(at::kFloat) : x, mean, scale);
  }
  const Tensor sums = at::empty({2, d}, dy.options().dtype(at::kDouble)), own = x.defined() ? x.contiguous() : x;
  const auto rows = [](const Tensor& of_rows) { return of_rows.defined() ? of_rows.to(at::kFloat).contiguous() : of_rows; };
  const Tensor means = rows(mean), scales = rows(scale);
  by_kind(dy, [&](auto kind) {
    using T = decltype(kind);
    double* out = static_cast<double*>(sums.data_ptr());
    lx_column_sums(ColumnSums<T>{of<T>(dy), of<T>(own), of<float>(means), of<float>(scales), out, out + d, m, d},
                   (d + kColumns - 1) / kColumns, m * kColumns, threads());
  });
  return {sums[0], sums[1]};
}

// An fp32 leaf in fp64; its gradient stays in fp64.
struct Wide : Function<Wide> {
  static Tensor forward(AutogradContext*, const Tensor& x) { return x.to(at::kDouble); }
  static variable_list backward(AutogradContext*, variable_list grads) { return {grads[0]}; }
};

// x Mᵀ + b of each run's rows, in the kind of x. M [k, o, i] and b [k, o] are wide.
struct Through : Function<Through> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& matrices, const std::optional<Tensor>& vectors,
                        const Blocks& blocks) {
    const Tensor own = matrices.to(x.scalar_type());
    ctx->save_for_backward({x, own});
    ctx->saved_data["blocks"] = blocks, ctx->saved_data["shifts"] = vectors.has_value();
    if (!vectors) return through_each(x, own, blocks);
    const Tensor bias = vectors->to(x.scalar_type());
    if (blocks.size() == 1) return first(at::addmm(bias[0], filled(x), own[0].t()), x.size(0));
    return through_each(x, own, blocks) + bias.repeat_interleave(at::tensor(blocks), 0);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Blocks blocks = ctx->saved_data["blocks"].toIntVector();
    const Tensor dy = grads[0].contiguous();
    variable_list found(4);
    if (ctx->needs_input_grad(0)) found[0] = through_each(dy, saved[1].transpose(1, 2), blocks);
    found[1] = wide_products_of_each(dy, saved[0], blocks);
    if (ctx->saved_data["shifts"].toBool()) {
      found[2] = wide_products_of_each(dy, at::ones({dy.size(0), 1}, dy.options()), blocks).squeeze(2);
    }
    return found;
  }
};

// x Wᵀ + b in the kind of x. W [o, i] is a leaf, b [o], unless null, a leaf or frozen; x [m, i] consists of blocks of so many rows, if any are
// given, which stay together however rows are divided.
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Blocks& blocks) {
    const Tensor own = weight.to(x.scalar_type());
    ctx->save_for_backward({x, own, weight});
    ctx->saved_data["blocks"] = blocks, ctx->saved_data["shifts"] = bias.has_value();
    return first(bias ? at::addmm(bias->to(x.scalar_type()), filled(x), own.t()) : at::mm(filled(x), own.t()), x.size(0));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0].contiguous(), dy = grads[0].contiguous();
    const Blocks blocks = ctx->saved_data["blocks"].toIntVector();
    const bool is_known = (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) && dy.scalar_type() == x.scalar_type();
    variable_list found(4);
    if (ctx->needs_input_grad(0)) found[0] = first(at::mm(filled(dy), saved[1]), dy.size(0));
    if (is_known && !blocks.empty()) {
      const Sum sum(saved[2]);
      add_block_products(sum.numbers, dy, x, blocks);
      found[1] = sum.rest();
    } else {
      found[1] = at::mm(dy.t().to(at::kDouble), x.to(at::kDouble));
    }
    if (ctx->saved_data["shifts"].toBool() && ctx->needs_input_grad(2)) found[2] = column_sums(dy, Tensor()).of_dy;
    return found;
  }
};

// Rows of a table [v, d] by their ids [m]; that of the id `padding`, unless -1, gets no gradient.
struct LookUp : Function<LookUp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& table, const Tensor& ids, int64_t padding) {
    ctx->save_for_backward({table, ids});
    ctx->saved_data["padding"] = padding;
    return at::embedding(table, ids);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &table = saved[0], ids = saved[1].contiguous();
    const int64_t padding = ctx->saved_data["padding"].toInt(), d = table.size(1), rows = ids.numel();
    const Tensor dy = grads[0].to(at::kFloat).contiguous();
    const Sum sum(table);
    double* const all = static_cast<double*>(sum.numbers.data_ptr());
    const auto* id = static_cast<const int64_t*>(ids.data_ptr());
    at::parallel_for(0, d, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(rows, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r) {
        if (id[r] == padding) continue;
        const float* from = f32(dy) + r * d;
        double* to = all + id[r] * d;
        for (int64_t j = begin; j < end; ++j) to[j] += from[j];
      }
    });
    return {sum.rest(), Tensor(), Tensor()};
  }
};

// Layer normalisation over the last axis, in the kind of x; the leaves `weight` and `bias` are [d].
struct LayerNorm : Function<LayerNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
    const Tensor own = weight.to(x.scalar_type());
    const auto [y, mean, scale] = at::native_layer_norm(x, weight.sizes(), own, bias.to(x.scalar_type()), eps);
    ctx->save_for_backward({x, own, mean, scale});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &scale = saved[3], dy = grads[0].contiguous();
    const auto dx =
        at::native_layer_norm_backward(dy, x, weight.sizes(), mean, scale, weight, weight, {ctx->needs_input_grad(0), false, false});
    const auto [of_bias, of_weight] = column_sums(dy, x, mean, scale);
    return {std::get<0>(dx), of_weight, of_bias, Tensor()};
  }
};

// x · (weight + offset) in the kind of x; the leaf `weight` is [d].
struct Scaled : Function<Scaled> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double offset) {
    const Tensor own = (offset == 0 ? weight : weight + offset).to(x.scalar_type());
    ctx->save_for_backward({x, own});
    return x * own;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {grads[0] * saved[1], column_sums(grads[0], saved[0]).of_products, Tensor()};
  }
};

}  // namespace
