//! The checks that need more than one key.

use super::{JobSpec, ModelName, ModelSpec, SpecError};

/// Two or more keys that do not go together.
pub(super) struct Conflict {
    /// The keys at fault, the one to change first.
    pub(super) keys: &'static [&'static str],
    pub(super) message: String,
}

impl JobSpec {
    /// Checks a spec that was made by hand; one that was read has passed already.
    pub fn validate(&self) -> Result<(), SpecError> {
        Self::from_toml(&self.to_toml()).map(drop)
    }
}

/// Everything that does not go together.
pub(super) fn conflicts(spec: &JobSpec) -> Vec<Conflict> {
    let mut found = Vec::new();
    model(spec, &mut found);
    image_size(spec, &mut found);
    length(spec, &mut found);
    batch(spec, &mut found);
    found
}

fn model(spec: &JobSpec, found: &mut Vec<Conflict>) {
    let ModelSpec { name, expand, layers, .. } = &spec.model;
    if *name == ModelName::Resnet50 && expand.is_some() {
        found.push(Conflict {
            keys: &["model.expand", "model.name"],
            message: "model.expand is not for resnet50: leave it out".to_owned(),
        });
    }
    let wanted = match name {
        ModelName::Resnet20 => 3,
        ModelName::Resnet50 => 4,
        ModelName::Cnn8 => 0,
    };
    match layers.as_ref().map(Vec::len) {
        Some(_) if wanted == 0 => found.push(Conflict {
            keys: &["model.layers", "model.name"],
            message: "model.layers is not for cnn8, whose layers are fixed: leave it out".to_owned(),
        }),
        Some(given) if given != wanted => found.push(Conflict {
            keys: &["model.layers", "model.name"],
            message: format!(
                "model.layers must have {wanted} entries for {}, one a stage, not {given}",
                name.as_str()
            ),
        }),
        _ => {}
    }
}

/// Side in pixels of what a network's last spatial layer gives, for a square input of side `size`;
/// `None` where a layer would be left without a full window.
pub fn output_side(model: ModelName, size: u32) -> Option<u32> {
    match model {
        // conv5, pool2, two 3x3 that keep the size, pool2, conv3, conv3 that keeps it, conv3, conv5.
        ModelName::Cnn8 => {
            let pooled = size.checked_sub(4)? / 2 / 2;
            pooled.checked_sub(2 + 2 + 4).filter(|&side| side > 0)
        }
        // Two of three stages halve, rounding up.
        ModelName::Resnet20 => (size > 0).then(|| size.div_ceil(4)),
        // The stem halves twice, three of four stages once.
        ModelName::Resnet50 => (size > 0).then(|| size.div_ceil(32)),
    }
}

fn image_size(spec: &JobSpec, found: &mut Vec<Conflict>) {
    let (model, size) = (spec.model.name, spec.data.image_size);
    let keys: &[&str] = &["data.image_size", "model.name"];
    match model {
        ModelName::Cnn8 if output_side(model, size) != Some(1) => {
            let good: Vec<u32> = (1..128).filter(|&size| output_side(model, size) == Some(1)).collect();
            if let [low, .., high] = good[..] {
                let message = format!(
                    "data.image_size must be {low} to {high} for cnn8, whose last 5x5 convolution must end at 1x1, not {size}"
                );
                found.push(Conflict { keys, message });
            }
        }
        ModelName::Resnet50 if size < 32 => {
            let message = format!("data.image_size must be at least 32 for resnet50, not {size}");
            found.push(Conflict { keys, message });
        }
        _ => {}
    }
}

fn length(spec: &JobSpec, found: &mut Vec<Conflict>) {
    let message = match (spec.train.epochs, spec.train.steps) {
        (Some(_), Some(_)) => "train.epochs and train.steps exclude each other: give one",
        (None, None) => "train.epochs is missing: give it, or train.steps instead",
        _ => return,
    };
    found.push(Conflict { keys: &["train.epochs", "train.steps"], message: message.to_owned() });
}

fn batch(spec: &JobSpec, found: &mut Vec<Conflict>) {
    let (batch, group, ranks) = (spec.train.batch, spec.train.group(), spec.resources.ranks);
    if batch % group.max(1) != 0 {
        let message = format!("train.batch must be a multiple of train.group ({group}), not {batch}");
        found.push(Conflict { keys: &["train.batch", "train.group"], message });
        return;
    }
    let groups = spec.train.groups();
    if ranks > groups {
        let message = format!(
            "resources.ranks must be at most {groups}, the number of groups (train.batch {batch} / train.group {group}), not {ranks}"
        );
        found.push(Conflict { keys: &["resources.ranks", "train.batch", "train.group"], message });
    }
    // A batch norm over one value has no variance.
    let resnet = spec.model.name != ModelName::Cnn8;
    if group == 1 && resnet && output_side(spec.model.name, spec.data.image_size) == Some(1) {
        let message = format!(
            "train.group must be at least 2 for {} at data.image_size {}, where the last batch norm sees one value an image, not 1",
            spec.model.name.as_str(),
            spec.data.image_size
        );
        found.push(Conflict {
            keys: &["train.group", "train.batch", "model.name", "data.image_size"],
            message,
        });
    }
}
