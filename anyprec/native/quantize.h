// Any-precision quantizers as autograd functions, and the masks of dropout.
#pragma once

#include <cstdint>
#include <memory>

#include "anybit-anyprec/native/tensors.h"
#include "rust/cxx.h"

namespace anybit {

// One weight at every width of `bits` (1 to 8, or 32), in that order, with one backward for all.
std::unique_ptr<Tensors> quantize_weight(const at::Tensor& weight, rust::Slice<const int64_t> bits);

// clamp(x, 0, 1), then, with levels > 0, rounded to multiples of 1 / levels.
std::unique_ptr<at::Tensor> quantize_activation(const at::Tensor& input, int64_t levels);

// Keep-mask scaled by 1 / (1 - p), shaped and typed like `like` ([samples, ...]). An entry depends
// on `key`, its sample's number `first_sample + row` and its place in the sample only.
std::unique_ptr<at::Tensor> dropout_mask(const at::Tensor& like, double p, uint64_t key, uint64_t first_sample);

}  // namespace anybit
