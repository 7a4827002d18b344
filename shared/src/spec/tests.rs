use proptest::prelude::*;

use super::*;

const DIGITS: &str = include_str!("../../../presets/digits.toml");

/// The error's text for digits with one line replaced.
fn refused(old: &str, new: &str) -> String {
    assert!(DIGITS.contains(old), "{old:?} is not in the preset");
    JobSpec::from_toml(&DIGITS.replacen(old, new, 1)).expect_err(new).to_string()
}

fn with(pairs: &[(&str, &str)]) -> Result<JobSpec, SpecError> {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    JobSpec::from_toml_with("extends = \"digits\"", &pairs)
}

#[test]
fn a_table_set_as_a_value_names_a_key_of_it() {
    let set = [("model".to_owned(), "3".to_owned())];
    let error = JobSpec::from_toml_with("extends = \"digits\"", &set).unwrap_err().to_string();
    assert_eq!(error, "model is a table: set one of its keys, for example model.name");
}

#[test]
fn every_preset_resolves_under_its_own_name() {
    for name in preset::names() {
        let spec = JobSpec::from_toml(preset::text(name).expect("listed")).expect(name);
        assert_eq!(spec.name, name);
    }
    assert!(preset::names().is_sorted());
}

#[test]
fn the_table_of_keys_and_the_types_agree() {
    // Every choice and every sample value is one that the types read.
    for key in schema::KEYS.iter().filter(|key| key.name != "extends") {
        assert!(key.rule.accepts(&key.rule.sample()), "{}", key.name);
        if let schema::Rule::Choice(words) = key.rule {
            for word in words {
                match with(&[(key.name, word)]) {
                    Ok(spec) => assert!(spec.to_toml().contains(&format!("\"{word}\"")), "{}", key.name),
                    Err(error) => assert!(!error.to_string().contains("variant"), "{error}"),
                }
            }
        }
    }
    let written = JobSpec::from_toml(&DIGITS.replace("ranks = 2", "ranks = 1")).expect("valid").to_toml();
    let table: toml::Table = written.parse().expect("toml");
    for (section, value) in table.iter().filter_map(|(key, value)| Some((key, value.as_table()?))) {
        for key in value.keys() {
            assert!(schema::find(&format!("{section}.{key}")).is_some(), "{section}.{key}");
        }
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    assert_eq!(
        refused("epochs = 20", "epoch = 20"),
        "line 13: unknown key train.epoch: did you mean train.epochs?\n\
         train.epochs is missing: give it, or train.steps instead"
    );
    assert_eq!(
        refused("name = \"digits\"", "name = \"digits\"\nbatch = 3"),
        "line 3: unknown key batch: did you mean train.batch?"
    );
    assert_eq!(
        refused("[resources]\nranks = 2", "[resource]\nranks = 2"),
        "line 24: unknown key resource: did you mean resources?"
    );
    assert_eq!(
        refused("seed = 0", "zzzzzzzz = 0"),
        "line 14: unknown key train.zzzzzzzz: [train] takes batch, group, epochs, steps, seed, optimizer, \
         learning_rate, momentum, weight_decay, milestones, gamma, distill, schedule, precision, \
         max_skipped_steps, evaluate_epochs"
    );
    assert_eq!(
        with(&[("trian.batch", "3")]).expect_err("misspelt").to_string(),
        "unknown key trian.batch: did you mean train.batch?"
    );
    assert_eq!(
        refused("seed = 0", "\"a\\u0007.b\" = 0"),
        "line 14: unknown key train.\"a\\u{7}.b\": [train] takes batch, group, epochs, steps, seed, optimizer, \
         learning_rate, momentum, weight_decay, milestones, gamma, distill, schedule, precision, \
         max_skipped_steps, evaluate_epochs"
    );
}

#[test]
fn a_quoted_dotted_key_is_not_taken_for_a_path() {
    let text = format!("\"model.expand\" = 2\n{DIGITS}");
    let error = JobSpec::from_toml(&text).expect_err("one key, not two");
    assert!(error.to_string().starts_with("line 1: unknown key \"model.expand\": "), "{error}");
}

#[test]
fn wrong_types_name_the_key_what_is_allowed_and_the_line() {
    for (old, new, message) in [
        (
            "batch = 64",
            "batch = \"64\"",
            "line 11: train.batch must be an integer from 1 to 65536, not \"64\"",
        ),
        ("batch = 64", "batch = 0", "line 11: train.batch must be an integer from 1 to 65536, not 0"),
        ("batch = 64", "batch = 6.4", "line 11: train.batch must be an integer from 1 to 65536, not 6.4"),
        (
            "batch = 64",
            "batch = 99999999999999999999",
            "line 11: train.batch must be an integer from 1 to 65536, not \"99999999999999999999\"",
        ),
        (
            "optimizer = \"adam\"",
            "optimizer = \"adma\"",
            "line 15: train.optimizer must be one of \"sgd\", \"adam\", not \"adma\": did you mean \"adam\"?",
        ),
        ("format = \"idx\"", "format = 3", "line 20: data.format must be \"idx\", not 3"),
        (
            "learning_rate = 1e-3",
            "learning_rate = nan",
            "line 16: train.learning_rate must be a number above 0, at most 1000, not nan",
        ),
        (
            "learning_rate = 1e-3",
            "learning_rate = -0.0",
            "line 16: train.learning_rate must be a number above 0, at most 1000, not -0.0",
        ),
        (
            "bits = [1, 2, 4, 8, 32]",
            "bits = [1, 2, 2]",
            "line 6: model.bits must be a list of bit-widths from 1 to 8 and 32, ascending, each once, \
             at least one, not [1, 2, 2]",
        ),
        (
            "bits = [1, 2, 4, 8, 32]",
            "bits = []",
            "line 6: model.bits must be a list of bit-widths from 1 to 8 and 32, ascending, each once, \
             at least one, not an empty list",
        ),
        (
            "name = \"digits\"",
            "name = \"-x\"",
            "line 2: name must be 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit, \
             not \"-x\"",
        ),
        ("seed = 0", "seed = -1", "line 14: train.seed must be an integer from 0 to 2^63 - 1, not -1"),
        (
            "path = \"presets/data/digits\"",
            "path = \"../secrets\"",
            "line 21: data.path must be a folder: 1 to 1024 bytes of text, without \"..\" and control characters, \
             not \"../secrets\"",
        ),
        (
            "seed = 0",
            "milestones = [3, 2.0]",
            "line 14: train.milestones must be a list of at most 64 epochs: numbers above 0 up to 100000, ascending, not [3, 2.0]",
        ),
    ] {
        assert_eq!(refused(old, new), message);
    }
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    for (pairs, message) in [
        (vec![("train.batch", "65")], "train.batch must be a multiple of train.group (32), not 65"),
        (
            vec![("resources.ranks", "3")],
            "resources.ranks must be at most 2, the number of groups (train.batch 64 / train.group 32), not 3",
        ),
        (
            vec![("train.epochs", "3"), ("train.steps", "3")],
            "train.epochs and train.steps exclude each other: give one",
        ),
        (
            vec![("data.image_size", "39")],
            "data.image_size must be 40 to 43 for cnn8, whose last 5x5 convolution must end at 1x1, not 39",
        ),
        (
            vec![("model.layers", "[1, 1, 1]")],
            "model.layers is not for cnn8, whose layers are fixed: leave it out",
        ),
        (
            vec![("model.name", "resnet20"), ("model.layers", "[1, 1, 1, 1]")],
            "model.layers must have 3 entries for resnet20, one a stage, not 4",
        ),
        (vec![("model.name", "resnet50")], "model.expand is not for resnet50: leave it out"),
    ] {
        assert_eq!(with(&pairs).expect_err(message).to_string(), message);
    }
}

#[test]
fn everything_wrong_is_reported_at_once_in_the_order_of_the_file() {
    let text = "name = 3\n[model]\nname = \"cnn8\"\nclasses = 1\n[train]\nbatch = 65\ngroup = 32\nwarp = 9\n\
                epochs = 1\noptimizer = \"sgd\"\nlearning_rate = inf\n[data]\npath = \"d\"\nimage_size = 32\n";
    let error = JobSpec::from_toml(text).expect_err("all wrong");
    let lines: Vec<Option<usize>> = error.problems().iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [1, 4, 6, 8, 11, 14].map(Some), "{error}");
}

