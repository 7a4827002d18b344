//! The cxx bridge to c10d. All of this crate's `unsafe` stands here.
#![allow(unsafe_code, unreachable_pub)]

#[cxx::bridge(namespace = "anybit")]
pub(super) mod ffi {
    unsafe extern "C++" {
        include!("anybit-worker/native/collectives.h");

        #[namespace = "at"]
        type Tensor = anybit_anyprec::native::ffi::Tensor;
        type Tensors = anybit_anyprec::native::ffi::Tensors;

        type StoreServer;
        fn open_store(
            host: &str,
            port: u16,
            listen_fd: i32,
            timeout_ms: u64,
        ) -> Result<UniquePtr<StoreServer>>;

        type Group;
        #[allow(clippy::too_many_arguments)]
        fn join_gloo(
            host: &str,
            port: u16,
            prefix: &str,
            rank: i32,
            world_size: i32,
            device: &str,
            device_is_address: bool,
            collective_ms: u64,
            rendezvous_ms: u64,
        ) -> Result<UniquePtr<Group>>;
        fn all_reduce(self: &Group, tensor: &Tensor, kind: u8, timeout_ms: u64) -> Result<()>;
        fn broadcast(self: &Group, tensors: &Tensors, root: i32) -> Result<()>;

        type Reducer;
        fn new_reducer(group: &Group, parameters: &Tensors, find_unused: bool) -> Result<UniquePtr<Reducer>>;
        fn prepare_for_forward(self: Pin<&mut Reducer>) -> Result<()>;
        fn prepare_for_backward(self: Pin<&mut Reducer>, loss: &Tensor) -> Result<()>;
    }
}

// SAFETY: the server runs threads of its own; the handle on it is only ever dropped, from any
// thread.
unsafe impl Send for ffi::StoreServer {}
