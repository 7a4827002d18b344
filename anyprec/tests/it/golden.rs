//! The four golden files of the project, and the equality of the two schedules.

use std::path::PathBuf;

use anybit_anyprec::golden::{self, replay};
use anybit_anyprec::models::Model;
use anybit_anyprec::nn::Mode;
use anybit_anyprec::{joint, native};
use anybit_shared::ids::BitWidth;
use anybit_shared::spec::{Distill, ModelName, ModelSpec};
use tch::{Device, Kind, Tensor};

fn check(name: &str) {
    tch::set_num_threads(1); // tests run side by side
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let report = replay(&path, Device::Cpu).expect("replays");
    assert!(report.passes(), "{name}: {report:?}");
    assert!(report.tensors > 50, "{name}: compared only {} tensors", report.tensors);
}

#[test]
fn resnet20_recursive_sgd_meets_the_reference() {
    check("resnet20_recursive_sgd.safetensors");
}

#[test]
fn resnet20_hard_adam_meets_the_reference() {
    check("resnet20_hard_adam.safetensors");
}

#[test]
fn cnn8_soft_adam_meets_the_reference() {
    check("cnn8_soft_adam.safetensors");
}

#[test]
fn resnet50_recursive_sgd_meets_the_reference() {
    check("resnet50_recursive_sgd.safetensors");
}

fn gradients(model: &Model) -> Vec<(String, Tensor)> {
    model.registry().parameters().iter().map(|p| (p.name.clone(), p.tensor.grad().copy())).collect()
}

/// Joint and sequential gradients agree to 1e-12 of each tensor's largest entry.
fn schedules_agree(name: ModelName, size: i64, layers: Option<Vec<u32>>, distill: Distill) {
    tch::set_num_threads(1);
    let bits = [1, 2, 3, 4, 8, 32].map(|b| BitWidth::new(b).expect("width")).to_vec();
    let spec = ModelSpec { name, bits, classes: 10, expand: None, layers, dropout: 0.5 };
    let mut model = Model::build(&spec, 7, Kind::Double, Device::Cpu).expect("builds");
    golden::fill(&mut model).expect("fills");
    let x = golden::images("schedules", 4, size).expect("images");
    let y = golden::labels("schedules", 4, 10).expect("labels");
    let mode = Mode::Train { group: 0, first_sample: 11 };

    let outputs = joint::forward(&model, &x, &y, distill, mode).expect("joint");
    joint::total(&outputs).expect("total").backward();
    let together = gradients(&model);
    let pending: Vec<Tensor> = {
        model.registry_mut().commit_statistics().expect("commits");
        model.registry().statistics().iter().map(|s| s.mean.copy()).collect()
    };

    native::zero_gradients(&model.registry().parameter_list()).expect("zeroes");
    let sequential = joint::forward_sequential(&model, &x, &y, distill, mode, |o| o.loss.f_backward())
        .expect("sequential");
    for (a, b) in outputs.iter().zip(&sequential) {
        assert_eq!(a.width, b.width);
        assert!((a.loss.double_value(&[]) - b.loss.double_value(&[])).abs() < 1e-12);
    }
    for ((name, a), (_, b)) in together.iter().zip(gradients(&model)) {
        let off = (a - &b).abs().max().double_value(&[]);
        let largest = a.abs().max().double_value(&[]);
        assert!(off <= 1e-12 * largest.max(1e-3), "{name}: off by {off:e} of {largest:e}");
    }
    // The second commit moves the statistics by the same batch again: pending ones were equal.
    model.registry_mut().commit_statistics().expect("commits");
    let norm_updates =
        |i: usize| if model.registry().statistics()[i].name.contains("skip_bn") { 6 } else { 1 };
    for (i, (first, s)) in pending.iter().zip(model.registry().statistics()).enumerate() {
        if norm_updates(i) == 1 {
            let off = (first * 1.9 - &s.mean).abs().max().double_value(&[]);
            assert!(off < 1e-12, "{}: off by {off:e}", s.name);
        }
    }
}

#[test]
fn joint_and_sequential_gradients_agree_for_resnet20() {
    schedules_agree(ModelName::Resnet20, 16, Some(vec![1, 1, 1]), Distill::Recursive);
}

#[test]
fn joint_and_sequential_gradients_agree_for_resnet50() {
    schedules_agree(ModelName::Resnet50, 32, Some(vec![1, 1, 1, 1]), Distill::Soft);
}

#[test]
fn joint_and_sequential_gradients_agree_for_cnn8() {
    schedules_agree(ModelName::Cnn8, 40, None, Distill::Hard);
}
