//! The spec that a command line names, resolved here: no coordinator is needed to refuse one.

use std::io::Read;
use std::path::Path;

use anybit_shared::spec::{JobSpec, MAX_BYTES};

use crate::args::SpecArgs;
use crate::error::Failure;

/// Reads, resolves and checks the spec.
pub(crate) fn resolve(args: &SpecArgs) -> Result<JobSpec, Failure> {
    let (text, source) = match (&args.spec, &args.preset) {
        (Some(path), _) => (read(path)?, path.display().to_string()),
        (None, preset) => {
            let name = preset.as_deref().unwrap_or_default();
            (format!("extends = {name:?}\n"), format!("preset {name}"))
        }
    };
    let mut overrides = args.set.clone();
    overrides.extend(args.name.iter().map(|name| ("name".to_owned(), name.clone())));
    JobSpec::from_toml_with(&text, &overrides).map_err(|error| {
        let problems = error.to_string().replace('\n', "\n  ");
        Failure::InvalidSpec(format!("the job spec ({source}) is not valid:\n  {problems}"))
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::Usage(format!("cannot read the job spec {}: {error}", path.display()))
    };
    // One byte past the limit is enough for the reader to refuse it.
    let limit = MAX_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::InvalidSpec(format!("the job spec ({}) is not UTF-8 text", path.display())))
}