#[test]
fn a_bad_value_is_not_blamed_twice() {
    assert_eq!(
        refused("group = 32", "group = 0"),
        "line 12: train.group must be an integer from 1 to 65536, not 0"
    );
    assert!(!refused("name = \"cnn8\"", "name = \"cnn9\"").contains('\n'));
}

#[test]
fn a_spec_extends_a_preset() {
    let spec =
        JobSpec::from_toml("extends = \"digits\"\nname = \"mine\"\n[train]\nsteps = 7\n").expect("valid");
    assert_eq!((spec.name.as_str(), spec.train.steps, spec.train.epochs), ("mine", Some(7), None));
    assert_eq!(spec.data.path, "presets/data/digits");
    let error = JobSpec::from_toml("extends = \"digit\"").expect_err("unknown");
    assert_eq!(error.to_string(), "line 1: unknown preset \"digit\": did you mean \"digits\"?");
    let error = JobSpec::from_toml("extends = \"imagenet-vgg\"").expect_err("unknown");
    assert_eq!(error.to_string(), "line 1: unknown preset \"imagenet-vgg\": there are digits, fashion-mnist");
}

#[test]
fn overrides_win_and_take_bare_words() {
    let spec = with(&[
        ("name", "123"),
        ("train.optimizer", "sgd"),
        ("model.bits", "[2, 32]"),
        ("data.path", "/data/my digits"),
        ("train.learning_rate", "1"),
        ("train.distill", "\"hard\""),
    ])
    .expect("valid");
    assert_eq!((spec.name.as_str(), spec.train.optimizer), ("123", OptimizerName::Sgd));
    assert_eq!((spec.model.bits.len(), spec.data.path.as_str()), (2, "/data/my digits"));
    assert_eq!((spec.train.learning_rate, spec.train.distill), (1.0, Distill::Hard));
    let error = with(&[("train.batch", "3\nseed = 1")]).expect_err("not a number");
    assert_eq!(error.to_string(), "train.batch must be an integer from 1 to 65536, not \"3\\nseed = 1\"");
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let error = JobSpec::from_toml("name = \"a\"\n[model\n").expect_err("no toml").to_string();
    assert!(error.starts_with("line 2: not valid TOML: "), "{error}");
    let error = JobSpec::from_toml(&"#".repeat(MAX_BYTES + 1)).expect_err("long").to_string();
    assert_eq!(error, "the spec has 65537 bytes: at most 65536 are allowed");
    let error = JobSpec::from_toml("model = 3").expect_err("no table").to_string();
    assert!(error.starts_with("line 1: model must be a table: write [model]"), "{error}");
    let keys: String = (0..3000).map(|n| format!("k{n} = 1\n")).collect();
    assert!(JobSpec::from_toml(&keys).expect_err("unknown").to_string().lines().count() < 50);
    let deep = format!("name = {}{}", "[".repeat(20_000), "]".repeat(20_000));
    JobSpec::from_toml(&deep).expect_err("deep");
}

