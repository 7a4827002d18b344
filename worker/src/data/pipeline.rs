//! Decode threads in rotation: thread `t` of `n` makes the batches `t`, `t + n`, `t + 2n`, ..., each
//! into a bounded channel of its own, and the reader takes from them in turn. So batches come in
//! order without a sorter, and a thread that is ahead waits for the reader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::DataError;
use super::loader::{Batch, LoaderOptions, Plan, Samples};
use super::transform::Resizer;

pub(super) struct Pipeline {
    decoders: Vec<Decoder>,
    stop: Arc<AtomicBool>,
    batches: Option<u64>,
    /// The number of the batch that the reader gets next.
    next: u64,
    failed: bool,
    waited: Duration,
}

struct Decoder {
    ready: Receiver<Result<Batch, DataError>>,
    spare: Sender<Batch>,
    thread: JoinHandle<()>,
}

impl Pipeline {
    pub(super) fn start(
        samples: &Arc<dyn Samples>,
        resizer: &Resizer,
        plan: Plan,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let stop = Arc::new(AtomicBool::new(false));
        let batches = plan.batches();
        let threads = options.threads.max(1);
        // Besides what its channel holds, a thread has one finished batch in hand.
        let held = options.prefetch.max(1).div_ceil(threads) - 1;
        let mut pipeline =
            Self { decoders: Vec::new(), stop, batches, next: 0, failed: false, waited: Duration::ZERO };
        for first in 0..threads {
            let (send, ready) = sync_channel(held);
            let (spare, spares) = channel();
            let work = Work {
                samples: Arc::clone(samples),
                resizer: resizer.clone(),
                plan: plan.clone(),
                numbers: (first as u64..batches.unwrap_or(u64::MAX)).step_by(threads),
                stop: Arc::clone(&pipeline.stop),
            };
            let thread = std::thread::Builder::new()
                .name(format!("decode-{first}"))
                .spawn(move || work.run(&send, &spares))
                .map_err(DataError::Spawn)?;
            pipeline.decoders.push(Decoder { ready, spare, thread });
        }
        Ok(pipeline)
    }

    /// The next batch; `None` after the last and after an error.
    pub(super) fn next(&mut self) -> Option<Result<Batch, DataError>> {
        if self.failed || self.batches.is_some_and(|batches| self.next >= batches) {
            return None;
        }
        let outcome = self.receive();
        self.next += 1;
        self.failed = outcome.is_err();
        Some(outcome)
    }

    fn receive(&mut self) -> Result<Batch, DataError> {
        let Some(decoder) = self.decoders.get(self.turn()) else { return Err(DataError::Stopped) };
        match decoder.ready.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Disconnected) => Err(DataError::Stopped),
            Err(TryRecvError::Empty) => {
                let start = Instant::now();
                let outcome = decoder.ready.recv();
                self.waited += start.elapsed();
                outcome.unwrap_or(Err(DataError::Stopped))
            }
        }
    }

    /// The decoder that makes the next batch.
    fn turn(&self) -> usize {
        (self.next % self.decoders.len().max(1) as u64) as usize
    }

    pub(super) fn recycle(&mut self, batch: Batch) {
        if let Some(decoder) = self.decoders.get(self.turn()) {
            // A thread that has made its last batch needs no buffers.
            let _ = decoder.spare.send(batch);
        }
    }

    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    pub(super) fn add_wait(&mut self, waited: Duration) {
        self.waited += waited;
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for Decoder { ready, thread, .. } in self.decoders.drain(..) {
            // Wakes a thread that waits to hand over a batch.
            drop(ready);
            if thread.join().is_err() {
                tracing::error!("a decode thread panicked");
            }
        }
    }
}

/// What a decode thread owns.
struct Work {
    samples: Arc<dyn Samples>,
    resizer: Resizer,
    plan: Plan,
    numbers: std::iter::StepBy<std::ops::Range<u64>>,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(mut self, send: &SyncSender<Result<Batch, DataError>>, spares: &Receiver<Batch>) {
        for number in self.numbers.clone() {
            let mut batch = spares.try_recv().unwrap_or_default();
            self.plan.fill(number, &mut batch);
            let outcome = self.decode(&mut batch);
            let last = outcome.is_err() || self.stop.load(Ordering::Relaxed);
            if send.send(outcome.map(|()| batch)).is_err() || last {
                return;
            }
        }
    }

    fn decode(&mut self, batch: &mut Batch) -> Result<(), DataError> {
        let values = self.resizer.values();
        for group in &mut batch.groups {
            group.images.resize(group.indices.len() * values, 0.0);
            group.labels.clear();
            for (&index, out) in group.indices.iter().zip(group.images.chunks_exact_mut(values)) {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(DataError::Stopped);
                }
                group.labels.push(self.samples.load(index, &mut self.resizer, out)?);
            }
        }
        Ok(())
    }
}
