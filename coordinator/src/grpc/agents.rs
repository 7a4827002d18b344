//! `AgentService`: one stream an agent. A reader notes that the agent lives and passes messages
//! on; a worker handles them in order and acknowledges what is stored.

use std::time::Duration;

use anybit_proto::v1::agent_service_server::AgentService;
use anybit_proto::v1::attach_request::Message;
use anybit_proto::v1::{AttachRequest, AttachResponse, LogChunk};
use anybit_shared::ids::{Generation, JobId, Rank, WorkerId, WorkerIncarnation};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::error::ApiError;
use super::{Api, Stream, convert};
use crate::engine::{CloseReason, EngineError, LastSeen, Link, Order, Outbound};
use crate::logs::{LogError, LogKey};
use crate::store::Delivery;

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const ORDERS: usize = 256;
const UNHANDLED: usize = 256;
/// Messages that share an acknowledgement.
const BATCH: usize = 64;
/// How often an agent counts as heard while its messages wait to be handled.
const BACKLOG_TOUCH: Duration = Duration::from_millis(250);

#[tonic::async_trait]
impl AgentService for Api {
    type AttachStream = Stream<AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message());
        let first = first.await.map_err(|_| ApiError::invalid("no hello came in time"))??;
        let Some(Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(ApiError::invalid("the first message of an agent must be hello").into());
        };
        let hello = convert::hello(hello)?;
        let (outbound, orders) = mpsc::channel(ORDERS);
        let link = Link {
            id: fastrand::u64(..),
            outbound,
            closed: self.shutdown.child_token(),
            seen: LastSeen::new(self.engine.now().at),
        };
        let (worker, incarnation) = (hello.worker.clone(), hello.incarnation.clone());
        self.engine.attach(hello, link.clone()).await.map_err(ApiError::from)?;
        let session = Session { api: self.clone(), worker, incarnation, link };
        self.sessions.spawn(session.run(inbound));
        let orders = ReceiverStream::new(orders).map(|outbound| match outbound {
            Outbound::Order(order) => Ok(convert::order(order)),
            Outbound::Close(reason) => Err(ApiError::Closed(reason).into()),
        });
        Ok(Response::new(Box::pin(orders)))
    }
}

/// One stream of an agent.
struct Session {
    api: Api,
    worker: WorkerId,
    incarnation: WorkerIncarnation,
    link: Link,
}

impl Session {
    async fn run(self, inbound: Streaming<AttachRequest>) {
        let (unhandled, messages) = mpsc::channel(UNHANDLED);
        tokio::join!(self.read(inbound, unhandled), self.handle_all(messages));
        if self.api.shutdown.is_cancelled() {
            self.link.close(CloseReason::ShuttingDown);
        }
        self.api.engine.detach(&self.worker, self.link.id).await;
        tracing::info!(worker = %self.worker, "stream ended");
    }

    /// Ends when either side ends the stream.
    async fn read(&self, mut inbound: Streaming<AttachRequest>, unhandled: mpsc::Sender<AttachRequest>) {
        loop {
            let message = tokio::select! {
                () = self.link.closed.cancelled() => return,
                message = inbound.message() => message,
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(worker = %self.worker, %status, "stream broken");
                    return;
                }
            };
            self.touch();
            if matches!(message.message, Some(Message::Heartbeat(_))) && message.sequence == 0 {
                continue;
            }
            if self.pass_on(&unhandled, message).await.is_none() {
                return;
            }
        }
    }

    /// Waits for room; the agent has spoken, so it counts as alive meanwhile.
    async fn pass_on(&self, unhandled: &mpsc::Sender<AttachRequest>, message: AttachRequest) -> Option<()> {
        let reserved = unhandled.reserve();
        tokio::pin!(reserved);
        loop {
            tokio::select! {
                permit = &mut reserved => {
                    permit.ok()?.send(message);
                    return Some(());
                }
                () = self.link.closed.cancelled() => return None,
                () = tokio::time::sleep(BACKLOG_TOUCH) => self.touch(),
            }
        }
    }

    fn touch(&self) {
        self.link.seen.touch(self.api.engine.now().at);
    }

    /// Handles messages in order. One that cannot be stored ends the stream: it stays
    /// unacknowledged, so the agent sends it again.
    async fn handle_all(&self, mut messages: mpsc::Receiver<AttachRequest>) {
        let mut batch = Vec::with_capacity(BATCH);
        while messages.recv_many(&mut batch, BATCH).await > 0 {
            let mut stored = None;
            for message in batch.drain(..) {
                let sequence = message.sequence;
                if let Err(error) = self.handle(message).await {
                    tracing::warn!(worker = %self.worker, %error, "message not stored");
                    self.link.close(CloseReason::NotStored);
                    return;
                }
                stored = (sequence > 0).then_some(sequence).or(stored);
            }
            if let Some(sequence) = stored {
                self.acknowledge(sequence).await;
            }
        }
    }

    async fn acknowledge(&self, sequence: u64) {
        let acknowledged = self.link.outbound.send(Outbound::Order(Order::Acknowledge(sequence)));
        tokio::select! {
            _ = acknowledged => {}
            () = self.link.closed.cancelled() => {}
        }
    }

    async fn handle(&self, message: AttachRequest) -> Result<(), EngineError> {
        let sequence = message.sequence;
        let said = match message.message {
            Some(Message::Log(chunk)) => return self.write_log(chunk).await,
            Some(Message::Metrics(batch)) => {
                let incarnation = self.incarnation.clone();
                let delivery = (sequence > 0).then_some(Delivery { incarnation, sequence });
                convert::metrics(batch, delivery)
            }
            Some(Message::Hello(_) | Message::Heartbeat(_)) | None => return Ok(()),
            Some(report) => convert::report(report),
        };
        match said {
            Ok(said) => self.api.engine.deliver(&self.worker, &self.incarnation, said).await,
            Err(error) => {
                self.complain(&error);
                Ok(())
            }
        }
    }

    async fn write_log(&self, chunk: LogChunk) -> Result<(), EngineError> {
        let key = LogKey { generation: Generation(chunk.generation), rank: Rank(chunk.rank) };
        let Ok(job) = JobId::new(chunk.job_id) else {
            self.complain(&"a log of an impossible job");
            return Ok(());
        };
        let known = match self.api.engine.view(&job).await {
            Ok(view) => {
                let registered = Generation(1)..=view.job.generation;
                registered.contains(&key.generation) && key.rank.0 < view.job.info.world_size
            }
            Err(EngineError::NoSuchJob(_)) => false,
            Err(error) => return Err(error),
        };
        if !known {
            self.complain(&format_args!("a log of job {job} that it cannot have"));
            return Ok(());
        }
        let (files, id) = (self.api.logs.clone(), job.clone());
        let written = tokio::task::spawn_blocking(move || files.write(&id, &key, chunk.offset, &chunk.data));
        match written.await.unwrap_or_else(|error| Err(LogError::Io(std::io::Error::other(error)))) {
            Ok(()) => self.api.engine.log_written(&job),
            Err(LogError::Io(error)) => return Err(EngineError::Log(error)),
            Err(refused) => self.complain(&refused),
        }
        Ok(())
    }

    /// Sending it again would not help, so it counts as dealt with.
    fn complain(&self, what: &dyn std::fmt::Display) {
        tracing::warn!(worker = %self.worker, "message ignored: {what}");
    }
}
