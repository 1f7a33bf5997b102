// Steps of a training with backward passes of their own (src/torch/fused.rs says what each function takes). On a CPU: norms,
// the gate, the loss and attention, row by row (rows.h, attention.h). On a GPU: attention over padding. On both: rotation, and layers with
// adapters that read one input.

#include <ATen/ATen.h>

#include "guarded.h"
#include "halves.h"
#include "heads.h"
#include "jobs.h"
#include "on_cuda.h"
#include "wide.h"

namespace {

// (x + add, norm of that); without an `add`, (x, norm of x).
struct RmsNorm : Function<RmsNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& other, const Tensor& weight,
                               double eps, bool round) {
    const Tensor add = other.value_or(Tensor());
    const int64_t d = x.size(-1), rows = d > 0 ? x.numel() / d : 0;
    const Tensor sum = add.defined() ? at::empty_like(x) : Tensor(), y = at::empty_like(x);
    const Tensor scales = at::empty({rows}, weight.options());
    by_kind(x, [&](auto kind) {
      using T = decltype(kind);
      lx_norm_forward(Norm<T>{of<T>(x), of<T>(add), f32(weight), of<T>(sum), of<T>(y), f32(scales), d,
                              static_cast<float>(eps), round},
                      rows, d, threads());
    });
    ctx->save_for_backward({add.defined() ? sum : x, weight, scales});
    ctx->set_materialize_grads(false);
    return add.defined() ? variable_list{sum, y} : variable_list{y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &scales = saved[2];
    const bool added = grads.size() == 2;
    const Tensor &dy = grads.back(), dsum = added && grads[0].defined() ? grads[0].contiguous() : Tensor();
    Tensor dx = dsum;
    if (dy.defined()) {
      const int64_t d = x.size(-1), rows = d > 0 ? x.numel() / d : 0;
      const Tensor gradient = dy.contiguous();
      dx = at::empty_like(x);
      by_kind(x, [&](auto kind) {
        using T = decltype(kind);
        lx_norm_backward(
            NormBack<T>{of<T>(gradient), of<T>(dsum), of<T>(x), f32(weight), f32(scales), of<T>(dx), d}, rows, d, threads());
      });
    }
    return {dx, added ? dx : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, float sign) {
  if (x.is_cuda() && heads::turns(x)) return heads::turned(x, cos, sin, sign);
  if (x.is_cuda()) {
    const int64_t half = cos.size(-1);
    const Tensor y = 2 * half == x.size(2) ? at::empty(x.sizes(), x.options()) : x.clone(at::MemoryFormat::Contiguous);
    const Tensor a = x.narrow(2, 0, half), b = x.narrow(2, half, half);
    Tensor first = y.narrow(2, 0, half), second = y.narrow(2, half, half);
    at::mul_out(first, a, cos).addcmul_(b, sin, -sign);
    at::mul_out(second, b, cos).addcmul_(a, sin, sign);
    return y;
  }
  const Tensor y = at::empty_like(x);
  const int64_t heads = x.size(1), d = x.size(2);
  by_kind(x, [&](auto kind) {
    using T = decltype(kind);
    lx_turn(Turn<T>{of<T>(x), of<T>(cos), of<T>(sin), of<T>(y), heads, d, cos.size(-1), sign}, x.size(0), heads * d,
            threads());
  });
  return y;
}

struct Rotation : Function<Rotation> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turned(x, cos, sin, 1.0f);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {turned(grads[0].contiguous(), saved[0], saved[1], -1.0f), Tensor(), Tensor()};
  }
};

constexpr const char* SWIGLU = R"(template <typename T> T lx_swiglu(T gate, T up) {
  const float x = gate;
  return x / (1.0f + expf(-x)) * static_cast<float>(up);
})";

constexpr const char* SWIGLU_BACK = R"(template <typename T> void lx_swiglu_back(T gradient, T gate, T up, T& of_gate, T& of_up) {
  const float dy = gradient, x = gate, share = 1.0f / (1.0f + expf(-x));
  of_gate = dy * static_cast<float>(up) * share * (1.0f + x * (1.0f - share));
  of_up = dy * x * share;
})";

