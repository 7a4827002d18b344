//! From a person's text to a [`JobSpec`]: three layers (preset, file, overrides) of flat dotted keys,
//! each checked against the table of keys, the higher layer winning.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::error::{Problem, SpecError};
use super::schema::{self, Rule};
use super::{JobSpec, preset, suggest, validate};

/// Longest text that is read.
pub const MAX_BYTES: usize = 64 * 1024;

/// A value and where the person wrote it.
struct Entry {
    value: Value,
    line: Option<usize>,
}

type Layer = BTreeMap<&'static str, Entry>;

impl JobSpec {
    /// Reads a spec: `extends`, defaults, every check. The error lists all that is wrong.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        Self::from_toml_with(text, &[])
    }

    /// The same, with `key = value` pairs that win over the text. A value is read as TOML, and as a
    /// plain word where that fails or where the key takes text.
    pub fn from_toml_with(text: &str, overrides: &[(String, String)]) -> Result<Self, SpecError> {
        let mut problems = Vec::new();
        let file = read_text(text, &mut problems)?;
        let over = read_overrides(overrides, &mut problems);
        let base = read_preset(over.get("extends").or(file.get("extends")), &mut problems)?;
        let merged = [file, over].into_iter().fold(base, merge);
        resolve(merged, problems)
    }
}

/// The higher layer's keys win. Choosing `epochs` or `steps` there drops the other one below.
fn merge(mut low: Layer, high: Layer) -> Layer {
    for (chosen, other) in [("train.epochs", "train.steps"), ("train.steps", "train.epochs")] {
        if high.contains_key(chosen) && !high.contains_key(other) {
            low.remove(other);
        }
    }
    low.extend(high);
    low
}

fn read_preset(extends: Option<&Entry>, problems: &mut Vec<Problem>) -> Result<Layer, SpecError> {
    let Some(Entry { value: Value::String(name), line }) = extends else {
        return Ok(Layer::new());
    };
    let Some(text) = preset::text(name) else {
        let names = preset::names();
        let hint = match suggest::nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("there are {}", names.join(", ")),
        };
        // Without the preset's values every other check would complain of what it would have given.
        problems.push(Problem::new("extends", *line, format!("unknown preset {}: {hint}", quoted(name))));
        return Err(SpecError::new(std::mem::take(problems)));
    };
    let mut layer = read_text(text, problems)?;
    for entry in layer.values_mut() {
        entry.line = None;
    }
    Ok(layer)
}

/// Missing keys, then the checks across keys, then the typed spec.
fn resolve(mut merged: Layer, mut problems: Vec<Problem>) -> Result<JobSpec, SpecError> {
    merged.remove("extends");
    for key in schema::KEYS.iter().filter(|key| key.required) {
        if merged.contains_key(key.name) {
            continue;
        }
        if !problems.iter().any(|problem| problem.key == key.name) {
            let message = format!("{} is missing: it must be {}", key.name, key.rule.allowed());
            problems.push(Problem::new(key.name, None, message));
        }
        merged.insert(key.name, Entry { value: key.rule.sample(), line: None });
    }
    let lines: BTreeMap<&str, Option<usize>> = merged.iter().map(|(key, entry)| (*key, entry.line)).collect();
    let spec = typed(merged)?;
    for conflict in validate::conflicts(&spec) {
        // A bad value stands for nothing: judge only keys that were good by themselves.
        if conflict.keys.iter().all(|key| !problems.iter().any(|problem| problem.key == *key)) {
            let line = conflict.keys.iter().find_map(|key| lines.get(key).copied().flatten());
            problems.push(Problem::new(conflict.keys[0], line, conflict.message));
        }
    }
    if problems.is_empty() { Ok(spec) } else { Err(SpecError::new(problems)) }
}

/// Every value keeps its rule by now, so that this fails only if the table and the types disagree.
fn typed(merged: Layer) -> Result<JobSpec, SpecError> {
    let mut root = toml::Table::new();
    for (name, entry) in merged {
        match name.split_once('.') {
            None => drop(root.insert(name.to_owned(), entry.value)),
            Some((section, leaf)) => {
                let table = root.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
                if let Some(table) = table.as_table_mut() {
                    table.insert(leaf.to_owned(), entry.value);
                }
            }
        }
    }
    JobSpec::deserialize(root)
        .map_err(|error| SpecError::one(Problem::new("", None, error.to_string().trim().replace('\n', ": "))))
}

