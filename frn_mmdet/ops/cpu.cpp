// FRN with TLU for a CPU: forward reads the input and writes the output,
// backward reads the input and the gradient and writes one gradient. And TLU
// alone, for behind a residual add, which keeps one bit an element.
//
// Compiled on first use by build.py, with the headers beside it. The operators
// are declared in library.py; definition.py says what they compute.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "blocks.h"
#include "grouped.h"
#include "standardize.h"

namespace {

// What a channel is given: gamma, beta, tau (which -inf turns off), eps and
// what is subtracted first (0: nothing); and the share of the mean square.
template <typename A>
class Parameters {
 public:
  Parameters(const Tensor& weight, const Tensor& bias, const Optional& tau,
             const Optional& eps_tensor, double eps, const Optional& mean,
             double share)
      : weight_(in_dtype<A>(weight)),
        bias_(in_dtype<A>(bias)),
        tau_(tau ? in_dtype<A>(*tau) : Tensor()),
        eps_tensor_(eps_tensor ? in_dtype<A>(*eps_tensor) : Tensor()),
        mean_(mean ? in_dtype<A>(*mean) : Tensor()),
        eps_(static_cast<A>(eps)),
        share(static_cast<A>(share)),
        weight(weight_.template const_data_ptr<A>()),
        bias(bias_.template const_data_ptr<A>()),
        tau_data(tau ? tau_.template const_data_ptr<A>() : nullptr),
        eps_data_(eps_tensor ? eps_tensor_.template const_data_ptr<A>()
                             : nullptr),
        eps_step_(eps_tensor && eps_tensor_.numel() > 1),
        mean_data_(mean ? mean_.template const_data_ptr<A>() : nullptr) {}

  A tau(int64_t channel) const {
    return tau_data ? tau_data[channel]
                     : -std::numeric_limits<A>::infinity();
  }
  A eps(int64_t channel) const {
    return eps_data_ ? eps_data_[channel * eps_step_] * eps_ : eps_;
  }
  A mean(int64_t channel) const {
    return mean_data_ ? mean_data_[channel] : A(0);
  }
  std::vector<A> means(int64_t channels) const {
    return mean_data_ ? std::vector<A>(mean_data_, mean_data_ + channels)
                      : std::vector<A>(channels);
  }

 private:
  const Tensor weight_, bias_, tau_, eps_tensor_, mean_;
  const A eps_;

 public:
  const A share;
  const A* const weight;
  const A* const bias;
  const A* const tau_data;  // null: there is none

 private:
  const A* const eps_data_;
  const int64_t eps_step_;
  const A* const mean_data_;
};

// Equations (2) and (3). Backward clips where forward did because both ask
// here, and because the compiler may not contract it (-ffp-contract=off).
template <typename A>
inline A affine(A x, A scale, A bias) {
  return x * scale + bias;
}

template <typename A>
inline A inverse_root(double sum, int64_t size, A share, A eps) {
  return A(1) / std::sqrt(share * static_cast<A>(sum / size) + eps);
}

// The sums that a row's gradients are made of.
struct Sums {
  double dot = 0;      // <dy, x - mean> where y was not clipped
  double kept = 0;     // sum of dy where y was not clipped
  double clipped = 0;  // and where it was
};

// Rows in memory one after the other (NCHW).

template <typename T, typename A>
void forward_rows(const T* x, const Parameters<A>& p, T* y, A* inv, Map map) {
  const int64_t grain = std::max<int64_t>(1, kGrain / map.size);
  at::parallel_for(0, map.rows(), grain, [&](int64_t first, int64_t last) {
    Reader<T, A> read;
    Writer<T, A> writer;
    for (int64_t row = first; row < last; ++row) {
      const int64_t c = row % map.channels;
      const A mean = p.mean(c);
      const T* from = x + row * map.size;
      T* to = y + row * map.size;
      double total = 0;
      for_blocks(map.size, [&](int64_t begin, int64_t n) {
        const A* value = read(from + begin, n);
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
          const A centred = value[i] - mean;
          sum += centred * centred;
        }
        total += sum;
      });
      inv[row] = inverse_root<A>(total, map.size, p.share, p.eps(c));
      const A scale = inv[row] * p.weight[c], bias = p.bias[c];
      const A tau = p.tau(c);
      for_blocks(map.size, [&](int64_t begin, int64_t n) {
        const A* value = read(from + begin, n);
        A* out = writer.place(to + begin);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const A z = affine(value[i] - mean, scale, bias);
          out[i] = z < tau ? tau : z;
        }
        writer.write(to + begin, n);
      });
    }
  });
}

