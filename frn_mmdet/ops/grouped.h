// Group normalisation that goes on from other statistics, for a CPU: see
// grouped.py. Forward reads the map for its sums and again for the result,
// backward the map and the gradient likewise; between them a few numbers a
// row say what each is multiplied by.

#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "blocks.h"

namespace {

// Which norm, and the map in groups of channels.
struct Groups {
  int64_t count, each;  // groups of an image, channels of a group
  double eps, share;
  bool centred;
  Groups(const Map& map, int64_t groups, double eps, double share,
         bool centred)
      : count(groups),
        each(map.channels / groups),
        eps(eps),
        share(share),
        centred(centred) {}
};

// For each row: what x - mean, dy and 1 are multiplied by.
template <typename A>
struct Line {
  std::vector<A> x, grad, one;
  explicit Line(int64_t rows) : x(rows), grad(rows), one(rows) {}
};

// Of a row, with d = x - pivot: the sums of d and d * d, or of dy and dy * d.
// The pivot is the first element of the row: a variance by a difference needs
// one that is near, and the reference may be far.
struct RowSums {
  double pivot = 0, first = 0, second = 0;
};

template <typename T, typename A, bool kGrad>
void sum_rows(const T* x, const T* dy, RowSums* sums, Map map) {
  const int64_t grain = std::max<int64_t>(1, kGrain / map.size);
  at::parallel_for(0, map.rows(), grain, [&](int64_t begin, int64_t end) {
    Reader<T, A> read, read_grad;
    for (int64_t row = begin; row < end; ++row) {
      const A pivot = static_cast<A>(x[row * map.size]);
      RowSums total{pivot};
      for_blocks(map.size, [&](int64_t at, int64_t n) {
        const A* value = read(x + row * map.size + at, n);
        const A* grad =
            kGrad ? read_grad(dy + row * map.size + at, n) : value;
        A first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
        for (int64_t i = 0; i < n; ++i) {
          const A d = value[i] - pivot;
          const A g = kGrad ? grad[i] : d;
          first += g;
          second += g * d;
        }
        total.first += first;
        total.second += second;
      });
      sums[row] = total;
    }
  });
}

template <typename T, typename A, bool kGrad>
void sum_last(const T* x, const T* dy, RowSums* sums, Map map) {
  const Strips strips(map);
  const int64_t channels = map.channels;
  std::vector<A> pivots(map.rows());
  for (int64_t row = 0; row < map.rows(); ++row) {
    const int64_t image = row / channels;
    pivots[row] = static_cast<A>(x[image * map.size * channels +
                                   row % channels]);
    sums[row].pivot = pivots[row];
  }
  std::vector<A> partial(strips.count * 2 * channels);
  strips.for_each(map, [&] {
    return [&, read = Reader<T, A>(), read_grad = Reader<T, A>()](
               int64_t strip, int64_t image, int64_t at, int64_t c,
               int64_t n) mutable {
      const A* value = read(x + at, n);
      const A* grad = kGrad ? read_grad(dy + at, n) : value;
      const A* pivot = pivots.data() + image * channels + c;
      A* first = partial.data() + strip * 2 * channels + c;
      A* second = first + channels;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A d = value[i] - pivot[i];
        const A g = kGrad ? grad[i] : d;
        first[i] += g;
        second[i] += g * d;
      }
    };
  });
  for (int64_t row = 0; row < map.rows(); ++row) {
    const int64_t begin = row / channels * strips.per_image;
    for (int64_t k = begin; k < begin + strips.per_image; ++k) {
      const A* sum = partial.data() + k * 2 * channels + row % channels;
      sums[row].first += sum[0];
      sums[row].second += sum[channels];
    }
  }
}

template <typename T, typename A, bool kGrad>
void line_rows(const T* x, const T* dy, const A* mean, const Line<A>& line,
               T* out, Map map) {
  const int64_t grain = std::max<int64_t>(1, kGrain / map.size);
  at::parallel_for(0, map.rows(), grain, [&](int64_t begin, int64_t end) {
    Reader<T, A> read, read_grad;
    Writer<T, A> writer;
    int64_t c = begin % map.channels;
    for (int64_t row = begin; row < end; ++row) {
      const A m = mean[c];
      c = c + 1 == map.channels ? 0 : c + 1;
      const A on_x = line.x[row], on_grad = line.grad[row];
      const A one = line.one[row];
      for_blocks(map.size, [&](int64_t at, int64_t n) {
        const int64_t start = row * map.size + at;
        const A* value = read(x + start, n);
        const A* grad = kGrad ? read_grad(dy + start, n) : value;
        A* to = writer.place(out + start);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const A y = (value[i] - m) * on_x + one;
          to[i] = kGrad ? y + grad[i] * on_grad : y;
        }
        writer.write(out + start, n);
      });
    }
  });
}

