// Launches on a GPU what Triton compiled for it, through the driver, which
// dlopen finds: no CUDA toolkit, and nothing to link. Which kernels an
// operator launches for tensors of a kind, and on how many programs, is
// decided in cuda.py; cuda_host.py hands it over, and here it is kept.

#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/TensorOptions.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <array>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using at::Tensor;

// The functions of libcuda that a launch takes, with its types spelled out.
class Driver {
 public:
  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

  // Why there is none; empty if all is well.
  std::string reason() const {
    return library_ == nullptr ? "there is no libcuda.so.1"
           : launch_ && clear_ && current_ && retain_ && set_ && text_
               ? ""
               : "libcuda.so.1 has not the functions of a launch";
  }

  void launch(void* function, unsigned x, unsigned y, unsigned threads,
              unsigned shared, void* stream, void** parameters) const {
    check(launch_(function, x, y, 1, threads, 1, 1, shared, stream,
                  parameters, nullptr));
  }

  // Zeros to a number of 8-byte words.
  void clear(void* words, int64_t count, void* stream) const {
    check(clear_(reinterpret_cast<uintptr_t>(words), 0, 2 * count, stream));
  }

  // A thread that has done nothing on a GPU yet has no context.
  void enter(int device) const {
    void* context = nullptr;
    check(current_(&context));
    if (context == nullptr) {
      check(retain_(&context, device));
      check(set_(context));
    }
  }

 private:
  Driver() : library_(dlopen("libcuda.so.1", RTLD_LAZY)) {
    find(launch_, "cuLaunchKernel");
    find(clear_, "cuMemsetD32Async");
    find(current_, "cuCtxGetCurrent");
    find(retain_, "cuDevicePrimaryCtxRetain");
    find(set_, "cuCtxSetCurrent");
    find(text_, "cuGetErrorString");
  }

  template <typename F>
  void find(F& function, const char* name) {
    function = library_ == nullptr
                   ? nullptr
                   : reinterpret_cast<F>(dlsym(library_, name));
  }

  void check(int status) const {
    if (status != 0) {
      const char* text = nullptr;
      text_(status, &text);
      TORCH_CHECK(false, "FRN: a launch failed with CUDA error ", status,
                  " (", text ? text : "unknown", ")");
    }
  }

  void* library_;
  int (*launch_)(void*, unsigned, unsigned, unsigned, unsigned, unsigned,
                 unsigned, unsigned, void*, void**, void**);
  int (*clear_)(unsigned long long, unsigned, size_t, void*);
  int (*current_)(void**);
  int (*retain_)(void**, int);
  int (*set_)(void*);
  int (*text_)(int, const char**);
};

// A launch of one kernel. Of its arguments, in their order, the pointers and
// the numbers of floating point come with each call; the whole numbers are
// part of the plan. Those that Triton made constants are not passed on.
struct Launch {
  enum Kind : int64_t { kPointer, kFloat, kInteger };
  struct Argument {
    Kind kind;
    bool passed;
    int32_t integer;
  };
  static constexpr size_t kMost = 32;  // arguments, and pointers to scratch

  void* function;
  unsigned x, y, threads, shared;
  int64_t scratch;  // pointers at the end, to what these kernels do not use
  std::vector<Argument> arguments;

  void operator()(std::initializer_list<const void*> pointers,
                  std::initializer_list<double> floats, void* stream) const {
    std::array<uint64_t, kMost> values{};
    std::array<void*, kMost> parameters;
    size_t count = 0;
    const auto pass = [&](const auto& value, bool passed) {
      if (passed) {
        std::memcpy(&values[count], &value, sizeof(value));
        parameters[count] = &values[count];
        ++count;
      }
    };
    auto pointer = pointers.begin();
    auto number = floats.begin();
    for (const Argument& argument : arguments) {
      switch (argument.kind) {
        case kPointer:
          pass(*pointer++, argument.passed);
          break;
        case kFloat:
          pass(static_cast<float>(*number++), argument.passed);
          break;
        case kInteger:
          pass(argument.integer, argument.passed);
          break;
      }
    }
    for (int64_t i = 0; i < scratch; ++i) {
      pass(static_cast<void*>(nullptr), true);
    }
    Driver::get().launch(function, x, y, threads, shared, stream,
                         parameters.data());
  }
};

// What an operator does for tensors of a kind. Without launches: leave it to
// Python.
struct Plan {
  int64_t words = 0, sums = 0;  // elements of what its kernels share
  std::vector<Launch> launches;

