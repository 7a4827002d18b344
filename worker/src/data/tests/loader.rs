//! The loader: the right samples whatever the ranks and threads, ready ahead, errors in their place.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::data::sampler::sample_at;
use crate::data::{Batch, DataError, Evaluation, Loader, LoaderOptions, Resizer, Samples, Share};
use anybit_shared::ids::Rank;
use anybit_shared::spec::{DataFormat, DataSpec};

const SIZE: u32 = 2;

fn resizer() -> Resizer {
    let spec =
        DataSpec { format: DataFormat::Idx, path: String::new(), image_size: SIZE, mean: 0.5, std: 0.5 };
    Resizer::new(&spec)
}

/// Samples that know their index: image filled with it, label its tenfold.
struct Numbers {
    len: u64,
    /// Fails here.
    bad: Option<u64>,
    loads: AtomicU64,
    threads: Mutex<HashSet<std::thread::ThreadId>>,
}

impl Numbers {
    fn new(len: u64) -> Arc<Self> {
        Self::with_bad(len, None)
    }

    fn with_bad(len: u64, bad: Option<u64>) -> Arc<Self> {
        Arc::new(Self { len, bad, loads: AtomicU64::new(0), threads: Mutex::default() })
    }

    fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }
}

impl Samples for Numbers {
    fn count(&self) -> NonZeroU64 {
        NonZeroU64::new(self.len).unwrap()
    }

    fn load(&self, index: u64, _: &mut Resizer, out: &mut [f32]) -> Result<i64, DataError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        self.threads.lock().unwrap().insert(std::thread::current().id());
        if self.bad == Some(index) {
            return Err(DataError::Index { index, len: self.len });
        }
        assert_eq!(out.len(), (SIZE * SIZE * 3) as usize);
        out.fill(index as f32);
        Ok(index as i64 * 10)
    }
}

fn share(rank: u32, world_size: u32) -> Share {
    Share { seed: 4, group: 3, groups: 4, rank: Rank(rank), world_size }
}

fn loader(samples: &Arc<Numbers>, share: Share, offset: u64, prefetch: usize, threads: usize) -> Loader {
    Loader::new(samples.clone(), resizer(), share, offset, LoaderOptions { prefetch, threads }).unwrap()
}

fn evaluation(samples: &Arc<Numbers>, rank: u32, world_size: u32, threads: usize) -> Evaluation {
    let samples: Arc<dyn Samples> = samples.clone();
    let options = LoaderOptions { threads, ..LoaderOptions::default() };
    Evaluation::new(&samples, &resizer(), Rank(rank), world_size, 4, options).unwrap()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check_contents(batch: &Batch) {
    for group in &batch.groups {
        assert_eq!(group.labels.len(), group.indices.len());
        for (i, image) in group.images.chunks_exact((SIZE * SIZE * 3) as usize).enumerate() {
            assert!(image.iter().all(|&value| value == group.indices[i] as f32));
            assert_eq!(group.labels[i], group.indices[i] as i64 * 10);
        }
    }
}

fn indices(batch: &Batch) -> Vec<u64> {
    batch.groups.iter().flat_map(|group| group.indices.clone()).collect()
}

#[test]
fn ranks_together_yield_the_samplers_line_for_any_world_and_threads() {
    let samples = Numbers::new(10);
    for world in 1..=4 {
        for threads in [1, 2, 3] {
            let mut ranks: Vec<Loader> =
                (0..world).map(|rank| loader(&samples, share(rank, world), 24, 2, threads)).collect();
            for step in 0..5 {
                let offset = 24 + step * 12;
                let mut seen = Vec::new();
                for loader in &mut ranks {
                    let batch = loader.next().unwrap();
                    assert_eq!(batch.offset, offset);
                    check_contents(&batch);
                    seen.extend(indices(&batch));
                    loader.recycle(batch);
                }
                let len = NonZeroU64::new(10).unwrap();
                let line: Vec<u64> = (offset..offset + 12).map(|o| sample_at(4, len, o).index).collect();
                assert_eq!(seen, line, "world {world}, {threads} threads, step {step}");
            }
        }
    }
}

#[test]
fn batches_are_ready_before_they_are_asked_for_and_no_more_than_asked() {
    for prefetch in [1, 2, 5] {
        let samples = Numbers::new(100);
        let mut loader = loader(&samples, share(0, 1), 0, prefetch, 1);
        for taken in 0..8u64 {
            let ahead = (taken + prefetch as u64) * 12;
            wait_until("the next batches are not decoded ahead", || samples.loads() == ahead);
            loader.next().unwrap();
            assert!(samples.loads() <= ahead + 12, "more is decoded than the prefetch allows");
        }
    }
}

#[test]
fn waiting_is_measured() {
    struct Gate(Mutex<()>, Arc<Numbers>);
    impl Samples for Gate {
        fn count(&self) -> NonZeroU64 {
            self.1.count()
        }
        fn load(&self, index: u64, resizer: &mut Resizer, out: &mut [f32]) -> Result<i64, DataError> {
            let _open = self.0.lock().unwrap();
            self.1.load(index, resizer, out)
        }
    }
    let gate = Arc::new(Gate(Mutex::new(()), Numbers::new(50)));
    let shut = gate.0.lock().unwrap();
    let mut loader = Loader::new(gate.clone(), resizer(), share(0, 1), 0, LoaderOptions::default()).unwrap();
    let (asked, answer) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        asked.send(()).unwrap();
        loader.next().unwrap();
        let waited = loader.waited();
        loader.seek(600).unwrap();
        assert!(loader.waited() >= waited, "a seek forgets no wait");
        waited
    });
    answer.recv().unwrap();
    // Time for the reader to get from saying so to asking.
    std::thread::sleep(Duration::from_millis(100));
    drop(shut);
    assert!(reader.join().unwrap() > Duration::ZERO);
}