#[test]
fn the_image_sizes_that_end_at_one_by_one() {
    let good: Vec<u32> = (0..200).filter(|&size| output_side(ModelName::Cnn8, size) == Some(1)).collect();
    assert_eq!(good, [40, 41, 42, 43]);
    assert_eq!(output_side(ModelName::Resnet20, 32), Some(8));
    assert_eq!(output_side(ModelName::Resnet50, 224), Some(7));
}

#[test]
fn a_spec_made_by_hand_is_checked_the_same() {
    let mut spec = JobSpec::from_toml(DIGITS).expect("valid");
    assert!(spec.validate().is_ok());
    spec.train.seed = u64::MAX;
    let error = spec.validate().expect_err("beyond TOML's integers").to_string();
    assert!(error.contains("train.seed must be an integer from 0 to 2^63 - 1"), "{error}");
}

fn models() -> impl Strategy<Value = (ModelSpec, u32)> {
    let bits = proptest::sample::subsequence(vec![1_i64, 2, 3, 4, 5, 6, 7, 8, 32], 1..=9).prop_map(|bits| {
        bits.into_iter().map(|bits| BitWidth::new(bits).expect("legal")).collect::<Vec<_>>()
    });
    let name = prop_oneof![Just(ModelName::Resnet20), Just(ModelName::Resnet50), Just(ModelName::Cnn8)];
    (name, bits, 2..=100_000_u32, proptest::option::of(1..=64_u32), any::<bool>(), 0.0..1.0_f64, 0..4_u32)
        .prop_map(|(name, bits, classes, expand, layers, dropout, extra)| {
            let stages = match name {
                ModelName::Resnet20 => vec![2, 1, 3],
                ModelName::Resnet50 => vec![1, 2, 3, 4],
                ModelName::Cnn8 => Vec::new(),
            };
            let layers = (layers && !stages.is_empty()).then_some(stages);
            let expand = expand.filter(|_| name != ModelName::Resnet50);
            (ModelSpec { name, bits, classes, expand, layers, dropout }, 40 + extra)
        })
}

