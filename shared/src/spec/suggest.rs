//! The nearest known name for a misspelt one.

use super::schema;

/// The candidate that `word` most likely meant, if any is near.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Distance costs time in the square of the length, and no known name is long.
    if word.len() > 64 {
        return None;
    }
    let allowed = |candidate: &str| (candidate.len().max(word.len()) / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed(candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What to say after "unknown key ...": the nearest known key, or those that are allowed there.
pub(super) fn for_key(section: Option<&str>, leaf: &str) -> String {
    let known = || schema::KEYS.iter().map(|key| key.name);
    let in_section = |section: &str| -> Vec<&'static str> {
        known().filter_map(|key| key.split_once('.')).filter(|(s, _)| *s == section).map(|(_, l)| l).collect()
    };
    let siblings = match section {
        Some(section) => in_section(section),
        None => known().filter(|key| !key.contains('.')).chain(schema::SECTIONS.iter().copied()).collect(),
    };
    let place = |leaf: &str| section.map_or_else(|| leaf.to_owned(), |section| format!("{section}.{leaf}"));
    if let Some(near) = nearest(leaf, siblings.iter().copied()) {
        return format!("did you mean {}?", place(near));
    }
    // The right name in the wrong table, or in none.
    if let Some(key) = known().find(|key| key.split_once('.').is_some_and(|(_, known)| known == leaf)) {
        return format!("did you mean {key}?");
    }
    match section {
        Some(section) if siblings.is_empty() => {
            let tables = || schema::SECTIONS.iter().copied();
            match nearest(section, tables()).filter(|near| in_section(near).contains(&leaf)) {
                Some(near) => format!("did you mean {near}.{leaf}?"),
                None => format!("the tables are {}", schema::SECTIONS.join(", ")),
            }
        }
        Some(section) => format!("[{section}] takes {}", siblings.join(", ")),
        None => format!("at the top level stand {}", siblings.join(", ")),
    }
}

/// A key's part for a message: as it is when TOML needs no quotes for it, else quoted and shortened.
pub(super) fn bare(part: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if (1..=64).contains(&part.len()) && part.chars().all(plain) {
        return part.to_owned();
    }
    format!("{:?}", part.chars().take(64).collect::<String>())
}
