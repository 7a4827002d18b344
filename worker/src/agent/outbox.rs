//! What waits for the coordinator. Pure: no clock, no I/O.
//!
//! Messages leave in the order they came and get a sequence number when they are first handed
//! out; they are kept until the coordinator acknowledged them, and handed out again after a
//! reconnect. Step records are the exception: when more of them wait than the bound allows,
//! every other one is dropped, the newest of each job never, and the next batch tells how many.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anybit_proto::v1::{AttachRequest, LogChunk, MetricBatch, MetricRecord, attach_request};

use super::key::RankKey;
use crate::trainer_link::must_last;

/// The bounds of an [`Outbox`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Step records held, sent and unsent, before thinning.
    pub(crate) step_records: usize,
    /// Records in one batch.
    pub(crate) batch_records: usize,
    /// Step records handed out and not acknowledged, past which new batches wait.
    pub(crate) in_flight_records: usize,
    /// Log bytes of one rank that wait or are not acknowledged.
    pub(crate) log_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { step_records: 4096, batch_records: 256, in_flight_records: 2048, log_bytes: 256 << 10 }
    }
}

/// When metric records leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Only full batches.
    Full,
    /// Whatever waits.
    Now,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    limits: Limits,
    last_sequence: u64,
    unsent: VecDeque<Item>,
    /// Handed out, ascending sequence, not acknowledged.
    in_flight: VecDeque<Sent>,
    /// How many of `in_flight` went out on this connection.
    resent: usize,
    dropped: BTreeMap<String, u64>,
    log_bytes: BTreeMap<RankKey, usize>,
    // Sums over the queues, kept so that no push walks them.
    unsent_steps: usize,
    unsent_records: usize,
    unsent_messages: usize,
    in_flight_steps: usize,
}

#[derive(Debug)]
enum Item {
    Message { job: String, message: attach_request::Message },
    Log { key: RankKey, chunk: LogChunk },
    Record { job: String, record: MetricRecord, lasting: bool },
}

#[derive(Debug)]
struct Sent {
    request: AttachRequest,
    steps: usize,
    log: Option<(RankKey, usize)>,
}

