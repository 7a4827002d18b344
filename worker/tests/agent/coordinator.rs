//! A coordinator that says only what a test tells it to.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybit_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use anybit_proto::v1::attach_request::Message;
use anybit_proto::v1::{
    Acknowledge, AttachRequest, AttachResponse, Hello, Welcome, attach_response as response,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Coordinator {
    pub(crate) url: String,
    connections: mpsc::Receiver<Connection>,
    refusing: Arc<AtomicBool>,
}

/// One stream of an agent.
pub(crate) struct Connection {
    pub(crate) hello: Hello,
    /// Whether [`Self::next`] acknowledges what it returns.
    pub(crate) acknowledging: bool,
    pub(crate) seen: Vec<AttachRequest>,
    requests: Option<Streaming<AttachRequest>>,
    responses: Option<mpsc::Sender<Result<AttachResponse, Status>>>,
}

struct Service {
    lease: Duration,
    connections: mpsc::Sender<Connection>,
    refusing: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl AgentService for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        if self.refusing.load(Ordering::Relaxed) {
            return Err(Status::unavailable("away"));
        }
        let mut requests = request.into_inner();
        let Some(AttachRequest { sequence: 0, message: Some(Message::Hello(hello)) }) =
            requests.message().await?
        else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (responses, stream) = mpsc::channel(16);
        let welcome = Welcome { lease_ms: self.lease.as_millis() as u64, heartbeat_ms: 50 };
        responses.send(Ok(said(response::Message::Welcome(welcome)))).await.unwrap();
        let connection = Connection {
            hello,
            acknowledging: true,
            seen: Vec::new(),
            requests: Some(requests),
            responses: Some(responses),
        };
        self.connections.send(connection).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn said(message: response::Message) -> AttachResponse {
    AttachResponse { message: Some(message) }
}

impl Coordinator {
    pub(crate) async fn start(lease: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, connections) = mpsc::channel(16);
        let refusing = Arc::new(AtomicBool::new(false));
        let service = Service { lease, connections: sender, refusing: refusing.clone() };
        let server = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(service))
            .serve_with_incoming(TcpIncoming::from(listener));
        // Ends with the test's runtime.
        tokio::spawn(server);
        Self { url, connections, refusing }
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::Relaxed);
    }

    pub(crate) async fn attached(&mut self) -> Connection {
        self.connections.recv().await.unwrap()
    }
}

impl Connection {
    pub(crate) async fn tell(&self, message: response::Message) {
        self.responses.as_ref().unwrap().send(Ok(said(message))).await.unwrap();
    }

    pub(crate) async fn acknowledge(&self, sequence: u64) {
        self.tell(response::Message::Acknowledge(Acknowledge { sequence })).await;
    }

    /// The agent's next message; `None` when it has gone.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let request = self.requests.as_mut()?.message().await.ok()??;
        if self.acknowledging && request.sequence > 0 {
            let message = response::Message::Acknowledge(Acknowledge { sequence: request.sequence });
            // An agent that ends does not wait for it.
            let _ = self.responses.as_ref()?.send(Ok(said(message))).await;
        }
        self.seen.push(request.clone());
        request.message
    }

    /// What was seen of messages that must last.
    pub(crate) fn lasting(&self) -> Vec<AttachRequest> {
        self.seen.iter().filter(|request| request.sequence > 0).cloned().collect()
    }

    /// Breaks the stream.
    pub(crate) fn drop_stream(&mut self) {
        self.requests = None;
        self.responses = None;
    }
}
