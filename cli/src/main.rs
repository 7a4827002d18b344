//! The anybit command line.
fn main() {}
