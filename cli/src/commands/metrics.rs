//! `anybit metrics`.

use crate::args::{Format, Global, MetricsArgs};
use crate::client::{Backoff, Client, MetricsQuery};
use crate::error::Failure;
use crate::model::{Record, Step, Stored, WidthFigures};
use crate::plot::{self, Curve};
use crate::signals::Signals;
use crate::{out, text};

/// Step records that one point of a plotted training curve stands for, at least: this many points.
const PLOTTED_POINTS: usize = 120;

/// Form of the records on standard output.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Rows,
    Csv,
    JsonLines,
}

/// Writes records as they come, under one heading.
struct Writer {
    shape: Shape,
    begun: bool,
}

pub(crate) async fn metrics(global: &Global, args: &MetricsArgs) -> Result<(), Failure> {
    if global.output == Format::Json && (args.plot || args.csv) {
        let flag = if args.plot { "--plot" } else { "--csv" };
        return Err(Failure::Usage(format!("{flag} and -o json exclude each other: leave one out")));
    }
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    if args.plot {
        return plot(&client, args).await;
    }
    let shape = match (global.output, args.csv) {
        (Format::Json, _) => Shape::JsonLines,
        (Format::Table, true) => Shape::Csv,
        (Format::Table, false) => Shape::Rows,
    };
    let mut writer = Writer { shape, begun: false };
    let mut revision = 0;
    if !args.follow {
        read(&client, args, &mut revision, |stored| writer.write(stored)).await?;
        if !writer.begun && global.output == Format::Table {
            let ended = client.job(&args.id).await?.state.is_terminal();
            out::note(if ended { "no records" } else { "no records yet" });
        }
        return Ok(());
    }
    let mut signals = Signals::ctrl_c()?;
    let mut backoff = Backoff::new();
    let (mut last, mut lost) = (None, false);
    loop {
        let ended = tokio::select! {
            ended = read(&client, args, &mut revision, |stored| writer.write(stored)) => ended,
            () = signals.recv() => return Err(Failure::Interrupted),
        };
        match ended {
            Ok(()) => return Ok(()),
            Err(Failure::Unreachable(_)) if last.is_some() || revision > 0 => {
                if !std::mem::replace(&mut lost, true) {
                    out::note("the coordinator went away; trying again until it answers");
                }
            }
            Err(failure) => return Err(failure),
        }
        if last.replace(revision) != Some(revision) {
            backoff.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.advance()) => {}
            () = signals.recv() => return Err(Failure::Interrupted),
        }
    }
}

/// Gives every record after `revision` to `take`, and moves `revision` along.
async fn read(
    client: &Client,
    args: &MetricsArgs,
    revision: &mut u64,
    mut take: impl FnMut(&Stored) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let query =
        MetricsQuery { follow: args.follow, evaluations_only: args.evaluations, after_revision: *revision };
    let mut feed = client.metrics(&args.id, &query).await?;
    while let Some(stored) = feed.next().await? {
        if stored.revision > *revision || stored.revision == 0 {
            *revision = stored.revision;
            take(&stored)?;
        }
    }
    Ok(())
}

impl Writer {
    fn write(&mut self, stored: &Stored) -> Result<(), Failure> {
        if self.shape == Shape::JsonLines {
            return out::json_line(stored);
        }
        let (kind, step, epoch, widths, skipped) = match &stored.record {
            Some(Record::Step(step)) => ("train", step.step, step.epoch, &step.widths, step.skipped.as_ref()),
            Some(Record::Evaluation(test)) => ("test", test.step, test.epoch, &test.widths, None),
            Some(Record::Checkpoint(_)) | None => return Ok(()),
        };
        let first = !std::mem::replace(&mut self.begun, true);
        if self.shape == Shape::Csv {
            if first {
                out::line("kind,generation,step,epoch,bits,loss,top1,top5")?;
            }
            for WidthFigures { bits, loss, top1, top5 } in widths {
                let generation = stored.generation;
                out::line(format_args!("{kind},{generation},{step},{epoch},{bits},{loss},{top1},{top5}"))?;
            }
            return Ok(());
        }
        if first {
            for line in heading(widths) {
                out::line(console::style(line).bold())?;
            }
        }
        out::line(row(kind, step, epoch, widths))?;
        if let Some(reason) = skipped {
            out::note(format_args!("after step {step} a step was skipped: {}", out::one_line(reason)));
        }
        Ok(())
    }
}

/// Loss and top-1 of every width: 79 columns for five widths.
fn heading(widths: &[WidthFigures]) -> [String; 2] {
    let names: String = widths.iter().map(|width| format!("{:>12}", text::bits(width.bits))).collect();
    let figures = format!(" {:>5} {:>5}", "LOSS", "TOP-1").repeat(widths.len());
    [format!("{:18}{names}", ""), format!("{:<5}{:>6} {:>6}{figures}", "KIND", "STEP", "EPOCH")]
}

