//! The coordinator over its real API, with agents that do what each test says.

use std::time::Duration;

use crate::support::{Agent, PATIENCE, Rig, checkpoint, collect, evaluation, skipped, spec, step, train};
use anybit_proto::v1::attach_request::Message as Said;
use anybit_proto::v1::*;
use tonic::Code;

#[tokio::test]
async fn a_job_is_submitted_placed_trained_and_succeeds() {
    let mut rig = Rig::start().await;
    let job = rig.submit(2, 0).await;
    let queued = rig.job(&job).await;
    assert_eq!((queued.state(), queued.generation), (JobState::Queued, 0));
    assert_eq!(queued.reason, "needs 2 ranks, no worker is attached");

    let mut a = rig.agent("a").await;
    rig.wait_until(&job, |job| job.reason == "needs 2 ranks, the cluster has 1").await;
    let mut b = rig.agent("b").await;
    let placed = rig.wait(&job, JobState::Starting).await;
    assert_eq!(placed.ranks.iter().map(|r| r.worker_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    train(&mut [&mut a, &mut b], 0).await;
    let running = rig.wait(&job, JobState::Running).await;
    assert!(running.started_unix_ms.is_some() && running.bits == [1, 2, 4, 8, 32]);

    a.metrics(&job, vec![step(1, 1, 2.0), step(1, 2, 1.5), evaluation(1, 2), checkpoint(1, 2)]).await;
    let seen = rig.wait_until(&job, |job| job.checkpoint.is_some()).await;
    let progress = seen.progress.unwrap();
    assert_eq!((progress.step, progress.total_steps, progress.total_epochs), (2, 10, 20.0));
    assert_eq!(seen.training.len(), 5);
    assert_eq!(seen.evaluation.unwrap().samples, 360);

    let following = StreamMetricsRequest { job_id: job.clone(), follow: true, ..Default::default() };
    let mut curve = rig.jobs.stream_metrics(following).await.unwrap().into_inner();
    a.exit(&job, 1, 0, ExitKind::Succeeded, "").await;
    a.metrics(&job, vec![step(1, 3, 1.0)]).await;
    b.exit(&job, 1, 1, ExitKind::Succeeded, "").await;
    let done = rig.wait(&job, JobState::Succeeded).await;
    assert!(done.ended_unix_ms.is_some());
    assert_eq!(a.stop().await.grace_ms, 0, "the store is closed");
    let curve = collect(&mut curve).await;
    assert_eq!(curve.len(), 5);
    assert!(curve.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    let list = rig.jobs.list_checkpoints(ListCheckpointsRequest { job_id: job }).await.unwrap();
    assert_eq!(list.into_inner().checkpoints[0].path, "/ckpt/g1-s2");
}

#[tokio::test]
async fn a_killed_rank_starts_a_new_generation_that_may_restore_the_first() {
    let mut rig = Rig::start().await;
    let (mut a, mut b) = (rig.agent("a").await, rig.agent("b").await);
    let job = rig.submit(2, 3).await;
    train(&mut [&mut a, &mut b], 0).await;
    a.metrics(&job, vec![step(1, 1, 2.0), step(1, 2, 1.9)]).await;

    a.exit(&job, 1, 0, ExitKind::PeerLost, "connection reset").await;
    b.exit(&job, 1, 1, ExitKind::Killed, "signal 9").await;
    for agent in [&mut a, &mut b] {
        let stop = agent.stop().await;
        assert_eq!((stop.generation, stop.grace_ms), (1, 0));
    }
    let stopping = rig.job(&job).await;
    assert_eq!((stopping.state(), stopping.restarts), (JobState::Stopping, 0));
    a.stopped(&job, 1).await;
    b.stopped(&job, 1).await;
    // What an agent says twice changes nothing.
    b.exit(&job, 1, 1, ExitKind::Killed, "signal 9").await;
    b.stopped(&job, 1).await;

    let starting = rig.wait(&job, JobState::Starting).await;
    assert_eq!((starting.generation, starting.restarts), (2, 1));
    assert!(starting.reason.contains("rank 1 on b was killed: signal 9"), "{}", starting.reason);
    let order = a.host_store().await;
    let address = "127.0.0.1:9".to_owned();
    let ready = StoreReady { job_id: order.job_id, generation: 2, address, error: String::new() };
    a.say(Said::StoreReady(ready)).await;
    for agent in [&mut a, &mut b] {
        let start = agent.start_ranks().await;
        assert_eq!((start.generation, start.restorable_generations), (2, vec![1]));
        agent.phase(&job, 2, start.ranks[0], 1).await;
    }
    rig.wait(&job, JobState::Running).await;

    // Step 2 is trained again and wins; late records of generation 1 do not.
    a.metrics(&job, vec![step(2, 2, 1.0)]).await;
    a.metrics(&job, vec![step(1, 2, 7.0), step(1, 3, 7.0), checkpoint(1, 1)]).await;
    let curve = rig.metrics(StreamMetricsRequest { job_id: job.clone(), ..Default::default() }).await;
    let seen: Vec<_> = curve.iter().filter_map(|item| losses(item.record.as_ref().unwrap())).collect();
    assert_eq!(seen, [(1, 2.0), (2, 1.0)]);
    let list = rig.jobs.list_checkpoints(ListCheckpointsRequest { job_id: job }).await.unwrap().into_inner();
    assert_eq!(list.checkpoints.len(), 1, "the folder of generation 1 is there");
}

#[tokio::test]
async fn late_records_of_an_earlier_generation_are_kept() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 3).await;
    train(&mut [&mut a], 0).await;
    a.exit(&job, 1, 0, ExitKind::Killed, "").await;
    a.stopped(&job, 1).await;
    train(&mut [&mut a], 0).await;
    a.metrics(&job, vec![evaluation(2, 4)]).await;
    // What the agent could not send before; generation 3 was never registered.
    a.metrics(&job, vec![evaluation(1, 4), evaluation(1, 8), skipped(1, 3, 1), step(1, 8, 7.0)]).await;
    a.metrics(&job, vec![evaluation(3, 9), evaluation(0, 9)]).await;
    let curve = rig.metrics(StreamMetricsRequest { job_id: job.clone(), ..Default::default() }).await;
    let seen: Vec<_> = curve
        .iter()
        .map(|item| item.record.as_ref().unwrap())
        .map(|record| match record.record.as_ref().unwrap() {
            metric_record::Record::Evaluation(m) => ("evaluation", record.generation, m.step),
            metric_record::Record::Step(m) if m.skipped.is_some() => ("skipped", record.generation, m.step),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen, [("evaluation", 2, 4), ("evaluation", 1, 8), ("skipped", 1, 3)]);
    let now = rig.job(&job).await;
    assert_eq!(now.evaluation.unwrap().step, 4, "the newest is the newest generation's");
    assert_eq!(now.progress.unwrap().skipped_steps, 1);
}

#[tokio::test]
async fn only_checkpoints_that_are_kept_are_listed() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let job = rig.submit_spec(&format!("{}[checkpoint]\nkeep = 2\n", spec(1, 3))).await.unwrap();
    train(&mut [&mut a], 0).await;
    a.metrics(&job, vec![checkpoint(1, 5), checkpoint(1, 20), checkpoint(1, 10)]).await;
    let listed = async |rig: &mut Rig| {
        let request = ListCheckpointsRequest { job_id: job.clone() };
        let list = rig.jobs.list_checkpoints(request).await.unwrap().into_inner().checkpoints;
        list.iter().map(|c| (c.generation, c.step)).collect::<Vec<_>>()
    };
    assert_eq!(listed(&mut rig).await, [(1, 20), (1, 10)]);
    a.exit(&job, 1, 0, ExitKind::Killed, "").await;
    a.stopped(&job, 1).await;
    train(&mut [&mut a], 10).await;
    a.metrics(&job, vec![checkpoint(2, 15)]).await;
    assert_eq!(listed(&mut rig).await, [(2, 15), (1, 20)]);
}

fn losses(record: &MetricRecord) -> Option<(u64, f64)> {
    match &record.record {
        Some(metric_record::Record::Step(step)) => Some((step.step, step.widths[0].loss)),
        _ => None,
    }
}

#[tokio::test]
async fn a_users_error_fails_without_a_restart() {
    let mut rig = Rig::start().await;
    let (mut a, mut b) = (rig.agent("a").await, rig.agent("b").await);
    let job = rig.submit(2, 3).await;
    train(&mut [&mut a, &mut b], 0).await;
    b.exit(&job, 1, 1, ExitKind::PeerLost, "").await;
    b.stopped(&job, 1).await;
    a.exit(&job, 1, 0, ExitKind::UserError, "data.path \"nowhere\" is not there").await;
    a.stopped(&job, 1).await;
    let failed = rig.wait(&job, JobState::Failed).await;
    assert_eq!((failed.generation, failed.restarts), (1, 0));
    assert!(failed.reason.contains("data.path \"nowhere\""), "{}", failed.reason);
}

#[tokio::test]
async fn the_restart_limit_holds() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 2).await;
    for generation in 1..=3 {
        assert_eq!(train(&mut [&mut a], 0).await, (job.clone(), generation));
        a.exit(&job, generation, 0, ExitKind::Crashed, "panicked").await;
        a.stopped(&job, generation).await;
    }
    let failed = rig.wait(&job, JobState::Failed).await;
    assert_eq!((failed.generation, failed.restarts, failed.max_restarts), (3, 2, 2));
    assert!(failed.reason.contains("panicked") && failed.reason.contains("max_restarts"));
}

