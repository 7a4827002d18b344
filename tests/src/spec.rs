//! Job specs.

use toml::{Table, Value};

/// A job spec in the making: dotted keys to values.
#[derive(Debug, Clone)]
pub struct Spec(Table);

impl Spec {
    /// A ResNet-20 with one block a stage, on 8x8 images of 4 classes; 200 steps, one rank.
    pub fn tiny(name: &str) -> Self {
        Self(Table::new())
            .set("name", name)
            .set("model.name", "resnet20")
            .set("model.bits", vec![1, 2, 32])
            .set("model.classes", 4)
            .set("model.expand", 1)
            .set("model.layers", vec![1, 1, 1])
            .set("train.batch", 12)
            .set("train.group", 4)
            .set("train.steps", 200)
            .set("train.optimizer", "sgd")
            .set("train.learning_rate", 0.01)
            .set("train.evaluate_epochs", 20)
            .set("data.path", "tiny")
            .set("data.image_size", 8)
            .set("checkpoint.every_epochs", 0)
            .set("checkpoint.every_steps", 20)
    }

    /// A preset, as people take it.
    pub fn preset(name: &str) -> Self {
        Self(Table::new()).set("extends", name)
    }

    /// Sets a dotted key.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut table = &mut self.0;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().expect("a key");
        for part in parts {
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().expect("a table");
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Over so many ranks.
    #[must_use]
    pub fn ranks(self, ranks: i64) -> Self {
        self.set("resources.ranks", ranks)
    }

    /// For so many steps.
    #[must_use]
    pub fn steps(self, steps: i64) -> Self {
        self.set("train.steps", steps)
    }

    /// As it is submitted.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.0).expect("TOML")
    }
}
