#include "anybit-anyprec/native/quantize.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

// The element-wise loops below are compiled for AVX2 too and picked at load time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ANYBIT_SIMD __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define ANYBIT_SIMD
#endif

namespace anybit {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 1 << 15;

// Weight at width k, n = 2^k - 1, t = tanh(w), M = max|t|, E = mean|w| (no gradient):
//   E * (2 * round((t / 2M + 1/2) * n) / n - 1), and E * t / M at 32 bits.
// Straight through the rounding all of them are E * t / M, so the widths' gradients are summed
// and taken back through t and M once.
struct QuantizeWeight : torch::autograd::Function<QuantizeWeight> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& weight, std::vector<int64_t> bits) {
    ctx->set_materialize_grads(false);
    at::Tensor t = at::tanh(weight);
    at::Tensor largest = t.abs().max();
    at::Tensor scale = weight.abs().mean();
    at::Tensor unit;  // t / 2M + 1/2, in [0, 1]
    variable_list out;
    out.reserve(bits.size());
    for (int64_t k : bits) {
      if (k == 32) {
        out.push_back((t / largest).mul_(scale));
        continue;
      }
      if (!unit.defined()) unit = (t / 2).div_(largest).add_(0.5);
      const double n = static_cast<double>((int64_t{1} << k) - 1);
      out.push_back((unit * n).round_().div_(n).mul_(2).sub_(1).mul_(scale));
    }
    ctx->save_for_backward({t, largest, scale});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    at::Tensor sum;
    bool owned = false;  // the first gradient belongs to autograd until it is copied
    for (const at::Tensor& grad : grads) {
      if (!grad.defined()) continue;
      if (!sum.defined()) {
        sum = grad;
      } else if (!owned) {
        sum = sum + grad;
        owned = true;
      } else {
        sum.add_(grad);
      }
    }
    if (!sum.defined()) return {at::Tensor(), at::Tensor()};
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &t = saved[0], &largest = saved[1], &scale = saved[2];
    at::Tensor by_unit = sum * scale;
    at::Tensor by_largest = -(by_unit * t).sum() / (largest * largest);
    // max|t| spreads its gradient evenly over ties.
    at::Tensor ties = t.abs().eq(largest).to(t.scalar_type());
    at::Tensor by_t = by_unit.div_(largest).add_(t.sgn().mul_(ties).mul_(by_largest / ties.sum()));
    return {by_t.mul_(1 - t * t), at::Tensor()};
  }
};

template <typename T>
inline __attribute__((always_inline)) void activate(const T* x, T* y, uint8_t* inside, int64_t size, T n) {
  for (int64_t i = 0; i < size; ++i) {
    const T v = x[i];
    const T c = v < T(0) ? T(0) : (v > T(1) ? T(1) : v);  // a NaN stays one
    inside[i] = (v >= T(0)) & (v <= T(1));
    y[i] = std::rint(c * n) / n;
  }
}
template <typename T>
inline __attribute__((always_inline)) void clamp(const T* x, T* y, uint8_t* inside, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const T v = x[i];
    y[i] = v < T(0) ? T(0) : (v > T(1) ? T(1) : v);
    inside[i] = (v >= T(0)) & (v <= T(1));
  }
}
template <typename T>
inline __attribute__((always_inline)) void pass_inside(const T* g, const uint8_t* inside, T* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = inside[i] ? g[i] : T(0);
}

ANYBIT_SIMD void activate_f32(const float* x, float* y, uint8_t* in, int64_t size, float n) { activate(x, y, in, size, n); }
ANYBIT_SIMD void activate_f64(const double* x, double* y, uint8_t* in, int64_t size, double n) { activate(x, y, in, size, n); }
ANYBIT_SIMD void clamp_f32(const float* x, float* y, uint8_t* in, int64_t size) { clamp(x, y, in, size); }
ANYBIT_SIMD void clamp_f64(const double* x, double* y, uint8_t* in, int64_t size) { clamp(x, y, in, size); }
ANYBIT_SIMD void pass_f32(const float* g, const uint8_t* in, float* out, int64_t size) { pass_inside(g, in, out, size); }
ANYBIT_SIMD void pass_f64(const double* g, const uint8_t* in, double* out, int64_t size) { pass_inside(g, in, out, size); }

