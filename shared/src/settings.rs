//! Settings of the services: a TOML file, then environment variables, then flags; each later
//! source wins key by key.
//!
//! A settings type derives `Deserialize` with `#[serde(deny_unknown_fields, default)]`, marks its
//! durations `#[serde(with = "anybit_shared::settings::duration")]` and its lists
//! `#[serde(deserialize_with = "anybit_shared::settings::list")]`.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, Environment, File, FileFormat};
use serde::de::{self, DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read settings file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("settings file {}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with the line.
        message: String,
    },
    /// A key that no setting has.
    #[error("setting {key:?} is not known: {hint}")]
    UnknownKey {
        /// The key as given, lowercase.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A value that its setting does not take.
    #[error("setting is not valid: {0}")]
    Invalid(String),
}

/// Loads settings.
///
/// - `file`: TOML, optional; a path that is given must be readable.
/// - `env_prefix`: for example `ANYBIT_COORDINATOR`; `ANYBIT_COORDINATOR_DATA_DIR` then sets
///   `data_dir`, and `ANYBIT_COORDINATOR_A__B` sets `b` in table `a`.
/// - `overrides`: pairs of key and value, usually from flags; a dot in a key goes into a table.
pub fn load<T: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    overrides: impl IntoIterator<Item = (String, String)>,
) -> Result<T, SettingsError> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?,
        None => String::new(),
    };
    // Parsed here first, because this parser's messages name the line.
    if let Err(error) = toml::from_str::<toml::Table>(&text) {
        let path = file.map(Path::to_owned).unwrap_or_default();
        return Err(SettingsError::Syntax { path, message: error.to_string().trim_end().to_owned() });
    }
    let environment = Environment::with_prefix(env_prefix).prefix_separator("_").separator("__");
    let mut builder =
        Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).add_source(environment);
    for (key, value) in overrides {
        builder = builder.set_override(key, value).map_err(|error| explain(&error))?;
    }
    builder.build().and_then(Config::try_deserialize).map_err(|error| explain(&error))
}

/// An unknown key becomes a hint at the nearest known one; anything else keeps its words.
fn explain(error: &ConfigError) -> SettingsError {
    let message = error.to_string();
    // serde's wording: unknown field `a`, expected one of `b`, `c`
    if let Some(rest) = message.split_once("unknown field ").map(|(_, rest)| rest) {
        let mut names = rest.split('`').skip(1).step_by(2);
        if let Some(key) = names.next() {
            return SettingsError::UnknownKey { key: key.to_owned(), hint: hint(key, names) };
        }
    }
    SettingsError::Invalid(message)
}

fn hint<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(key, name), *name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, name)) => format!("did you mean {name:?}?"),
        None => format!("use one of {}", known.join(", ")),
    }
}

/// Durations as people write them: `"6s"`, `"500ms"`, `"1m 30s"`.
pub mod duration {
    use std::time::Duration;

    use super::*;

    /// Writes the shortest such text.
    pub fn serialize<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        humantime::format_duration(*value).to_string().serialize(serializer)
    }

    /// Reads such a text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map_err(de::Error::custom)
    }

    /// Reads such a text, for flags.
    pub fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text)
            .map_err(|error| format!("{text:?} is not a duration such as \"6s\" or \"500ms\": {error}"))
    }
}

/// A list: an array in a file, or text with commas in an environment variable or flag.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + std::str::FromStr,
    T::Err: fmt::Display,
{
    struct ListVisitor<T>(PhantomData<T>);

    impl<'de, T> Visitor<'de> for ListVisitor<T>
    where
        T: Deserialize<'de> + std::str::FromStr,
        T::Err: fmt::Display,
    {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list, or text with commas")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            text.split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| part.parse().map_err(E::custom))
                .collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                all.push(item);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(ListVisitor(PhantomData))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        listen: String,
        slots: u32,
        #[serde(with = "duration")]
        lease: Duration,
        #[serde(deserialize_with = "list")]
        roots: Vec<PathBuf>,
        inner: Inner,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        depth: u32,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                listen: "127.0.0.1:1".to_owned(),
                slots: 1,
                lease: Duration::from_secs(6),
                roots: Vec::new(),
                inner: Inner::default(),
            }
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn from_text(text: &str) -> Result<Sample, SettingsError> {
        load(Some(file(text).path()), "ANYBIT_NOTHING_SETS_THIS", [])
    }

    #[test]
    fn nothing_given_gives_the_defaults() {
        assert_eq!(load::<Sample>(None, "ANYBIT_NOTHING_SETS_THIS", []).unwrap(), Sample::default());
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = file("slots = 3\nlease = \"500ms\"\nroots = [\"a\", \"b\"]\n[inner]\ndepth = 2\n");
        let flags = pairs(&[("slots", "5"), ("inner.depth", "7"), ("roots", "x,y , z")]);
        let got: Sample = load(Some(file.path()), "ANYBIT_NOTHING_SETS_THIS", flags).unwrap();
        assert_eq!((got.slots, got.inner.depth), (5, 7));
        assert_eq!(got.lease, Duration::from_millis(500));
        assert_eq!(got.roots, ["x", "y", "z"].map(PathBuf::from));
    }

    #[test]
    fn the_environment_stands_between_file_and_flags() {
        // cargo sets these for every test process.
        #[derive(Deserialize)]
        struct Package {
            name: String,
            version: String,
        }
        let file = file("name = \"file\"\nversion = \"file\"\n");
        let got: Package = load(Some(file.path()), "CARGO_PKG", pairs(&[("version", "flag")])).unwrap();
        assert_eq!((got.name.as_str(), got.version.as_str()), ("anybit-shared", "flag"));
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest() {
        let error = from_text("lese = \"6s\"").unwrap_err().to_string();
        assert_eq!(error, "setting \"lese\" is not known: did you mean \"lease\"?");
        let error = from_text("[inner]\nqqq = 1").unwrap_err().to_string();
        assert!(error.contains("qqq") && error.contains("depth"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let error = from_text("slots = \"many\"").unwrap_err().to_string();
        assert!(error.contains("slots"), "{error}");
        let error = from_text("lease = \"soon\"").unwrap_err().to_string();
        assert!(error.contains("lease") && error.contains("soon"), "{error}");
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let missing = load::<Sample>(Some(Path::new("/nowhere/a.toml")), "ANYBIT_X", []);
        assert!(missing.unwrap_err().to_string().contains("/nowhere/a.toml"));
        assert!(matches!(from_text("slots = = 3"), Err(SettingsError::Syntax { .. })));
    }

    #[test]
    fn settings_written_are_read_back() {
        let settings = Sample { lease: Duration::from_millis(1500), ..Sample::default() };
        assert_eq!(from_text(&toml::to_string(&settings).unwrap()).unwrap(), settings);
    }
}
