//! The gRPC edge: reads requests, calls the engine, writes answers. Generated types end here.

mod agents;
mod cluster;
mod convert;
mod error;
mod jobs;
mod streams;

use anybit_proto::v1::agent_service_server::AgentServiceServer;
use anybit_proto::v1::cluster_service_server::ClusterServiceServer;
use anybit_proto::v1::job_service_server::JobServiceServer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::engine::Handle;
use crate::logs::LogFiles;

/// Messages larger than this are refused, either way.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// A spec as submitted.
pub const MAX_SPEC_BYTES: usize = 64 << 10;
/// Characters of an idempotency key.
pub const MAX_KEY_CHARS: usize = 128;
/// Jobs on a page.
pub const MAX_PAGE: u32 = 1000;
const DEFAULT_PAGE: u32 = 100;

type Stream<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// What the services share.
#[derive(Clone)]
pub struct Api {
    /// The jobs.
    pub engine: Handle,
    /// The trainers' logs.
    pub logs: LogFiles,
    /// Ends all streams.
    pub shutdown: CancellationToken,
    /// The tasks behind agents' streams.
    pub sessions: TaskTracker,
}

impl Api {
    /// What people call about jobs.
    pub fn job_service(&self) -> JobServiceServer<Self> {
        JobServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What people call about the cluster.
    pub fn cluster_service(&self) -> ClusterServiceServer<Self> {
        ClusterServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What agents call.
    pub fn agent_service(&self) -> AgentServiceServer<Self> {
        AgentServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}
