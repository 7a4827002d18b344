//! Data-parallel ranks in one process, each on a thread of its own, over real Gloo.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anybit_anyprec::golden;
use anybit_anyprec::models::Model;
use anybit_anyprec::nn::NamedTensor;
use anybit_shared::ids::{BitWidth, Rank};
use anybit_shared::spec::{Distill, ModelName, ModelSpec, OptimizerName, Precision, Schedule, TrainSpec};
use anybit_worker::dist::{Meeting, Replicas, Store};
use anybit_worker::train::step::{Group, Replica, Stepped};
use tch::{Device, Kind, Tensor};

const GROUP: i64 = 2;
const SIZE: i64 = 8;

/// Bits of every tensor of a replica.
fn fingerprint(replica: &Replica) -> Vec<Tensor> {
    replica.model.state().iter().map(|s| s.tensor.copy()).collect()
}

/// What a restored process does: its Reducer is new, its weights are not.
#[test]
fn the_first_reduction_of_a_process_has_the_bits_of_a_later_one() {
    let group = |s: u64, g: u32| {
        let Group { images, labels, first_sample } = data(s, g);
        Group { images: images.to_kind(Kind::Float), labels, first_sample }
    };
    let states = float_ranks(3, |rank, replica| {
        replica.step(&[group(0, rank)], 0.05, false).expect("steps");
        let middle = state(replica);
        let optimizer: State =
            replica.optimizer.state().iter().map(|s| (s.name.clone(), s.tensor.copy())).collect();
        replica.step(&[group(1, rank)], 0.05, false).expect("steps");
        (middle, optimizer, fingerprint(replica))
    });
    let named = |state: &State| -> Vec<NamedTensor> {
        let named =
            |(name, tensor): &(String, Tensor)| NamedTensor { name: name.clone(), tensor: tensor.copy() };
        state.iter().map(named).collect()
    };
    let states: Vec<_> = states.into_iter().map(std::sync::Mutex::new).collect();
    let resumed = float_ranks(3, |rank, replica| {
        let held = states[rank as usize].lock().expect("the rank's own");
        replica.model.load(&named(&held.0)).expect("loads");
        replica.optimizer.load(&named(&held.1)).expect("loads");
        replica.step(&[group(1, rank)], 0.05, false).expect("steps");
        fingerprint(replica)
    });
    for (resumed, undisturbed) in resumed.iter().zip(&states) {
        let undisturbed = undisturbed.lock().expect("nobody else's");
        assert!(
            resumed.iter().zip(&undisturbed.2).all(|(a, b)| a == b),
            "a resumed rank ends with other bits"
        );
    }
}

/// One rank has no Reducer to give gradients their parameters' layout.
#[test]
fn one_rank_trains_every_network_in_single_precision() {
    for (name, size) in [(ModelName::Resnet20, 8), (ModelName::Resnet50, 32), (ModelName::Cnn8, 40)] {
        let mut spec = model_spec();
        (spec.name, spec.layers, spec.expand) = match name {
            ModelName::Resnet20 => (name, Some(vec![1, 1, 1]), Some(1)),
            ModelName::Resnet50 => (name, Some(vec![1, 1, 1, 1]), None),
            ModelName::Cnn8 => (name, None, Some(1)),
        };
        let model = Model::build(&spec, 0, Kind::Float, Device::Cpu).expect("builds");
        let mut replica =
            Replica::new(model, &train_spec(1, Schedule::Joint), Replicas::alone()).expect("a replica");
        let images = golden::images("float", GROUP, size).expect("images").to_kind(Kind::Float);
        let images = images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let labels = golden::labels("float", GROUP, 10).expect("labels");
        let batch = [Group { images, labels, first_sample: 0 }];
        let first = replica.step(&batch, 0.01, false).expect("steps").widths;
        for _ in 0..5 {
            replica.step(&batch, 0.01, false).expect("steps");
        }
        let last = replica.step(&batch, 0.01, false).expect("steps").widths;
        assert!(last[0].loss < first[0].loss, "{name:?} learns nothing of one batch: {first:?} {last:?}");
    }
}

fn model_spec() -> ModelSpec {
    ModelSpec {
        name: ModelName::Resnet20,
        bits: [1, 2, 4, 8, 32].map(|b| BitWidth::new(b).expect("width")).to_vec(),
        classes: 10,
        expand: Some(1),
        layers: Some(vec![1, 1, 1]),
        dropout: 0.0,
    }
}

fn train_spec(groups: u32, schedule: Schedule) -> TrainSpec {
    TrainSpec {
        batch: groups * GROUP as u32,
        group: Some(GROUP as u32),
        epochs: None,
        steps: Some(20),
        seed: 3,
        optimizer: OptimizerName::Sgd,
        learning_rate: 0.05,
        momentum: 0.9,
        weight_decay: 1e-4,
        milestones: vec![],
        gamma: 0.1,
        distill: Distill::Recursive,
        schedule,
        precision: Precision::Float64,
        max_skipped_steps: 3,
        evaluate_epochs: 0,
    }
}

