// How the operators of library.py look from C++, and in which memory format
// they work.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

using FrnOutputs = std::tuple<Tensor, Tensor>;
using FrnGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using TluOutputs = std::tuple<Tensor, Tensor>;
using TluGradients = std::tuple<Tensor, Tensor>;

using FrnForward = FrnOutputs(const Tensor& x, const Tensor& weight,
                              const Tensor& bias, const Optional& tau,
                              const Optional& eps_tensor, double eps,
                              const Optional& mean, double share);
using FrnBackward = FrnGradients(const Tensor& grad, const Tensor& x,
                                 const Tensor& inv, const Tensor& weight,
                                 const Tensor& bias, const Optional& tau,
                                 const Optional& eps_tensor, double eps,
                                 const Optional& mean, double share);
using TluForward = TluOutputs(const Tensor& x, const Tensor& tau);
using TluBackward = TluGradients(const Tensor& grad, const Tensor& bits,
                                 bool last);

using GroupedOutputs = std::tuple<Tensor, Tensor, Tensor>;
using GroupedGradients = std::tuple<Tensor, Tensor, Tensor>;
using GroupedForward = GroupedOutputs(
    const Tensor& x, const Tensor& weight, const Tensor& bias,
    const Tensor& mean, const Tensor& var, int64_t groups, double eps,
    double share, bool centred);
using GroupedBackward = GroupedGradients(
    const Tensor& grad, const Tensor& x, const Tensor& means,
    const Tensor& roots, const Tensor& weight, const Tensor& mean,
    const Tensor& var, int64_t groups, double share, bool centred);

template <typename F>
auto operator_of(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<F>();
}

bool is_float(const Tensor& t) {
  const auto dtype = t.scalar_type();
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 ||
         dtype == at::kDouble;
}

bool is_parameter(const Tensor& t, const Tensor& x) {
  return t.dim() == 1 && is_float(t) && t.device() == x.device();
}

// Refuses what check.py refuses, which then says what is wrong.
void check_frn(const Tensor& x, const Tensor& weight, const Tensor& bias,
               const Optional& tau, const Optional& eps,
               const Optional& mean) {
  const auto fits = [&](const Tensor& t) {
    return is_parameter(t, x) && t.size(0) == x.size(1);
  };
  TORCH_CHECK(
      x.dim() >= 3 && x.dim() <= 5 && is_float(x) && fits(weight) &&
          fits(bias) && (!tau || fits(*tau)) &&
          (!eps || fits(*eps) || (is_parameter(*eps, x) && eps->size(0) == 1)) &&
          (!mean || (fits(*mean) && !mean->requires_grad())),
      "FRN: the parameters do not fit the input");
}

void check_tlu(const Tensor& x, const Tensor& tau) {
  TORCH_CHECK(x.dim() >= 2 && x.dim() <= 5 && is_float(x) &&
                  is_parameter(tau, x) &&
                  (tau.size(0) == 1 || tau.size(0) == x.size(1)),
              "TLU: the threshold does not fit the input");
}

// grouped.py refuses the same, in a sentence; an empty map is not for here.
void check_grouped(const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const Tensor& mean, const Tensor& var, int64_t groups) {
  const auto fits = [&](const Tensor& t) {
    return is_parameter(t, x) && t.size(0) == x.size(1);
  };
  TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5 && is_float(x) && x.numel() > 0 &&
                  fits(weight) && fits(bias) && fits(mean) && fits(var) &&
                  groups > 0 && x.size(1) % groups == 0,
              "grouped: arguments do not fit");
}

void check_grouped_backward(const Tensor& grad, const Tensor& x,
                            const Tensor& means, const Tensor& roots,
                            int64_t groups) {
  TORCH_CHECK(grad.sizes() == x.sizes() &&
                  grad.scalar_type() == x.scalar_type() &&
                  means.numel() == x.size(0) * groups &&
                  roots.numel() == means.numel(),
              "grouped_backward: arguments do not fit");
}

// channels_last or not, for a number of dimensions.
at::MemoryFormat format_of(int64_t dim, bool last) {
  return !last || dim < 4 ? at::MemoryFormat::Contiguous
         : dim == 4       ? at::MemoryFormat::ChannelsLast
                          : at::MemoryFormat::ChannelsLast3d;
}

// Also stated in library.py, for the fake tensors of torch.compile.
at::MemoryFormat format_of(const Tensor& x) {
  const auto last = format_of(x.dim(), true);
  const bool is_last =
      x.dim() >= 4 && !x.is_contiguous() && x.is_contiguous(last);
  return is_last ? last : at::MemoryFormat::Contiguous;
}

// Whether the channels of a position lie together in memory.
bool is_last(const Tensor& x) {
  return x.dim() == 2 || format_of(x) != at::MemoryFormat::Contiguous;
}

// (N, C, *spatial) as the loops see it.
struct Map {
  int64_t images, channels, size;
  explicit Map(const Tensor& x)
      : images(x.size(0)),
        channels(x.size(1)),
        size(c10::multiply_integers(x.sizes().begin() + 2,
                                    x.sizes().end())) {}
  int64_t rows() const { return images * channels; }
};

// The TLU's units lie in memory one after the other: rows, whose elements
// share a threshold, or in channels_last (and without positions) pixels,
// whose elements have one each. A bit for each element is kept in bytes.
struct Units {
  int64_t count, length, bytes;
  bool last;
  Units(const Tensor& x, bool last) : last(last) {
    const Map map(x);
    count = map.images * (last ? map.size : map.channels);
    length = last ? map.channels : map.size;
    bytes = (length + 7) / 8;
  }
};

// tau as the TLU's kernels take it: in the dtype of x, one for each channel.
Tensor thresholds(const Tensor& x, const Tensor& tau) {
  Tensor limit = tau;
  if (limit.scalar_type() != x.scalar_type()) {
    limit = limit.to(x.scalar_type());
  }
  if (limit.size(0) != x.size(1)) {
    limit = limit.expand({x.size(1)});
  }
  return limit.contiguous();
}

}  // namespace