#[tokio::test]
async fn cancelling_gives_time_for_a_checkpoint() {
    let mut rig = Rig::start().await;
    let queued = rig.submit(1, 0).await;
    let request = CancelJobRequest { job_id: queued.clone() };
    let cancelled = rig.jobs.cancel_job(request.clone()).await.unwrap().into_inner().job.unwrap();
    assert_eq!(cancelled.state(), JobState::Cancelled);
    assert_eq!(rig.jobs.cancel_job(request).await.unwrap_err().code(), Code::FailedPrecondition);

    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 5).await;
    train(&mut [&mut a], 0).await;
    let request = CancelJobRequest { job_id: job.clone() };
    let stopping = rig.jobs.cancel_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(stopping.state(), JobState::Stopping);
    assert_eq!(a.stop().await.grace_ms, 20_000);
    a.metrics(&job, vec![checkpoint(1, 5)]).await;
    a.exit(&job, 1, 0, ExitKind::Stopped, "").await;
    a.stopped(&job, 1).await;
    let ended = rig.wait(&job, JobState::Cancelled).await;
    assert_eq!(ended.checkpoint.unwrap().step, 5);
}

#[tokio::test]
async fn a_silent_worker_loses_its_lease_and_its_ranks() {
    let mut rig = Rig::with(|settings| settings.lease = Duration::from_millis(600)).await;
    let (mut a, mut b) = (rig.agent("a").await, rig.agent("b").await);
    let job = rig.submit(2, 3).await;
    train(&mut [&mut a, &mut b], 0).await;
    b.mute();
    let status = b.end().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    let stop = a.stop().await;
    assert!(stop.reason.contains("rank 1 on b was lost"), "{}", stop.reason);
    a.stopped(&job, 1).await;
    let queued = rig.wait(&job, JobState::Queued).await;
    assert_eq!(queued.restarts, 1);
    let workers = rig.workers().await;
    let alive: Vec<_> = workers.iter().map(|w| (w.id.as_str(), w.alive, w.used_slots)).collect();
    assert_eq!(alive, [("a", true, 0), ("b", false, 0)]);

    // It comes back, still holding the old generation: it must let go of it first.
    let held = vec![HeldGeneration { job_id: job.clone(), generation: 1, running_ranks: vec![1] }];
    let mut b = Agent::attach(&rig.url(), "b", "life1", held).await.unwrap();
    assert_eq!(b.stop().await.generation, 1);
    assert_eq!(rig.job(&job).await.state(), JobState::Queued, "its slot is not free yet");
    b.stopped(&job, 1).await;
    train(&mut [&mut a, &mut b], 0).await;
    assert_eq!(rig.wait(&job, JobState::Running).await.generation, 2);
}