  Plan() = default;
  // As cuda_host.py writes it down.
  explicit Plan(const std::vector<int64_t>& numbers) {
    size_t at = 0;
    const auto next = [&] { return numbers.at(at++); };
    words = next();
    sums = next();
    launches.resize(next());
    for (Launch& launch : launches) {
      launch.function = reinterpret_cast<void*>(next());
      launch.x = next();
      launch.y = next();
      launch.threads = next();
      launch.shared = next();
      launch.scratch = next();
      launch.arguments.resize(next());
      TORCH_CHECK(launch.arguments.size() + launch.scratch <= Launch::kMost);
      for (auto& argument : launch.arguments) {
        argument.kind = static_cast<Launch::Kind>(next());
        argument.passed = next();
        argument.integer = next();
      }
    }
  }
};

// Of which kind tensors are: all that a kernel is compiled for or a plan
// depends on.
struct Key {
  std::array<int64_t, 3> sizes;
  uint64_t place, tensors = 0;

  Key(int operation, const Tensor& map, int64_t images, int64_t channels,
      int64_t size, bool last, std::initializer_list<const Tensor*> inputs,
      int64_t groups = 0, bool centred = false)
      : sizes{images, channels, size},
        place(operation | map.device().index() << 3 | last << 11 |
              centred << 12 | static_cast<uint64_t>(groups) << 13) {
    for (const Tensor* input : inputs) {
      uint64_t kind = 63;  // there is none
      if (input->defined()) {
        const auto address =
            reinterpret_cast<uintptr_t>(input->const_data_ptr());
        kind = static_cast<uint64_t>(input->scalar_type()) |
               (address % 16 != 0) << 6 | (input->numel() > 1) << 7;
      }
      tensors = tensors << 8 | kind;
    }
  }

  bool operator==(const Key& other) const {
    return sizes == other.sizes && place == other.place &&
           tensors == other.tensors;
  }
};

struct HashOfKey {
  size_t operator()(const Key& key) const {
    uint64_t hash = key.place;
    for (uint64_t part : {static_cast<uint64_t>(key.sizes[0]),
                          static_cast<uint64_t>(key.sizes[1]),
                          static_cast<uint64_t>(key.sizes[2]), key.tensors}) {
      hash = (hash ^ part) * 0x9E3779B97F4A7C15ull;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

class Plans {
 public:
  std::shared_ptr<const Plan> find(const Key& key) {
    const std::lock_guard guard(lock_);
    const auto found = plans_.find(key);
    return found == plans_.end() ? nullptr : found->second;
  }

  void put(const Key& key, Plan plan) {
    const std::lock_guard guard(lock_);
    if (plans_.size() >= kMost) {
      plans_.clear();  // as many sizes as this come of a mistake
    }
    plans_[key] = std::make_shared<const Plan>(std::move(plan));
  }

 private:
  static constexpr size_t kMost = 1 << 16;
  std::mutex lock_;
  std::unordered_map<Key, std::shared_ptr<const Plan>, HashOfKey> plans_;
};

// What the driver calls a stream; older PyTorch (2.7) does not say.
template <typename Stream>
constexpr bool kHasHandle = requires(const Stream& s) { s.native_handle(); };

template <typename Stream>
void* handle_of(const Stream& stream) {
  if constexpr (kHasHandle<Stream>) {
    return stream.native_handle();
  } else {
    TORCH_CHECK(false, "FRN: this PyTorch does not give its streams");
  }
}

// The GPU that a call is for, and its memory. What is asked for here would
// come of at::empty as well, but as late as the launch of a kernel.
class Gpu {
 public:
  explicit Gpu(const Tensor& x)
      : guard_(x.device()),
        allocator_(at::detail::getCUDAHooks().getCUDADeviceAllocator()),
        keys_(c10::computeDispatchKey(std::nullopt, std::nullopt,
                                      x.device())) {
    const c10::impl::VirtualGuardImpl streams(x.device().type());
    stream = handle_of(streams.getStream(x.device()));
    Driver::get().enter(x.device().index());
  }

  Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype,
               std::optional<at::MemoryFormat> format = std::nullopt) const {
    return at::detail::empty_generic(sizes, allocator_, keys_, dtype, format);
  }

  // For the launches of a call, until its end.
  struct Scratch {
    c10::DataPtr memory;
    void* words = nullptr;
    void* sums = nullptr;
  };
  Scratch scratch(const Plan& plan, at::ScalarType dtype) const {
    if (plan.words == 0 && plan.sums == 0) {
      return {};
    }
    const int64_t at = (plan.words * 8 + 15) / 16 * 16;
    const int64_t bytes = at + plan.sums * c10::elementSize(dtype);
    Scratch result{allocator_->allocate(bytes), nullptr, nullptr};
    result.words = result.memory.get();
    result.sums = static_cast<char*>(result.words) + at;
    if (plan.words > 0) {  // zeros, for programs that meet: see the kernels
      Driver::get().clear(result.words, plan.words, stream);
    }
    return result;
  }

 private:
  const c10::OptionalDeviceGuard guard_;
  c10::Allocator* const allocator_;
  const c10::DispatchKeySet keys_;

 public:
  void* stream;
};

}  // namespace
