//! A job as a progress bar and a line per width, redrawn in place on standard error.

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{headline, pace, situation};
use crate::model::{Job, JobState, WidthFigures};
use crate::text;

/// The lines on the screen, top to bottom.
#[derive(Default)]
pub(crate) struct Live {
    screen: MultiProgress,
    lines: Option<Lines>,
    last: Option<Job>,
}

struct Lines {
    title: ProgressBar,
    bar: ProgressBar,
    head: ProgressBar,
    widths: Vec<ProgressBar>,
}

impl Live {
    pub(super) fn show(&mut self, job: &Job) {
        self.last = Some(job.clone());
        let screen = &self.screen;
        let lines = self.lines.get_or_insert_with(|| Lines::new(screen));
        lines.title.set_message(title(job));
        lines.bar.set_length(job.progress.total_steps);
        lines.bar.set_position(job.progress.step.min(job.progress.total_steps));
        lines.bar.set_message(pace(job));
        let bits = bits(job);
        if bits.is_empty() {
            return;
        }
        lines.head.set_message(style(HEAD).for_stderr().dim().to_string());
        while lines.widths.len() < bits.len() {
            lines.widths.push(text_line(screen));
        }
        for (line, text) in lines.widths.iter().zip(width_lines(job)) {
            line.set_message(text);
        }
    }

    pub(super) fn note(&mut self, text: &str) {
        self.screen.suspend(|| crate::out::note(text));
    }

    /// Puts the last snapshot in the moving lines' place, as lines that stay.
    pub(super) fn leave(&mut self) {
        self.clear();
        let Some(job) = self.last.take() else { return };
        crate::out::note(title(&job));
        crate::out::note(format_args!(
            "step {}/{}  {}",
            job.progress.step,
            job.progress.total_steps,
            pace(&job)
        ));
        let widths = width_lines(&job);
        if !widths.is_empty() {
            crate::out::note(style(HEAD).for_stderr().dim());
        }
        widths.iter().for_each(crate::out::note);
    }

    pub(super) fn clear(&mut self) {
        let _ = self.screen.clear();
        // Dropped lines draw themselves once more, below what is written from here on.
        self.screen.set_draw_target(ProgressDrawTarget::hidden());
    }
}

impl Lines {
    fn new(screen: &MultiProgress) -> Self {
        let title = text_line(screen);
        let bar = screen.add(ProgressBar::new(0));
        if let Ok(template) = ProgressStyle::with_template("{wide_bar:.cyan/dim} step {pos}/{len}  {msg}") {
            bar.set_style(template.progress_chars("━━─"));
        }
        Self { title, bar, head: text_line(screen), widths: Vec::new() }
    }
}

fn text_line(screen: &MultiProgress) -> ProgressBar {
    let line = screen.add(ProgressBar::new_spinner());
    if let Ok(template) = ProgressStyle::with_template("{wide_msg}") {
        line.set_style(template);
    }
    line
}

fn title(job: &Job) -> String {
    let word = style(job.state.as_str()).for_stderr().bold();
    let word = match job.state {
        JobState::Running => word.cyan(),
        JobState::Stopping => word.yellow(),
        JobState::Failed => word.red(),
        JobState::Succeeded => word.green(),
        _ => word,
    };
    format!("{}  {word}  {}", headline(job), situation(job))
}

fn bits(job: &Job) -> Vec<u32> {
    if job.bits.is_empty() { job.training.iter().map(|width| width.bits).collect() } else { job.bits.clone() }
}

fn width_lines(job: &Job) -> Vec<String> {
    let tested = job.evaluation.as_ref().map(|last| last.widths.as_slice()).unwrap_or_default();
    bits(job).into_iter().map(|bits| width_line(bits, &job.training, tested)).collect()
}

const HEAD: &str = "  bits   train loss   top-1 %     test loss   top-1 %";

fn width_line(bits: u32, training: &[WidthFigures], tested: &[WidthFigures]) -> String {
    let figures = |widths: &[WidthFigures]| match widths.iter().find(|width| width.bits == bits) {
        Some(width) => (text::loss(width.loss), text::percent(width.top1)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let ((train_loss, train_top1), (test_loss, test_top1)) = (figures(training), figures(tested));
    let test_top1 = style(format!("{test_top1:>7}")).for_stderr().bold();
    format!("{bits:>6}   {train_loss:>10}   {train_top1:>7}    {test_loss:>10}   {test_top1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_under_their_headings() {
        let width = |bits| WidthFigures { bits, loss: 0.5, top1: 100.0, top5: 100.0 };
        let line = width_line(32, &[width(1), width(32)], &[width(32)]);
        let line = console::strip_ansi_codes(&line).into_owned();
        assert_eq!(line.len(), HEAD.len(), "\n{HEAD}\n{line}");
        for (heading, figure) in [("bits", "32"), ("train loss", "0.500"), ("top-1 %", "100.0")] {
            let end = |text: &str, part: &str| text.find(part).map(|at| at + part.len());
            assert_eq!(end(HEAD, heading), end(&line, figure), "\n{HEAD}\n{line}");
        }
        let blank = console::strip_ansi_codes(&width_line(4, &[], &[])).into_owned();
        assert_eq!(blank.len(), HEAD.len(), "{blank}");
    }
}
