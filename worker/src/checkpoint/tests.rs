//! Every way that a checkpoint can be broken off, damaged or out of date.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anybit_shared::ids::{BitWidth, Generation, GlobalStep};
use anybit_shared::spec::*;
use proptest::prelude::*;

use super::write::{Stage, write_in_stages};
use super::*;

const FILES: [&str; 4] = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"];

fn state(generation: u32, step: u64) -> TrainState {
    let spec = JobSpec {
        name: "test".into(),
        model: ModelSpec {
            name: ModelName::Cnn8,
            bits: vec![BitWidth::new(1).unwrap(), BitWidth::FULL],
            classes: 10,
            expand: Some(1),
            layers: None,
            dropout: 0.5,
        },
        train: TrainSpec {
            batch: 64,
            group: Some(32),
            epochs: Some(20),
            steps: None,
            seed: u64::MAX,
            optimizer: OptimizerName::Adam,
            learning_rate: 1e-3,
            momentum: 0.9,
            weight_decay: 5e-4,
            milestones: vec![0.1 + 0.2, 18.0],
            gamma: 0.1,
            distill: Distill::Recursive,
            schedule: Schedule::Joint,
            precision: Precision::Float32,
            max_skipped_steps: 10,
            evaluate_epochs: 1,
        },
        data: DataSpec {
            format: DataFormat::Idx,
            path: "presets/data/digits".into(),
            image_size: 40,
            mean: 0.5,
            std: 0.5,
        },
        checkpoint: CheckpointSpec::default(),
        resources: ResourceSpec::default(),
    };
    TrainState {
        format_version: FORMAT_VERSION,
        spec,
        step: GlobalStep(step),
        sample_offset: step * 64 + 128,
        epoch: (step * 64 + 128) as f64 / 1437.0,
        seed: u64::MAX,
        generation: Generation(generation),
        skipped_steps: 2,
        consecutive_skipped: 1,
    }
}

fn tensor(name: &str, dtype: Dtype, shape: &[usize], fill: u8) -> NamedTensor {
    let size = shape.iter().product::<usize>() * dtype.bytes();
    let data = (0..size).map(|i| fill.wrapping_add(i as u8)).collect();
    NamedTensor { name: name.into(), dtype, shape: shape.to_vec(), data }
}

/// By name, as they are read back.
fn model(fill: u8) -> Vec<NamedTensor> {
    vec![
        tensor("bn.num_batches", Dtype::I64, &[], fill),
        tensor("conv.weight", Dtype::F32, &[2, 3], fill),
        tensor("double", Dtype::F64, &[2], fill),
        tensor("none", Dtype::F32, &[0, 4], fill),
    ]
}

fn optimizer(fill: u8) -> Vec<NamedTensor> {
    vec![tensor("conv.weight.exp_avg", Dtype::F32, &[2, 3], fill)]
}

struct Job(tempfile::TempDir);

impl Job {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(steps: &[(u32, u64)]) -> Self {
        let job = Self::new();
        for &(generation, step) in steps {
            job.write(generation, step);
        }
        job
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, generation: u32, step: u64) -> CheckpointInfo {
        let fill = step as u8;
        write(self.dir(), &state(generation, step), &model(fill), &optimizer(fill)).unwrap()
    }

    fn path(&self, generation: u32, step: u64) -> PathBuf {
        folder(self.dir(), Generation(generation), GlobalStep(step))
    }

    fn damage(&self, generation: u32, step: u64) {
        let file = self.path(generation, step).join(FILES[0]);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file, bytes).unwrap();
    }

    fn newest(&self, allowed: &[u32]) -> Option<(u32, u64)> {
        let allowed: Vec<_> = allowed.iter().copied().map(Generation).collect();
        let info = newest_valid(self.dir(), &allowed).unwrap();
        let loaded = load_newest(self.dir(), &allowed).unwrap();
        assert_eq!(info.as_ref().map(|i| &i.path), loaded.as_ref().map(|l| &l.info.path));
        info.map(|info| (info.generation.0, info.step.0))
    }

    fn steps(&self) -> Vec<(u32, u64)> {
        list(self.dir()).unwrap().iter().map(|entry| (entry.generation.0, entry.step.0)).collect()
    }

    /// Names in a generation's folder that no listing shows.
    fn hidden(&self, generation: u32) -> usize {
        let folder = self.dir().join(format!("g{generation:05}"));
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
    }
}

