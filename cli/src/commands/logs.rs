//! `anybit logs`.

use std::io::IsTerminal;

use serde::Serialize;

use crate::args::{Format, Global, LogsArgs};
use crate::client::{Backoff, Client, LogsQuery};
use crate::error::Failure;
use crate::loglines::{LogLine, LogLines};
use crate::out;
use crate::signals::Signals;

#[derive(Serialize)]
struct JsonLine<'a> {
    generation: u32,
    rank: u32,
    text: &'a str,
}

/// How lines are shown.
struct Printer {
    format: Format,
    /// Each line says which rank wrote it.
    prefixed: bool,
    terminal: bool,
}

pub(crate) async fn logs(global: &Global, args: &LogsArgs) -> Result<(), Failure> {
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let job = client.job(&args.id).await?;
    let printer = Printer {
        format: global.output,
        prefixed: (args.rank.is_none() && job.world_size > 1)
            || (args.generation.is_none() && job.generation > 1),
        terminal: std::io::stdout().is_terminal(),
    };
    let query = LogsQuery {
        follow: args.follow,
        rank: args.rank,
        generation: args.generation,
        last_lines: args.lines,
    };
    if !args.follow {
        let mut lines = LogLines::default();
        let mut feed = client.logs(&job.id, query).await?;
        while let Some(chunk) = feed.next().await? {
            printer.print(&lines.push(&chunk))?;
        }
        return printer.print(&lines.finish());
    }
    follow(&client, &job.id, query, &printer).await
}

async fn follow(client: &Client, id: &str, query: LogsQuery, printer: &Printer) -> Result<(), Failure> {
    let mut signals = Signals::ctrl_c()?;
    let mut lines = LogLines::default();
    let (mut backoff, mut opened, mut lost) = (Backoff::new(), false, false);
    loop {
        // After a lost connection everything is asked for again, and what was seen is left out.
        let again = LogsQuery { last_lines: if opened { 0 } else { query.last_lines }, ..query };
        let ended = tokio::select! {
            ended = stream(client, id, again, printer, &mut lines, &mut opened, &mut backoff) => ended,
            () = signals.recv() => return Err(Failure::Interrupted),
        };
        match ended {
            Ok(()) => return printer.print(&lines.finish()),
            Err(Failure::Unreachable(_)) if opened => {
                if !std::mem::replace(&mut lost, true) {
                    out::note("the coordinator went away; trying again until it answers");
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.advance()) => {}
            () = signals.recv() => return Err(Failure::Interrupted),
        }
    }
}

async fn stream(
    client: &Client,
    id: &str,
    query: LogsQuery,
    printer: &Printer,
    lines: &mut LogLines,
    opened: &mut bool,
    backoff: &mut Backoff,
) -> Result<(), Failure> {
    let mut feed = client.logs(id, query).await?;
    *opened = true;
    while let Some(chunk) = feed.next().await? {
        backoff.reset();
        printer.print(&lines.push(&chunk))?;
    }
    Ok(())
}

impl Printer {
    fn print(&self, lines: &[LogLine]) -> Result<(), Failure> {
        for line in lines {
            let LogLine { generation, rank, text } = line;
            if self.format == Format::Json {
                out::json_line(&JsonLine { generation: *generation, rank: *rank, text })?;
                continue;
            }
            let text = if self.terminal { out::one_line(text) } else { text.clone() };
            match self.prefixed {
                true => {
                    let prefix = console::style(format!("g{generation} r{rank} |")).dim();
                    out::line(format_args!("{prefix} {text}"))?;
                }
                false => out::line(text)?,
            }
        }
        Ok(())
    }
}
