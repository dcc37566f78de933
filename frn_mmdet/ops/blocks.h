// What the kernels of cpu.cpp share: blocks of a map or a weight, in the dtype
// of arithmetic.
//
// T is the dtype of what is read and written, A that of statistics and
// arithmetic: float for half types. Sums run over fixed blocks in A, which
// join in double, so that neither the length of a row nor the number of
// threads shows in a result.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <type_traits>

#include "operators.h"

namespace {

// Elements that a sum in A spans, and the least that a thread is worth.
constexpr int64_t kBlock = 256;
constexpr int64_t kGrain = 32768;

// Half types are widened to blocks of A and narrowed again; a map that is of
// A already is read and written in place.

template <typename T, typename A>
class Reader {
 public:
  // n <= kBlock elements, good until the next call.
  const A* operator()(const T* from, int64_t n) {
    if constexpr (std::is_same_v<T, A>) {
      return from;
    } else {
      int64_t i = 0;
      at::vec::Vectorized<A> lanes;
      for (; i + lanes.size() <= n; i += lanes.size()) {
        at::vec::load_to_float<T>(from + i, lanes);
        lanes.store(block_ + i);
      }
      for (; i < n; ++i) {
        block_[i] = static_cast<A>(from[i]);
      }
      return block_;
    }
  }

 private:
  A block_[kBlock];
};

template <typename T, typename A>
class Writer {
 public:
  // Where n elements for `to` are to be put before write(to, n).
  A* place(T* to) {
    if constexpr (std::is_same_v<T, A>) {
      return to;
    } else {
      return block_;
    }
  }
  void write(T* to, int64_t n) {
    if constexpr (!std::is_same_v<T, A>) {
      at::vec::convert(block_, to, n);
    }
  }

 private:
  A block_[kBlock];
};

// f(begin, n) for the blocks of `size` elements.
template <typename F>
void for_blocks(int64_t size, const F& f) {
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    f(begin, std::min(kBlock, size - begin));
  }
}

// Pixels that a sum in A spans in channels_last, where it has one lane in
// place of eight.
constexpr int64_t kStrip = 64;

// Channels in memory one after the other (channels_last): the pixels of an
// image are dealt out in strips, whose sums then join in order.

struct Strips {
  int64_t per_image, count;
  explicit Strips(Map map)
      : per_image((map.size + kStrip - 1) / kStrip),
        count(per_image * map.images) {}

  // f(strip, image, element, first channel, channels) for every block of
  // channels of every pixel. make() gives each thread an f of its own.
  template <typename F>
  void for_each(Map map, const F& make) const {
    const int64_t grain = std::max<int64_t>(
        1, kGrain / (kStrip * map.channels));
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      auto f = make();
      for (int64_t strip = begin; strip < end; ++strip) {
        const int64_t image = strip / per_image;
        const int64_t first = strip % per_image * kStrip;
        const int64_t last = std::min(first + kStrip, map.size);
        for (int64_t pixel = first; pixel < last; ++pixel) {
          const int64_t at = (image * map.size + pixel) * map.channels;
          for_blocks(map.channels, [&](int64_t c, int64_t n) {
            f(strip, image, at + c, c, n);
          });
        }
      }
    });
  }
};

template <typename A>
Tensor in_dtype(const Tensor& parameter) {
  const auto dtype = c10::CppTypeToScalarType<A>::value;
  return (parameter.scalar_type() == dtype ? parameter : parameter.to(dtype))
      .contiguous();
}

}  // namespace
