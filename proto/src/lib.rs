//! The generated types, clients and servers of the `anybit.v1` gRPC API, and nothing else.
//!
//! Only the crates' edges (`coordinator::grpc`, `worker::agent`, the CLI's client) see these
//! types; inside, each crate uses its own.

/// Package `anybit.v1`.
pub mod v1 {
    tonic::include_proto!("anybit.v1");
}

/// The encoded file descriptors of `anybit.v1`, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("anybit_v1");
