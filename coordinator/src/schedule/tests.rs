use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn job(name: &str, ranks: u32, priority: i32, age: i64) -> Waiting {
    Waiting {
        job: JobId::new(name).unwrap(),
        ranks,
        priority,
        created_unix_ms: age,
        readiness: Readiness::Ready,
    }
}

fn cluster(slots: &[(u32, u32)]) -> Vec<Capacity> {
    let worker = |n: usize| WorkerId::new(format!("w{n}")).unwrap();
    let capacity = |(n, &(slots, free)): (usize, &(u32, u32))| Capacity { worker: worker(n), slots, free };
    slots.iter().enumerate().map(capacity).collect()
}

fn wait(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Wait(reason) => reason,
        Verdict::Place(places) => panic!("placed on {places:?}"),
    }
}

#[test]
fn reasons_for_people() {
    let free = cluster(&[(2, 1), (2, 1)]);
    let plan_of = |jobs: Vec<Waiting>| plan(jobs, &free);
    assert_eq!(wait(&plan_of(vec![job("a", 3, 0, 0)])[0].1), "needs 3 ranks, 2 of 4 are free");
    assert_eq!(wait(&plan_of(vec![job("a", 5, 0, 0)])[0].1), "needs 5 ranks, the cluster has 4");
    assert_eq!(wait(&plan(vec![job("a", 1, 0, 0)], &[])[0].1), "needs 1 rank, no worker is attached");
    let behind = plan_of(vec![job("b", 1, 0, 1), job("a", 3, 0, 0)]);
    assert_eq!(behind[0].0.as_str(), "a");
    assert_eq!(wait(&behind[1].1), "waits behind job a");
}

#[test]
fn priority_goes_before_age() {
    let order: Vec<String> =
        plan(vec![job("old", 1, 0, 0), job("new", 1, 0, 9), job("urgent", 1, 5, 10)], &cluster(&[(3, 3)]))
            .into_iter()
            .map(|(job, _)| job.to_string())
            .collect();
    assert_eq!(order, ["urgent", "old", "new"]);
}

#[test]
fn a_job_that_can_never_fit_holds_nobody_up() {
    let verdicts = plan(vec![job("huge", 9, 9, 0), job("small", 1, 0, 1)], &cluster(&[(2, 2)]));
    assert!(matches!(verdicts[1].1, Verdict::Place(_)));
}

#[test]
fn a_job_that_backs_off_keeps_its_place() {
    let waiting = Waiting { readiness: Readiness::BacksOff, ..job("again", 2, 0, 0) };
    let verdicts = plan(vec![waiting, job("later", 1, 0, 1)], &cluster(&[(2, 2)]));
    assert_eq!(wait(&verdicts[1].1), "waits behind job again");
}

#[test]
fn ranks_stay_together_where_they_can() {
    let verdicts = plan(vec![job("a", 2, 0, 0)], &cluster(&[(1, 1), (4, 4), (2, 2)]));
    let w2 = WorkerId::new("w2").unwrap();
    assert_eq!(verdicts[0].1, Verdict::Place(vec![w2.clone(), w2]));
}

fn jobs() -> impl Strategy<Value = Vec<Waiting>> {
    let readiness = prop::bool::weighted(0.1);
    prop::collection::vec((1..6u32, -2..3i32, 0..4i64, readiness), 0..12).prop_map(|specs| {
        let build = |(n, (ranks, priority, age, backs_off)): (usize, (u32, i32, i64, bool))| {
            let readiness = if backs_off { Readiness::BacksOff } else { Readiness::Ready };
            Waiting { readiness, ..job(&format!("j{n}"), ranks, priority, age) }
        };
        specs.into_iter().enumerate().map(build).collect()
    })
}

proptest! {
    #[test]
    fn slots_are_kept_gangs_are_whole_and_nobody_overtakes(
        queue in jobs(),
        sizes in prop::collection::vec((0..5u32, 0..5u32), 0..5),
    ) {
        let workers = cluster(&sizes.iter().map(|&(slots, used)| (slots, slots.saturating_sub(used))).collect::<Vec<_>>());
        let total: u32 = workers.iter().map(|w| w.slots).sum();
        let by_id: BTreeMap<_, _> = queue.iter().map(|w| (w.job.clone(), w.clone())).collect();
        let verdicts = plan(queue.clone(), &workers);
        prop_assert_eq!(verdicts.len(), queue.len());
        prop_assert_eq!(&verdicts, &plan(queue.into_iter().rev().collect(), &workers), "depends on the input's order");

        let mut used: BTreeMap<WorkerId, u32> = BTreeMap::new();
        let mut held_up = false;
        let mut last = None;
        for (id, verdict) in &verdicts {
            let waiting = &by_id[id];
            let key = (Reverse(waiting.priority), waiting.created_unix_ms, id.clone());
            prop_assert!(last.as_ref().is_none_or(|last| *last < key), "out of order");
            last = Some(key);
            match verdict {
                Verdict::Place(places) => {
                    prop_assert_eq!(places.len() as u32, waiting.ranks);
                    prop_assert!(!held_up, "{} overtook", id);
                    for worker in places {
                        *used.entry(worker.clone()).or_default() += 1;
                    }
                }
                Verdict::Wait(reason) => {
                    prop_assert!(!reason.is_empty());
                    held_up |= waiting.ranks <= total;
                }
            }
        }
        for worker in &workers {
            prop_assert!(used.get(&worker.worker).copied().unwrap_or(0) <= worker.free);
        }
    }
}
