//! Relays a trainer's log file to the coordinator.
//!
//! The file is the buffer: no more than a window of it waits in the outbox, and the next piece is
//! read once the coordinator acknowledged enough of what was sent.

use std::path::PathBuf;
use std::time::Duration;

use anybit_proto::v1::LogChunk;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::key::RankKey;
use super::mailbox::Mailbox;

const CHUNK_BYTES: usize = 32 << 10;
/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Relays from the file's beginning; returns once `ended` was cancelled and all was handed over.
pub(crate) async fn relay(key: RankKey, path: PathBuf, mailbox: Mailbox, ended: CancellationToken) {
    let mut file = None;
    let mut offset = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        // Read before the file, so that what a trainer wrote last is not missed.
        let over = ended.is_cancelled();
        let room = mailbox.look(|outbox| outbox.log_room(&key)).min(CHUNK_BYTES);
        if file.is_none() {
            file = File::open(&path).await.ok();
        }
        let read = match &mut file {
            Some(file) if room > 0 => file.read(&mut buffer[..room]).await.unwrap_or_else(|error| {
                tracing::warn!("cannot read log {}: {error}", path.display());
                0
            }),
            _ => 0,
        };
        if read > 0 {
            let chunk = LogChunk {
                job_id: key.of.job.to_string(),
                generation: key.of.generation.0,
                rank: key.rank.0,
                offset,
                data: buffer[..read].to_vec(),
            };
            offset += read as u64;
            mailbox.change(|outbox| outbox.push_log(key.clone(), chunk));
        } else if over && room > 0 {
            return;
        } else {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = ended.cancelled(), if !over => {}
            }
        }
    }
}
