//! The coordinator from outside: over its API, and as a process.

#[cfg(test)]
mod process;
#[cfg(test)]
mod service;
#[cfg(test)]
mod support;