template <typename T, typename A, bool kGrad>
void line_last(const T* x, const T* dy, const A* mean, const Line<A>& line,
               T* out, Map map) {
  Strips(map).for_each(map, [&] {
    return [&, read = Reader<T, A>(), read_grad = Reader<T, A>(),
            writer = Writer<T, A>()](int64_t, int64_t image, int64_t at,
                                     int64_t c, int64_t n) mutable {
      const A* value = read(x + at, n);
      const A* grad = kGrad ? read_grad(dy + at, n) : value;
      const int64_t row = image * map.channels + c;
      const A *on_x = line.x.data() + row, *on_grad = line.grad.data() + row;
      const A *one = line.one.data() + row, *m = mean + c;
      A* to = writer.place(out + at);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A y = (value[i] - m[i]) * on_x[i] + one[i];
        to[i] = kGrad ? y + grad[i] * on_grad[i] : y;
      }
      writer.write(out + at, n);
    };
  });
}

// Of each channel 1 / sqrt(var): a root takes long, beside a row of 7x7.
template <typename A>
std::vector<double> roots_of(const A* var, int64_t channels) {
  std::vector<double> roots(channels);
  for (int64_t c = 0; c < channels; ++c) {
    roots[c] = 1 / std::sqrt(static_cast<double>(var[c]));
  }
  return roots;
}

// 1 / sqrt(share * (v + eps) + 1 - share), of a group's variance v.
inline double root_of(double v, const Groups& groups) {
  return 1 / std::sqrt(groups.share * (v + groups.eps) + 1 - groups.share);
}

// y and, of each group, the mean of the standardized map (0 if it is not
// subtracted) and what root_of gives: shape (N, groups).
GroupedOutputs grouped(const Tensor& x, const Tensor& weight,
                       const Tensor& bias, const Tensor& mean,
                       const Tensor& var, int64_t group_count, double eps,
                       double share, bool centred) {
  check_grouped(x, weight, bias, mean, var, group_count);
  const auto format = format_of(x);
  const Tensor from = x.contiguous(format);
  const Map map(x);
  const Groups groups(map, group_count, eps, share, centred);
  const Tensor y = at::empty_like(from, from.options(), format);
  Tensor means, roots;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "grouped", [&] {
        using A = at::opmath_type<scalar_t>;
        const auto options =
            x.options().dtype(c10::CppTypeToScalarType<A>::value);
        means = at::empty({map.images, groups.count}, options);
        roots = at::empty({map.images, groups.count}, options);
        const Tensor w = in_dtype<A>(weight), b = in_dtype<A>(bias);
        const Tensor r = in_dtype<A>(mean), v = in_dtype<A>(var);
        const A *gamma = w.const_data_ptr<A>(), *beta = b.const_data_ptr<A>();
        const A* ref = r.const_data_ptr<A>();
        const auto inv = roots_of(v.const_data_ptr<A>(), map.channels);
        const auto* in = from.const_data_ptr<scalar_t>();
        const bool rows = format == at::MemoryFormat::Contiguous;
        std::vector<RowSums> sums(map.rows());
        (rows ? sum_rows<scalar_t, A, false> : sum_last<scalar_t, A, false>)(
            in, nullptr, sums.data(), map);
        Line<A> line(map.rows());
        const double each = 1. / map.size;
        for (int64_t g = 0; g < map.images * groups.count; ++g) {
          const int64_t first = g * groups.each;
          const int64_t channel = g % groups.count * groups.each;
          double m = 0, square = 0;  // of the spread within and between rows
          for (int64_t k = 0; k < groups.each; ++k) {
            const RowSums& sum = sums[first + k];
            m += (sum.pivot - ref[channel + k] + sum.first * each) *
                 inv[channel + k];
          }
          m = groups.centred ? m / groups.each : 0;
          for (int64_t k = 0; k < groups.each; ++k) {
            const RowSums& sum = sums[first + k];
            const double r = inv[channel + k], near = sum.first * each;
            const double spread = sum.second * each - near * near;
            const double off = (sum.pivot - ref[channel + k] + near) * r - m;
            square += std::max(0., spread) * r * r + off * off;
          }
          const double root = root_of(square / groups.each, groups);
          means.mutable_data_ptr<A>()[g] = static_cast<A>(m);
          roots.mutable_data_ptr<A>()[g] = static_cast<A>(root);
          for (int64_t k = 0; k < groups.each; ++k) {
            const int64_t row = first + k, c = channel + k;
            line.x[row] = static_cast<A>(gamma[c] * root * inv[c]);
            line.one[row] = static_cast<A>(beta[c] - gamma[c] * root * m *
                                                         groups.share);
          }
        }
        (rows ? line_rows<scalar_t, A, false> : line_last<scalar_t, A, false>)(
            in, nullptr, ref, line, y.mutable_data_ptr<scalar_t>(), map);
      });
  return {y, means, roots};
}

