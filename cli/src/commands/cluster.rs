//! `anybit workers`.

use crate::args::{Format, Global};
use crate::client::Client;
use crate::error::Failure;
use crate::model::Worker;
use crate::out::{self, Table};
use crate::text;

pub(crate) async fn workers(global: &Global) -> Result<(), Failure> {
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let workers = client.workers().await?;
    if workers.is_empty() && global.output == Format::Table {
        out::note("no workers; start some with `anybit up`, or `anybit-worker agent` on other machines");
        return Ok(());
    }
    let now = text::now_unix_ms();
    out::answer(global.output, &workers, || workers_table(&workers, now).render(out::terminal_columns()))
}

fn workers_table(workers: &[Worker], now_unix_ms: i64) -> Table {
    let mut table = Table::new(&["ID", "HOST", "STATE", ">SLOTS", ">SEEN", ">ATTACHED", "RANKS"]).elastic(6);
    for worker in workers {
        let state = match worker.alive {
            true => console::style("alive").green(),
            false => console::style("lost").red(),
        };
        let ranks: Vec<String> = worker
            .ranks
            .iter()
            .map(|held| format!("{}:{}", held.job_id.chars().take(8).collect::<String>(), held.rank))
            .collect();
        table.row(vec![
            worker.id.clone(),
            out::one_line(&worker.hostname),
            state.to_string(),
            format!("{}/{}", worker.used_slots, worker.slots),
            text::duration(worker.lease_age_ms as f64 / 1000.0),
            text::age(worker.attached_unix_ms, now_unix_ms),
            if ranks.is_empty() { "-".to_owned() } else { ranks.join(" ") },
        ]);
    }
    table
}
