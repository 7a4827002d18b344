//! What a job ends with: figures per width and the checkpoint.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::model::{Job, WidthFigures};
use crate::out::Table;
use crate::text;

/// The last evaluation of a job, where its newest checkpoint lies, and how long it took.
pub(crate) struct Results {
    widths: Vec<WidthFigures>,
    checkpoint: Option<String>,
    seconds: f64,
}

/// `{"widths": {"1": {"loss": .., "top1": ..}, ..}, "checkpoint": "..", "seconds": ..}`.
impl Serialize for Results {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("widths", &Widths(&self.widths))?;
        map.serialize_entry("checkpoint", &self.checkpoint)?;
        map.serialize_entry("seconds", &self.seconds)?;
        map.end()
    }
}

struct Widths<'a>(&'a [WidthFigures]);

impl Serialize for Widths<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Figures {
            loss: f64,
            top1: f64,
        }
        serializer.collect_map(
            self.0
                .iter()
                .map(|width| (width.bits.to_string(), Figures { loss: width.loss, top1: width.top1 })),
        )
    }
}

impl Results {
    /// Of a job as it stands, timed by the caller.
    pub(crate) fn of(job: &Job, seconds: f64) -> Self {
        Self {
            widths: job.evaluation.as_ref().map(|evaluation| evaluation.widths.clone()).unwrap_or_default(),
            checkpoint: job.checkpoint.as_ref().map(|checkpoint| checkpoint.path.clone()),
            seconds,
        }
    }

    /// One row per width, then the rest.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        if !self.widths.is_empty() {
            let mut table = Table::new(&[">BITS", ">LOSS", ">TOP-1 %", ">TOP-5 %"]);
            for width in &self.widths {
                table.row(vec![
                    width.bits.to_string(),
                    format!("{:.4}", width.loss),
                    format!("{:.2}", width.top1),
                    format!("{:.2}", width.top5),
                ]);
            }
            text = format!("{}\n", table.render(None));
        }
        let checkpoint = self.checkpoint.as_deref().unwrap_or("none");
        format!("{text}checkpoint  {checkpoint}\ntime        {}\n", text::duration(self.seconds))
    }

    /// Writes the report whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let context = || format!("cannot write the report {}", path.display());
        let mut file = tempfile::Builder::new()
            .prefix(".report-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder_of(path))
            .with_context(context)?;
        let mut text = serde_json::to_vec_pretty(self).with_context(context)?;
        text.push(b'\n');
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).with_context(context)?;
        file.persist(path).with_context(context)?;
        Ok(())
    }
}

/// The folder that a file lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_keeps_the_widths_in_order_and_replaces_an_old_one() {
        let width = |bits, loss| WidthFigures { bits, loss, top1: 92.5, top5: 100.0 };
        let results = Results {
            widths: vec![width(1, 0.25), width(4, f64::NAN), width(32, 0.125)],
            checkpoint: Some("/c/step-9".to_owned()),
            seconds: 4.5,
        };
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("report.json");
        results.write(&path).expect("written");
        results.write(&path).expect("written again");
        let text = std::fs::read_to_string(&path).expect("read");
        let compact: String = text.split_whitespace().collect();
        assert_eq!(
            compact,
            "{\"widths\":{\"1\":{\"loss\":0.25,\"top1\":92.5},\"4\":{\"loss\":null,\"top1\":92.5},\
             \"32\":{\"loss\":0.125,\"top1\":92.5}},\"checkpoint\":\"/c/step-9\",\"seconds\":4.5}"
        );
        assert_eq!(std::fs::read_dir(path.parent().expect("parent")).expect("list").count(), 1);
    }
}
