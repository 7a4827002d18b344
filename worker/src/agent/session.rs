//! The one stream to the coordinator, kept for the agent's life: attach, hello, welcome, then
//! messages both ways until it breaks, and again.

use std::time::Duration;

use anybit_proto::v1::agent_service_client::AgentServiceClient;
use anybit_proto::v1::{
    AttachRequest, AttachResponse, HeldGeneration, Hello, Welcome, attach_request, attach_response,
};
use anybit_shared::retry::RetryPolicy;
use anyhow::{anyhow, bail};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::command::Command;
use super::ledger::Event;
use super::mailbox::Mailbox;
use super::outbox::Flush;
use super::supervisor::Input;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From the connection to the welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead connection is noticed after the interval and the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Metric records wait this long for others to travel with.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// A stream that held this long was a good one; shorter ones keep the waits between them growing,
/// so that two agents of one name do not throw each other out in a tight loop.
const SETTLED: Duration = Duration::from_secs(2);
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Everything a stream needs.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) endpoint: Endpoint,
    /// The first message, without the generations held.
    pub(crate) hello: Hello,
    pub(crate) held: watch::Receiver<Vec<HeldGeneration>>,
    pub(crate) mailbox: Mailbox,
    pub(crate) inputs: mpsc::Sender<Input>,
    /// The lease must be shorter than this.
    pub(crate) collective_timeout: Duration,
    /// Cancelled when nothing more will be pushed: the session ends once all is acknowledged.
    pub(crate) closing: CancellationToken,
}

/// Why a stream is over.
#[derive(Debug)]
enum Over {
    /// All was said.
    Closed,
    /// To be tried again.
    Lost(anyhow::Error),
}

/// Whether the coordinator had welcomed this agent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Welcomed {
    Never,
    Before,
}

