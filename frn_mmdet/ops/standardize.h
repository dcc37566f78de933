// Weight standardization for a CPU: forward reads the weight and writes the
// result, backward reads the weight and the gradient and writes one gradient.
//
// A filter fits in the nearest cache: to go over it again costs little beside
// memory. So backward computes the statistics anew, and nothing is kept but
// the weight, which is there anyway.

#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "blocks.h"

namespace {

// In the place of a deviation of 0. Any number will do: it divides 0.
constexpr double kTiny = 1e-30;

// Filters in memory one after the other; the order within does not matter.
struct Filters {
  int64_t count, size;
  explicit Filters(const Tensor& weight)
      : count(weight.size(0)), size(weight.numel() / count) {}

  double deviation(double squares) const {
    return std::max(std::sqrt(squares / (size - 1)), kTiny);
  }

  // f(first element) for every filter. make() gives each thread an f.
  template <typename F>
  void for_each(const F& make) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / size);
    at::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      auto f = make();
      for (int64_t filter = first; filter < last; ++filter) {
        f(filter * size);
      }
    });
  }
};

template <typename T, typename A>
void forward_filters(const T* weight, T* out, double eps, Filters filters) {
  filters.for_each([&] {
    return [&, read = Reader<T, A>(),
            writer = Writer<T, A>()](int64_t at) mutable {
      double total = 0;
      for_blocks(filters.size, [&](int64_t begin, int64_t n) {
        const A* w = read(weight + at + begin, n);
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
          sum += w[i];
        }
        total += sum;
      });
      const A mean = total / filters.size;
      double squares = 0;
      for_blocks(filters.size, [&](int64_t begin, int64_t n) {
        const A* w = read(weight + at + begin, n);
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
          const A centred = w[i] - mean;
          sum += centred * centred;
        }
        squares += sum;
      });
      const A scale = 1 / (filters.deviation(squares) + eps);
      for_blocks(filters.size, [&](int64_t begin, int64_t n) {
        const A* w = read(weight + at + begin, n);
        A* y = writer.place(out + at + begin);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          y[i] = (w[i] - mean) * scale;
        }
        writer.write(out + at + begin, n);
      });
    };
  });
}

// dw = (dy - mean(dy)) / (std + eps)
//      - (w - mean(w)) <dy - mean(dy), w - mean(w)>
//        / ((std + eps)^2 (size - 1) std)
template <typename T, typename A>
void backward_filters(const T* dy, const T* weight, T* dw, double eps,
                      Filters filters) {
  filters.for_each([&] {
    return [&, read = Reader<T, A>(), read_grad = Reader<T, A>(),
            writer = Writer<T, A>()](int64_t at) mutable {
      double total = 0, total_grad = 0;
      for_blocks(filters.size, [&](int64_t begin, int64_t n) {
        const A* w = read(weight + at + begin, n);
        const A* g = read_grad(dy + at + begin, n);
        A sum = 0, sum_grad = 0;
#pragma omp simd reduction(+ : sum, sum_grad)
        for (int64_t i = 0; i < n; ++i) {
          sum += w[i];
          sum_grad += g[i];
        }
        total += sum;
        total_grad += sum_grad;
      });
      const A mean = total / filters.size;
      const A mean_grad = total_grad / filters.size;
      double squares = 0, dot = 0;
      for_blocks(filters.size, [&](int64_t begin, int64_t n) {
        const A* w = read(weight + at + begin, n);
        const A* g = read_grad(dy + at + begin, n);
        A sum = 0, sum_grad = 0;
#pragma omp simd reduction(+ : sum, sum_grad)
        for (int64_t i = 0; i < n; ++i) {
          const A centred = w[i] - mean;
          sum += centred * centred;
          sum_grad += centred * (g[i] - mean_grad);
        }
        squares += sum;
        dot += sum_grad;
      });
      const double deviation = filters.deviation(squares);
      const double scaled = 1 / (deviation + eps);
      const A scale = scaled;
      const A pull = dot * scaled * scaled / ((filters.size - 1) * deviation);
      for_blocks(filters.size, [&](int64_t begin, int64_t n) {
        const A* w = read(weight + at + begin, n);
        const A* g = read_grad(dy + at + begin, n);
        A* d = writer.place(dw + at + begin);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          d[i] = (g[i] - mean_grad) * scale - (w[i] - mean) * pull;
        }
        writer.write(dw + at + begin, n);
      });
    };
  });
}

// The operators below autograd.

Tensor standardize(const Tensor& weight, double eps) {
  const auto format = format_of(weight);
  const Tensor from = weight.contiguous(format);
  const Tensor out = at::empty_like(from, from.options(), format);
  if (weight.numel() == 0) {
    return out;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, weight.scalar_type(), "standardize", [&] {
        forward_filters<scalar_t, at::opmath_type<scalar_t>>(
            from.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(),
            eps, Filters(weight));
      });
  return out;
}

Tensor standardize_backward(const Tensor& grad, const Tensor& weight,
                            double eps) {
  const auto format = format_of(weight);
  const Tensor from = weight.contiguous(format), dy = grad.contiguous(format);
  const Tensor dw = at::empty_like(from, from.options(), format);
  if (weight.numel() == 0) {
    return dw;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, weight.scalar_type(), "standardize_backward",
      [&] {
        backward_filters<scalar_t, at::opmath_type<scalar_t>>(
            dy.const_data_ptr<scalar_t>(), from.const_data_ptr<scalar_t>(),
            dw.mutable_data_ptr<scalar_t>(), eps, Filters(weight));
      });
  return dw;
}

// As those of autograd.h.
class StandardizeAutograd
    : public torch::autograd::Function<StandardizeAutograd> {
 public:
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  static Tensor forward(Context* ctx, const Tensor& weight, double eps) {
    static const auto op =
        operator_of<decltype(standardize)>("frn_mmdet::standardize");
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({weight});
    ctx->saved_data["eps"] = eps;
    return op.call(weight, eps);
  }

  static Tensors backward(Context* ctx, const Tensors& grads) {
    static const auto op = operator_of<decltype(standardize_backward)>(
        "frn_mmdet::standardize_backward");
    const Tensor weight = ctx->get_saved_variables()[0];
    const double eps = ctx->saved_data["eps"].toDouble();
    if (at::GradMode::is_enabled()) {  // somebody differentiates this
      return {op.call(grads[0], weight, eps), Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView below;
    return {op.call(grads[0], weight, eps), Tensor()};
  }
};

Tensor standardize_autograd(const Tensor& weight, double eps) {
  return StandardizeAutograd::apply(weight, eps);
}

}  // namespace
