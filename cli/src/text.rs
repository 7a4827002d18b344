//! Figures in words: short, and of one width where they stand under each other.

use crate::model::{JobState, WidthFigures};

/// `4.2s`, `1m 05s`, `2h 03m`, `3d 04h`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round().min(1e15) as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// How long ago, in one unit: `5s`, `12m`, `3h`, `9d`.
pub(crate) fn age(then_unix_ms: i64, now_unix_ms: i64) -> String {
    let seconds = now_unix_ms.saturating_sub(then_unix_ms).max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A loss in at most six characters.
pub(crate) fn loss(value: f64) -> String {
    match value {
        value if value.is_nan() => "nan".to_owned(),
        value if value.is_infinite() => if value > 0.0 { "inf" } else { "-inf" }.to_owned(),
        value if value.abs() < 10.0 => format!("{value:.3}"),
        value if value.abs() < 1000.0 => format!("{value:.1}"),
        value => format!("{value:.0e}"),
    }
}

/// A percentage in at most five characters, without the sign.
pub(crate) fn percent(value: f64) -> String {
    if value.is_finite() { format!("{value:.1}") } else { "-".to_owned() }
}

/// All widths' top-1, ascending bits: `92.8/98.3/99.2`.
pub(crate) fn top1s(widths: &[WidthFigures]) -> String {
    widths.iter().map(|width| percent(width.top1)).collect::<Vec<_>>().join("/")
}

/// `1 bit`, `4 bits`.
pub(crate) fn bits(bits: u32) -> String {
    counted(u64::from(bits), "bit")
}

/// `1 worker`, `2 workers`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Milliseconds since the epoch as `2026-01-02T03:04:05Z`.
pub(crate) fn time(unix_ms: i64) -> String {
    let since =
        std::time::Duration::from_millis(u64::try_from(unix_ms).unwrap_or(0).min(253_402_300_799_000));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// Now, in milliseconds since the epoch.
pub(crate) fn now_unix_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// A state in its colour, for standard output.
pub(crate) fn state(state: JobState) -> String {
    let word = console::style(state.as_str());
    match state {
        JobState::Succeeded => word.green(),
        JobState::Failed => word.red(),
        JobState::Cancelled | JobState::Stopping => word.yellow(),
        JobState::Running => word.cyan(),
        JobState::Queued | JobState::Starting | JobState::Unknown => word,
    }
    .to_string()
}

/// The shortest beginning, of at least twelve characters (the coordinator's ids are that long), that tells every id from the others.
pub(crate) fn short_length(ids: &[&str]) -> usize {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    sorted.windows(2).map(|pair| common(pair[0], pair[1]) + 1).max().unwrap_or(0).max(12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [0.0, 4.23, 9.96, 65.0, 3725.0, 1e6, f64::NAN].map(duration),
            ["0.0s", "4.2s", "10s", "1m 05s", "1h 02m", "11d 13h", "-"]
        );
        assert_eq!(
            [0, 1023, 1536, 1_048_575, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "1.0 MiB", "5.0 GiB"]
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.5, 12.34, 12345.0, f64::NAN, f64::INFINITY].map(loss),
            ["0.500", "12.3", "1e4", "nan", "inf"]
        );
        assert_eq!([age(0, 59_000), age(0, 61_000), age(5, 0)], ["59s", "1m", "0s"]);
        assert_eq!(time(1_767_323_045_000), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn short_ids_stay_unique() {
        assert_eq!(short_length(&["abcdefghijklm-1", "abcdefghijklm-2"]), 15);
        assert_eq!(short_length(&["abc", "abd", "abc"]), 12);
        assert_eq!(short_length(&[]), 12);
    }
}