template <typename T, typename A>
void backward_rows(const T* dy, const T* x, const A* inv,
                   const Parameters<A>& p, T* dx, Sums* sums, Map map) {
  const int64_t grain = std::max<int64_t>(1, kGrain / map.size);
  at::parallel_for(0, map.rows(), grain, [&](int64_t first, int64_t last) {
    Reader<T, A> read, read_grad;
    Writer<T, A> writer;
    // Of the last block: a short row is not looked at twice.
    A centred[kBlock], passed[kBlock], stopped[kBlock];
    for (int64_t row = first; row < last; ++row) {
      const int64_t c = row % map.channels;
      const T* from = x + row * map.size;
      const T* from_grad = dy + row * map.size;
      T* to = dx + row * map.size;
      const A scale = inv[row] * p.weight[c], bias = p.bias[c];
      const A tau = p.tau(c), mean = p.mean(c);
      const auto pass = [&](int64_t begin, int64_t n) {
        const A* value = read(from + begin, n);
        const A* grad = read_grad(from_grad + begin, n);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const A d = value[i] - mean, g = grad[i];
          const bool below = affine(d, scale, bias) < tau;
          centred[i] = d;
          passed[i] = below ? A(0) : g;
          stopped[i] = below ? g : A(0);
        }
      };
      Sums total;
      for_blocks(map.size, [&](int64_t begin, int64_t n) {
        pass(begin, n);
        A dot = 0, kept = 0, clipped = 0;
#pragma omp simd reduction(+ : dot, kept, clipped)
        for (int64_t i = 0; i < n; ++i) {
          dot += passed[i] * centred[i];
          kept += passed[i];
          clipped += stopped[i];
        }
        total.dot += dot;
        total.kept += kept;
        total.clipped += clipped;
      });
      sums[row] = total;
      const A pull = p.share * scale * inv[row] * inv[row] *
                     static_cast<A>(total.dot / map.size);
      for_blocks(map.size, [&](int64_t begin, int64_t n) {
        if (map.size > kBlock) {
          pass(begin, n);
        }
        A* out = writer.place(to + begin);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          out[i] = passed[i] * scale - centred[i] * pull;
        }
        writer.write(to + begin, n);
      });
    }
  });
}

// Channels in memory one after the other (channels_last).

template <typename T, typename A>
void forward_last(const T* x, const Parameters<A>& p, T* y, A* inv, Map map) {
  const int64_t channels = map.channels;
  const Strips strips(map);
  const std::vector<A> mean = p.means(channels);
  std::vector<A> partial(strips.count * channels);
  strips.for_each(map, [&] {
    return [&, read = Reader<T, A>()](int64_t strip, int64_t, int64_t at,
                                      int64_t c, int64_t n) mutable {
      const A* value = read(x + at, n);
      const A* m = mean.data() + c;
      A* sum = partial.data() + strip * channels + c;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A centred = value[i] - m[i];
        sum[i] += centred * centred;
      }
    };
  });
  std::vector<A> scale(map.rows()), tau(channels);
  for (int64_t c = 0; c < channels; ++c) {
    tau[c] = p.tau(c);
    for (int64_t image = 0; image < map.images; ++image) {
      double sum = 0;
      for (int64_t k = 0; k < strips.per_image; ++k) {
        sum += partial[(image * strips.per_image + k) * channels + c];
      }
      const int64_t row = image * channels + c;
      inv[row] = inverse_root<A>(sum, map.size, p.share, p.eps(c));
      scale[row] = inv[row] * p.weight[c];
    }
  }
  strips.for_each(map, [&] {
    return [&, read = Reader<T, A>(), writer = Writer<T, A>()](
               int64_t, int64_t image, int64_t at, int64_t c,
               int64_t n) mutable {
      const A* value = read(x + at, n);
      const A* s = scale.data() + image * channels + c;
      const A *b = p.bias + c, *t = tau.data() + c, *m = mean.data() + c;
      A* out = writer.place(y + at);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A z = affine(value[i] - m[i], s[i], b[i]);
        out[i] = z < t[i] ? t[i] : z;
      }
      writer.write(y + at, n);
    };
  });
}

