//! Losses, schedules, names and states.

use anybit_anyprec::loss::{Teacher, top_counts};
use anybit_anyprec::models::Model;
use anybit_anyprec::nn::{LoadError, Mode, NamedTensor, Pass};
use anybit_anyprec::optim::learning_rate;
use anybit_shared::ids::BitWidth;
use anybit_shared::spec::{Distill, JobSpec, ModelName, ModelSpec};
use tch::{Device, Kind, Tensor};

fn spec(name: ModelName, bits: &[i64], dropout: f64) -> ModelSpec {
    let bits = bits.iter().map(|b| BitWidth::new(*b).expect("width")).collect();
    let layers = match name {
        ModelName::Resnet20 => Some(vec![1, 1, 1]),
        ModelName::Resnet50 => Some(vec![1, 1, 1, 1]),
        ModelName::Cnn8 => None,
    };
    ModelSpec { name, bits, classes: 10, expand: None, layers, dropout }
}

fn build(spec: &ModelSpec, seed: u64) -> Model {
    Model::build(spec, seed, Kind::Float, Device::Cpu).expect("builds")
}

#[test]
fn targets_come_from_where_the_distillation_says() {
    let logits =
        [3, 2, 1].map(|s| Tensor::from_slice(&[f64::from(s), 0.0, -1.0, 0.5, 0.1, 2.0]).view([2, 3]));
    let labels = Tensor::from_slice(&[0i64, 2]);
    let hard = |x: &Tensor| {
        let picked = x.log_softmax(1, None::<Kind>).gather(1, &labels.unsqueeze(1), false);
        -picked.mean(None::<Kind>).double_value(&[])
    };
    let soft = |x: &Tensor, teacher: &Tensor| {
        let target = teacher.softmax(1, None::<Kind>);
        -(target * x.log_softmax(1, None::<Kind>)).sum(None::<Kind>).double_value(&[]) / 2.0
    };
    for (distill, expected) in [
        (Distill::Hard, [hard(&logits[0]), hard(&logits[1]), hard(&logits[2])]),
        (Distill::Soft, [hard(&logits[0]), soft(&logits[1], &logits[0]), soft(&logits[2], &logits[0])]),
        (Distill::Recursive, [hard(&logits[0]), soft(&logits[1], &logits[0]), soft(&logits[2], &logits[1])]),
    ] {
        let mut teacher = Teacher::new(distill);
        for (x, expected) in logits.iter().zip(expected) {
            let loss = teacher.loss(x, &labels).expect("a loss").double_value(&[]);
            assert!((loss - expected).abs() < 1e-12, "{distill:?}: {loss} instead of {expected}");
        }
    }
}

#[test]
fn top_counts_rank_the_label() {
    let logits = Tensor::from_slice(&[
        9.0f32, 8.0, 7.0, 6.0, 5.0, 4.0, // label 0: first
        9.0, 8.0, 7.0, 6.0, 5.0, 4.0, // label 4: fifth
        9.0, 8.0, 7.0, 6.0, 5.0, 4.0, // label 5: sixth
    ])
    .view([3, 6]);
    let labels = Tensor::from_slice(&[0i64, 4, 5]);
    assert_eq!(
        Vec::<i64>::try_from(&top_counts(&logits, &labels).expect("counts")).expect("a vector"),
        [1, 2]
    );
    let two = Tensor::from_slice(&[1.0f32, 2.0]).view([1, 2]);
    let counts = top_counts(&two, &Tensor::from_slice(&[0i64])).expect("counts");
    assert_eq!(Vec::<i64>::try_from(&counts).expect("a vector"), [0, 1]);
}

#[test]
fn the_rate_drops_at_each_milestone_and_not_before() {
    let mut train = JobSpec::from_toml("extends = \"fashion-mnist\"").expect("the preset").train;
    (train.learning_rate, train.milestones, train.gamma) = (0.5, vec![3.0, 4.0], 0.1);
    for (epoch, rate) in [(0.0, 0.5), (2.999, 0.5), (3.0, 0.05), (3.5, 0.05), (4.0, 0.005), (9.0, 0.005)] {
        assert!((learning_rate(&train, epoch) - rate).abs() < 1e-15, "epoch {epoch}");
    }
}