// Gradients of x and, per channel, of weight and bias.
GroupedGradients grouped_backward(const Tensor& grad, const Tensor& x,
                                  const Tensor& means, const Tensor& roots,
                                  const Tensor& weight, const Tensor& mean,
                                  const Tensor& var, int64_t group_count,
                                  double share, bool centred) {
  check_grouped(x, weight, weight, mean, var, group_count);
  check_grouped_backward(grad, x, means, roots, group_count);
  const auto format = format_of(x);
  const Tensor from = x.contiguous(format), dy = grad.contiguous(format);
  const Map map(x);
  const Groups groups(map, group_count, 0, share, centred);
  const Tensor dx = at::empty_like(from, from.options(), format);
  Tensor dweight, dbias;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "grouped_backward", [&] {
        using A = at::opmath_type<scalar_t>;
        dweight = at::empty({map.channels}, means.options());
        dbias = at::empty({map.channels}, means.options());
        const Tensor w = in_dtype<A>(weight), r = in_dtype<A>(mean);
        const Tensor v = in_dtype<A>(var);
        const A *gamma = w.const_data_ptr<A>(), *ref = r.const_data_ptr<A>();
        const auto inv = roots_of(v.const_data_ptr<A>(), map.channels);
        const auto* in = from.const_data_ptr<scalar_t>();
        const auto* in_grad = dy.const_data_ptr<scalar_t>();
        const bool rows = format == at::MemoryFormat::Contiguous;
        std::vector<RowSums> sums(map.rows());
        (rows ? sum_rows<scalar_t, A, true> : sum_last<scalar_t, A, true>)(
            in, in_grad, sums.data(), map);
        Line<A> line(map.rows());
        std::vector<double> of_weight(map.channels), of_bias(map.channels);
        const double size = double(map.size) * groups.each;
        for (int64_t g = 0; g < map.images * groups.count; ++g) {
          const int64_t first = g * groups.each;
          const int64_t channel = g % groups.count * groups.each;
          const double m = means.const_data_ptr<A>()[g];
          const double root = roots.const_data_ptr<A>()[g];
          double dv = 0, dm = 0;
          for (int64_t k = 0; k < groups.each; ++k) {
            const int64_t c = channel + k;
            const RowSums& sum = sums[first + k];
            // Of dy times what gamma is multiplied by.
            const double far = (sum.pivot - ref[c]) * inv[c];
            const double dot = (sum.second * inv[c] +
                                (far - groups.share * m) * sum.first) *
                               root;
            of_weight[c] += dot;
            of_bias[c] += sum.first;
            dv += gamma[c] * dot;
            dm += gamma[c] * sum.first;
          }
          // What x_ref and 1 are multiplied by, in the gradient of x_ref.
          const double slope = -groups.share * dv * root * root / size;
          const double level =
              -slope * m - (groups.centred ? groups.share * dm * root / size
                                           : 0);
          for (int64_t k = 0; k < groups.each; ++k) {
            const int64_t row = first + k, c = channel + k;
            line.grad[row] = static_cast<A>(gamma[c] * root * inv[c]);
            line.x[row] = static_cast<A>(slope * inv[c] * inv[c]);
            line.one[row] = static_cast<A>(level * inv[c]);
          }
        }
        std::copy(of_weight.begin(), of_weight.end(),
                  dweight.mutable_data_ptr<A>());
        std::copy(of_bias.begin(), of_bias.end(),
                  dbias.mutable_data_ptr<A>());
        (rows ? line_rows<scalar_t, A, true> : line_last<scalar_t, A, true>)(
            in, in_grad, ref, line, dx.mutable_data_ptr<scalar_t>(), map);
      });
  return {dx, dweight, dbias};
}

}  // namespace
