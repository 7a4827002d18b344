#include "anybit-worker/native/collectives.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <unordered_map>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace anybit {
namespace {

std::chrono::milliseconds ms(uint64_t value) {
  return std::chrono::milliseconds(value);
}

}  // namespace

std::unique_ptr<StoreServer> open_store(rust::Str host, uint16_t port, int32_t listen_fd, uint64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.port = port;
  options.isServer = true;
  options.waitWorkers = false;
  options.timeout = ms(timeout_ms);
  options.masterListenFd = listen_fd;
  return std::make_unique<StoreServer>(c10::make_intrusive<c10d::TCPStore>(std::string(host), options));
}

void Group::all_reduce(const at::Tensor& tensor, uint8_t kind, uint64_t timeout_ms) const {
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.reduceOp = kind == 0 ? c10d::ReduceOp::SUM : kind == 1 ? c10d::ReduceOp::MIN : c10d::ReduceOp::MAX;
  if (timeout_ms > 0) options.timeout = ms(timeout_ms);
  group_->allreduce(tensors, options)->wait();
}

void Group::broadcast(const Tensors& tensors, int32_t root) const {
  c10d::BroadcastOptions options;
  options.rootRank = root;
  for (const at::Tensor& tensor : tensors.values) {
    // Collectives move dense blocks; a contiguous view in storage order shares the tensor's own.
    at::Tensor block = tensor.is_non_overlapping_and_dense() ? tensor.detach().as_strided({tensor.numel()}, {1}) : tensor.detach().contiguous();
    std::vector<at::Tensor> one{block};
    group_->broadcast(one, options)->wait();
    if (!block.is_alias_of(tensor)) {
      at::NoGradGuard no_grad;
      tensor.copy_(block);
    }
  }
}

std::unique_ptr<Group> join_gloo(rust::Str host, uint16_t port, rust::Str prefix, int32_t rank, int32_t world_size,
                                 rust::Str device, bool device_is_address, uint64_t collective_ms, uint64_t rendezvous_ms) {
  c10d::TCPStoreOptions store_options;
  store_options.port = port;
  store_options.isServer = false;
  store_options.waitWorkers = false;
  store_options.timeout = ms(rendezvous_ms);
  auto tcp = c10::make_intrusive<c10d::TCPStore>(std::string(host), store_options);
  auto store = c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), tcp);

  // Connecting the full mesh runs under the options' timeout too.
  auto options = c10d::ProcessGroupGloo::Options::create(ms(rendezvous_ms));
  options->devices.push_back(device_is_address ? c10d::ProcessGroupGloo::createDeviceForHostname(std::string(device))
                                               : c10d::ProcessGroupGloo::createDeviceForInterface(std::string(device)));
  auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world_size, options);
  gloo->setTimeout(ms(collective_ms));
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, world_size);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  group->setGroupName(std::string(prefix));
  return std::make_unique<Group>(std::move(group));
}

Reducer::Reducer(const Group& group, const Tensors& parameters, bool find_unused) {
  const std::vector<at::Tensor>& values = parameters.values;
  const std::vector<size_t> limits{static_cast<size_t>(c10d::kDefaultFirstBucketBytes), static_cast<size_t>(c10d::kDefaultBucketBytesCap)};
  // The backward pass finishes the last layers first, so the first bucket to fill holds those.
  std::vector<at::Tensor> backwards(values.rbegin(), values.rend());
  std::vector<int64_t> indices(values.size());
  for (size_t i = 0; i < values.size(); ++i) indices[i] = static_cast<int64_t>(values.size() - 1 - i);
  std::vector<bool> sparse(values.size(), false);
  auto [buckets, sizes] = c10d::compute_bucket_assignment_by_size(backwards, limits, sparse, indices);
  std::unordered_map<size_t, std::string> names;
  std::vector<int64_t> caps(sizes.begin(), sizes.end());
  reducer_ = std::make_unique<FixedBucketReducer>(values, buckets, group.get(), sparse, c10d::kDefaultBucketBytesCap, find_unused,
                                                  /*gradient_as_bucket_view=*/true, names, c10d::kDefaultFirstBucketBytes,
                                                  /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, caps);
  // Without a hook the Reducer multiplies by 1 / ranks in a process's first reduction and divides
  // by ranks ever after, which differ in the last bit unless ranks is a power of two: a resumed
  // run would part from the undisturbed one. The hook always divides.
  reducer_->register_builtin_comm_hook(c10d::BuiltinCommHookType::ALLREDUCE);
}

void Reducer::prepare_for_forward() {
  reducer_->prepare_for_forward();
}

void Reducer::prepare_for_backward(const at::Tensor& loss) {
  reducer_->prepare_for_backward({loss});
}

std::unique_ptr<Reducer> new_reducer(const Group& group, const Tensors& parameters, bool find_unused) {
  return std::make_unique<Reducer>(group, parameters, find_unused);
}

}  // namespace anybit