#[tokio::test]
async fn a_broken_stream_alone_disturbs_nothing() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 3).await;
    train(&mut [&mut a], 0).await;
    drop(a);
    let held = vec![HeldGeneration { job_id: job.clone(), generation: 1, running_ranks: vec![0] }];
    let mut a = Agent::attach(&rig.url(), "a", "life1", held).await.unwrap();
    a.exit(&job, 1, 0, ExitKind::Succeeded, "").await;
    assert_eq!(rig.wait(&job, JobState::Succeeded).await.generation, 1);
}

#[tokio::test]
async fn a_new_agent_ends_what_the_old_one_held() {
    let mut rig = Rig::start().await;
    let mut old = rig.agent("a").await;
    let job = rig.submit(1, 3).await;
    train(&mut [&mut old], 0).await;
    let mut new = Agent::attach(&rig.url(), "a", "life2", Vec::new()).await.unwrap();
    let status = old.end().await;
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("same worker id"), "{status}");
    train(&mut [&mut new], 0).await;
    let job = rig.wait(&job, JobState::Running).await;
    assert_eq!(job.generation, 2);
    assert!(job.reason.contains("its agent started anew"), "{}", job.reason);
    let refused = Agent::attach(&rig.url(), "a", "life1", Vec::new()).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition, "or the two would take turns");
}