impl Outbox {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            last_sequence: 0,
            unsent: VecDeque::new(),
            in_flight: VecDeque::new(),
            resent: 0,
            dropped: BTreeMap::new(),
            log_bytes: BTreeMap::new(),
            unsent_steps: 0,
            unsent_records: 0,
            unsent_messages: 0,
            in_flight_steps: 0,
        }
    }

    /// A message that must last. It leaves at once, after everything pushed before it.
    pub(crate) fn push(&mut self, job: &str, message: attach_request::Message) {
        self.unsent_messages += 1;
        self.unsent.push_back(Item::Message { job: job.to_owned(), message });
    }

    /// A metric record; it leaves with a batch.
    pub(crate) fn push_record(&mut self, job: &str, record: MetricRecord) {
        let lasting = must_last(&record);
        self.unsent_records += 1;
        self.unsent_steps += usize::from(!lasting);
        self.unsent.push_back(Item::Record { job: job.to_owned(), record, lasting });
        if self.unsent_steps > 0 && self.steps_held() > self.limits.step_records {
            self.thin();
        }
    }

    /// Step records of a job that were lost before they came here.
    pub(crate) fn note_dropped(&mut self, job: &str, records: u64) {
        if records > 0 {
            *self.dropped.entry(job.to_owned()).or_default() += records;
        }
    }

    /// Bytes of this rank's log that may be pushed now.
    pub(crate) fn log_room(&self, key: &RankKey) -> usize {
        self.limits.log_bytes.saturating_sub(self.log_bytes.get(key).copied().unwrap_or(0))
    }

    /// A piece of a rank's log; ask [`Self::log_room`] before.
    pub(crate) fn push_log(&mut self, key: RankKey, chunk: LogChunk) {
        *self.log_bytes.entry(key.clone()).or_default() += chunk.data.len();
        self.unsent_messages += 1;
        self.unsent.push_back(Item::Log { key, chunk });
    }

    /// A new connection: everything not acknowledged goes out again.
    pub(crate) fn reconnected(&mut self) {
        self.resent = 0;
    }

    /// The next message for this connection, or `None` when nothing is due.
    pub(crate) fn next(&mut self, flush: Flush) -> Option<AttachRequest> {
        if let Some(sent) = self.in_flight.get(self.resent) {
            self.resent += 1;
            return Some(sent.request.clone());
        }
        let full = self.unsent_records >= self.limits.batch_records;
        if self.unsent_messages == 0 && !(full || flush == Flush::Now) {
            return None;
        }
        // A message that must last is never held back by records that nobody acknowledges.
        if self.unsent_messages == 0 && self.in_flight_steps >= self.limits.in_flight_records {
            return None;
        }
        let sent = match self.unsent.pop_front()? {
            Item::Message { job, message } if self.dropped.contains_key(&job) => {
                self.unsent.push_front(Item::Message { job: job.clone(), message });
                self.batch(job)
            }
            Item::Message { message, .. } => {
                self.unsent_messages -= 1;
                Sent { request: self.sequenced(message), steps: 0, log: None }
            }
            Item::Log { key, chunk } => {
                self.unsent_messages -= 1;
                let log = Some((key, chunk.data.len()));
                Sent { request: self.sequenced(attach_request::Message::Log(chunk)), steps: 0, log }
            }
            Item::Record { job, record, lasting } => {
                self.unsent.push_front(Item::Record { job: job.clone(), record, lasting });
                self.batch(job)
            }
        };
        let request = sent.request.clone();
        self.in_flight_steps += sent.steps;
        self.in_flight.push_back(sent);
        self.resent += 1;
        Some(request)
    }

    /// The coordinator has stored everything up to this sequence.
    pub(crate) fn acknowledge(&mut self, sequence: u64) {
        while self.in_flight.front().is_some_and(|sent| sent.request.sequence <= sequence) {
            let Some(sent) = self.in_flight.pop_front() else { return };
            self.resent = self.resent.saturating_sub(1);
            self.in_flight_steps -= sent.steps;
            if let Some((key, bytes)) = sent.log {
                let left = self.log_bytes.get(&key).copied().unwrap_or(0).saturating_sub(bytes);
                if left == 0 {
                    self.log_bytes.remove(&key);
                } else {
                    self.log_bytes.insert(key, left);
                }
            }
        }
    }

    /// True when everything was acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.in_flight.is_empty()
    }

    /// Messages that wait or are not acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.unsent.len() + self.in_flight.len()
    }

    fn steps_held(&self) -> usize {
        self.unsent_steps + self.in_flight_steps
    }

    fn sequenced(&mut self, message: attach_request::Message) -> AttachRequest {
        self.last_sequence += 1;
        AttachRequest { sequence: self.last_sequence, message: Some(message) }
    }

    /// Takes records of one job, up to a batch, past other jobs' items but not past a message of
    /// the same job. Empty where only a count of dropped records waits.
    fn batch(&mut self, job: String) -> Sent {
        let (mut records, mut steps) = (Vec::new(), 0);
        let mut passed = Vec::new();
        while records.len() < self.limits.batch_records {
            match self.unsent.pop_front() {
                Some(Item::Record { job: of, record, lasting }) if of == job => {
                    steps += usize::from(!lasting);
                    records.push(record);
                }
                Some(Item::Message { job: of, message }) if of == job => {
                    self.unsent.push_front(Item::Message { job: of, message });
                    break;
                }
                Some(other) => passed.push(other),
                None => break,
            }
        }
        for item in passed.into_iter().rev() {
            self.unsent.push_front(item);
        }
        self.unsent_records -= records.len();
        self.unsent_steps -= steps;
        let dropped_step_records = self.dropped.remove(&job).unwrap_or(0);
        let batch = MetricBatch { job_id: job, records, dropped_step_records };
        let request = self.sequenced(attach_request::Message::Metrics(batch));
        Sent { request, steps, log: None }
    }

    /// Drops every other waiting step record of each job, keeping its newest.
    fn thin(&mut self) {
        let mut newest = BTreeSet::new();
        let mut keep_next: BTreeMap<String, bool> = BTreeMap::new();
        let mut kept = VecDeque::with_capacity(self.unsent.len());
        // From the newest back, so that the newest is the first of its job.
        while let Some(item) = self.unsent.pop_back() {
            if let Item::Record { job, lasting: false, .. } = &item {
                let first = newest.insert(job.clone());
                let turn = keep_next.entry(job.clone()).or_insert(true);
                let keep = first || *turn;
                *turn = !keep;
                if !keep {
                    *self.dropped.entry(job.clone()).or_default() += 1;
                    self.unsent_steps -= 1;
                    self.unsent_records -= 1;
                    continue;
                }
            }
            kept.push_front(item);
        }
        self.unsent = kept;
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