/// Group `g` of step `s`: the same data whichever rank takes it.
fn data(s: u64, g: u32) -> Group {
    let name = format!("{s}.{g}");
    let images = golden::images(&format!("input.{name}"), GROUP, SIZE).expect("images");
    let images = images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    Group {
        images,
        labels: golden::labels(&format!("target.{name}"), GROUP, 10).expect("labels"),
        first_sample: s,
    }
}

/// Rank `rank`'s share of the groups: contiguous, sizes differ by at most one.
fn share(rank: u32, world: u32, groups: u32) -> std::ops::Range<u32> {
    rank * groups / world..(rank + 1) * groups / world
}

fn ranks<T: Send>(
    world: u32,
    groups: u32,
    schedule: Schedule,
    body: impl Fn(u32, &mut Replica) -> T + Sync,
) -> Vec<T> {
    ranks_of(Kind::Double, world, groups, schedule, body)
}

fn float_ranks<T: Send>(world: u32, body: impl Fn(u32, &mut Replica) -> T + Sync) -> Vec<T> {
    ranks_of(Kind::Float, world, world, Schedule::Joint, body)
}

/// Runs `world` ranks, `body` on each, and returns what they returned, in rank order.
fn ranks_of<T: Send>(
    kind: Kind,
    world: u32,
    groups: u32,
    schedule: Schedule,
    body: impl Fn(u32, &mut Replica) -> T + Sync,
) -> Vec<T> {
    let store = Store::open(IpAddr::V4(Ipv4Addr::LOCALHOST), Duration::from_secs(30)).expect("a store");
    let address = store.address().to_string();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world)
            .map(|rank| {
                let meeting = Meeting {
                    store: address.clone(),
                    prefix: "test/1".to_owned(),
                    rank: Rank(rank),
                    world_size: world,
                    interface: Some("127.0.0.1".to_owned()),
                    collective_timeout: Duration::from_secs(30),
                    rendezvous_timeout: Duration::from_secs(30),
                };
                let body = &body;
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let replicas = Replicas::meet(&meeting).expect("meets");
                    let mut model = Model::build(&model_spec(), 0, kind, Device::Cpu).expect("builds");
                    golden::fill(&mut model).expect("fills");
                    let mut replica =
                        Replica::new(model, &train_spec(groups, schedule), replicas).expect("a replica");
                    body(rank, &mut replica)
                })
            })
            .collect();
        handles.into_iter().map(|h| h.join().expect("the rank's thread")).collect()
    })
}

type State = Vec<(String, Tensor)>;

fn state(replica: &Replica) -> State {
    replica.model.state().iter().map(|s| (s.name.clone(), s.tensor.copy())).collect()
}

fn train(world: u32, groups: u32, schedule: Schedule) -> Vec<State> {
    ranks(world, groups, schedule, |rank, replica| {
        let mine = share(rank, world, groups);
        for s in 0..20 {
            let batch: Vec<Group> = mine.clone().map(|g| data(s, g)).collect();
            let stepped = replica.step(&batch, 0.05, false).expect("steps");
            assert_eq!(stepped.skip, None);
        }
        replica
            .replicas()
            .average_statistics(replica.model.registry(), mine.len() as u32, groups)
            .expect("averages");
        state(replica)
    })
}

fn worst(a: &State, b: &State) -> f64 {
    let off = a.iter().zip(b).map(|((name, a), (other, b))| {
        assert_eq!(name, other);
        let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
        (&a - &b).abs().max().double_value(&[]) / a.abs().max().double_value(&[]).max(1e-3)
    });
    off.fold(0.0, f64::max)
}

fn same_as_one_rank(world: u32, groups: u32, schedule: Schedule) {
    let alone = train(1, groups, Schedule::Joint).swap_remove(0);
    let many = train(world, groups, schedule);
    for (rank, state) in many.iter().enumerate() {
        let off = worst(&alone, state);
        assert!(off <= 1e-9, "rank {rank} of {world}: off by {off:e}");
        for ((name, a), (_, b)) in many[0].iter().zip(state) {
            assert!(a == b, "rank {rank} and rank 0 differ in {name}");
        }
    }
}

#[test]
fn two_ranks_with_even_groups_train_as_one() {
    same_as_one_rank(2, 4, Schedule::Joint);
}

#[test]
fn two_ranks_with_uneven_groups_train_as_one() {
    same_as_one_rank(2, 3, Schedule::Joint);
}

#[test]
fn three_ranks_with_even_groups_train_as_one() {
    same_as_one_rank(3, 3, Schedule::Joint);
}

