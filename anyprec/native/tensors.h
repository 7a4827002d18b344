// Lists of tensors across the bridge. An `at::Tensor` is a counted handle: a list keeps its
// members alive and shares their storage.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace anybit {

using Tensor = at::Tensor;

class Tensors {
 public:
  Tensors() = default;
  explicit Tensors(std::vector<at::Tensor> values) : values(std::move(values)) {}

  void push(const at::Tensor& tensor) { values.push_back(tensor); }
  std::size_t size() const { return values.size(); }
  std::unique_ptr<at::Tensor> get(std::size_t index) const { return std::make_unique<at::Tensor>(values.at(index)); }

  std::vector<at::Tensor> values;
};

inline std::unique_ptr<Tensors> new_tensors() { return std::make_unique<Tensors>(); }

}  // namespace anybit