#[tokio::test]
async fn a_coordinator_restart_leaves_training_alone() {
    let mut rig = Rig::start().await;
    let (mut a, mut b) = (rig.agent("a").await, rig.agent("b").await);
    let job = rig.submit(2, 3).await;
    train(&mut [&mut a, &mut b], 0).await;
    a.metrics(&job, vec![step(1, 1, 2.0), evaluation(1, 1)]).await;
    a.log(&job, 1, 0, 0, "first line\n").await;
    b.exit(&job, 1, 1, ExitKind::Succeeded, "").await;

    rig.restart().await;
    assert_eq!(a.end().await.code(), Code::Unavailable);
    let running = rig.job(&job).await;
    assert_eq!((running.state(), running.generation), (JobState::Running, 1));
    assert_eq!(running.progress.unwrap().step, 1);
    let held = |ranks| vec![HeldGeneration { job_id: job.clone(), generation: 1, running_ranks: ranks }];
    let mut a = Agent::attach(&rig.url(), "a", "life1", held(vec![0])).await.unwrap();
    let _b = Agent::attach(&rig.url(), "b", "life1", held(vec![])).await.unwrap();
    a.sequence = 40;
    // What was not acknowledged comes again.
    a.metrics(&job, vec![step(1, 1, 2.0), evaluation(1, 1), step(1, 2, 1.0)]).await;
    a.log(&job, 1, 0, 0, "first line\nsecond line\n").await;
    a.exit(&job, 1, 0, ExitKind::Succeeded, "").await;
    let done = rig.wait(&job, JobState::Succeeded).await;
    assert_eq!((done.generation, done.restarts), (1, 0));
    let curve = rig.metrics(StreamMetricsRequest { job_id: job.clone(), ..Default::default() }).await;
    assert_eq!(curve.len(), 3);
    let log = rig.log(TailLogsRequest { job_id: job.clone(), ..Default::default() }).await;
    assert_eq!(log, "first line\nsecond line\n");
}

#[tokio::test]
async fn workers_that_do_not_return_after_a_restart_are_lost() {
    let mut rig = Rig::with(|settings| settings.lease = Duration::from_millis(500)).await;
    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 3).await;
    train(&mut [&mut a], 0).await;
    rig.restart().await;
    let queued = rig.wait(&job, JobState::Queued).await;
    assert!(queued.reason.contains("silent"), "{}", queued.reason);
}

#[tokio::test]
async fn a_start_that_the_restart_interrupted_goes_on() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 3).await;
    a.host_store().await;
    rig.restart().await;
    let mut a = Agent::attach(&rig.url(), "a", "life1", Vec::new()).await.unwrap();
    train(&mut [&mut a], 0).await;
    let running = rig.wait(&job, JobState::Running).await;
    assert_eq!((running.generation, running.restarts), (1, 0));
}

