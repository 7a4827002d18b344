//! From signals to a token: the first SIGINT or SIGTERM asks for an orderly end, the second ends
//! the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit status after a second signal, as shells give it for SIGINT.
const SECOND_SIGNAL_STATUS: i32 = 130;

/// Listens for SIGINT and SIGTERM from now on; the token is cancelled by the first of them.
/// Must be called within a tokio runtime; the listening task lives as long as that.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = either(&mut interrupt, &mut terminate).await;
        tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
        cancelled.cancel();
        let name = either(&mut interrupt, &mut terminate).await;
        tracing::warn!(signal = name, "second signal: ending now");
        std::process::exit(SECOND_SIGNAL_STATUS);
    });
    Ok(token)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}
