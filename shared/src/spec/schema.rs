//! The table of a spec's keys: what each must be, and how that is said.

use toml::Value;

use crate::ids::{BitWidth, JobId};

/// One key of the spec.
pub(super) struct Key {
    /// Dotted.
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    pub(super) required: bool,
}

/// What a value must be.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Same rule as ids.
    Name,
    /// A preset's name: looked up by the reader.
    Preset,
    /// A folder.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An integer within the bounds, both included.
    Integer(i64, i64),
    /// A finite number within the interval.
    Number(Interval),
    /// Ascending distinct bit-widths.
    Bits,
    /// Residual blocks per stage.
    Layers,
    /// Ascending positive numbers.
    Milestones,
}

/// Which ends of a number's range belong to it.
#[derive(Clone, Copy)]
pub(super) enum Interval {
    /// Both.
    Closed(f64, f64),
    /// The upper only.
    Above(f64, f64),
    /// The lower only.
    Below(f64, f64),
}

use Interval::{Above, Below, Closed};
use Rule::{Bits, Choice, Integer, Layers, Milestones, Name, Number, Path, Preset};

const EPOCHS: i64 = 100_000;
const STEPS: i64 = 1_000_000_000;
const MILESTONES: usize = 64;
const BLOCKS: i64 = 64;
const PATH_BYTES: usize = 1024;

const fn required(name: &'static str, rule: Rule) -> Key {
    Key { name, rule, required: true }
}
const fn optional(name: &'static str, rule: Rule) -> Key {
    Key { name, rule, required: false }
}

/// Every key there is. Its bounds keep all arithmetic on a spec far from overflow.
pub(super) const KEYS: &[Key] = &[
    optional("extends", Preset),
    required("name", Name),
    required("model.name", Choice(&["resnet20", "resnet50", "cnn8"])),
    optional("model.bits", Bits),
    required("model.classes", Integer(2, 100_000)),
    optional("model.expand", Integer(1, 64)),
    optional("model.layers", Layers),
    optional("model.dropout", Number(Below(0.0, 1.0))),
    required("train.batch", Integer(1, 65_536)),
    optional("train.group", Integer(1, 65_536)),
    optional("train.epochs", Integer(1, EPOCHS)),
    optional("train.steps", Integer(1, STEPS)),
    optional("train.seed", Integer(0, i64::MAX)),
    required("train.optimizer", Choice(&["sgd", "adam"])),
    required("train.learning_rate", Number(Above(0.0, 1000.0))),
    optional("train.momentum", Number(Below(0.0, 1.0))),
    optional("train.weight_decay", Number(Closed(0.0, 1.0))),
    optional("train.milestones", Milestones),
    optional("train.gamma", Number(Above(0.0, 10.0))),
    optional("train.distill", Choice(&["hard", "soft", "recursive"])),
    optional("train.schedule", Choice(&["joint", "sequential"])),
    optional("train.precision", Choice(&["float32", "float64"])),
    optional("train.max_skipped_steps", Integer(1, 100_000)),
    optional("train.evaluate_epochs", Integer(0, EPOCHS)),
    optional("data.format", Choice(&["idx"])),
    required("data.path", Path),
    required("data.image_size", Integer(4, 1024)),
    optional("data.mean", Number(Closed(-1000.0, 1000.0))),
    optional("data.std", Number(Above(0.0, 1000.0))),
    optional("checkpoint.every_epochs", Integer(0, EPOCHS)),
    optional("checkpoint.every_steps", Integer(0, STEPS)),
    optional("checkpoint.keep", Integer(1, 1000)),
    optional("resources.ranks", Integer(1, 4096)),
    optional("resources.priority", Integer(-1000, 1000)),
    optional("resources.max_restarts", Integer(0, 1000)),
];

/// The tables of the spec.
pub(super) const SECTIONS: &[&str] = &["model", "train", "data", "checkpoint", "resources"];