fn row(kind: &str, step: u64, epoch: f64, widths: &[WidthFigures]) -> String {
    let figures: String = widths
        .iter()
        .map(|width| format!(" {:>5} {:>5}", text::loss(width.loss), text::percent(width.top1)))
        .collect();
    format!("{kind:<5}{step:>6} {epoch:>6.2}{figures}")
}

async fn plot(client: &Client, args: &MetricsArgs) -> Result<(), Failure> {
    let mut steps: Vec<Step> = Vec::new();
    let mut tests: Vec<(f64, Vec<WidthFigures>)> = Vec::new();
    read(client, args, &mut 0, |stored| {
        match &stored.record {
            Some(Record::Step(step)) => steps.push(step.clone()),
            Some(Record::Evaluation(test)) => tests.push((test.epoch, test.widths.clone())),
            Some(Record::Checkpoint(_)) | None => {}
        }
        Ok(())
    })
    .await?;
    let training = averaged(&steps);
    let mut charts = Vec::new();
    let colors = console::colors_enabled();
    // Without a terminal's size, what a page of text takes.
    let columns = out::terminal_columns().unwrap_or(80);
    for (what, points) in [("training", &training), ("test", &tests)] {
        let loss = curves(points, |width| width.loss);
        let top1 = curves(points, |width| width.top1);
        charts.extend(plot::chart(&format!("{what} loss"), &loss, columns, colors));
        charts.extend(plot::chart(&format!("{what} top-1 %"), &top1, columns, colors));
    }
    if charts.is_empty() {
        out::note("nothing to draw yet: a curve needs two points");
        return Ok(());
    }
    out::print(charts.join("\n"))
}

/// Step records are many and noisy: means over equal runs of them.
fn averaged(steps: &[Step]) -> Vec<(f64, Vec<WidthFigures>)> {
    let run = steps.len().div_ceil(PLOTTED_POINTS).max(1);
    let mean = |steps: &[Step], bits: u32, figure: fn(&WidthFigures) -> f64| {
        let values =
            steps.iter().flat_map(|step| step.widths.iter().find(|width| width.bits == bits)).map(figure);
        let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
        sum / f64::from(count)
    };
    steps
        .chunks(run)
        .filter_map(|steps| {
            let last = steps.last()?;
            let figures = |width: &WidthFigures| WidthFigures {
                bits: width.bits,
                loss: mean(steps, width.bits, |width| width.loss),
                top1: mean(steps, width.bits, |width| width.top1),
                top5: mean(steps, width.bits, |width| width.top5),
            };
            Some((last.epoch, last.widths.iter().map(figures).collect()))
        })
        .collect()
}

fn curves(points: &[(f64, Vec<WidthFigures>)], figure: impl Fn(&WidthFigures) -> f64) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for (epoch, widths) in points {
        for width in widths {
            let point = (*epoch, figure(width));
            match curves.iter_mut().find(|curve| curve.bits == width.bits) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { bits: width.bits, points: vec![point] }),
            }
        }
    }
    curves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(loss: f64) -> Vec<WidthFigures> {
        [1, 2, 4, 8, 32].map(|bits| WidthFigures { bits, loss, top1: 100.0, top5: 100.0 }).to_vec()
    }

    #[test]
    fn five_widths_fit_eighty_columns() {
        for loss in [0.123_456, f64::NAN, 1e300, 123.456] {
            let row = row("train", 99_999, 999.99, &widths(loss));
            assert!(heading(&widths(loss)).iter().all(|line| line.len() == row.len()), "{row}");
            assert!(row.len() <= 80, "{row}");
        }
    }

    #[test]
    fn curves_with_gaps_and_flat_curves_can_be_drawn() {
        for colors in [true, false] {
            let points: Vec<_> = [0.5, f64::NAN, 0.25, 0.25, f64::INFINITY, 1e300, 0.1, 0.1]
                .into_iter()
                .enumerate()
                .map(|(epoch, loss)| (epoch as f64, widths(loss)))
                .collect();
            assert!(plot::chart("loss", &curves(&points, |width| width.loss), 80, colors).is_some());
            assert!(plot::chart("top-1", &curves(&points, |width| width.top1), 10_000, colors).is_some());
            let lonely = vec![(1.0, widths(1.0)), (2.0, widths(f64::NAN))];
            assert!(plot::chart("loss", &curves(&lonely, |width| width.loss), 80, colors).is_none());
        }
    }

    #[test]
    fn long_training_curves_are_averaged() {
        let step = |step: u64| Step {
            step,
            total_steps: 1000,
            epoch: step as f64,
            seconds: 0.1,
            data_wait_seconds: 0.0,
            images_per_second: 1.0,
            learning_rate: 1.0,
            gradient_norm: 1.0,
            joint_loss: 1.0,
            widths: widths(if step.is_multiple_of(2) { 1.0 } else { 3.0 }),
            skipped: None,
            sample_offset: 0,
        };
        let steps: Vec<Step> = (0..1200).map(step).collect();
        let points = averaged(&steps);
        assert_eq!(points.len(), PLOTTED_POINTS);
        assert!(points.iter().all(|(_, widths)| (widths[0].loss - 2.0).abs() < 1e-12));
    }
}
