//! `anybit-worker bench`: times the joint step and prints one JSON line with the keys of
//! `bench/anyprec_torch.py bench`, so that both can be compared.

use std::time::Instant;

use anybit_anyprec::models::Model;
use anybit_anyprec::native;
use anybit_shared::ids::BitWidth;
use anybit_shared::spec::{Distill, ModelName, ModelSpec, OptimizerName, Precision, Schedule, TrainSpec};
use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use tch::{Device, Kind, Tensor};

use crate::dist::Replicas;
use crate::train::step::{Group, Replica};

/// Networks by their names in specs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    Resnet20,
    Resnet50,
    Cnn8,
}

/// What to time.
#[derive(Debug, Args)]
pub struct BenchOptions {
    /// Network
    #[arg(long, value_enum, default_value = "resnet20")]
    model: Network,
    /// Bit-widths trained jointly
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,32")]
    bits: Vec<i64>,
    /// Width multiplier (default: the network's own)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    expand: Option<u32>,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(8..=1024))]
    size: u32,
    /// Images a step
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Classes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    classes: u32,
    /// Timed steps; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps before the timed ones
    #[arg(long, default_value_t = 1)]
    warmup: u32,
    /// Threads of libtorch (default: the machine's cores)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// One width's graph alive at a time
    #[arg(long)]
    sequential: bool,
}

/// Times the joint step; returns the JSON line.
pub fn run(options: &BenchOptions) -> anyhow::Result<String> {
    time(options).map_err(|error| anyhow::anyhow!(without_trace(&error)))
}

/// The causes, each without the C++ stack trace that libtorch puts behind its first line.
fn without_trace(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let first_lines: Vec<&str> = causes.iter().filter_map(|cause| cause.lines().next()).collect();
    first_lines.join(": ")
}

fn time(options: &BenchOptions) -> anyhow::Result<String> {
    let bits =
        options.bits.iter().map(|b| BitWidth::new(*b)).collect::<Result<Vec<_>, _>>().context("--bits")?;
    ensure!(!bits.is_empty(), "--bits is empty: name at least one width");
    ensure!(bits.is_sorted_by(|a, b| a < b), "--bits must be ascending, each width once");
    let (name, text) = match options.model {
        Network::Resnet20 => (ModelName::Resnet20, "resnet20"),
        Network::Resnet50 => (ModelName::Resnet50, "resnet50"),
        Network::Cnn8 => (ModelName::Cnn8, "cnn8"),
    };
    if name == ModelName::Cnn8 && options.size != 40 {
        bail!("cnn8 takes images of 40x40: use --size 40");
    }
    if name == ModelName::Resnet50 && options.expand.is_some() {
        bail!("--expand is not for resnet50: leave it out");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let threads = options.threads.unwrap_or(cores);
    tch::set_num_threads(threads.cast_signed());
    native::keep_freed_memory();

    let model = ModelSpec {
        name,
        bits,
        classes: options.classes,
        expand: options.expand,
        layers: None,
        dropout: 0.5,
    };
    let train = TrainSpec {
        batch: options.batch,
        group: None,
        epochs: None,
        steps: Some(1),
        seed: 0,
        optimizer: OptimizerName::Sgd,
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 1e-4,
        milestones: Vec::new(),
        gamma: 0.1,
        distill: Distill::Recursive,
        schedule: if options.sequential { Schedule::Sequential } else { Schedule::Joint },
        precision: Precision::Float32,
        max_skipped_steps: 1,
        evaluate_epochs: 0,
    };
    let network = Model::build(&model, train.seed, Kind::Float, Device::Cpu)?;
    let mut replica = Replica::new(network, &train, Replicas::alone())?;

    let (batch, size) = (i64::from(options.batch), i64::from(options.size));
    let images =
        Tensor::f_randn([batch, size, size, 3], (Kind::Float, Device::Cpu))?.f_permute([0, 3, 1, 2])?;
    let labels = Tensor::f_randint(i64::from(options.classes), [batch], (Kind::Int64, Device::Cpu))?;
    let group = [Group { images, labels, first_sample: 0 }];
    let mut seconds = Vec::new();
    for step in 0..options.warmup + options.steps {
        let start = Instant::now();
        let stepped = replica.step(&group, train.learning_rate, false)?;
        if step >= options.warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
        // Random labels at this rate may diverge; the work of a step is the same, a skip's is not.
        if let Some(skip) = stepped.skip {
            bail!("step {step} was skipped: {}", skip.reason);
        }
    }
    seconds.sort_unstable_by(f64::total_cmp);
    let middle = seconds.len() / 2;
    let median =
        if seconds.len() % 2 == 1 { seconds[middle] } else { (seconds[middle - 1] + seconds[middle]) / 2.0 };
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let line = serde_json::json!({
        "peer": concat!("anybit ", env!("CARGO_PKG_VERSION")),
        "model": text,
        "batch": options.batch,
        "size": options.size,
        "bits": model.bits.iter().map(|b| b.bits()).collect::<Vec<_>>(),
        "device": "cpu",
        "channels_last": true,
        "bf16": false,
        "tf32": false,
        "compile": false,
        "threads": threads,
        "seconds_per_step": median,
        "images_per_second": f64::from(options.batch) / median,
        "peak_mib": usage.max_rss() >> 10,
    });
    Ok(line.to_string())
}
