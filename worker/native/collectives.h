// c10d for Rust: the rendezvous store, a process group, DDP's Reducer. No policy here.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "anybit-anyprec/native/tensors.h"
#include "rust/cxx.h"

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace anybit {

// A rendezvous store's server, open until it is destroyed.
class StoreServer {
 public:
  explicit StoreServer(c10::intrusive_ptr<c10d::TCPStore> store) : store_(std::move(store)) {}

 private:
  c10::intrusive_ptr<c10d::TCPStore> store_;
};

// Takes over the listening socket `listen_fd`, which is bound to host:port.
std::unique_ptr<StoreServer> open_store(rust::Str host, uint16_t port, int32_t listen_fd, uint64_t timeout_ms);

class Group {
 public:
  explicit Group(c10::intrusive_ptr<c10d::ProcessGroup> group) : group_(std::move(group)) {}

  // In place; returns when the result is there. kind: 0 sum, 1 min, 2 max. timeout_ms 0: the group's.
  void all_reduce(const at::Tensor& tensor, uint8_t kind, uint64_t timeout_ms) const;
  // In place from `root`; returns when it has arrived.
  void broadcast(const Tensors& tensors, int32_t root) const;

  const c10::intrusive_ptr<c10d::ProcessGroup>& get() const { return group_; }

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

// Meets the other ranks under `prefix` in the store at host:port; Gloo over `device`, a network
// interface's name, or an address of this host if device_is_address.
std::unique_ptr<Group> join_gloo(rust::Str host, uint16_t port, rust::Str prefix, int32_t rank, int32_t world_size,
                                 rust::Str device, bool device_is_address, uint64_t collective_ms, uint64_t rendezvous_ms);

// DDP's Reducer with buckets that are never rebuilt: a resumed run must reduce in the same order.
// Told that they were rebuilt, it does not collect the parameters' order for that at every step.
class FixedBucketReducer : public c10d::Reducer {
 public:
  template <typename... Args>
  explicit FixedBucketReducer(Args&&... args) : c10d::Reducer(std::forward<Args>(args)...) {
    has_rebuilt_bucket_ = true;
  }
};

// Buckets fill and all-reduce while the backward pass goes on. Gradients become views into them.
class Reducer {
 public:
  Reducer(const Group& group, const Tensors& parameters, bool find_unused);
  void prepare_for_forward();
  // Call before the backward pass of `loss` that is to be reduced.
  void prepare_for_backward(const at::Tensor& loss);

 private:
  std::unique_ptr<FixedBucketReducer> reducer_;
};

std::unique_ptr<Reducer> new_reducer(const Group& group, const Tensors& parameters, bool find_unused);

}  // namespace anybit
