// The gradients of FRN and TLU, on a CPU and on a GPU: which operator computes
// them and what it needs. In C++, since the Python around a small map would
// take longer than the map; library.py has the same where there is no
// compiler. Second derivatives are Python's: library.py.

#pragma once

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "operators.h"

namespace {

using Context = torch::autograd::AutogradContext;
using Tensors = torch::autograd::variable_list;

Optional optional(const Tensor& tensor) {
  return tensor.defined() ? Optional(tensor) : std::nullopt;
}

// Calls an operator: as it is where somebody differentiates the call, else
// below autograd.
template <typename Call>
auto call_plainly(const Call& call) {
  if (at::GradMode::is_enabled()) {
    return call();
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call();
}

Tensor in_dtype(const Tensor& value, at::ScalarType dtype) {
  return value.scalar_type() == dtype ? value : value.to(dtype);
}

const auto& frn_operator() {
  static const auto op = operator_of<FrnForward>("frn_mmdet::frn");
  return op;
}

class Frn : public torch::autograd::Function<Frn> {
 public:
  static Tensors forward(Context* ctx, const Tensor& x, const Tensor& weight,
                         const Tensor& bias, const Optional& tau,
                         const Optional& eps_tensor, double eps,
                         const Optional& mean, double share) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, inv] = frn_operator().call(x, weight, bias, tau, eps_tensor, eps,
                                        mean, share);
    ctx->save_for_backward({x, inv, weight, bias, tau.value_or(Tensor()),
                            eps_tensor.value_or(Tensor()),
                            mean.value_or(Tensor())});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["share"] = share;
    ctx->mark_non_differentiable({inv});
    ctx->set_materialize_grads(false);  // or inv gets a map of zeros
    return {y, inv};
  }

  static Tensors backward(Context* ctx, const Tensors& grads) {
    static const auto op =
        operator_of<FrnBackward>("frn_mmdet::frn_backward");
    Tensors result(8);
    if (!grads[0].defined()) {
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[2], &bias = saved[3];
    const Optional tau = optional(saved[4]), eps = optional(saved[5]);
    const double unit = ctx->saved_data["eps"].toDouble();
    const auto [dx, dweight, dbias, dtau, deps] = call_plainly([&] {
      return op.call(grads[0], x, saved[1], weight, bias, tau, eps, unit,
                     optional(saved[6]),
                     ctx->saved_data["share"].toDouble());
    });
    size_t edge = 0;  // counts the tensors among the arguments
    const auto put = [&](size_t argument, const Tensor& grad,
                         const Tensor& like) {
      if (ctx->needs_input_grad(edge++)) {
        result[argument] = in_dtype(grad, like.scalar_type());
      }
    };
    put(0, dx, x);
    put(1, dweight, weight);
    put(2, dbias, bias);
    if (tau) {
      put(3, dtau, *tau);
    }
    if (eps && ctx->needs_input_grad(edge)) {
      // symbolic, for torch.compile with dynamic shapes
      const Tensor scaled = unit == 1 ? deps : deps.mul(unit);
      put(4, eps->sym_numel() == 1 ? scaled.sum().view({1}) : scaled, *eps);
    }
    return result;
  }
};

FrnOutputs frn_autograd(const Tensor& x, const Tensor& weight,
                        const Tensor& bias, const Optional& tau,
                        const Optional& eps_tensor, double eps,
                        const Optional& mean, double share) {
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return frn_operator().call(x, weight, bias, tau, eps_tensor, eps, mean,
                               share);
  }
  const auto out =
      Frn::apply(x, weight, bias, tau, eps_tensor, eps, mean, share);
  return {out[0], out[1]};
}

const auto& tlu_operator() {
  static const auto op = operator_of<TluForward>("frn_mmdet::tlu");
  return op;
}

class Tlu : public torch::autograd::Function<Tlu> {
 public:
  static Tensors forward(Context* ctx, const Tensor& x, const Tensor& tau) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [z, bits] = tlu_operator().call(x, tau);
    ctx->save_for_backward({bits});
    ctx->saved_data["last"] = is_last(x);
    ctx->saved_data["dtype"] = static_cast<int64_t>(tau.scalar_type());
    ctx->saved_data["shared"] = tau.sym_size(0) != x.sym_size(1);
    ctx->mark_non_differentiable({bits});
    ctx->set_materialize_grads(false);
    return {z, bits};
  }

  static Tensors backward(Context* ctx, const Tensors& grads) {
    static const auto op =
        operator_of<TluBackward>("frn_mmdet::tlu_backward");
    if (!grads[0].defined()) {
      return Tensors(2);
    }
    // Before the call: of a checkpoint, this runs forward again.
    const Tensor bits = ctx->get_saved_variables()[0];
    auto& data = ctx->saved_data;
    auto [dx, dtau] = call_plainly(
        [&] { return op.call(grads[0], bits, data["last"].toBool()); });
    if (!ctx->needs_input_grad(1)) {
      return {dx, Tensor()};
    }
    if (data["shared"].toBool()) {  // by all channels
      dtau = dtau.sum().view({1});
    }
    return {dx, in_dtype(dtau, static_cast<at::ScalarType>(
                                   data["dtype"].toInt()))};
  }
};

TluOutputs tlu_autograd(const Tensor& x, const Tensor& tau) {
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return tlu_operator().call(x, tau);
  }
  const auto out = Tlu::apply(x, tau);
  return {out[0], out[1]};
}

}  // namespace