#[tokio::test]
async fn an_idempotency_key_makes_one_job() {
    let mut rig = Rig::start().await;
    let request = |spec_toml: String| SubmitJobRequest { spec_toml, idempotency_key: "k".to_owned() };
    let first = rig.jobs.submit_job(request(spec(1, 1))).await.unwrap().into_inner();
    let second = rig.jobs.submit_job(request(spec(1, 1))).await.unwrap().into_inner();
    assert!(first.created && !second.created);
    assert_eq!(first.job.as_ref().unwrap().id, second.job.unwrap().id);
    let other = rig.jobs.submit_job(request(spec(1, 2))).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    // Also when the job has ended.
    let id = first.job.unwrap().id;
    rig.jobs.cancel_job(CancelJobRequest { job_id: id.clone() }).await.unwrap();
    let third = rig.jobs.submit_job(request(spec(1, 1))).await.unwrap().into_inner();
    assert_eq!((third.created, third.job.unwrap().id), (false, id));
}

#[tokio::test]
async fn a_known_idempotency_key_is_answered_at_the_limit_of_jobs() {
    let mut rig = Rig::with(|settings| settings.max_unfinished_jobs = 1).await;
    let request =
        |key: &str, spec_toml: String| SubmitJobRequest { spec_toml, idempotency_key: key.to_owned() };
    let first = rig.jobs.submit_job(request("k", spec(1, 1))).await.unwrap().into_inner();
    let again = rig.jobs.submit_job(request("k", spec(1, 1))).await.unwrap().into_inner();
    assert_eq!((again.created, again.job.unwrap().id), (false, first.job.unwrap().id));
    let other = rig.jobs.submit_job(request("k", spec(1, 2))).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    for new in ["new", ""] {
        let refused = rig.jobs.submit_job(request(new, spec(1, 1))).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    }
}

#[tokio::test]
async fn bad_requests_say_what_to_change() {
    let mut rig = Rig::start().await;
    let bad = rig.submit_spec("extends = \"digits\"\n[train]\nbach = 3\n").await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().contains("bach") && bad.message().contains("batch"), "{bad}");
    let large = rig.submit_spec(&format!("# {}", "x".repeat(70_000))).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    let idempotency_key = "k".repeat(129);
    let long = rig.jobs.submit_job(SubmitJobRequest { spec_toml: spec(1, 1), idempotency_key }).await;
    assert!(long.unwrap_err().message().contains("idempotency_key"));
    let page = ListJobsRequest { page_size: 1001, ..Default::default() };
    assert_eq!(rig.jobs.list_jobs(page).await.unwrap_err().code(), Code::InvalidArgument);
    for (id, code) in [("", Code::InvalidArgument), ("../x", Code::InvalidArgument), ("zz", Code::NotFound)] {
        let request = GetJobRequest { job_id: id.to_owned() };
        assert_eq!(rig.jobs.get_job(request).await.unwrap_err().code(), code, "{id:?}");
    }
}