#[test]
fn what_is_written_is_read() {
    let job = Job::new();
    let mut shuffled = model(7);
    shuffled.reverse();
    let info = write(&job.dir().join("a/b"), &state(3, 123), &shuffled, &optimizer(7)).unwrap();
    assert!(info.path.ends_with("a/b/g00003/step-000000123"), "{}", info.path.display());
    let checkpoint = read(&info.path).unwrap();
    assert_eq!(checkpoint.state, state(3, 123));
    assert_eq!(checkpoint.model, model(7));
    assert_eq!(checkpoint.optimizer, optimizer(7));

    assert_eq!(verify(&info.path).unwrap(), info);
    let sizes = FILES.map(|name| fs::metadata(info.path.join(name)).unwrap().len());
    assert_eq!(info.bytes, sizes.iter().sum::<u64>());
    assert_eq!(info.manifest_sha256.len(), 64);
    assert_eq!(fs::read_dir(&info.path).unwrap().count(), 4);
    // The same contents are the same bytes, whatever their order.
    let again = write(&job.dir().join("again"), &state(3, 123), &model(7), &optimizer(7)).unwrap();
    assert_eq!(again.manifest_sha256, info.manifest_sha256);
}

#[test]
fn the_manifest_is_an_ordinary_sha256() {
    let job = Job::with(&[(1, 1)]);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(job.path(1, 1).join("manifest.json")).unwrap()).unwrap();
    let output = std::process::Command::new("sha256sum").arg(job.path(1, 1).join(FILES[0])).output().unwrap();
    let sum = String::from_utf8(output.stdout).unwrap();
    assert_eq!(json["files"][FILES[0]]["sha256"], sum[..64]);
    assert_eq!(super::manifest::hex(&[0, 0x0f, 0xa0]), "000fa0");
}

#[test]
fn every_changed_byte_is_found() {
    let job = Job::with(&[(1, 1), (1, 2)]);
    for name in FILES {
        let file = job.path(1, 2).join(name);
        let whole = fs::read(&file).unwrap();
        // Every byte; each bit in turn, and a change of case or kind.
        for (i, mask) in (0..whole.len()).flat_map(|i| [1 << (i % 8), 0x20, 0x29, 0xff].map(|m| (i, m))) {
            let mut bytes = whole.clone();
            bytes[i] ^= mask;
            fs::write(&file, &bytes).unwrap();
            for error in [verify(&job.path(1, 2)).unwrap_err(), read(&job.path(1, 2)).unwrap_err()] {
                assert!(error.is_damage(), "{name}, byte {i}, mask {mask:#x}: {error}");
            }
        }
        assert_eq!(job.newest(&[1]), Some((1, 1)), "the older one serves");
        fs::write(&file, &whole).unwrap();
        assert_eq!(job.newest(&[1]), Some((1, 2)));
    }
}

#[test]
fn truncated_lengthened_and_missing_files_are_found() {
    let job = Job::with(&[(1, 1), (1, 2)]);
    for name in FILES {
        let file = job.path(1, 2).join(name);
        let whole = fs::read(&file).unwrap();
        let mut longer = whole.clone();
        longer.push(b'\n');
        for bytes in [&[][..], &whole[..1], &whole[..whole.len() / 2], &whole[..whole.len() - 1], &longer] {
            fs::write(&file, bytes).unwrap();
            assert!(verify(&job.path(1, 2)).unwrap_err().is_damage(), "{name} of {} bytes", bytes.len());
            assert!(read(&job.path(1, 2)).unwrap_err().is_damage());
        }
        fs::remove_file(&file).unwrap();
        assert!(verify(&job.path(1, 2)).unwrap_err().to_string().contains(name));
        assert_eq!(job.newest(&[1]), Some((1, 1)));
        fs::create_dir(&file).unwrap();
        assert_eq!(job.newest(&[1]), Some((1, 1)), "a folder in the place of {name}");
        fs::remove_dir(&file).unwrap();
        fs::write(&file, &whole).unwrap();
    }
    assert!(verify(&job.path(1, 2)).is_ok());
}

#[test]
fn complaints_say_what_is_wrong() {
    let job = Job::with(&[(1, 2)]);
    job.damage(1, 2);
    let text = verify(&job.path(1, 2)).unwrap_err().to_string();
    assert!(
        text.ends_with("g00001/step-000000002 is damaged: model.safetensors does not match its SHA-256"),
        "{text}"
    );
}

#[test]
fn a_kill_at_any_stage_leaves_all_or_nothing() {
    let stages =
        [Stage::Begun, Stage::Model, Stage::Optimizer, Stage::State, Stage::Manifest, Stage::Renamed];
    for killed_after in stages {
        let job = Job::with(&[(1, 1)]);
        let outcome = write_in_stages(job.dir(), &state(1, 2), &model(2), &optimizer(2), &mut |stage| {
            if stage == killed_after { Err(CheckpointError::Unsavable("killed".into())) } else { Ok(()) }
        });
        assert!(outcome.is_err());
        let (newest, left) = if killed_after == Stage::Renamed { (2, 0) } else { (1, 1) };
        assert_eq!(job.newest(&[1]), Some((1, newest)), "killed after {killed_after:?}");
        assert_eq!(job.steps().len() as u64, newest, "no listing shows a half");
        assert_eq!(job.hidden(1), left);
        // The next writer tidies up, of this generation or a later one.
        job.write(2, 3);
        assert_eq!((job.hidden(1), job.hidden(2)), (0, 0));
        assert_eq!(job.newest(&[1, 2]), Some((2, 3)));
    }
}