struct Swiglu : Function<Swiglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    if (gate.is_cuda()) return elementwise("lx_swiglu", SWIGLU, 1, {gate, up})[0];
    const Tensor y = at::empty_like(gate);
    by_kind(gate, [&](auto kind) {
      using T = decltype(kind);
      lx_gated_forward(Gated<T>{of<T>(gate), of<T>(up), nullptr, of<T>(y), nullptr, nullptr}, gate.numel(), 1, threads());
    });
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], dy = grads[0].contiguous();
    if (gate.is_cuda()) {
      const auto found = elementwise("lx_swiglu_back", SWIGLU_BACK, 2, {dy, gate, up});
      return {found[0], found[1]};
    }
    const Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
    by_kind(gate, [&](auto kind) {
      using T = decltype(kind);
      lx_gated_backward(Gated<T>{of<T>(gate), of<T>(up), of<T>(dy), nullptr, of<T>(dgate), of<T>(dup)}, gate.numel(), 1,
                        threads());
    });
    return {dgate, dup};
  }
};

struct AttentionShape {
  int64_t longest, window;
  double scale;
  bool causal;
};

template <typename T>
PackedAttention<T> attention_job(const variable_list& qkv, const Tensor& bounds, const Tensor& y, const Tensor& softmax,
                              const AttentionShape& shape) {
  PackedAttention<T> job = {};
  job.q = of<T>(qkv[0]), job.k = of<T>(qkv[1]), job.v = of<T>(qkv[2]);
  job.bounds = of<int32_t>(bounds), job.y = of<T>(y), job.softmax = f32(softmax);
  job.sequences = bounds.numel() - 1, job.longest = shape.longest, job.window = shape.window;
  job.heads = y.size(1), job.kv = qkv[1].size(1), job.d = y.size(2);
  job.scale = static_cast<float>(shape.scale), job.causal = shape.causal;
  return job;
}