/// The mask of a sample depends on neither the group's size nor the sample's place in it.
#[test]
fn dropout_follows_the_sample_wherever_it_is_computed() {
    let model = build(&spec(ModelName::Cnn8, &[32], 0.5), 3);
    let evaluate_like = |images: &Tensor, first_sample: u64| {
        // Running statistics cannot be used in training mode, so a group of one image each: the
        // batch statistics of a sample are then its own.
        let pass = Pass { widths: model.widths(), mode: Mode::Train { group: 0, first_sample } };
        tch::no_grad(|| model.forward(images, &pass)).expect("forward").swap_remove(0)
    };
    let image = Tensor::rand([1, 3, 40, 40], (Kind::Float, Device::Cpu));
    let (a, again, other) = (evaluate_like(&image, 41), evaluate_like(&image, 41), evaluate_like(&image, 42));
    assert!(a == again, "the same sample");
    assert!(a != other, "another sample has another mask");
    let pair = Tensor::cat(&[&image, &image], 0); // same statistics as one of them
    let (first, second) =
        (evaluate_like(&pair, 41).narrow(0, 0, 1), evaluate_like(&pair, 40).narrow(0, 1, 1));
    let off = (first - second).abs().max().double_value(&[]);
    assert!(off < 1e-5, "off by {off:e}");
}

#[test]
fn a_seed_decides_the_weights() {
    let weights = |seed| build(&spec(ModelName::Resnet20, &[2, 32], 0.0), seed).state();
    let (a, b, c) = (weights(1), weights(1), weights(2));
    assert!(a.iter().zip(&b).all(|(x, y)| x.tensor == y.tensor));
    assert!(a.iter().zip(&c).any(|(x, y)| x.tensor != y.tensor));
}

#[test]
fn a_dedicated_model_has_one_batch_norm_and_trains() {
    for bits in 1..=8 {
        let spec = spec(ModelName::Resnet20, &[bits], 0.0);
        let mut model = build(&spec, 0);
        assert!(
            model
                .state()
                .iter()
                .all(|s| !s.name.contains("bn_dict") || s.name.contains(&format!("bn_dict.{bits}.")))
        );
        let (x, y) =
            (Tensor::rand([4, 3, 8, 8], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[1i64, 2, 3, 4]));
        let mode = Mode::Train { group: 0, first_sample: 0 };
        let outputs =
            anybit_anyprec::joint::forward(&model, &x, &y, Distill::Recursive, mode).expect("forward");
        outputs[0].loss.backward();
        assert!(model.registry().parameters().iter().all(|p| p.tensor.grad().defined()));
        model.registry_mut().commit_statistics().expect("commits");
    }
}

#[test]
fn loading_is_strict_and_names_what_does_not_fit() {
    let mut model = build(&spec(ModelName::Resnet20, &[2, 32], 0.0), 0);
    let state = |drop: &str| -> Vec<NamedTensor> {
        build(&spec(ModelName::Resnet20, &[2, 32], 0.0), 1)
            .state()
            .into_iter()
            .filter(|s| s.name != drop)
            .collect()
    };
    let before = model.state()[0].tensor.copy();

    let error = model.load(&state("layers.0.bn0.bn_dict.2.bias")).expect_err("one is missing");
    assert!(matches!(&error, LoadError::Missing(name) if name == "layers.0.bn0.bn_dict.2.bias"), "{error}");

    let mut extra = state("");
    extra.push(NamedTensor { name: "layers.0.bn0.bn_dict.4.bias".to_owned(), tensor: Tensor::from(0.0) });
    let error = model.load(&extra).expect_err("one is unknown");
    assert!(matches!(&error, LoadError::Unknown(name) if name == "layers.0.bn0.bn_dict.4.bias"), "{error}");

    let mut shape = state("fc.bias");
    shape.push(NamedTensor {
        name: "fc.bias".to_owned(),
        tensor: Tensor::zeros([11], (Kind::Float, Device::Cpu)),
    });
    let error = model.load(&shape).expect_err("one is misshapen").to_string();
    assert!(error.contains("fc.bias is [11] in the checkpoint and [10] in this network"), "{error}");

    assert!(model.state()[0].tensor == before, "a refused load changed something");
    model.load(&state("")).expect("loads");
    assert!(model.state()[0].tensor != before);
}
