//! A spec as text, in full.

use serde::Serialize;
use toml::Value;

use super::JobSpec;

/// Lines `key = value`, tables headed by their name.
#[derive(Default)]
struct Page(String);

impl Page {
    fn table(&mut self, name: &str) {
        self.0.push_str(&format!("\n[{name}]\n"));
    }

    fn line(&mut self, key: &str, value: impl Into<Value>) {
        self.0.push_str(&format!("{key} = {}\n", value.into()));
    }

    fn some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    /// An enum's word, as it is read.
    fn word(&mut self, key: &str, value: impl Serialize) {
        self.some(key, Value::try_from(value).ok());
    }

    /// Integers beyond TOML's are written as they are, and refused when read.
    fn unsigned(&mut self, key: &str, value: u64) {
        self.0.push_str(&format!("{key} = {value}\n"));
    }
}

impl JobSpec {
    /// Every key with its value, defaults included; [`JobSpec::from_toml`] gives the same spec back.
    pub fn to_toml(&self) -> String {
        let Self { name, model, train, data, checkpoint, resources } = self;
        let mut page = Page::default();
        page.line("name", name.as_str());

        page.table("model");
        page.word("name", model.name);
        page.line("bits", model.bits.iter().map(|&width| i64::from(width)).collect::<Vec<_>>());
        page.line("classes", model.classes);
        page.some("expand", model.expand);
        page.some("layers", model.layers.clone());
        page.line("dropout", model.dropout);

        page.table("train");
        page.line("batch", train.batch);
        page.some("group", train.group);
        page.some("epochs", train.epochs);
        if let Some(steps) = train.steps {
            page.unsigned("steps", steps);
        }
        page.unsigned("seed", train.seed);
        page.word("optimizer", train.optimizer);
        page.line("learning_rate", train.learning_rate);
        page.line("momentum", train.momentum);
        page.line("weight_decay", train.weight_decay);
        page.line("milestones", train.milestones.clone());
        page.line("gamma", train.gamma);
        page.word("distill", train.distill);
        page.word("schedule", train.schedule);
        page.word("precision", train.precision);
        page.line("max_skipped_steps", train.max_skipped_steps);
        page.line("evaluate_epochs", train.evaluate_epochs);

        page.table("data");
        page.word("format", data.format);
        page.line("path", data.path.as_str());
        page.line("image_size", data.image_size);
        page.line("mean", data.mean);
        page.line("std", data.std);

        page.table("checkpoint");
        page.line("every_epochs", checkpoint.every_epochs);
        page.unsigned("every_steps", checkpoint.every_steps);
        page.line("keep", checkpoint.keep);

        page.table("resources");
        page.line("ranks", resources.ranks);
        page.line("priority", resources.priority);
        page.line("max_restarts", resources.max_restarts);
        page.0
    }
}
