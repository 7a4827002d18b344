//! Whole lines out of log chunks that may come cut anywhere, twice, and from several ranks.

use std::collections::BTreeMap;

use crate::model::LogChunk;

/// A longer line is given in pieces.
const LONGEST: usize = 1 << 20;

/// A rank's log of one generation.
type Source = (u32, u32);

/// One line and where it comes from.
#[derive(Debug, PartialEq)]
pub(crate) struct LogLine {
    pub(crate) generation: u32,
    pub(crate) rank: u32,
    pub(crate) text: String,
}

#[derive(Default)]
struct Tail {
    /// Where the next new byte stands.
    next: u64,
    partial: Vec<u8>,
}

/// Puts chunks together.
#[derive(Default)]
pub(crate) struct LogLines {
    tails: BTreeMap<Source, Tail>,
}

impl LogLines {
    /// The lines that this chunk completes. Bytes seen before are left out.
    pub(crate) fn push(&mut self, chunk: &LogChunk) -> Vec<LogLine> {
        let source = (chunk.generation, chunk.rank);
        let tail = self.tails.entry(source).or_default();
        let seen = usize::try_from(tail.next.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
        let Some(new) = chunk.data.get(seen..) else {
            return Vec::new();
        };
        tail.next = chunk.offset.saturating_add(chunk.data.len() as u64).max(tail.next);
        tail.partial.extend_from_slice(new);
        let mut lines = Vec::new();
        let mut start = 0;
        while let Some(end) = tail.partial[start..].iter().position(|&byte| byte == b'\n') {
            lines.push(line(source, &tail.partial[start..start + end]));
            start += end + 1;
        }
        tail.partial.drain(..start);
        if tail.partial.len() > LONGEST {
            lines.push(line(source, &std::mem::take(&mut tail.partial)));
        }
        lines
    }

    /// What is left at the end, without its line end.
    pub(crate) fn finish(&mut self) -> Vec<LogLine> {
        let tails = std::mem::take(&mut self.tails);
        tails
            .into_iter()
            .filter(|(_, tail)| !tail.partial.is_empty())
            .map(|(source, tail)| line(source, &tail.partial))
            .collect()
    }
}

fn line((generation, rank): Source, bytes: &[u8]) -> LogLine {
    let text = String::from_utf8_lossy(bytes);
    LogLine { generation, rank, text: text.trim_end_matches('\r').to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(rank: u32, offset: u64, data: &[u8]) -> LogChunk {
        LogChunk { generation: 1, rank, offset, data: data.to_vec() }
    }

    fn texts(lines: Vec<LogLine>) -> Vec<(u32, String)> {
        lines.into_iter().map(|line| (line.rank, line.text)).collect()
    }

    #[test]
    fn ranks_do_not_mix_and_the_last_line_is_not_lost() {
        let mut lines = LogLines::default();
        assert!(lines.push(&chunk(0, 0, b"hel")).is_empty());
        assert_eq!(texts(lines.push(&chunk(1, 0, b"other\r\n"))), [(1, "other".to_owned())]);
        assert_eq!(texts(lines.push(&chunk(0, 3, b"lo\nrest\xff"))), [(0, "hello".to_owned())]);
        assert_eq!(texts(lines.finish()), [(0, "rest\u{fffd}".to_owned())]);
    }

    proptest! {
        /// However a log is cut and repeated, its lines come once and in order.
        #[test]
        fn repeated_chunks_change_nothing(text in "([a-z]{0,5}\n){0,20}[a-z]{0,5}", cuts in proptest::collection::vec(0..200_usize, 0..10), back in 0..50_usize) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut lines = LogLines::default();
            let (mut got, mut start) = (Vec::new(), 0);
            for cut in cuts {
                let from = start.min(cut).saturating_sub(back);
                got.extend(texts(lines.push(&chunk(0, from as u64, &bytes[from..cut]))));
                start = cut;
            }
            got.extend(texts(lines.finish()));
            let want: Vec<(u32, String)> = text.lines().map(|line| (0, line.to_owned())).collect();
            prop_assert_eq!(got, want);
        }
    }
}
