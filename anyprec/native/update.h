// In-place updates of many tensors at once: optimizers, gradients, running statistics.
#pragma once

#include <cstdint>
#include <memory>

#include "anybit-anyprec/native/tensors.h"

namespace anybit {

// One SGD step from the parameters' gradients; momentum_buffers start at zero.
void sgd_step(const Tensors& parameters, const Tensors& momentum_buffers, double learning_rate, double momentum, double weight_decay);

// One Adam step; `step` counts from 1.
void adam_step(const Tensors& parameters, const Tensors& first_moments, const Tensors& second_moments, int64_t step,
               double learning_rate, double beta1, double beta2, double epsilon, double weight_decay);

// L2 norm of each parameter's gradient, [parameters], float64 on the CPU; 0 where there is none.
std::unique_ptr<at::Tensor> gradient_norms(const Tensors& parameters);

// Zeroes gradients in place: they may be views into all-reduce buckets.
void zero_gradients(const Tensors& parameters);

// running += weight * (batch - running), pairwise.
void move_towards(const Tensors& running, const Tensors& batch, double weight);

// Fills in place from a generator of its own, seeded by `seed`: uniform in [-bound, bound), or
// normal with mean 0.
void fill_uniform(const at::Tensor& tensor, double bound, uint64_t seed);
void fill_normal(const at::Tensor& tensor, double deviation, uint64_t seed);

// Zeroes every tensor in place.
void zero_all(const Tensors& tensors);

// Keeps freed buffers in the process: a training step frees and asks for the same gigabytes again,
// and page faults on fresh ones cost a third of it. Affects the whole process.
void keep_freed_memory();

}  // namespace anybit
