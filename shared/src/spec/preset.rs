//! The recipes that ship with anybit, for `extends = "name"` and `--preset`.

/// Name and text of each, in alphabetical order.
const PRESETS: &[(&str, &str)] = &[
    ("digits", include_str!("../../../presets/digits.toml")),
    ("fashion-mnist", include_str!("../../../presets/fashion-mnist.toml")),
];

/// The presets' names.
pub fn names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// A preset's text, as it lies under `presets/`.
pub fn text(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