struct Attention : Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bounds,
                        const AttentionShape& shape) {
    const variable_list qkv{q.contiguous(), k.contiguous(), v.contiguous()};
    const Tensor y = at::empty_like(qkv[0]), softmax = at::empty({q.size(0), q.size(1), 2}, q.options().dtype(at::kFloat));
    by_kind(q, [&](auto kind) {
      lx_attend_packed(attention_job<decltype(kind)>(qkv, bounds, y, softmax, shape), false, threads());
    });
    ctx->save_for_backward({qkv[0], qkv[1], qkv[2], bounds, y, softmax});
    ctx->saved_data["longest"] = shape.longest, ctx->saved_data["window"] = shape.window;
    ctx->saved_data["scale"] = shape.scale, ctx->saved_data["causal"] = shape.causal;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto kept = [&](const char* name) { return ctx->saved_data[name]; };
    const AttentionShape shape = {kept("longest").toInt(), kept("window").toInt(), kept("scale").toDouble(),
                                  kept("causal").toBool()};
    const variable_list qkv(saved.begin(), saved.begin() + 3);
    const Tensor dy = grads[0].contiguous();
    const Tensor dq = at::empty_like(qkv[0]), dk = at::empty_like(qkv[1]), dv = at::empty_like(qkv[2]);
    by_kind(dy, [&](auto kind) {
      using T = decltype(kind);
      PackedAttention<T> job = attention_job<T>(qkv, saved[3], saved[4], saved[5], shape);
      job.dy = of<T>(dy), job.dq = of<T>(dq), job.dk = of<T>(dk), job.dv = of<T>(dv);
      lx_attend_packed(job, true, threads());
    });
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

// What is frozen of layers that read one input; without an adapter, A and B are undefined.
struct Layers {
  variable_list weights, biases, a, b;
  std::vector<double> scales;
  std::vector<int64_t> blocks;  // rows of each of the k runs, one after another
};

// s x y, where s costs nothing.
Tensor scaled_product(const Tensor& x, const Tensor& y, double s) {
  return s == 1 ? at::mm(x, y) : at::empty({x.size(0), y.size(1)}, x.options()).addmm_(x, y, /*beta=*/0, s);
}

// Of each layer i: y_i = x W_iᵀ + b_i + s_i ((x A_iᵀ) M_iᵀ) B_iᵀ. x is [m, in]; the cores M [k, o, i] are those of the adapters alone.
//
// The layers' thin products with x are one, and so are the sums of their gradients of x: each is added to where it is computed.
struct Adapted : Function<Adapted> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const at::TensorList& cores, const Layers& layers) {
    variable_list thins;
    for (const Tensor& a : layers.a) {
      if (a.defined()) thins.push_back(a);
    }
    const Tensor a = thins.size() == 1 ? thins[0] : at::cat(thins, 0);  // [Σ i, in]
    bool halved = true;
    for (size_t i = 0; i < layers.weights.size(); ++i) halved &= halves::serve(x, layers.weights[i], layers.biases[i]);
    const bool joins = halved && a.size(0) % 8 == 0 && halves::is_even(a);
    variable_list whole = layers.weights, shifts = layers.biases, products;
    if (joins) whole.push_back(a), shifts.emplace_back();
    if (halved) products = halves::products(x, whole, shifts);
    const Tensor thin = joins ? products.back() : at::mm(x, a.t());  // [m, Σ i]
    variable_list outputs, saved{thin, a};
    const bool wide = cores[0].scalar_type() == at::kDouble;
    int64_t from = 0, adapter = 0;
    for (size_t i = 0; i < layers.weights.size(); ++i) {
      Tensor core, y = halved                       ? products[i]
                       : layers.biases[i].defined() ? at::addmm(layers.biases[i], x, layers.weights[i].t())
                                                    : at::mm(x, layers.weights[i].t());
      if (layers.a[i].defined()) {
        core = cores[adapter++].to(x.scalar_type());
        const Tensor own = thin.narrow(1, from, core.size(2));
        y.addmm_(through_each(own, core, layers.blocks), layers.b[i].t(), /*beta=*/1, layers.scales[i]);
        from += own.size(1);
      }
      outputs.push_back(y);
      saved.insert(saved.end(), {core, layers.weights[i], layers.b[i]});
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["blocks"] = layers.blocks, ctx->saved_data["scales"] = layers.scales, ctx->saved_data["wide"] = wide;
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &thin = saved[0], &a = saved[1];
    const Blocks blocks = ctx->saved_data["blocks"].toIntVector();
    const std::vector<double> scales = ctx->saved_data["scales"].toDoubleVector();
    const bool wants_x = ctx->needs_input_grad(0), wide = ctx->saved_data["wide"].toBool();
    variable_list of_cores, of_thin;
    Tensor dx;
    int64_t from = 0;
    for (size_t i = 0; i < grads.size(); ++i) {
      const Tensor &core = saved[2 + 3 * i], &weight = saved[3 + 3 * i], &b = saved[4 + 3 * i];
      const Tensor own = core.defined() ? thin.narrow(1, from, core.size(2)) : Tensor();
      if (core.defined()) {
        from += core.size(2);
        of_cores.emplace_back();
      }
      if (!grads[i].defined()) {
        if (wants_x && core.defined()) of_thin.push_back(at::zeros_like(own));
        continue;
      }
      const Tensor dy = grads[i].contiguous();
      if (core.defined()) {
        const Tensor through = scaled_product(dy, b, scales[i]);  // [m, o]
        of_cores.back() =
            wide ? wide_products_of_each(through, own, blocks) : products_of_each(through, own, blocks).to(at::kFloat);
        if (wants_x) of_thin.push_back(through_each(through, core.transpose(1, 2), blocks));
      }
      if (!wants_x) continue;
      if (halves::serve(dy, weight)) {
        dx = halves::back(dx, dy, weight);
      } else if (dx.defined()) {
        dx.addmm_(dy, weight);
      } else {
        dx = at::mm(dy, weight);
      }
    }
    if (dx.defined()) dx.addmm_(of_thin.size() == 1 ? of_thin[0] : at::cat(of_thin, 1), a);
    variable_list all{dx};
    all.insert(all.end(), of_cores.begin(), of_cores.end());
    all.emplace_back();
    return all;
  }
};

