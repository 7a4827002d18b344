//! `anybit up`.

use serde::Serialize;

use crate::args::{Format, Global, UpArgs};
use crate::error::Failure;
use crate::local::{Cluster, Place, Plan};
use crate::out::{self, Table};
use crate::signals::Signals;

#[derive(Serialize)]
struct Ready<'a> {
    coordinator: &'a str,
    state_dir: &'a std::path::Path,
    services: &'a [Place],
}

pub(crate) async fn up(global: &Global, args: UpArgs) -> Result<(), Failure> {
    let plan = Plan::new(&args.local, args.listen, &args.state_dir)?;
    let mut signals = Signals::all()?;
    out::note(format_args!("starting a coordinator and its workers in {}", args.state_dir.display()));
    let mut cluster = Cluster::launch(plan)?;
    let outcome = serve(global.output, &mut cluster, &mut signals).await;
    if matches!(outcome, Ok(()) | Err(Failure::Interrupted)) {
        out::note("stopping");
    }
    cluster.stop(&mut signals).await;
    outcome
}

/// Until a signal comes: the ordinary end.
async fn serve(format: Format, cluster: &mut Cluster, signals: &mut Signals) -> Result<(), Failure> {
    let places = tokio::select! {
        places = cluster.ready() => places?,
        () = signals.recv() => return Err(Failure::Interrupted),
    };
    let ready = Ready { coordinator: cluster.url(), state_dir: cluster.state_dir(), services: &places };
    match format {
        Format::Json => out::json_line(&ready)?,
        Format::Table => {
            out::print(places_table(&places).render(None))?;
            let at = if cluster.url() == "http://127.0.0.1:7420" {
                String::new()
            } else {
                format!(" --coordinator {}", cluster.url())
            };
            out::note(format_args!("ready for `anybit{at} submit SPEC`"));
            out::note("Ctrl-C stops everything");
        }
    }
    loop {
        tokio::select! {
            Some(note) = cluster.notes.recv() => out::note(note),
            () = signals.recv() => return Ok(()),
        }
    }
}

fn places_table(places: &[Place]) -> Table {
    let mut table = Table::new(&["SERVICE", ">PID", "WHAT", "LOG"]);
    for place in places {
        table.row(vec![
            place.name.clone(),
            place.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            place.what.clone(),
            place.log.display().to_string(),
        ]);
    }
    table
}
