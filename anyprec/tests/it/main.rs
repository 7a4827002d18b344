//! Tests of the public library, one binary.

#[cfg(test)]
mod golden;
#[cfg(test)]
mod quantizers;
#[cfg(test)]
mod training;