fn trains() -> impl Strategy<Value = TrainSpec> {
    let length = prop_oneof![
        (1..=100_000_u32).prop_map(|epochs| (Some(epochs), None)),
        (1..=1_000_000_000_u64).prop_map(|steps| (None, Some(steps))),
    ];
    let rates = (1e-12..1000.0_f64, 0.0..1.0_f64, 0.0..=1.0_f64, 1e-6..10.0_f64);
    let optimizer = prop_oneof![Just(OptimizerName::Sgd), Just(OptimizerName::Adam)];
    let distill = prop_oneof![Just(Distill::Hard), Just(Distill::Soft), Just(Distill::Recursive)];
    let milestones = proptest::collection::btree_set(1..100_000_u32, 0..5)
        .prop_map(|set| set.into_iter().map(|milestone| f64::from(milestone) / 7.0).collect::<Vec<_>>());
    (
        2..=64_u32,
        1..=16_u32,
        any::<bool>(),
        length,
        0..=i64::MAX as u64,
        rates,
        milestones,
        optimizer,
        distill,
        any::<[bool; 2]>(),
    )
        .prop_map(
            |(
                group,
                groups,
                grouped,
                (epochs, steps),
                seed,
                rates,
                milestones,
                optimizer,
                distill,
                flags,
            )| {
                TrainSpec {
                    batch: group * groups,
                    group: grouped.then_some(group),
                    epochs,
                    steps,
                    seed,
                    optimizer,
                    learning_rate: rates.0,
                    momentum: rates.1,
                    weight_decay: rates.2,
                    milestones,
                    gamma: rates.3,
                    distill,
                    schedule: if flags[0] { Schedule::Joint } else { Schedule::Sequential },
                    precision: if flags[1] { Precision::Float32 } else { Precision::Float64 },
                    max_skipped_steps: groups,
                    evaluate_epochs: groups - 1,
                }
            },
        )
}

fn specs() -> impl Strategy<Value = JobSpec> {
    let data = ("[a-z\"\\\\é /]{1,20}", -1000.0..1000.0_f64, 1e-9..1000.0_f64);
    ("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", models(), trains(), data, 0..1000_u32, -1000..=1000_i32).prop_map(
        |(name, (model, image_size), train, (path, mean, std), number, priority)| JobSpec {
            name,
            model,
            resources: ResourceSpec { ranks: train.groups().min(3), priority, max_restarts: number },
            train,
            data: DataSpec { format: DataFormat::Idx, path, image_size, mean, std },
            checkpoint: CheckpointSpec {
                every_epochs: number,
                every_steps: u64::from(number) * 1000,
                keep: number + 1,
            },
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_the_same(spec in specs()) {
        let text = spec.to_toml();
        let read = JobSpec::from_toml(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(read, spec);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", key in "[a-z.\"]{0,20}", value in "\\PC{0,20}") {
        let _ = JobSpec::from_toml(&text);
        let _ = JobSpec::from_toml_with(DIGITS, &[(key, value)]);
    }

    #[test]
    fn no_value_of_any_key_panics(index in 0..schema::KEYS.len(), value in "(-?[0-9]{1,25}|[a-z]{1,5}|\\[[0-9, -]{0,9}\\]|-?inf|nan|[0-9]e[0-9]{1,4})") {
        let key = schema::KEYS[index].name.to_owned();
        if let Ok(spec) = JobSpec::from_toml_with(DIGITS, &[(key, value)]) {
            prop_assert!(spec.validate().is_ok());
        }
    }
}