template <typename T, typename A>
void backward_last(const T* dy, const T* x, const A* inv,
                   const Parameters<A>& p, T* dx, Sums* sums, Map map) {
  const int64_t channels = map.channels;
  const Strips strips(map);
  const std::vector<A> mean = p.means(channels);
  std::vector<A> scale(map.rows()), pull(map.rows()), tau(channels);
  for (int64_t row = 0; row < map.rows(); ++row) {
    scale[row] = inv[row] * p.weight[row % channels];
  }
  for (int64_t c = 0; c < channels; ++c) {
    tau[c] = p.tau(c);
  }
  std::vector<A> partial(strips.count * 3 * channels);
  strips.for_each(map, [&] {
    return [&, read = Reader<T, A>(), read_grad = Reader<T, A>()](
               int64_t strip, int64_t image, int64_t at, int64_t c,
               int64_t n) mutable {
      const A *value = read(x + at, n), *grad = read_grad(dy + at, n);
      const A* s = scale.data() + image * channels + c;
      const A *b = p.bias + c, *t = tau.data() + c, *m = mean.data() + c;
      A* dot = partial.data() + strip * 3 * channels + c;
      A *kept = dot + channels, *clipped = kept + channels;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A centred = value[i] - m[i];
        const bool below = affine(centred, s[i], b[i]) < t[i];
        const A g = grad[i];
        const A passed = below ? A(0) : g;
        dot[i] += passed * centred;
        kept[i] += passed;
        clipped[i] += below ? g : A(0);
      }
    };
  });
  for (int64_t row = 0; row < map.rows(); ++row) {
    const int64_t first = row / channels * strips.per_image;
    for (int64_t k = first; k < first + strips.per_image; ++k) {
      const A* sum = partial.data() + k * 3 * channels + row % channels;
      sums[row].dot += sum[0];
      sums[row].kept += sum[channels];
      sums[row].clipped += sum[2 * channels];
    }
    pull[row] = p.share * scale[row] * inv[row] * inv[row] *
                static_cast<A>(sums[row].dot / map.size);
  }
  strips.for_each(map, [&] {
    return [&, read = Reader<T, A>(), read_grad = Reader<T, A>(),
            writer = Writer<T, A>()](int64_t, int64_t image, int64_t at,
                                     int64_t c, int64_t n) mutable {
      const A *value = read(x + at, n), *grad = read_grad(dy + at, n);
      const A* s = scale.data() + image * channels + c;
      const A* pulled = pull.data() + image * channels + c;
      const A *b = p.bias + c, *t = tau.data() + c, *m = mean.data() + c;
      A* out = writer.place(dx + at);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A centred = value[i] - m[i];
        const bool below = affine(centred, s[i], b[i]) < t[i];
        const A g = grad[i];
        const A passed = below ? A(0) : g;
        out[i] = passed * s[i] - centred * pulled[i];
      }
      writer.write(dx + at, n);
    };
  });
}

// y < tau is false of a tau that is NaN, and the loops leave y. It has to show,
// though, as in torch.maximum; here, since in the loops it would take time.
template <typename T>
void show_nan(const Tensor& y, const T* tau, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    if (tau[c] != tau[c]) {
      y.select(1, c).fill_(std::numeric_limits<double>::quiet_NaN());
    }
  }
}

// The operators below autograd.

FrnOutputs frn(const Tensor& x, const Tensor& weight, const Tensor& bias,
            const Optional& tau, const Optional& eps_tensor, double eps,
            const Optional& mean, double share) {
  check_frn(x, weight, bias, tau, eps_tensor, mean);
  const auto format = format_of(x);
  const Tensor from = x.contiguous(format);
  const Map map(x);
  const Tensor y = at::empty_like(from, from.options(), format);
  Tensor inv;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "frn", [&] {
        using A = at::opmath_type<scalar_t>;
        inv = at::empty({map.images, map.channels},
                        x.options().dtype(c10::CppTypeToScalarType<A>::value));
        if (x.numel() == 0) {
          return;
        }
        const Parameters<A> p(weight, bias, tau, eps_tensor, eps, mean,
                              share);
        const auto run = format == at::MemoryFormat::Contiguous
                             ? forward_rows<scalar_t, A>
                             : forward_last<scalar_t, A>;
        run(from.const_data_ptr<scalar_t>(), p, y.mutable_data_ptr<scalar_t>(),
            inv.mutable_data_ptr<A>(), map);
        if (p.tau_data) {
          show_nan(y, p.tau_data, map.channels);
        }
      });
  return {y, inv};
}