#[test]
fn an_older_generation_leaves_a_newer_ones_work_alone() {
    let job = Job::with(&[(1, 1), (2, 5)]);
    let under_way = job.dir().join("g00002/.tmp-step-000000009-new-1");
    fs::create_dir(&under_way).unwrap();
    job.write(1, 2);
    prune(job.dir(), 1).unwrap();
    assert!(under_way.exists());
    assert_eq!(job.steps(), [(2, 5)]);
    job.write(2, 9);
    assert!(!under_way.exists());
}

#[test]
fn the_same_step_again_replaces_it_whole() {
    // As after steps that were skipped: the count stands, the sample offset has moved on.
    let job = Job::with(&[(1, 5)]);
    let mut later = state(1, 5);
    later.sample_offset += 640;
    let info = write(job.dir(), &later, &model(99), &optimizer(99)).unwrap();
    let read = read(&info.path).unwrap();
    assert_eq!((read.state, read.model), (later.clone(), model(99)));
    assert_eq!((job.steps(), job.hidden(1)), (vec![(1, 5)], 0));
    // A damaged one is replaced as well.
    job.damage(1, 5);
    write(job.dir(), &later, &model(99), &optimizer(99)).unwrap();
    assert_eq!(job.newest(&[1]), Some((1, 5)));
}

#[test]
fn the_newest_is_by_generation_then_step_of_the_allowed() {
    let job = Job::with(&[(1, 900), (2, 100), (2, 1_000_000_000), (10, 50)]);
    assert_eq!(job.steps(), [(10, 50), (2, 1_000_000_000), (2, 100), (1, 900)]);
    assert_eq!(job.newest(&[1, 2, 10]), Some((10, 50)));
    assert_eq!(job.newest(&[1, 2]), Some((2, 1_000_000_000)), "a stray generation is ignored");
    assert_eq!(job.newest(&[1]), Some((1, 900)));
    assert_eq!(job.newest(&[]), None);
    job.damage(10, 50);
    assert_eq!(job.newest(&[10, 1]), Some((1, 900)));
    job.damage(1, 900);
    assert_eq!(job.newest(&[10, 1]), None);
    assert_eq!(newest_valid(&job.dir().join("absent"), &[Generation(1)]).unwrap(), None);
}

#[test]
fn only_folders_of_the_right_name_are_checkpoints() {
    let job = Job::with(&[(1, 1)]);
    for name in [
        "g1/step-000000001",
        "g00002/step-1",
        "g00002/.tmp-step-000000004-new-1",
        "g00002/step-+00000001",
        "gxxxxx/step-000000001",
        "g99999999999/step-000000001",
        "g00002/step-99999999999999999999",
    ] {
        fs::create_dir_all(job.dir().join(name)).unwrap();
    }
    fs::write(job.dir().join("g00003"), "a file").unwrap();
    fs::write(job.dir().join("g00002/step-000000007"), "a file").unwrap();
    std::os::unix::fs::symlink(job.path(1, 1), job.dir().join("g00002/step-000000008")).unwrap();
    assert_eq!(job.steps(), [(1, 1)]);
}

#[test]
fn a_renamed_checkpoint_is_not_taken_for_another() {
    let job = Job::with(&[(1, 1), (1, 2)]);
    fs::rename(job.path(1, 2), job.path(1, 9)).unwrap();
    assert_eq!(job.newest(&[1]), Some((1, 1)));
    assert!(read(&job.path(1, 9)).is_ok(), "by hand it can be read: people copy checkpoints");
}