fn read_text(text: &str, problems: &mut Vec<Problem>) -> Result<Layer, SpecError> {
    if text.len() > MAX_BYTES {
        let message = format!("the spec has {} bytes: at most {MAX_BYTES} are allowed", text.len());
        return Err(SpecError::one(Problem::new("", None, message)));
    }
    let line_of = |at: usize| text.get(..at).map(|before| before.matches('\n').count() + 1);
    let root = DeTable::parse(text).map_err(|error| {
        let line = error.span().and_then(|span| line_of(span.start));
        let message = format!("not valid TOML: {}", error.message().replace('\n', ", "));
        SpecError::one(Problem::new("", line, message))
    })?;
    let mut layer = Layer::new();
    for (name, value) in root.get_ref() {
        let line = line_of(name.span().start);
        let name = name.get_ref().as_ref();
        match value.get_ref() {
            DeValue::Table(table) if schema::SECTIONS.contains(&name) => {
                for (leaf, value) in table {
                    let (line, leaf) = (line_of(leaf.span().start), leaf.get_ref().as_ref());
                    accept(Some(name), leaf, plain(value.get_ref()), line, &mut layer, problems);
                }
            }
            _ if schema::SECTIONS.contains(&name) => {
                problems.push(Problem::new(name, line, format!("{name} must be a table: write [{name}]")));
            }
            value => accept(None, name, plain(value), line, &mut layer, problems),
        }
    }
    Ok(layer)
}

fn read_overrides(overrides: &[(String, String)], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::new();
    for (key, text) in overrides {
        let (section, leaf) = match key.split_once('.') {
            Some((section, leaf)) => (Some(section), leaf),
            None => (None, key.as_str()),
        };
        let rule = schema::find(key).map(|key| key.rule);
        accept(section, leaf, override_value(rule, text), None, &mut layer, problems);
    }
    layer
}

fn override_value(rule: Option<Rule>, text: &str) -> Value {
    let word = || Value::String(text.to_owned());
    match DeValue::parse(text.trim()).ok().map(|value| plain(value.get_ref())) {
        Some(value) if !rule.is_some_and(Rule::is_text) || value.is_str() => value,
        _ => word(),
    }
}

/// Puts a good value into the layer, and says what is wrong with another.
fn accept(
    section: Option<&str>,
    leaf: &str,
    value: Value,
    line: Option<usize>,
    layer: &mut Layer,
    problems: &mut Vec<Problem>,
) {
    let bare = |part: &str| suggest::bare(part);
    let name = match section {
        Some(section) => format!("{}.{}", bare(section), bare(leaf)),
        None => bare(leaf),
    };
    if section.is_none() && schema::SECTIONS.contains(&leaf) {
        let inner = schema::KEYS
            .iter()
            .map(|key| key.name)
            .find(|key| key.split_once('.').is_some_and(|(table, _)| table == leaf));
        let example = inner.map(|key| format!(", for example {key}")).unwrap_or_default();
        problems.push(Problem::new(name, line, format!("{leaf} is a table: set one of its keys{example}")));
        return;
    }
    let Some(key) = schema::find(&name) else {
        let message = format!("unknown key {name}: {}", suggest::for_key(section, leaf));
        problems.push(Problem::new(name, line, message));
        return;
    };
    if key.rule.accepts(&value) {
        layer.insert(key.name, Entry { value, line });
        return;
    }
    let mut message = format!("{name} must be {}, not {}", key.rule.allowed(), shown(&value));
    if let (Rule::Choice(words), Value::String(word)) = (key.rule, &value)
        && let Some(near) = suggest::nearest(word, words.iter().copied())
    {
        message.push_str(&format!(": did you mean \"{near}\"?"));
    }
    problems.push(Problem::new(key.name, line, message));
}

/// Numbers beyond 64 bits stay text, which no rule for numbers accepts.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.to_string()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.to_string()), Value::Float)
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(list) => Value::Array(list.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => Value::Table(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref()))).collect(),
        ),
    }
}

/// The value for a message: short, on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Table(_) => "a table".to_owned(),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        other => shortened(&other.to_string()),
    }
}

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