#[test]
fn three_ranks_with_uneven_groups_train_as_one() {
    same_as_one_rank(3, 5, Schedule::Joint);
}

#[test]
fn the_sequential_schedule_on_two_ranks_trains_as_one_joint_rank() {
    same_as_one_rank(2, 3, Schedule::Sequential);
}

/// Sets one parameter on one rank for one step.
fn poisoned_step(
    replica: &mut Replica,
    rank: u32,
    poisoned_rank: Option<u32>,
    name: &str,
    value: f64,
) -> Stepped {
    let poison = poisoned_rank.is_none_or(|r| r == rank);
    let parameter = |replica: &Replica| {
        let found = replica.model.registry().parameters().iter().find(|p| p.name == name);
        found.expect("the parameter").tensor.shallow_clone()
    };
    let before = parameter(replica).detach().copy();
    if poison {
        let _ = tch::no_grad(|| parameter(replica).fill_(value));
    }
    let stepped = replica.step(&[data(9, rank)], 0.05, false).expect("steps");
    tch::no_grad(|| parameter(replica).copy_(&before));
    stepped
}

#[test]
fn one_ranks_non_finite_width_makes_every_rank_skip_and_leaves_no_trace() {
    for schedule in [Schedule::Joint, Schedule::Sequential] {
        let outcomes = ranks(2, 2, schedule, |rank, replica| {
            replica.step(&[data(0, rank)], 0.05, false).expect("steps");
            let before = state(replica);
            let stepped = poisoned_step(replica, rank, Some(1), "bn.bn_dict.2.weight", f64::NAN);
            let skip = stepped.skip.expect("skipped");
            // Width 2 teaches width 1.
            assert_eq!(skip.widths, [1, 2].map(|b| BitWidth::new(b).expect("width")));
            assert_eq!(worst(&before, &state(replica)), 0.0, "parameters or statistics moved");
            assert_eq!((replica.skipped, replica.skipped_in_a_row, replica.step.0), (1, 1, 1));
            replica.step(&[data(1, rank)], 0.05, false).expect("steps");
            assert_eq!((replica.skipped, replica.skipped_in_a_row, replica.step.0), (1, 0, 2));
            state(replica)
        });
        // As if the skipped step had never been.
        let undisturbed = ranks(2, 2, Schedule::Joint, |rank, replica| {
            for s in 0..2 {
                replica.step(&[data(s, rank)], 0.05, false).expect("steps");
            }
            state(replica)
        });
        for (a, b) in outcomes.iter().zip(&undisturbed) {
            let off = worst(a, b);
            assert!(off <= 1e-12, "{schedule:?}: off by {off:e}");
        }
    }
}

#[test]
fn a_non_finite_reduced_gradient_makes_every_rank_skip_and_is_named() {
    ranks(2, 2, Schedule::Joint, |rank, replica| {
        let before = state(replica);
        let stepped = poisoned_step(replica, rank, None, "bn.bn_dict.2.weight", 1e200);
        let skip = stepped.skip.expect("skipped");
        assert!(skip.reason.starts_with("the gradient of "), "{}", skip.reason);
        assert_eq!(worst(&before, &state(replica)), 0.0, "parameters or statistics moved");
    });
}

#[test]
fn a_stop_asked_of_one_rank_reaches_all() {
    let stops = ranks(2, 2, Schedule::Joint, |rank, replica| {
        let first = replica.step(&[data(0, rank)], 0.05, false).expect("steps").stop_requested;
        let second = replica.step(&[data(1, rank)], 0.05, rank == 1).expect("steps").stop_requested;
        (first, second)
    });
    assert_eq!(stops, [(false, true), (false, true)]);
}

#[test]
fn a_difference_between_replicas_is_seen_by_all() {
    let equal = ranks(2, 2, Schedule::Joint, |rank, replica| {
        let same = replica.replicas().all_equal(&[7, -1], "comparing").expect("compares");
        let different = replica.replicas().all_equal(&[7, i64::from(rank)], "comparing").expect("compares");
        (same, different)
    });
    assert_eq!(equal, [(true, false), (true, false)]);
}

#[test]
fn a_missing_rank_fails_the_meeting_within_its_timeout() {
    let store = Store::open(IpAddr::V4(Ipv4Addr::LOCALHOST), Duration::from_secs(30)).expect("a store");
    let meeting = Meeting {
        store: store.address().to_string(),
        prefix: "test/2".to_owned(),
        rank: Rank(0),
        world_size: 2,
        interface: Some("127.0.0.1".to_owned()),
        collective_timeout: Duration::from_millis(500),
        rendezvous_timeout: Duration::from_secs(2),
    };
    let error = Replicas::meet(&meeting).err().expect("nobody else comes").to_string();
    assert!(error.contains("rank 0 of 2 did not meet the others"), "{error}");
}