#[test]
fn a_newer_format_is_an_error_and_not_passed_over() {
    let job = Job::with(&[(1, 1), (1, 2)]);
    for name in ["state.json", "manifest.json"] {
        let file = job.path(1, 2).join(name);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    }
    let error = newest_valid(job.dir(), &[Generation(1)]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has format version 2, and this program reads 1: use the version that wrote it"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_saved_is_refused_and_leaves_nothing() {
    let job = Job::with(&[(1, 1)]);
    let cases: Vec<(TrainState, Vec<NamedTensor>, &str)> = vec![
        (TrainState { epoch: f64::NAN, ..state(1, 2) }, model(0), "finite"),
        (TrainState { format_version: 9, ..state(1, 2) }, model(0), "read back"),
        (state(1, 2), [model(0), model(0)].concat(), "\"bn.num_batches\": the name occurs twice"),
        (state(1, 2), vec![NamedTensor { shape: vec![7], ..model(0).remove(1) }], "\"conv.weight\""),
        (state(1, 2), vec![NamedTensor { name: "__metadata__".into(), ..model(0).remove(1) }], "reserved"),
        (
            state(1, 2),
            vec![NamedTensor { shape: vec![usize::MAX, 2], ..model(0).remove(1) }],
            "\"conv.weight\"",
        ),
    ];
    for (state, model, reason) in cases {
        let error = write(job.dir(), &state, &model, &[]).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!((job.steps(), job.hidden(1)), (vec![(1, 1)], 0));
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let job = Job::new();
    let file = job.dir().join("file");
    fs::write(&file, "").unwrap();
    let text = write(&file.join("job"), &state(1, 1), &[], &[]).unwrap_err().to_string();
    assert!(text.contains("/file/job") && text.contains("Not a directory"), "{text}");
    for (kind, advice) in [
        (io::ErrorKind::StorageFull, "free some space"),
        (io::ErrorKind::PermissionDenied, "give the worker's user access"),
        (io::ErrorKind::ReadOnlyFilesystem, "another checkpoint folder"),
    ] {
        let error = CheckpointError::io("write", Path::new("/jobs/x"))(kind.into());
        let text = error.to_string();
        assert!(text.starts_with("cannot write /jobs/x: ") && text.contains(advice), "{text}");
        assert!(!error.is_damage(), "a good checkpoint may be there");
    }
}

#[test]
fn pruning_keeps_the_newest() {
    let job = Job::with(&[(1, 10), (1, 20), (2, 15), (2, 30), (3, 31)]);
    let deleted = prune(job.dir(), 2).unwrap();
    assert_eq!(deleted, [job.path(1, 10), job.path(1, 20), job.path(2, 15)]);
    assert_eq!(job.steps(), [(3, 31), (2, 30)]);
    assert!(!job.dir().join("g00001").exists(), "emptied folders go");
    assert_eq!(prune(job.dir(), 2).unwrap().len(), 0);
    prune(job.dir(), 0).unwrap();
    assert_eq!(job.steps(), [(3, 31)], "the last one always stays");
    assert_eq!(prune(&job.dir().join("absent"), 1).unwrap().len(), 0);
}

#[test]
fn pruning_spares_the_newest_that_verifies() {
    let job = Job::with(&[(1, 1), (1, 2), (1, 3), (1, 4)]);
    for step in [3, 4] {
        job.damage(1, step);
    }
    prune(job.dir(), 2).unwrap();
    assert_eq!(job.steps(), [(1, 4), (1, 3), (1, 2)]);
    assert_eq!(job.newest(&[1]), Some((1, 2)));
}

#[test]
fn pruners_and_writers_at_once_do_no_harm() {
    let job = Job::with(&[(1, 1)]);
    std::thread::scope(|scope| {
        let pruners: Vec<_> =
            (0..3).map(|_| scope.spawn(|| (0..40).try_for_each(|_| prune(job.dir(), 2).map(drop)))).collect();
        for step in 2..30 {
            job.write(1, step);
            assert!(job.newest(&[1]).is_some());
        }
        for pruner in pruners {
            pruner.join().unwrap().unwrap();
        }
    });
    prune(job.dir(), 2).unwrap();
    assert_eq!(job.steps(), [(1, 29), (1, 28)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_tensors_and_numbers_come_back_bit_for_bit(
        tensors in proptest::collection::btree_map("[a-z.0-9\"\\\\\u{e9}]{1,12}",
            (0..3usize, proptest::collection::vec(0..4usize, 0..4), any::<u8>()), 0..6),
        rate in any::<f64>().prop_filter("finite", |x| x.is_finite()),
        epoch in 0.0..1e9f64, seed: u64, offset: u64,
    ) {
        let dtypes = [Dtype::F32, Dtype::F64, Dtype::I64];
        let model: Vec<_> = tensors.into_iter().map(|(name, (d, shape, fill))| tensor(&name, dtypes[d], &shape, fill)).collect();
        let mut state = state(1, 1);
        state.spec.train.learning_rate = rate;
        (state.epoch, state.seed, state.sample_offset) = (epoch, seed, offset);
        let job = Job::new();
        let info = write(job.dir(), &state, &model, &[]).unwrap();
        let back = read(&info.path).unwrap();
        prop_assert_eq!(back.state.spec.train.learning_rate.to_bits(), rate.to_bits());
        prop_assert_eq!(back.state, state);
        prop_assert_eq!(back.model, model);
    }
}