#[tokio::test]
async fn jobs_are_listed_newest_first_and_found_by_prefix() {
    let mut rig = Rig::start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(rig.submit(1, 0).await);
    }
    ids.reverse();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListJobsRequest { page_size: 2, page_token, ..Default::default() };
        let page = rig.jobs.list_jobs(request).await.unwrap().into_inner();
        listed.extend(page.jobs.into_iter().map(|job| job.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let ambiguous = rig.jobs.get_job(GetJobRequest { job_id: ids[0][..2].to_owned() }).await.unwrap_err();
    assert_eq!(ambiguous.code(), Code::InvalidArgument);
    assert!(ambiguous.message().contains("more than one"), "{ambiguous}");
    assert_eq!(rig.job(&ids[0][..11].to_uppercase()).await.id, ids[0]);
    let states = vec![JobState::Running.into()];
    let none = rig.jobs.list_jobs(ListJobsRequest { states, ..Default::default() }).await.unwrap();
    assert!(none.into_inner().jobs.is_empty());
}

#[tokio::test]
async fn logs_are_followed_to_the_end_of_the_job() {
    let mut rig = Rig::start().await;
    let (mut a, mut b) = (rig.agent("a").await, rig.agent("b").await);
    let job = rig.submit(2, 0).await;
    train(&mut [&mut a, &mut b], 0).await;
    a.log(&job, 1, 0, 0, "one\ntwo\nthree\n").await;
    let request =
        TailLogsRequest { job_id: job.clone(), follow: true, rank: Some(0), generation: None, last_lines: 1 };
    let mut tail = rig.jobs.tail_logs(request).await.unwrap().into_inner();
    let first = tokio::time::timeout(PATIENCE, tail.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((first.offset, first.data.as_slice()), (8, b"three\n".as_slice()));
    b.log(&job, 1, 1, 0, "other\n").await;
    a.log(&job, 1, 0, 14, "four\n").await;
    a.log(&job, 1, 7, 0, "no such rank\n").await;
    a.log(&job, 9, 0, 0, "no such generation\n").await;
    a.exit(&job, 1, 0, ExitKind::Succeeded, "").await;
    b.exit(&job, 1, 1, ExitKind::Succeeded, "").await;
    a.log(&job, 1, 0, 19, "five\n").await;
    let rest: Vec<u8> = collect(&mut tail).await.into_iter().flat_map(|piece| piece.data).collect();
    assert_eq!(String::from_utf8(rest).unwrap(), "four\nfive\n");
    let names: Vec<_> = std::fs::read_dir(rig.settings.data_dir.join("logs").join(&job))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn metrics_go_on_after_a_revision() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let job = rig.submit(1, 0).await;
    train(&mut [&mut a], 0).await;
    a.metrics(&job, (1..=600).map(|n| step(1, n, 1.0)).collect()).await;
    a.metrics(&job, vec![evaluation(1, 600)]).await;
    let request = StreamMetricsRequest { job_id: job.clone(), ..Default::default() };
    let all = rig.metrics(request.clone()).await;
    assert_eq!(all.len(), 601);
    let after_revision = all[590].revision;
    assert_eq!(rig.metrics(StreamMetricsRequest { after_revision, ..request.clone() }).await.len(), 10);
    let evaluations = rig.metrics(StreamMetricsRequest { evaluations_only: true, ..request }).await;
    assert_eq!(evaluations.len(), 1);
    let eta = rig.job(&job).await.progress.unwrap();
    assert_eq!((eta.step, eta.eta_seconds), (600, Some(0.0)));
}

#[tokio::test]
async fn an_agent_must_introduce_itself() {
    let rig = Rig::start().await;
    let hello = |worker: &str, slots| Hello {
        worker_id: worker.to_owned(),
        incarnation: "life".to_owned(),
        slots,
        ..Default::default()
    };
    for bad in [hello("../a", 1), hello("", 1), hello("a", 0), hello("a", 100_000)] {
        let refused = Agent::attach_as(&rig.url(), bad).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn a_later_job_waits_behind_the_first() {
    let mut rig = Rig::start().await;
    let mut a = rig.agent("a").await;
    let first = rig.submit(1, 0).await;
    let second = rig.submit(1, 0).await;
    let third = rig.submit(1, 0).await;
    assert_eq!(rig.job(&second).await.reason, "needs 1 rank, 0 of 1 are free");
    assert_eq!(rig.job(&third).await.reason, format!("waits behind job {second}"));
    train(&mut [&mut a], 0).await;
    let workers = rig.workers().await;
    assert_eq!((workers[0].slots, workers[0].used_slots), (1, 1));
    assert_eq!(workers[0].ranks[0].job_id, first);
    a.exit(&first, 1, 0, ExitKind::Succeeded, "").await;
    assert_eq!(train(&mut [&mut a], 0).await.0, second);
}

#[tokio::test]
async fn stopping_ends_open_streams_at_once() {
    let mut rig = Rig::start().await;
    let job = rig.submit(1, 0).await;
    let watching = WatchJobRequest { job_id: job };
    let mut news = rig.jobs.watch_job(watching).await.unwrap().into_inner();
    news.message().await.unwrap().unwrap();
    let a = rig.agent("a").await;
    let stopped = tokio::time::timeout(PATIENCE, rig.service.take().unwrap().stop());
    stopped.await.expect("did not stop").unwrap();
    let end = loop {
        match news.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended as if the job had"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(a.end().await.code(), Code::Unavailable);
}
