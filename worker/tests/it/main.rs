//! Tests of the public library, one binary.

#[cfg(test)]
mod replicas;
