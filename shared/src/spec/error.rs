//! What is wrong with a spec, all of it at once.

use std::fmt;

/// Problems listed before the rest is only counted: the text travels in a gRPC status.
const SHOWN: usize = 40;

/// Why a spec was refused: one problem a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SpecError {
    problems: Vec<Problem>,
}

/// One thing to change in a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key at fault, dotted; empty when the text as a whole is.
    pub key: String,
    /// Where in the person's file, from 1; `None` for presets, overrides and missing keys.
    pub line: Option<usize>,
    /// Names the key and what is allowed.
    pub message: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, line: Option<usize>, message: impl Into<String>) -> Self {
        Self { key: key.into(), line, message: message.into() }
    }
}

impl SpecError {
    /// In the order of the file, problems without a line last.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Self { problems }
    }

    pub(super) fn one(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }

    /// Everything that is wrong; at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}