/// The key of this dotted name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Rule {
    /// What is allowed, to follow "must be".
    pub(super) fn allowed(self) -> String {
        match self {
            Name => "1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit".to_owned(),
            Preset => format!("a preset's name ({})", super::preset::names().join(", ")),
            Path => {
                format!("a folder: 1 to {PATH_BYTES} bytes of text, without \"..\" and control characters")
            }
            Choice([only]) => format!("\"{only}\""),
            Choice(words) => format!("one of \"{}\"", words.join("\", \"")),
            Integer(low, i64::MAX) => format!("an integer from {low} to 2^63 - 1"),
            Integer(low, high) => format!("an integer from {low} to {high}"),
            Number(Closed(low, high)) => format!("a number from {low} to {high}"),
            Number(Above(low, high)) => format!("a number above {low}, at most {high}"),
            Number(Below(low, high)) => format!("a number from {low} to below {high}"),
            Bits => "a list of bit-widths from 1 to 8 and 32, ascending, each once, at least one".to_owned(),
            Layers => {
                format!(
                    "a list of blocks per stage, each an integer from 1 to {BLOCKS} (3 for resnet20, 4 for resnet50)"
                )
            }
            Milestones => {
                format!("a list of at most {MILESTONES} epochs: numbers above 0 up to {EPOCHS}, ascending")
            }
        }
    }

    /// Does the value keep the rule?
    pub(super) fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (Name, Value::String(text)) => JobId::new(text.as_str()).is_ok(),
            (Preset, Value::String(_)) => true,
            (Path, Value::String(text)) => {
                (1..=PATH_BYTES).contains(&text.len())
                    && !text.contains(char::is_control)
                    && !text.split('/').any(|part| part == "..")
            }
            (Choice(words), Value::String(text)) => words.contains(&text.as_str()),
            (Integer(low, high), Value::Integer(given)) => (low..=high).contains(given),
            (Number(interval), Value::Integer(_) | Value::Float(_)) => {
                number(value).is_some_and(|given| interval.contains(given))
            }
            (Bits, Value::Array(list)) => {
                let bits: Option<Vec<i64>> = list.iter().map(Value::as_integer).collect();
                bits.is_some_and(|bits| {
                    !bits.is_empty()
                        && bits.iter().all(|&bits| BitWidth::new(bits).is_ok())
                        && bits.is_sorted_by(|a, b| a < b)
                })
            }
            (Layers, Value::Array(list)) => {
                matches!(list.len(), 3 | 4)
                    && list.iter().all(|n| n.as_integer().is_some_and(|n| (1..=BLOCKS).contains(&n)))
            }
            (Milestones, Value::Array(list)) => {
                let epochs: Option<Vec<f64>> = list.iter().map(number).collect();
                epochs.is_some_and(|epochs| {
                    epochs.len() <= MILESTONES
                        && epochs.iter().all(|&epoch| Above(0.0, EPOCHS as f64).contains(epoch))
                        && epochs.is_sorted_by(|a, b| a < b)
                })
            }
            _ => false,
        }
    }

    /// True where a bare word in an override is the value itself.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Name | Preset | Path | Choice(_))
    }

    /// Some value that keeps the rule: stands in for a bad one while the others are checked.
    pub(super) fn sample(self) -> Value {
        match self {
            Name | Preset | Path => Value::String("x".to_owned()),
            Choice(words) => Value::String(words.first().copied().unwrap_or_default().to_owned()),
            Integer(low, high) => Value::Integer(low.max(1).min(high)),
            Number(Closed(_, high) | Above(_, high)) => Value::Float(high),
            Number(Below(low, _)) => Value::Float(low),
            Bits => Value::Array(vec![Value::Integer(1)]),
            Layers => Value::Array(vec![Value::Integer(1); 3]),
            Milestones => Value::Array(Vec::new()),
        }
    }
}

impl Interval {
    fn contains(self, given: f64) -> bool {
        given.is_finite()
            && match self {
                Closed(low, high) => low <= given && given <= high,
                Above(low, high) => low < given && given <= high,
                Below(low, high) => low <= given && given < high,
            }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(given) => Some(*given as f64),
        Value::Float(given) => Some(*given),
        _ => None,
    }
}