FrnGradients frn_backward(const Tensor& grad, const Tensor& x, const Tensor& inv,
                      const Tensor& weight, const Tensor& bias,
                      const Optional& tau, const Optional& eps_tensor,
                      double eps, const Optional& mean, double share) {
  const auto format = format_of(x);
  const Tensor from = x.contiguous(format), dy = grad.contiguous(format);
  const Map map(x);
  const Tensor dx = at::empty_like(from, from.options(), format);
  Tensor out[4];  // of weight, bias, tau and eps, per channel
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "frn_backward", [&] {
        using A = at::opmath_type<scalar_t>;
        const Parameters<A> p(weight, bias, tau, eps_tensor, eps, mean,
                              share);
        std::vector<Sums> sums(x.numel() ? map.rows() : 0);
        if (x.numel() != 0) {
          const auto run = format == at::MemoryFormat::Contiguous
                               ? backward_rows<scalar_t, A>
                               : backward_last<scalar_t, A>;
          run(dy.const_data_ptr<scalar_t>(), from.const_data_ptr<scalar_t>(),
              inv.const_data_ptr<A>(), p, dx.mutable_data_ptr<scalar_t>(),
              sums.data(), map);
        }
        // Over the images, in their order: [what][channel].
        std::vector<double> total(4 * map.channels);
        const A* root = inv.const_data_ptr<A>();
        for (size_t row = 0; row < sums.size(); row += map.channels) {
          for (int64_t c = 0; c < map.channels; ++c) {
            const Sums& sum = sums[row + c];
            const double r = root[row + c], dot = sum.dot * r;
            total[c] += dot;
            total[map.channels + c] += sum.kept;
            total[2 * map.channels + c] += sum.clipped;
            total[3 * map.channels + c] -= 0.5 * dot * p.weight[c] * r * r;
          }
        }
        for (int64_t k = 0; k < 4; ++k) {
          out[k] = at::empty({map.channels}, inv.options());
          std::copy_n(total.data() + k * map.channels, map.channels,
                      out[k].mutable_data_ptr<A>());
        }
      });
  return {dx, out[0], out[1], out[2], out[3]};
}

// Eight elements, or at the end of a unit fewer, to a byte and back. With n
// the constant 8 a compiler makes vectors of these.

template <typename A>
inline uint8_t pack(const A* value, const A* tau, int64_t n) {
  int32_t bits = 0;
#pragma omp simd reduction(| : bits)
  for (int32_t i = 0; i < n; ++i) {
    bits |= value[i] < tau[i] ? 1 << i : 0;
  }
  return static_cast<uint8_t>(bits);
}

template <typename A>
inline void unpack(int32_t bits, const A* grad, A* kept, A* stopped,
                   int64_t n) {
#pragma omp simd
  for (int32_t i = 0; i < n; ++i) {
    const bool below = bits & 1 << i;
    const A g = grad[i];  // read in any case, or it would be a masked load
    kept[i] = below ? A(0) : g;
    stopped[i] = below ? g : A(0);
  }
}

// f(i, n) for the bytes of n elements.
template <typename F>
inline void for_bytes(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    f(i, 8);
  }
  if (i < size) {
    f(i, size - i);
  }
}

// TLU alone.

int64_t grain_of(const Units& units) {
  return std::max<int64_t>(1,
                           kGrain / std::max<int64_t>(1, units.length));
}

template <typename T, typename A>
void forward_units(const T* x, const T* tau, T* z, uint8_t* bits, Units units,
                   int64_t channels) {
  at::parallel_for(0, units.count, grain_of(units), [&](int64_t first,
                                                      int64_t end) {
    Reader<T, A> read, read_tau;
    Writer<T, A> writer;
    A shared[kBlock];
    for (int64_t unit = first; unit < end; ++unit) {
      if (!units.last) {
        std::fill_n(shared, kBlock, static_cast<A>(tau[unit % channels]));
      }
      for_blocks(units.length, [&](int64_t begin, int64_t n) {
        const int64_t at = unit * units.length + begin;
        const A* value = read(x + at, n);
        const A* t = units.last ? read_tau(tau + begin, n) : shared;
        uint8_t* byte = bits + unit * units.bytes + begin / 8;
        for_bytes(n, [&](int64_t i, int64_t m) {
          *byte++ = pack(value + i, t + i, m);
        });
        A* out = writer.place(z + at);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          out[j] = value[j] < t[j] ? t[j] : value[j];
        }
        writer.write(z + at, n);
      });
    }
  });
}

