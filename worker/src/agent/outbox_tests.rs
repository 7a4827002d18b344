use std::collections::BTreeSet;

use anybit_proto::v1::{
    EvaluationMetrics, GenerationStopped, LogChunk, StepMetrics, attach_request::Message, metric_record,
};
use anybit_shared::ids::{Generation, JobId, Rank};
use proptest::prelude::*;

use super::*;
use crate::agent::key::GenerationKey;

const LIMITS: Limits = Limits { step_records: 16, batch_records: 4, in_flight_records: 8, log_bytes: 100 };

fn step(step: u64) -> MetricRecord {
    let metrics = StepMetrics { step, ..StepMetrics::default() };
    MetricRecord { record: Some(metric_record::Record::Step(metrics)), ..MetricRecord::default() }
}

fn evaluation(step: u64) -> MetricRecord {
    let metrics = EvaluationMetrics { step, ..EvaluationMetrics::default() };
    MetricRecord { record: Some(metric_record::Record::Evaluation(metrics)), ..MetricRecord::default() }
}

fn stopped(job: &str, generation: u32) -> Message {
    Message::GenerationStopped(GenerationStopped { job_id: job.to_owned(), generation })
}

fn rank() -> RankKey {
    let of = GenerationKey { job: JobId::new("a").unwrap(), generation: Generation(1) };
    RankKey { of, rank: Rank(0) }
}

fn drain(outbox: &mut Outbox) -> Vec<AttachRequest> {
    std::iter::from_fn(|| outbox.next(Flush::Now)).collect()
}

fn batch_of(request: &AttachRequest) -> &MetricBatch {
    match &request.message {
        Some(Message::Metrics(batch)) => batch,
        other => panic!("not a batch: {other:?}"),
    }
}

#[test]
fn records_wait_for_a_full_batch_or_a_flush() {
    let mut outbox = Outbox::new(LIMITS);
    for n in 1..=3 {
        outbox.push_record("a", step(n));
    }
    assert!(outbox.next(Flush::Full).is_none());
    outbox.push_record("a", step(4));
    assert_eq!(batch_of(&outbox.next(Flush::Full).unwrap()).records.len(), 4);
    outbox.push_record("a", step(5));
    assert!(outbox.next(Flush::Full).is_none());
    assert_eq!(batch_of(&outbox.next(Flush::Now).unwrap()).records.len(), 1);
}

#[test]
fn a_lasting_message_takes_the_records_before_it_along() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.push_record("a", step(1));
    outbox.push_record("b", step(1));
    outbox.push_record("a", step(2));
    outbox.push("a", stopped("a", 1));
    outbox.push_record("a", step(3));
    let out: Vec<_> = std::iter::from_fn(|| outbox.next(Flush::Full)).collect();
    assert_eq!(out.len(), 3, "job b's record and step 1, 2 of a, then the message");
    assert_eq!(batch_of(&out[0]).records, [step(1), step(2)]);
    assert_eq!(batch_of(&out[1]).job_id, "b");
    assert_eq!(out[2].message, Some(stopped("a", 1)));
    assert_eq!(out.iter().map(|m| m.sequence).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn unacknowledged_messages_go_out_again_after_a_reconnect() {
    let mut outbox = Outbox::new(LIMITS);
    for generation in 1..=3 {
        outbox.push("a", stopped("a", generation));
    }
    let first = drain(&mut outbox);
    outbox.acknowledge(1);
    assert!(outbox.next(Flush::Now).is_none());
    outbox.reconnected();
    assert_eq!(drain(&mut outbox), first[1..]);
    outbox.acknowledge(3);
    assert!(outbox.is_empty());
}

#[test]
fn an_acknowledgement_from_the_future_or_the_past_changes_nothing_unsent() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.push("a", stopped("a", 1));
    outbox.acknowledge(99);
    assert_eq!(drain(&mut outbox).len(), 1);
    outbox.acknowledge(0);
    assert!(!outbox.is_empty());
}

#[test]
fn log_room_returns_with_the_acknowledgement() {
    let mut outbox = Outbox::new(LIMITS);
    assert_eq!(outbox.log_room(&rank()), 100);
    outbox.push_log(rank(), LogChunk { data: vec![b'x'; 60], ..LogChunk::default() });
    assert_eq!(outbox.log_room(&rank()), 40);
    let sent = outbox.next(Flush::Full).unwrap();
    assert_eq!(outbox.log_room(&rank()), 40);
    outbox.acknowledge(sent.sequence);
    assert_eq!(outbox.log_room(&rank()), 100);
}

#[test]
fn the_window_holds_records_back_and_never_a_lasting_message() {
    let mut outbox = Outbox::new(LIMITS);
    for n in 1..=14 {
        outbox.push_record("a", step(n));
    }
    assert_eq!(drain(&mut outbox).len(), 2, "eight records in flight");
    outbox.push("a", stopped("a", 1));
    let rest = drain(&mut outbox);
    assert_eq!(rest.last().unwrap().message, Some(stopped("a", 1)));
}