#[test]
fn a_sample_that_fails_is_an_error_at_its_own_batch() {
    let len = NonZeroU64::new(100).unwrap();
    // In the third batch, on any number of threads.
    let bad = sample_at(4, len, 30).index;
    for threads in [1, 2, 4] {
        let samples = Numbers::with_bad(100, Some(bad));
        let mut loader = loader(&samples, share(0, 1), 0, 4, threads);
        for _ in 0..2 {
            check_contents(&loader.next().unwrap());
        }
        assert!(matches!(loader.next(), Err(DataError::Index { index, .. }) if index == bad));
        assert!(matches!(loader.next(), Err(DataError::Stopped)));
        loader.seek(36).unwrap();
        assert_eq!(loader.next().unwrap().offset, 36);
    }
}

#[test]
fn a_panic_while_decoding_is_an_error() {
    struct Broken;
    impl Samples for Broken {
        fn count(&self) -> NonZeroU64 {
            NonZeroU64::MIN
        }
        fn load(&self, _: u64, _: &mut Resizer, _: &mut [f32]) -> Result<i64, DataError> {
            panic!("a decoder's bug")
        }
    }
    let mut loader =
        Loader::new(Arc::new(Broken), resizer(), share(0, 1), 0, LoaderOptions::default()).unwrap();
    assert!(matches!(loader.next(), Err(DataError::Stopped)));
    let broken: Arc<dyn Samples> = Arc::new(Broken);
    let mut evaluation =
        Evaluation::new(&broken, &resizer(), Rank(0), 1, 4, LoaderOptions::default()).unwrap();
    assert!(matches!(evaluation.next(), Some(Err(DataError::Stopped))), "not a short evaluation");
    assert!(evaluation.next().is_none());
}

#[test]
fn seeking_equals_starting_there() {
    let samples = Numbers::new(50);
    let mut sought = loader(&samples, share(1, 2), 0, 2, 2);
    sought.next().unwrap();
    for offset in [1200, 0, 36] {
        sought.seek(offset).unwrap();
        let mut fresh = loader(&samples, share(1, 2), offset, 2, 2);
        for _ in 0..3 {
            assert_eq!(sought.next().unwrap(), fresh.next().unwrap());
        }
    }
}

#[test]
fn buffers_come_round_again() {
    let samples = Numbers::new(50);
    let mut loader = loader(&samples, share(0, 1), 0, 2, 1);
    let mut buffers = HashSet::new();
    for taken in 0..40u64 {
        let batch = loader.next().unwrap();
        buffers.extend(batch.groups.iter().map(|group| group.images.as_ptr() as usize));
        loader.recycle(batch);
        wait_until("no refill", || samples.loads() == (taken + 3) * 12);
    }
    // Two batches ahead, one with the reader, one being decoded; four groups each.
    assert!(buffers.len() <= 16, "{} buffers for 40 batches", buffers.len());
}

#[test]
fn dropping_joins_the_threads_at_any_moment() {
    let samples = Numbers::new(50);
    for taken in 0..4 {
        let mut loader = loader(&samples, share(0, 1), 0, 3, 2);
        for _ in 0..taken {
            loader.next().unwrap();
        }
        drop(loader);
        drop(evaluation(&samples, 0, 1, 2));
        // Every thread gave up its handle on the samples.
        assert_eq!(Arc::strong_count(&samples), 1);
    }
}

#[test]
fn several_threads_share_the_work() {
    let samples = Numbers::new(50);
    let mut loader = loader(&samples, share(0, 1), 0, 3, 3);
    for _ in 0..6 {
        loader.next().unwrap();
    }
    assert_eq!(samples.threads.lock().unwrap().len(), 3);
}

#[test]
fn evaluation_covers_the_set_once_in_order() {
    for len in [1, 4, 5, 23, 24] {
        for world in 1..=5 {
            for threads in [1, 2] {
                let samples = Numbers::new(len);
                let mut seen = Vec::new();
                for rank in 0..world {
                    let mut evaluation = evaluation(&samples, rank, world, threads);
                    let mut short = false;
                    while let Some(batch) = evaluation.next() {
                        let batch = batch.unwrap();
                        assert!(!short, "only the last batch may be short");
                        assert_eq!((batch.groups.len(), batch.offset), (1, batch.groups[0].indices[0]));
                        short = batch.groups[0].indices.len() < 4;
                        check_contents(&batch);
                        seen.extend(indices(&batch));
                        evaluation.recycle(batch);
                    }
                    assert!(evaluation.next().is_none());
                }
                assert_eq!(seen, (0..len).collect::<Vec<_>>(), "{len} samples on {world} ranks");
            }
        }
    }
}

#[test]
fn an_evaluation_ends_with_its_error() {
    let samples = Numbers::with_bad(20, Some(9));
    let outcomes: Vec<bool> = evaluation(&samples, 0, 1, 2).map(|batch| batch.is_ok()).collect();
    assert_eq!(outcomes, [true, true, false]);
}
