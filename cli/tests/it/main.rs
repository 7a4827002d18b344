//! The built `anybit` against a small coordinator that lives in the test.

// Clippy lets helpers of tests `expect` only inside `cfg(test)`.
#[cfg(test)]
mod commands;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod local;
#[cfg(test)]
mod support;
#[cfg(test)]
mod watching;