#[test]
fn thinning_keeps_the_newest_and_counts_the_rest() {
    let mut outbox = Outbox::new(LIMITS);
    for n in 1..=17 {
        outbox.push_record("a", step(n));
    }
    outbox.push("a", stopped("a", 1));
    let out = drain(&mut outbox);
    let kept: Vec<_> = out[..out.len() - 1].iter().flat_map(|m| batch_of(m).records.clone()).collect();
    assert_eq!(kept, (1..=17).step_by(2).map(step).collect::<Vec<_>>());
    assert_eq!(batch_of(&out[0]).dropped_step_records, 8);
    assert_eq!(batch_of(&out[1]).dropped_step_records, 0);
}

#[test]
fn records_lost_on_the_way_here_are_told_even_if_none_follows() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.note_dropped("a", 5);
    outbox.push("a", stopped("a", 1));
    let out = drain(&mut outbox);
    assert_eq!((batch_of(&out[0]).dropped_step_records, out.len()), (5, 2));
}

#[derive(Debug, Clone)]
enum Move {
    Step(u8),
    Evaluation(u8),
    Message(u8),
    Next,
    Flush,
    Acknowledge(u8),
    Reconnect,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..3_u8).prop_map(Move::Step),
        1 => (0..3_u8).prop_map(Move::Evaluation),
        1 => (0..3_u8).prop_map(Move::Message),
        3 => Just(Move::Next),
        2 => Just(Move::Flush),
        2 => any::<u8>().prop_map(Move::Acknowledge),
        1 => Just(Move::Reconnect),
    ];
    proptest::collection::vec(one, 0..400)
}

/// What of one job can be told apart at the other end: (is it lasting, its number).
fn seen(request: &AttachRequest) -> Vec<(String, bool, u64)> {
    match &request.message {
        Some(Message::Metrics(batch)) => batch
            .records
            .iter()
            .map(|record| match &record.record {
                Some(metric_record::Record::Step(m)) => (batch.job_id.clone(), false, m.step),
                Some(metric_record::Record::Evaluation(m)) => (batch.job_id.clone(), true, m.step),
                _ => panic!("unknown record"),
            })
            .collect(),
        Some(Message::GenerationStopped(m)) => vec![(m.job_id.clone(), true, u64::from(m.generation))],
        other => panic!("unknown message {other:?}"),
    }
}

proptest! {
    /// Whatever happens on the way: nothing lasting is lost, each job's order holds, every step
    /// record arrives or is counted, and the number held stays bounded.
    #[test]
    fn nothing_lasting_is_lost(moves in moves()) {
        let mut outbox = Outbox::new(LIMITS);
        let (mut number, mut steps) = (0_u64, 0_u64);
        let mut lasting = BTreeSet::new();
        // The coordinator's side: stores each sequence once, in order.
        let (mut stored, mut stored_to, mut counted) = (Vec::new(), 0, 0_u64);
        let mut take = |request: AttachRequest, stored: &mut Vec<_>, stored_to: &mut u64| {
            prop_assert!(request.sequence <= *stored_to + 1, "a gap before {}", request.sequence);
            if request.sequence == *stored_to + 1 {
                *stored_to += 1;
                stored.extend(seen(&request));
                if let Some(Message::Metrics(batch)) = &request.message {
                    counted += batch.dropped_step_records;
                }
            }
            Ok(())
        };
        for action in moves {
            number += 1;
            let job = |n: u8| ["a", "b", "c"][usize::from(n)];
            match action {
                Move::Step(n) => {
                    steps += 1;
                    outbox.push_record(job(n), step(number));
                }
                Move::Evaluation(n) => {
                    lasting.insert((job(n).to_owned(), true, number));
                    outbox.push_record(job(n), evaluation(number));
                }
                Move::Message(n) => {
                    lasting.insert((job(n).to_owned(), true, number));
                    outbox.push(job(n), stopped(job(n), number as u32));
                }
                Move::Next => if let Some(m) = outbox.next(Flush::Full) { take(m, &mut stored, &mut stored_to)?; },
                Move::Flush => if let Some(m) = outbox.next(Flush::Now) { take(m, &mut stored, &mut stored_to)?; },
                Move::Acknowledge(n) => outbox.acknowledge(stored_to.min(u64::from(n))),
                Move::Reconnect => outbox.reconnected(),
            }
            let bound = LIMITS.step_records + 3 * (1 + lasting.len());
            prop_assert!(outbox.steps_held() <= bound);
        }
        outbox.reconnected();
        while !outbox.is_empty() {
            while let Some(m) = outbox.next(Flush::Now) { take(m, &mut stored, &mut stored_to)?; }
            outbox.acknowledge(stored_to);
        }
        let arrived: BTreeSet<_> = stored.iter().filter(|(_, lasting, _)| *lasting).cloned().collect();
        prop_assert_eq!(&arrived, &lasting);
        let numbers = |of: &str| stored.iter().filter(|s| s.0 == of).map(|s| s.2).collect::<Vec<_>>();
        for job in ["a", "b", "c"] {
            prop_assert!(numbers(job).is_sorted(), "order of job {job}: {:?}", numbers(job));
        }
        let kept = stored.iter().filter(|(_, lasting, _)| !*lasting).count() as u64;
        prop_assert_eq!(kept + counted, steps);
    }
}
