// What stands between PyTorch and the kernels of FRN and TLU: their gradients,
// on a CPU and on a GPU (autograd.h), and the launches on a GPU (launch.h).
// Kernels keep a GPU for some microseconds at the small batches FRN is for;
// the same in Python takes longer than that.
//
// Compiled on first use by build.py, and needs nothing of CUDA to be.

#include <torch/library.h>

#include <atomic>
#include <exception>
#include <string_view>

#include "autograd.h"
#include "launch.h"
#include "operators.h"

namespace {

enum Operation {
  kFrn,
  kFrnBackward,
  kTlu,
  kTluBackward,
  kGrouped,
  kGroupedBackward
};

Plans plans;
std::atomic<bool> is_on = false;  // set by cuda_host.py

at::ScalarType compute_dtype(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <typename... T>
std::vector<Tensor> list_of(const std::tuple<T...>& results) {
  return std::apply(
      [](const T&... each) { return std::vector<Tensor>{each...}; }, results);
}

// Results of an operator by its plan. There is none for tensors that are the
// first of their kind: then Python launches, and tells what; C++ launches the
// same, and if the results are the same, too, there is one.
template <typename Launching, typename ByPython>
auto run(const Key& key, const Launching& launch, const ByPython& by_python) {
  static const auto record =
      operator_of<std::vector<int64_t>(bool)>("frn_mmdet::record");
  static const auto agree =
      operator_of<bool(at::TensorList, at::TensorList, at::IntArrayRef,
                       std::string_view)>("frn_mmdet::agree");
  if (const auto plan = plans.find(key)) {
    return launch(*plan);
  }
  record.call(true);
  const auto expected = [&] {
    try {
      return by_python();
    } catch (...) {
      record.call(false);
      throw;
    }
  }();
  const auto numbers = record.call(false);
  if (numbers.empty()) {  // not now
    return expected;
  }
  const Plan plan(numbers);
  std::vector<Tensor> results;
  std::string error;
  try {
    results = list_of(launch(plan));
  } catch (const std::exception& e) {
    error = e.what();
  }
  if (agree.call(results, list_of(expected), numbers, error)) {
    plans.put(key, plan);
  }
  return expected;
}

// Where there is none, its place is taken by one that is not read.
Tensor contiguous(const Optional& value, const Tensor& other) {
  return value ? value->contiguous() : other;
}

FrnOutputs frn(const Tensor& x0, const Tensor& weight0, const Tensor& bias0,
               const Optional& tau0, const Optional& eps0, double unit,
               const Optional& mean0, double share) {
  static const auto python = operator_of<FrnForward>("frn_mmdet::frn_python");
  check_frn(x0, weight0, bias0, tau0, eps0, mean0);
  const auto by_python = [&] {
    return python.call(x0, weight0, bias0, tau0, eps0, unit, mean0, share);
  };
  if (!is_on || x0.numel() == 0) {
    return by_python();
  }
  const auto format = format_of(x0);
  const Gpu gpu(x0);
  const Tensor none, x = x0.contiguous(format);
  const Tensor weight = weight0.contiguous(), bias = bias0.contiguous();
  const Tensor tau = contiguous(tau0, weight), eps = contiguous(eps0, weight);
  const Tensor mean = contiguous(mean0, weight);
  const Map map(x);
  const Key key(kFrn, x, map.images, map.channels, map.size, format != at::MemoryFormat::Contiguous,
                {&x, &weight, &bias, tau0 ? &tau : &none,
                 eps0 ? &eps : &none, mean0 ? &mean : &none});
  const auto launch = [&](const Plan& plan) -> FrnOutputs {
    const auto dtype = compute_dtype(x);
    const Tensor y = gpu.empty(x.sizes(), x.scalar_type(), format);
    const Tensor inv = gpu.empty({map.images, map.channels}, dtype);
    const auto scratch = gpu.scratch(plan, dtype);
    // In the place of what is not read: as Python does, of the same dtype.
    const void* words = plan.words ? scratch.words : x.const_data_ptr();
    const void* sums = plan.sums ? scratch.sums : inv.const_data_ptr();
    if (plan.launches.size() == 2) {
      plan.launches[0]({x.const_data_ptr(), mean.const_data_ptr(), sums}, {},
                       gpu.stream);
    }
    plan.launches.back()(
        {x.const_data_ptr(), weight.const_data_ptr(), bias.const_data_ptr(),
         tau.const_data_ptr(), eps.const_data_ptr(), mean.const_data_ptr(),
         sums, words, y.data_ptr(), inv.data_ptr()},
        {unit, share}, gpu.stream);
    return {y, inv};
  };
  return run(key, launch, by_python);
}

FrnGradients frn_backward(const Tensor& grad0, const Tensor& x0,
                          const Tensor& inv, const Tensor& weight0,
                          const Tensor& bias0, const Optional& tau0,
                          const Optional& eps0, double unit,
                          const Optional& mean0, double share) {
  static const auto python =
      operator_of<FrnBackward>("frn_mmdet::frn_backward_python");
  const auto by_python = [&] {
    return python.call(grad0, x0, inv, weight0, bias0, tau0, eps0, unit,
                       mean0, share);
  };
  if (!is_on || x0.numel() == 0) {
    return by_python();
  }
  const auto format = format_of(x0);
  const Gpu gpu(x0);
  const Tensor none, x = x0.contiguous(format);
  const Tensor grad = grad0.contiguous(format);
  const Tensor weight = weight0.contiguous(), bias = bias0.contiguous();
  const Tensor tau = contiguous(tau0, weight);
  const Tensor mean = contiguous(mean0, weight);
  const Map map(x);
  const Key key(kFrnBackward, x, map.images, map.channels, map.size,
                format != at::MemoryFormat::Contiguous,
                {&grad, &x, &inv, &weight, &bias, tau0 ? &tau : &none,
                 eps0 ? &*eps0 : &none, mean0 ? &mean : &none});
  const auto launch = [&](const Plan& plan) -> FrnGradients {
    const auto dtype = compute_dtype(x);
    const Tensor dx = gpu.empty(x.sizes(), x.scalar_type(), format);
    Tensor out[4];  // of weight, bias, tau and eps, per channel
    for (Tensor& o : out) {
      o = gpu.empty({map.channels}, dtype);
    }
    const auto scratch = gpu.scratch(plan, dtype);
    const void* words = plan.words ? scratch.words : x.const_data_ptr();
    if (plan.launches.size() == 3) {
      plan.launches[0](
          {grad.const_data_ptr(), x.const_data_ptr(), inv.const_data_ptr(),
           weight.const_data_ptr(), bias.const_data_ptr(),
           tau.const_data_ptr(), mean.const_data_ptr(), scratch.sums},
          {}, gpu.stream);
    }
    plan.launches.end()[-2](
        {grad.const_data_ptr(), x.const_data_ptr(), inv.const_data_ptr(),
         weight.const_data_ptr(), bias.const_data_ptr(),
         tau.const_data_ptr(), mean.const_data_ptr(), scratch.sums, words,
         dx.data_ptr()},
        {share}, gpu.stream);
    plan.launches.back()(
        {scratch.sums, inv.const_data_ptr(), weight.const_data_ptr(),
         out[0].data_ptr(), out[1].data_ptr(), out[2].data_ptr(),
         out[3].data_ptr()},
        {}, gpu.stream);
    return {dx, out[0], out[1], out[2], out[3]};
  };
  return run(key, launch, by_python);
}

TluOutputs tlu(const Tensor& x0, const Tensor& tau0) {
  static const auto python = operator_of<TluForward>("frn_mmdet::tlu_python");
  check_tlu(x0, tau0);
  const auto by_python = [&] { return python.call(x0, tau0); };
  if (!is_on || x0.numel() == 0) {
    return by_python();
  }
  const auto format = format_of(x0);
  const Gpu gpu(x0);
  const Tensor x = x0.contiguous(format), tau = thresholds(x0, tau0);
  const Units units(x, is_last(x));
  const Key key(kTlu, x, units.count, units.length, x.size(1), units.last,
                {&x, &tau});
  const auto launch = [&](const Plan& plan) -> TluOutputs {
    const Tensor z = gpu.empty(x.sizes(), x.scalar_type(), format);
    const Tensor bits = gpu.empty({units.count, units.bytes}, at::kByte);
    plan.launches[0]({x.const_data_ptr(), tau.const_data_ptr(), z.data_ptr(),
                      bits.data_ptr()},
                     {}, gpu.stream);
    return {z, bits};
  };
  return run(key, launch, by_python);
}

TluGradients tlu_backward(const Tensor& grad0, const Tensor& bits,
                          bool last) {
  static const auto python =
      operator_of<TluBackward>("frn_mmdet::tlu_backward_python");
  const auto by_python = [&] { return python.call(grad0, bits, last); };
  if (!is_on || grad0.numel() == 0) {
    return by_python();
  }
  const auto format = format_of(grad0.dim(), last);
  const Gpu gpu(grad0);
  const Tensor grad = grad0.contiguous(format);
  const Units units(grad, last);
  const Key key(kTluBackward, grad, units.count, units.length, grad.size(1),
                last, {&grad, &bits});
  const auto launch = [&](const Plan& plan) -> TluGradients {
    const Tensor dx = gpu.empty(grad.sizes(), grad.scalar_type(), format);
    const Tensor dtau = gpu.empty({grad.size(1)}, grad.scalar_type());
    const auto scratch = gpu.scratch(plan, compute_dtype(grad));
    plan.launches[0]({grad.const_data_ptr(), bits.const_data_ptr(),
                      dx.data_ptr(), scratch.sums},
                     {}, gpu.stream);
    plan.launches[1]({scratch.sums, dtau.data_ptr()}, {}, gpu.stream);
    return {dx, dtau};
  };
  return run(key, launch, by_python);
}

// Numbers that launches of a call share, one kind after the other.
void* behind(void* numbers, int64_t count, at::ScalarType dtype) {
  return static_cast<char*>(numbers) + count * c10::elementSize(dtype);
}

GroupedOutputs grouped(const Tensor& x0, const Tensor& weight0,
                       const Tensor& bias0, const Tensor& mean0,
                       const Tensor& var0, int64_t groups, double eps,
                       double share, bool centred) {
  static const auto python =
      operator_of<GroupedForward>("frn_mmdet::grouped_python");
  check_grouped(x0, weight0, bias0, mean0, var0, groups);
  const auto by_python = [&] {
    return python.call(x0, weight0, bias0, mean0, var0, groups, eps, share,
                       centred);
  };
  if (!is_on) {
    return by_python();
  }
  const auto format = format_of(x0);
  const Gpu gpu(x0);
  const Tensor x = x0.contiguous(format);
  const Tensor weight = weight0.contiguous(), bias = bias0.contiguous();
  const Tensor mean = mean0.contiguous(), var = var0.contiguous();
  const Map map(x);
  const Key key(kGrouped, x, map.images, map.channels, map.size,
                format != at::MemoryFormat::Contiguous,
                {&x, &weight, &bias, &mean, &var}, groups, centred);
  const auto launch = [&](const Plan& plan) -> GroupedOutputs {
    const auto dtype = compute_dtype(x);
    const Tensor y = gpu.empty(x.sizes(), x.scalar_type(), format);
    const Tensor means = gpu.empty({map.images, groups}, dtype);
    const Tensor roots = gpu.empty({map.images, groups}, dtype);
    const auto scratch = gpu.scratch(plan, dtype);
    const void* lines =
        behind(scratch.sums, plan.sums - 2 * map.rows(), dtype);
    plan.launches[0](
        {x.const_data_ptr(), x.const_data_ptr(), scratch.sums}, {},
        gpu.stream);
    plan.launches[1](
        {scratch.sums, weight.const_data_ptr(), bias.const_data_ptr(),
         mean.const_data_ptr(), var.const_data_ptr(), means.data_ptr(),
         roots.data_ptr(), lines},
        {eps, share}, gpu.stream);
    plan.launches[2]({x.const_data_ptr(), x.const_data_ptr(),
                      mean.const_data_ptr(), lines, y.data_ptr()},
                     {}, gpu.stream);
    return {y, means, roots};
  };
  return run(key, launch, by_python);
}

GroupedGradients grouped_backward(const Tensor& grad0, const Tensor& x0,
                                  const Tensor& means, const Tensor& roots,
                                  const Tensor& weight0, const Tensor& mean0,
                                  const Tensor& var0, int64_t groups,
                                  double share, bool centred) {
  static const auto python =
      operator_of<GroupedBackward>("frn_mmdet::grouped_backward_python");
  check_grouped(x0, weight0, weight0, mean0, var0, groups);
  check_grouped_backward(grad0, x0, means, roots, groups);
  const auto by_python = [&] {
    return python.call(grad0, x0, means, roots, weight0, mean0, var0, groups,
                       share, centred);
  };
  if (!is_on) {
    return by_python();
  }
  const auto format = format_of(x0);
  const Gpu gpu(x0);
  const Tensor x = x0.contiguous(format), grad = grad0.contiguous(format);
  const Tensor weight = weight0.contiguous();
  const Tensor mean = mean0.contiguous(), var = var0.contiguous();
  const Map map(x);
  const Key key(kGroupedBackward, x, map.images, map.channels, map.size,
                format != at::MemoryFormat::Contiguous,
                {&grad, &x, &means, &roots, &weight, &mean, &var}, groups,
                centred);
  const auto launch = [&](const Plan& plan) -> GroupedGradients {
    const auto dtype = compute_dtype(x);
    const Tensor dx = gpu.empty(x.sizes(), x.scalar_type(), format);
    const Tensor of_parameters = gpu.empty({2, map.channels}, dtype);
    const auto scratch = gpu.scratch(plan, dtype);
    const void* lines =
        behind(scratch.sums, plan.sums - 5 * map.rows(), dtype);
    const void* parts =
        behind(scratch.sums, plan.sums - 2 * map.rows(), dtype);
    plan.launches[0](
        {grad.const_data_ptr(), x.const_data_ptr(), scratch.sums}, {},
        gpu.stream);
    plan.launches[1](
        {scratch.sums, weight.const_data_ptr(), mean.const_data_ptr(),
         var.const_data_ptr(), means.const_data_ptr(),
         roots.const_data_ptr(), lines, parts},
        {share}, gpu.stream);
    plan.launches[2]({grad.const_data_ptr(), x.const_data_ptr(),
                      mean.const_data_ptr(), lines, dx.data_ptr()},
                     {}, gpu.stream);
    plan.launches[3]({parts, of_parameters.data_ptr()}, {}, gpu.stream);
    return {dx, of_parameters.select(0, 0), of_parameters.select(0, 1)};
  };
  return run(key, launch, by_python);
}

void launch_in_cpp(bool on) { is_on = on; }

std::string why_no_driver() {
  return kHasHandle<c10::Stream> ? Driver::get().reason()
                                 : "this PyTorch does not give its streams";
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(frn_mmdet, m) {
  m.def("launch_in_cpp(bool on) -> ()", launch_in_cpp);
  m.def("why_no_driver() -> str", why_no_driver);
}

TORCH_LIBRARY_IMPL(frn_mmdet, CUDA, m) {
  m.impl("frn", frn);
  m.impl("frn_backward", frn_backward);
  m.impl("tlu", tlu);
  m.impl("tlu_backward", tlu_backward);
  m.impl("grouped", grouped);
  m.impl("grouped_backward", grouped_backward);
}

TORCH_LIBRARY_IMPL(frn_mmdet, AutogradCPU, m) {
  m.impl("frn", frn_autograd);
  m.impl("tlu", tlu_autograd);
}

TORCH_LIBRARY_IMPL(frn_mmdet, AutogradCUDA, m) {
  m.impl("frn", frn_autograd);
  m.impl("tlu", tlu_autograd);
}
