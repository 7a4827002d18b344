//! The agent: one on every worker host. It registers at the coordinator, holds the lease,
//! supervises one trainer process per rank, and relays metrics and logs.
//!
//! - [`ledger`]: PURE: the generations held, and what to do about each event.
//! - [`outbox`]: PURE: what waits for the coordinator until it is acknowledged.
//! - [`exit`]: how a trainer ended.
//! - [`supervisor`]: runs the ledger's actions.
//! - [`trainer`], [`listener`]: one trainer process, the thread that owns it, and the one that hears it.
//! - [`session`]: the stream to the coordinator.
//! - [`logs`], [`state_dir`], [`store_host`]: log relay, files, rendezvous stores.
//!
//! The coordinator is not on the training path: while it is away, trainers go on and what they
//! report waits. However the agent ends, its trainers end with it.

mod command;
mod exit;
mod key;
mod ledger;
mod listener;
mod logs;
mod mailbox;
mod outbox;
mod session;
mod state_dir;
mod store_host;
mod supervisor;
mod trainer;

use std::sync::Arc;
use std::time::Duration;

use anybit_proto::v1::Hello;
use anybit_shared::ids::WorkerIncarnation;
use anyhow::Context;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use store_host::StoreHost;
pub use trainer::TrainerCommand;

use crate::settings::AgentSettings;
use mailbox::Mailbox;
use outbox::Limits;
use session::Session;
use state_dir::StateDir;
use supervisor::Supervisor;

/// Inputs that wait for the supervisor; past it trainers' sockets fill, and they drop step records.
const QUEUED_INPUTS: usize = 1024;
/// At the end, for the coordinator to acknowledge what was reported.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Runs an agent until `shutdown` is cancelled, then stops its trainers in order, reports, and
/// returns. An error is one that another start with the same settings would meet again.
pub async fn run(
    settings: AgentSettings,
    store_host: Arc<dyn StoreHost>,
    trainer: TrainerCommand,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let state_dir = StateDir::lock(&settings.state_dir)?;
    let incarnation = WorkerIncarnation::new(uuid::Uuid::new_v4().simple().to_string())?;
    let mailbox = Mailbox::new(Limits::default());
    let (inputs, queue) = mpsc::channel(QUEUED_INPUTS);
    let supervisor =
        Supervisor::new(settings.clone(), state_dir, store_host, trainer, mailbox.clone(), inputs.clone());
    let closing = CancellationToken::new();
    let session = Session {
        endpoint: session::endpoint(&settings.coordinator)?,
        hello: Hello {
            worker_id: settings.worker_id.to_string(),
            incarnation: incarnation.to_string(),
            hostname: crate::settings::hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: settings.slots,
            held: Vec::new(),
        },
        held: supervisor.held(),
        mailbox: mailbox.clone(),
        inputs,
        collective_timeout: settings.collective_timeout,
        closing: closing.clone(),
    };
    tracing::info!(worker = %settings.worker_id, %incarnation, slots = settings.slots, "agent started");

    let mut session = tokio::spawn(session.run());
    let mut relays = tokio::select! {
        relays = supervisor.run(queue, shutdown) => relays,
        ended = &mut session => {
            ended.context("the session panicked")??;
            return Ok(());
        }
    };
    let last_words = async {
        while relays.join_next().await.is_some() {}
        closing.cancel();
        // Wakes a session that waits for news.
        mailbox.change(|_| ());
        (&mut session).await
    };
    match timeout(LAST_WORDS, last_words).await {
        Ok(ended) => ended.context("the session panicked")??,
        Err(_) => {
            session.abort();
            let unsaid = mailbox.look(|outbox| outbox.len());
            tracing::warn!(unsaid, "the coordinator did not acknowledge everything before the end");
        }
    }
    tracing::info!("agent stopped");
    Ok(())
}