bool fused(const at::Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

// `x` with its elements in one dense block, in whatever order of dimensions.
at::Tensor dense(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : x.contiguous();
}

// The gradient passes where the input lay inside [0, 1], both ends included; rounding is seen as
// the identity (straight-through). One byte an element is kept for that.
struct QuantizeActivation : torch::autograd::Function<QuantizeActivation> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, int64_t levels) {
    if (!fused(input)) {
      ctx->save_for_backward({input.ge(0).logical_and_(input.le(1))});
      at::Tensor y = input.clamp(0, 1);
      return levels > 0 ? y.mul_(levels).round_().div_(levels) : y;
    }
    const at::Tensor x = dense(input);
    at::Tensor y = at::empty_like(x);
    at::Tensor inside = at::empty_like(x, x.options().dtype(at::kByte));
    uint8_t* mask = inside.data_ptr<uint8_t>();
    if (x.scalar_type() == at::kFloat) {
      const float* from = x.const_data_ptr<float>();
      float* to = y.data_ptr<float>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t a, int64_t b) {
        if (levels > 0) activate_f32(from + a, to + a, mask + a, b - a, static_cast<float>(levels));
        else clamp_f32(from + a, to + a, mask + a, b - a);
      });
    } else {
      const double* from = x.const_data_ptr<double>();
      double* to = y.data_ptr<double>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t a, int64_t b) {
        if (levels > 0) activate_f64(from + a, to + a, mask + a, b - a, static_cast<double>(levels));
        else clamp_f64(from + a, to + a, mask + a, b - a);
      });
    }
    ctx->save_for_backward({inside});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor inside = ctx->get_saved_variables()[0];
    if (!fused(grads[0])) return {grads[0] * inside, at::Tensor()};
    at::Tensor grad = grads[0];
    at::Tensor out = at::empty_like(inside, grad.options());
    if (grad.strides() != inside.strides()) grad = at::empty_like(out).copy_(grad);
    const uint8_t* mask = inside.const_data_ptr<uint8_t>();
    if (grad.scalar_type() == at::kFloat) {
      const float* from = grad.const_data_ptr<float>();
      float* to = out.data_ptr<float>();
      at::parallel_for(0, out.numel(), kGrain, [&](int64_t a, int64_t b) { pass_f32(from + a, mask + a, to + a, b - a); });
    } else {
      const double* from = grad.const_data_ptr<double>();
      double* to = out.data_ptr<double>();
      at::parallel_for(0, out.numel(), kGrain, [&](int64_t a, int64_t b) { pass_f64(from + a, mask + a, to + a, b - a); });
    }
    return {out, at::Tensor()};
  }
};

// SplitMix64's finalizer (Steele, Lea, Flood 2014): a bijection that spreads every bit.
inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace

std::unique_ptr<Tensors> quantize_weight(const at::Tensor& weight, rust::Slice<const int64_t> bits) {
  return std::make_unique<Tensors>(QuantizeWeight::apply(weight, std::vector<int64_t>(bits.begin(), bits.end())));
}

std::unique_ptr<at::Tensor> quantize_activation(const at::Tensor& input, int64_t levels) {
  return std::make_unique<at::Tensor>(QuantizeActivation::apply(input, levels));
}

std::unique_ptr<at::Tensor> dropout_mask(const at::Tensor& like, double p, uint64_t key, uint64_t first_sample) {
  const int64_t samples = like.size(0);
  const int64_t per_sample = samples > 0 ? like.numel() / samples : 0;
  at::Tensor keep = at::empty(like.sizes(), at::kByte);
  uint8_t* out = keep.data_ptr<uint8_t>();
  constexpr double kTwo64 = 18446744073709551616.0;
  const uint64_t below = static_cast<uint64_t>(p * kTwo64);  // p < 1
  at::parallel_for(0, samples, 1, [&](int64_t a, int64_t b) {
    for (int64_t s = a; s < b; ++s) {
      const uint64_t row = mix(key + (first_sample + s + 1) * 0x9E3779B97F4A7C15ull);
      for (int64_t i = 0; i < per_sample; ++i) {
        out[s * per_sample + i] = mix(row + (i + 1) * 0x9E3779B97F4A7C15ull) >= below;
      }
    }
  });
  at::Tensor mask = keep.to(like.device()).to(like.scalar_type()).div_(1.0 - p);
  return std::make_unique<at::Tensor>(mask.contiguous(like.suggest_memory_format()));
}

}  // namespace anybit
