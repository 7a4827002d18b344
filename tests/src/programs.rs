//! The programs under test: those built beside the test program.

use std::path::{Path, PathBuf};

/// The coordinator's program.
pub const COORDINATOR: &str = "anybit-coordinator";
/// The worker's program.
pub const WORKER: &str = "anybit-worker";
/// The program that people use.
pub const PEOPLE: &str = "anybit";

/// Where a built program lies.
pub fn program(name: &str) -> PathBuf {
    // target/PROFILE/deps/TEST
    let own = std::env::current_exe().expect("this test's own path");
    let folder = own.ancestors().nth(2).expect("a profile's folder");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built, and these tests run the built programs: run `make build` (for `cargo test` \
         without --release: `cargo build`)",
        path.display()
    );
    path
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above this crate's")
}