// Sums the gradient of tau over strips of units, which join in order.
template <typename T, typename A>
void backward_units(const T* dy, const uint8_t* bits, T* dx, T* dtau,
                    Units units, int64_t channels) {
  const int64_t each = units.last ? kStrip : 1;
  const int64_t sums = units.last ? channels : 1;
  const int64_t strips = (units.count + each - 1) / each;
  std::vector<double> partial(strips * sums);
  const int64_t grain = std::max<int64_t>(1, grain_of(units) / each);
  at::parallel_for(0, strips, grain, [&](int64_t first, int64_t end) {
    Reader<T, A> read;
    Writer<T, A> writer;
    A stopped[kBlock];
    for (int64_t strip = first; strip < end; ++strip) {
      double* sum = partial.data() + strip * sums;
      const int64_t stop = std::min((strip + 1) * each, units.count);
      for (int64_t unit = strip * each; unit < stop; ++unit) {
        for_blocks(units.length, [&](int64_t begin, int64_t n) {
          const int64_t at = unit * units.length + begin;
          const A* grad = read(dy + at, n);
          const uint8_t* byte = bits + unit * units.bytes + begin / 8;
          A* out = writer.place(dx + at);
          for_bytes(n, [&](int64_t i, int64_t m) {
            unpack(*byte++, grad + i, out + i, stopped + i, m);
          });
          writer.write(dx + at, n);
          if (units.last) {
            for (int64_t i = 0; i < n; ++i) {
              sum[begin + i] += stopped[i];
            }
          } else {
            A total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < n; ++i) {
              total += stopped[i];
            }
            *sum += total;
          }
        });
      }
    }
  });
  std::vector<double> total(channels);
  for (size_t i = 0; i < partial.size(); ++i) {
    total[i % channels] += partial[i];
  }
  std::copy_n(total.data(), channels, dtau);
}

TluOutputs tlu(const Tensor& x, const Tensor& tau) {
  check_tlu(x, tau);
  const auto format = format_of(x);
  const Tensor from = x.contiguous(format);
  const Tensor limit = thresholds(x, tau);
  const Tensor z = at::empty_like(from, from.options(), format);
  const Units units(x, is_last(x));
  const Tensor bits =
      at::empty({units.count, units.bytes}, x.options().dtype(at::kByte));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "tlu", [&] {
        forward_units<scalar_t, at::opmath_type<scalar_t>>(
            from.const_data_ptr<scalar_t>(), limit.const_data_ptr<scalar_t>(),
            z.mutable_data_ptr<scalar_t>(), bits.mutable_data_ptr<uint8_t>(),
            units, x.size(1));
        show_nan(z, limit.const_data_ptr<scalar_t>(), x.size(1));
      });
  return {z, bits};
}

TluGradients tlu_backward(const Tensor& grad, const Tensor& bits, bool last) {
  const auto format = format_of(grad.dim(), last);
  const Tensor dy = grad.contiguous(format);
  const Tensor dx = at::empty_like(dy, dy.options(), format);
  const Tensor dtau = at::empty({grad.size(1)}, grad.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "tlu_backward", [&] {
        backward_units<scalar_t, at::opmath_type<scalar_t>>(
            dy.const_data_ptr<scalar_t>(), bits.const_data_ptr<uint8_t>(),
            dx.mutable_data_ptr<scalar_t>(),
            dtau.mutable_data_ptr<scalar_t>(), Units(grad, last),
            grad.size(1));
      });
  return {dx, dtau};
}

}  // namespace

TORCH_LIBRARY_IMPL(frn_mmdet, CPU, m) {
  m.impl("frn", frn);
  m.impl("frn_backward", frn_backward);
  m.impl("tlu", tlu);
  m.impl("tlu_backward", tlu_backward);
  m.impl("grouped", grouped);
  m.impl("grouped_backward", grouped_backward);
  m.impl("standardize", standardize);
  m.impl("standardize_backward", standardize_backward);
}

TORCH_LIBRARY_IMPL(frn_mmdet, AutogradCPU, m) {
  m.impl("standardize", standardize_autograd);
}
