//! A newtype for every id and counter, so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text or number is no valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {allowed}")]
pub struct IdError {
    /// The kind of id.
    what: &'static str,
    /// What was given.
    given: String,
    /// What would be valid.
    allowed: &'static str,
}

const NAME_RULE: &str = "use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit";

fn check_name(what: &'static str, text: &str) -> Result<(), IdError> {
    let ok = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if ok {
        Ok(())
    } else {
        Err(IdError { what, given: text.chars().take(80).collect(), allowed: NAME_RULE })
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a text: safe as a file name and in logs.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check_name($what, &text)?;
                Ok(Self(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

text_id!(
    /// A job.
    JobId, "job id"
);
text_id!(
    /// A worker host's agent, the same over its restarts.
    WorkerId, "worker id"
);
text_id!(
    /// One life of a worker's agent: a new one after every start.
    WorkerIncarnation, "worker incarnation"
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// One attempt at running a job: a new one whenever its set of trainer processes changes. The first is 1.
    Generation(u32)
);
counter!(
    /// A trainer process's place among its peers, `0..world_size`.
    Rank(u32)
);
counter!(
    /// Optimizer steps committed so far; skipped steps do not count.
    GlobalStep(u64)
);

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A bit-width: 1 to 8 for quantized weights and activations, or 32 for full precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct BitWidth(u8);

impl BitWidth {
    /// Full precision.
    pub const FULL: Self = Self(32);

    /// Checks and wraps a width.
    pub fn new(bits: i64) -> Result<Self, IdError> {
        match bits {
            1..=8 | 32 => Ok(Self(bits as u8)),
            _ => Err(IdError {
                what: "bit-width",
                given: bits.to_string(),
                allowed: "use 1 to 8, or 32 for full precision",
            }),
        }
    }

    /// The number of bits.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// True at 32 bits, where nothing is rounded.
    pub fn is_full(self) -> bool {
        self == Self::FULL
    }

    /// Quantization steps between the lowest and the highest code, `2^bits - 1`; `None` at 32 bits.
    pub fn levels(self) -> Option<u32> {
        (!self.is_full()).then(|| (1 << self.0) - 1)
    }
}

impl TryFrom<i64> for BitWidth {
    type Error = IdError;
    fn try_from(bits: i64) -> Result<Self, IdError> {
        Self::new(bits)
    }
}

impl From<BitWidth> for i64 {
    fn from(width: BitWidth) -> i64 {
        i64::from(width.0)
    }
}

impl fmt::Display for BitWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
