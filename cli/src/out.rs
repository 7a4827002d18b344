//! Where words go: data to standard output, the rest to standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use console::{Alignment, measure_text_width, pad_str};
use serde::Serialize;

use crate::args::{ColorWhen, Format};
use crate::error::Failure;

/// Applies `--color` to both streams.
pub(crate) fn set_colors(when: ColorWhen) {
    let on = match when {
        ColorWhen::Always => (true, true),
        ColorWhen::Never => (false, false),
        ColorWhen::Auto => {
            let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
            (wanted && io::stdout().is_terminal(), wanted && io::stderr().is_terminal())
        }
    };
    console::set_colors_enabled(on.0);
    console::set_colors_enabled_stderr(on.1);
}

/// A line on standard error; a closed one is no reason to fail.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Text on standard output, as it is.
pub(crate) fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output").into()),
    }
}

/// A line on standard output.
pub(crate) fn line(text: impl fmt::Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// A document: indented for people's eyes where `-o json` is a whole answer.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| anyhow::Error::new(error).context("cannot write JSON"))?;
    line(text)
}

/// A document on one line, for streams.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| anyhow::Error::new(error).context("cannot write JSON"))?;
    line(text)
}

/// Either form of one answer.
pub(crate) fn answer(
    format: Format,
    value: &impl Serialize,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        Format::Json => json(value),
        Format::Table => print(table()),
    }
}

/// Columns of standard output, where it is a terminal.
pub(crate) fn terminal_columns() -> Option<usize> {
    let term = console::Term::stdout();
    term.size_checked().map(|(_, columns)| usize::from(columns)).filter(|&columns| columns >= 20)
}

/// Text from elsewhere, harmless to a terminal: one line, no control characters.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Rows under headings, without lines: two blanks between columns.
pub(crate) struct Table {
    columns: Vec<(&'static str, Alignment)>,
    rows: Vec<Vec<String>>,
    /// The column that gives way when the terminal is narrow.
    elastic: Option<usize>,
}

impl Table {
    /// Headings; one that begins with `>` has its column set flush right.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let columns = headings
            .iter()
            .map(|heading| match heading.strip_prefix('>') {
                Some(heading) => (heading, Alignment::Right),
                None => (*heading, Alignment::Left),
            })
            .collect();
        Self { columns, rows: Vec::new(), elastic: None }
    }

    /// Lets this column be cut to fit the terminal.
    pub(crate) fn elastic(mut self, column: usize) -> Self {
        self.elastic = Some(column);
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table, cut to `columns` where that is given and possible.
    pub(crate) fn render(&self, columns: Option<usize>) -> String {
        const NARROWEST: usize = 8;
        let mut widths: Vec<usize> = self.columns.iter().map(|(heading, _)| heading.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(measure_text_width(cell));
            }
        }
        let total: usize = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        if let (Some(columns), Some(elastic)) = (columns, self.elastic)
            && let Some(width) = widths.get_mut(elastic)
        {
            *width = width.saturating_sub(total.saturating_sub(columns)).max(NARROWEST.min(*width));
        }
        let mut text = String::new();
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        for (index, row) in std::iter::once(&headings).chain(&self.rows).enumerate() {
            let mut cells = Vec::new();
            for ((cell, width), (_, alignment)) in row.iter().zip(&widths).zip(&self.columns) {
                cells.push(pad_str(cell, *width, *alignment, Some("…")).into_owned());
            }
            let line = cells.join("  ");
            let line = line.trim_end();
            match index {
                0 => text.push_str(&console::style(line).bold().to_string()),
                _ => text.push_str(line),
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_elastic_one_gives_way() {
        let mut table = Table::new(&["NAME", ">N"]).elastic(0);
        table.row(vec!["a-very-long-name-indeed".to_owned(), "1".to_owned()]);
        table.row(vec!["b".to_owned(), "1000".to_owned()]);
        assert_eq!(
            console::strip_ansi_codes(&table.render(None)),
            "NAME                        N\na-very-long-name-indeed     1\nb                        1000\n"
        );
        let narrow = table.render(Some(20));
        assert!(
            console::strip_ansi_codes(&narrow).lines().all(|line| measure_text_width(line) <= 20),
            "{narrow}"
        );
        assert!(narrow.contains("a-very-long-n…"), "{narrow}");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(one_line("a\x1b[2J\nb"), "a [2J b");
    }
}