impl Session {
    /// Runs until closed. An error is one that another attempt would not mend.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let policy = RetryPolicy {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(2),
            ..RetryPolicy::default()
        };
        let mut backoff = policy.backoff();
        let mut welcomed = Welcomed::Never;
        let mut last_problem = String::new();
        loop {
            let over = match self.attach().await {
                Ok((outgoing, incoming, welcome)) => {
                    self.check_lease(&welcome, welcomed)?;
                    welcomed = Welcomed::Before;
                    tracing::info!(coordinator = %self.endpoint.uri(), "attached");
                    let since = Instant::now();
                    let over = self.serve(outgoing, incoming, &welcome).await;
                    if since.elapsed() >= SETTLED {
                        backoff.reset();
                        last_problem.clear();
                    }
                    over
                }
                Err(error) => Over::Lost(error),
            };
            let problem = match over {
                Over::Closed => return Ok(()),
                Over::Lost(error) => format!("{error:#}"),
            };
            // Once for each problem: a coordinator may be away for hours.
            if problem != last_problem {
                tracing::warn!(
                    coordinator = %self.endpoint.uri(),
                    "not attached, trying again: {problem}"
                );
                last_problem = problem;
            }
            let Some(delay) = backoff.next_delay() else { continue };
            tokio::time::sleep(delay).await;
        }
    }

    async fn attach(
        &self,
    ) -> anyhow::Result<(mpsc::Sender<AttachRequest>, Streaming<AttachResponse>, Welcome)> {
        let channel = self.endpoint.connect().await?;
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (outgoing, requests) = mpsc::channel(16);
        let hello = Hello { held: self.held.borrow().clone(), ..self.hello.clone() };
        outgoing.send(volatile(attach_request::Message::Hello(hello))).await?;
        let welcome = async {
            let mut incoming = client.attach(ReceiverStream::new(requests)).await?.into_inner();
            match incoming.message().await?.and_then(|response| response.message) {
                Some(attach_response::Message::Welcome(welcome)) => anyhow::Ok((incoming, welcome)),
                other => bail!("the coordinator did not begin with a welcome but with {other:?}"),
            }
        };
        let (incoming, welcome) = timeout(WELCOME_TIMEOUT, welcome)
            .await
            .map_err(|_| anyhow!("no welcome within {WELCOME_TIMEOUT:?}"))??;
        self.mailbox.look(|outbox| outbox.reconnected());
        Ok((outgoing, incoming, welcome))
    }

    /// Timeouts must nest, or a collective would fail before its lost worker is noticed. Found at
    /// the first welcome that is an end; later there is training to keep.
    fn check_lease(&self, welcome: &Welcome, welcomed: Welcomed) -> anyhow::Result<()> {
        let lease = Duration::from_millis(welcome.lease_ms);
        if lease < self.collective_timeout {
            return Ok(());
        }
        let problem = format!(
            "the coordinator's lease of {lease:?} must be shorter than collective_timeout, {:?}: raise \
             collective_timeout or shorten the lease",
            self.collective_timeout
        );
        match welcomed {
            Welcomed::Never => bail!(problem),
            Welcomed::Before => tracing::error!("{problem}"),
        }
        Ok(())
    }

    async fn serve(
        &self,
        outgoing: mpsc::Sender<AttachRequest>,
        mut incoming: Streaming<AttachResponse>,
        welcome: &Welcome,
    ) -> Over {
        let mut beat = interval(Duration::from_millis(welcome.heartbeat_ms.max(10)));
        let mut flush_tick = interval(FLUSH_INTERVAL);
        for ticks in [&mut beat, &mut flush_tick] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut flush = Flush::Now;
        let mut due = None;
        loop {
            if due.is_none() {
                due = self.mailbox.look(|outbox| outbox.next(flush));
                if due.is_none() {
                    flush = Flush::Full;
                }
            }
            if self.closing.is_cancelled() && self.mailbox.look(|outbox| outbox.is_empty()) {
                return Over::Closed;
            }
            tokio::select! {
                response = incoming.message() => match response {
                    Ok(Some(response)) => self.take(response).await,
                    Ok(None) => return Over::Lost(anyhow!("the coordinator closed the stream")),
                    Err(status) => return Over::Lost(anyhow!("{}", status.message())),
                },
                permit = outgoing.reserve(), if due.is_some() => match (permit, due.take()) {
                    (Ok(permit), Some(request)) => permit.send(request),
                    _ => return Over::Lost(anyhow!("the stream broke")),
                },
                () = self.mailbox.changed(), if due.is_none() => {}
                _ = flush_tick.tick() => flush = Flush::Now,
                // A full queue is on its way and tells as much.
                _ = beat.tick() => drop(outgoing.try_send(volatile(attach_request::Message::Heartbeat(
                    anybit_proto::v1::Heartbeat {},
                )))),
            }
        }
    }

    async fn take(&self, response: AttachResponse) {
        let command = match response.message {
            Some(attach_response::Message::Acknowledge(acknowledge)) => {
                return self.mailbox.change(|outbox| outbox.acknowledge(acknowledge.sequence));
            }
            Some(attach_response::Message::HostStore(wire)) => Command::try_from(wire),
            Some(attach_response::Message::StartRanks(wire)) => Command::try_from(wire),
            Some(attach_response::Message::StopGeneration(wire)) => Command::try_from(wire),
            Some(attach_response::Message::Welcome(_)) | None => {
                return tracing::warn!("the coordinator sent a message that this agent does not expect");
            }
        };
        match command {
            // Without a supervisor the agent is ending, and this session with it.
            Ok(command) => drop(self.inputs.send(Input::Event(Event::Command(command))).await),
            Err(error) => tracing::error!("refusing a command of the coordinator: {error}"),
        }
    }
}

fn volatile(message: attach_request::Message) -> AttachRequest {
    AttachRequest { sequence: 0, message: Some(message) }
}

/// The endpoint of a coordinator, with this agent's connection settings.
pub(crate) fn endpoint(coordinator: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(coordinator.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}
