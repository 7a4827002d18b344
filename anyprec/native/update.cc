#include "anybit-anyprec/native/update.h"

#include <climits>
#include <malloc.h>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

namespace anybit {
namespace {

// True if both walk memory in the same order. The stride of a dimension of one element says
// nothing, and convolutions of kernel 1 return other ones than their weight has.
bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

std::vector<at::Tensor> gradients(const Tensors& parameters) {
  std::vector<at::Tensor> grads;
  grads.reserve(parameters.values.size());
  for (const at::Tensor& p : parameters.values) {
    const at::Tensor& grad = p.grad();
    TORCH_CHECK(grad.defined(), "a parameter of shape ", p.sizes(), " has no gradient");
    // The fused kernels walk parameter and gradient by storage order.
    grads.push_back(same_layout(p, grad) ? grad : at::empty_like(p).copy_(grad));
  }
  return grads;
}

}  // namespace

void sgd_step(const Tensors& parameters, const Tensors& momentum_buffers, double learning_rate, double momentum, double weight_decay) {
  at::NoGradGuard no_grad;
  at::_fused_sgd_(parameters.values, gradients(parameters), momentum_buffers.values, weight_decay, momentum, learning_rate,
                  /*dampening=*/0.0, /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false);
}

void adam_step(const Tensors& parameters, const Tensors& first_moments, const Tensors& second_moments, int64_t step,
               double learning_rate, double beta1, double beta2, double epsilon, double weight_decay) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> steps;
  steps.reserve(parameters.values.size());
  for (const at::Tensor& p : parameters.values) {
    steps.push_back(at::full({}, static_cast<double>(step), p.options().dtype(at::kFloat).requires_grad(false)));
  }
  at::_fused_adam_(parameters.values, gradients(parameters), first_moments.values, second_moments.values, /*max_exp_avg_sqs=*/{},
                   steps, learning_rate, beta1, beta2, weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false);
}

std::unique_ptr<at::Tensor> gradient_norms(const Tensors& parameters) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> norms;
  norms.reserve(parameters.values.size());
  for (const at::Tensor& p : parameters.values) {
    norms.push_back(p.grad().defined() ? at::norm(p.grad()).to(at::kDouble) : at::zeros({}, p.options().dtype(at::kDouble).requires_grad(false)));
  }
  return std::make_unique<at::Tensor>(at::stack(norms).cpu());
}

void zero_gradients(const Tensors& parameters) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> grads;
  for (const at::Tensor& p : parameters.values) {
    if (p.grad().defined()) grads.push_back(p.grad());
  }
  if (!grads.empty()) at::_foreach_zero_(grads);
}

void move_towards(const Tensors& running, const Tensors& batch, double weight) {
  at::NoGradGuard no_grad;
  if (!running.values.empty()) at::_foreach_lerp_(running.values, batch.values, weight);
}

void fill_uniform(const at::Tensor& tensor, double bound, uint64_t seed) {
  at::NoGradGuard no_grad;
  tensor.uniform_(-bound, bound, at::detail::createCPUGenerator(seed));
}

void fill_normal(const at::Tensor& tensor, double deviation, uint64_t seed) {
  at::NoGradGuard no_grad;
  tensor.normal_(0.0, deviation, at::detail::createCPUGenerator(seed));
}

void zero_all(const Tensors& tensors) {
  at::NoGradGuard no_grad;
  if (!tensors.values.empty()) at::_foreach_zero_(tensors.values);
}

void keep_freed_memory() {
  mallopt(M_ARENA_MAX, 1);            // threads share what one of them freed
  mallopt(M_MMAP_MAX, 0);             // mapped blocks go back to the kernel when freed
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
}

}  // namespace anybit