// x Wᵀ + b of a frozen layer, which halves::serve.
struct Frozen : Function<Frozen> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    ctx->save_for_backward({weight});
    return halves::products(x, {weight}, {bias.value_or(Tensor())})[0];
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor dy = grads[0].contiguous(), weight = ctx->get_saved_variables()[0];
    return {halves::serve(dy, weight) ? halves::back(Tensor(), dy, weight) : at::mm(dy, weight), Tensor(), Tensor()};
  }
};

// Attention of padded sequences on CUDA with dropout or a window, in fp32: the kernel that draws the same masks in both directions
// only where sequences have one length. q, k, v are [n, h, d]; `to` int64 [n] are their places in the flat [s·t]; `bias`
// is added to the scores, broadcast to [s, h, t, t].
struct PaddedAttention : Function<PaddedAttention> {
  // Each of `all` [n, h, d] as [s, t, h, d].
  static variable_list padded(const variable_list& all, const Tensor& to, const Tensor& bias) {
    const int64_t t = bias.size(3), s = bias.size(0), h = all[0].size(1), d = all[0].size(2), count = all.size();
    const Tensor rows = at::zeros({count, s * t, h, d}, all[0].options());
    variable_list found;
    for (int64_t i = 0; i < count; ++i) found.push_back(rows.select(0, i).index_copy_(0, to, all[i]).view({s, t, h, d}));
    return found;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& to, const Tensor& mask,
                        double dropout, double scale) {
    const Tensor bias = mask.expand({mask.size(0), q.size(1), mask.size(3), mask.size(3)});
    const variable_list qkv = padded({q, k, v}, to, bias);
    const auto [out, softmax, seed, offset, longest_q, longest_k] = at::_efficient_attention_forward(
        qkv[0], qkv[1], qkv[2], bias, std::nullopt, std::nullopt, std::nullopt, std::nullopt, dropout, /*custom_mask_type=*/0,
        /*compute_log_sumexp=*/true, scale);
    const Tensor attended = out.flatten(0, 1).index_select(0, to);
    // Without the padding, which half of a batch may be.
    ctx->save_for_backward({q, k, v, attended, bias, softmax, seed, offset, to});
    ctx->saved_data["dropout"] = dropout, ctx->saved_data["scale"] = scale;
    return attended;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &bias = saved[4], &to = saved[8];
    const int64_t t = bias.size(3);
    variable_list all = padded({saved[0], saved[1], saved[2], saved[3], grads[0]}, to, bias);
    const auto of_qkv = at::_efficient_attention_backward(
        all[4], all[0], all[1], all[2], bias, all[3], std::nullopt, std::nullopt, t, t, saved[5],
        ctx->saved_data["dropout"].toDouble(), saved[6], saved[7], /*custom_mask_type=*/0, /*bias_requires_grad=*/false,
        ctx->saved_data["scale"].toDouble());
    all.clear();
    const auto taken = [&](const Tensor& x) { return x.flatten(0, 1).index_select(0, to); };
    return {taken(std::get<0>(of_qkv)), taken(std::get<1>(of_qkv)), taken(std::get<2>(of_qkv)), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// out[0] ← y; where there is an `add`, out[1] ← x + add.
int lx_rms_norm(Tensor** out, Tensor* x, Tensor* add, Tensor* weight, double eps, int round) {
  return guarded([&] {
    const auto found = RmsNorm::apply(*x, add ? std::optional<Tensor>(*add) : std::nullopt, *weight, eps, round != 0);
    out[0] = new Tensor(found.back());
    if (add) out[1] = new Tensor(found.front());
  });
}

int lx_rotation(Tensor** out, Tensor* x, Tensor* cos, Tensor* sin) {
  return guarded([&] { *out = new Tensor(Rotation::apply(*x, *cos, *sin)); });
}

int lx_swiglu(Tensor** out, Tensor* gate, Tensor* up) {
  return guarded([&] { *out = new Tensor(Swiglu::apply(*gate, *up)); });
}

// `longest` rows in the longest sequence; window 0 = none.
int lx_attention(Tensor** out, Tensor* const* qkv, Tensor* bounds, int64_t longest, int64_t window, double scale,
                             int causal) {
  return guarded([&] {
    const AttentionShape shape = {longest, window, scale, causal != 0};
    *out = new Tensor(Attention::apply(*qkv[0], *qkv[1], *qkv[2], *bounds, shape));
  });
}

// layers: weight, bias, a, core, b of each, and their scales; without a bias or an adapter, null. blocks: rows of each run.
int lx_adapted(Tensor** out, Tensor* x, Tensor* const* layers, const double* scales, int64_t count, const int64_t* blocks, int64_t runs) {
  return guarded([&] {
    const auto given = [](const Tensor* tensor) { return tensor ? *tensor : Tensor(); };
    Layers frozen;
    frozen.blocks.assign(blocks, blocks + runs);
    frozen.scales.assign(scales, scales + count);
    variable_list cores;
    for (int64_t i = 0; i < count; ++i, layers += 5) {
      frozen.weights.push_back(*layers[0]);
      frozen.biases.push_back(given(layers[1]));
      frozen.a.push_back(given(layers[2]));
      if (layers[3]) cores.push_back(*layers[3]);
      frozen.b.push_back(given(layers[4]));
    }
    const auto found = Adapted::apply(*x, at::TensorList(cores), frozen);
    for (int64_t i = 0; i < count; ++i) out[i] = new Tensor(found[i]);
  });
}

int lx_wide(Tensor** out, Tensor* x) {
  return guarded([&] { *out = new Tensor(Wide::apply(*x)); });
}

// vectors: null if there are none. blocks: rows of each run.
int lx_through(Tensor** out, Tensor* x, Tensor* matrices, Tensor* vectors, const int64_t* blocks, int64_t runs) {
  return guarded([&] {
    const auto bias = vectors ? std::optional<Tensor>(*vectors) : std::nullopt;
    *out = new Tensor(Through::apply(*x, *matrices, bias, Blocks(blocks, blocks + runs)));
  });
}

// bias: null if there is none. blocks: rows of each of `count` blocks.
int lx_linear(Tensor** out, Tensor* x, Tensor* weight, Tensor* bias, const int64_t* blocks, int64_t count) {
  return guarded([&] {
    const auto own = bias ? std::optional<Tensor>(*bias) : std::nullopt;
    *out = new Tensor(Linear::apply(*x, *weight, own, Blocks(blocks, blocks + count)));
  });
}

// out ← null where the tensor cores do not serve.
int lx_frozen_linear(Tensor** out, Tensor* x, Tensor* weight, Tensor* bias) {
  return guarded([&] {
    const auto own = bias ? std::optional<Tensor>(*bias) : std::nullopt;
    const bool serves = halves::serve(*x, *weight, own.value_or(Tensor()));
    *out = serves ? new Tensor(Frozen::apply(*x, *weight, own)) : nullptr;
  });
}

int lx_look_up(Tensor** out, Tensor* table, Tensor* ids, int64_t padding) {
  return guarded([&] { *out = new Tensor(LookUp::apply(*table, *ids, padding)); });
}

int lx_layer_norm(Tensor** out, Tensor* x, Tensor* weight, Tensor* bias, double eps) {
  return guarded([&] { *out = new Tensor(LayerNorm::apply(*x, *weight, *bias, eps)); });
}

int lx_scaled(Tensor** out, Tensor* x, Tensor* weight, double offset) {
  return guarded([&] { *out = new Tensor(Scaled::apply(*x, *weight, offset)); });
}

// qkv of a run's tokens; `to` and `mask` as PaddedAttention takes them.
int lx_padded_attention(Tensor** out, Tensor* const* qkv, Tensor* to, Tensor* mask, double dropout, double scale) {
  return guarded([&] { *out = new Tensor(PaddedAttention::apply(*qkv[0], *qkv[1], *qkv[2], *to, *mask, dropout, scale)); });
}

// The losses of rows of logits, which become the gradients of weight · loss.
int lx_softmax_loss(Tensor* logits, Tensor* targets, Tensor* weights, Tensor* losses) {
  return guarded([&] {
    const int64_t rows = logits->size(0), v = logits->size(1);
    by_kind(*logits, [&](auto kind) {
      using T = decltype(kind);
      lx_entropy(Entropy<T>{of<T>(*logits), static_cast<int64_t*>(targets->data_ptr()), f32(*weights), f32(*losses), v}, rows,
                 v, threads());
    });
  });
}
}
