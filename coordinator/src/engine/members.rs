//! The workers: who is attached, in which life, since when, with which slots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use anybit_shared::ids::{Generation, JobId, Rank, WorkerId, WorkerIncarnation};

use super::{CloseReason, HeldRank, LastSeen, Link};
use crate::job::{Now, Place};
use crate::schedule::Capacity;

/// Lives of a worker that are remembered as over.
const RETIRED_LIVES: usize = 16;
/// A lost worker is listed for so long.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// An agent's first message.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Who.
    pub worker: WorkerId,
    /// In which life.
    pub incarnation: WorkerIncarnation,
    /// Where.
    pub hostname: String,
    /// The agent's version.
    pub version: String,
    /// Ranks it can hold.
    pub slots: u32,
    /// Generations of which it holds trainers or a store.
    pub held: Vec<HeldGeneration>,
}

/// What an agent holds of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldGeneration {
    /// The job.
    pub job: JobId,
    /// The generation.
    pub generation: Generation,
    /// Ranks whose process is alive.
    pub running: BTreeSet<Rank>,
}

/// A worker, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Who.
    pub worker: WorkerId,
    /// In which life.
    pub incarnation: WorkerIncarnation,
    /// Where.
    pub hostname: String,
    /// The agent's version.
    pub version: String,
    /// Ranks it can hold.
    pub slots: u32,
    /// Of these, used.
    pub used_slots: u32,
    /// Whether its lease holds.
    pub liveness: Liveness,
    /// Since when it is attached.
    pub attached_unix_ms: i64,
    /// Since its last message.
    pub silence: Duration,
    /// What it holds.
    pub ranks: Vec<HeldRank>,
}

/// Whether a worker's lease holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It does.
    Alive,
    /// It ran out.
    Lost,
}

/// Whether a worker, in the life in which it was given ranks, still holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// As far as anyone knows.
    Holds,
    /// It does not, for this reason.
    Lost(String),
}

#[derive(Debug)]
struct Member {
    incarnation: WorkerIncarnation,
    hostname: String,
    version: String,
    slots: u32,
    attached_unix_ms: i64,
    liveness: Liveness,
    seen: LastSeen,
    link: Option<Link>,
    /// It is ending and takes no more ranks.
    draining: bool,
    /// Generations that it must let go of, with the ranks it still runs.
    stale: BTreeMap<(JobId, Generation), u32>,
    /// Lives that are over: another agent took the worker id.
    retired: VecDeque<WorkerIncarnation>,
}

/// All workers seen since the coordinator started.
#[derive(Debug)]
pub(super) struct Members {
    lease: Duration,
    /// Nobody's lease is counted from before this: the coordinator was not listening then.
    listening_since: Instant,
    members: BTreeMap<WorkerId, Member>,
}

impl Members {
    pub(super) fn new(lease: Duration, now: Instant) -> Self {
        Self { lease, listening_since: now, members: BTreeMap::new() }
    }

    /// The coordinator stood still: leases begin anew.
    pub(super) fn listen_anew(&mut self, now: Instant) {
        self.listening_since = now;
    }

    /// Takes in an agent, and ends the stream it replaces. Refused: a life that is over.
    pub(super) fn admit(&mut self, hello: &Hello, link: Link, now: Now) -> Result<(), String> {
        let mut retired = VecDeque::new();
        let mut attached_unix_ms = now.unix_ms;
        if let Some(known) = self.members.get(&hello.worker) {
            if known.retired.contains(&hello.incarnation) {
                return Err(format!(
                    "worker id {} is used by another agent that attached later: give each agent its own id",
                    hello.worker
                ));
            }
            retired.clone_from(&known.retired);
            if known.incarnation == hello.incarnation {
                attached_unix_ms = known.attached_unix_ms;
            } else {
                retired.push_front(known.incarnation.clone());
                retired.truncate(RETIRED_LIVES);
            }
            if let Some(old) = &known.link {
                old.close(CloseReason::Superseded);
            }
        }
        let member = Member {
            incarnation: hello.incarnation.clone(),
            hostname: hello.hostname.clone(),
            version: hello.version.clone(),
            slots: hello.slots,
            attached_unix_ms,
            liveness: Liveness::Alive,
            seen: link.seen.clone(),
            link: Some(link),
            draining: false,
            stale: BTreeMap::new(),
            retired,
        };
        self.members.insert(hello.worker.clone(), member);
        Ok(())
    }

    /// The stream is gone; the lease goes on.
    pub(super) fn detach(&mut self, worker: &WorkerId, link: u64) {
        if let Some(member) = self.members.get_mut(worker)
            && member.link.as_ref().is_some_and(|current| current.id == link)
        {
            member.link = None;
        }
    }

    pub(super) fn link(&self, worker: &WorkerId) -> Option<&Link> {
        self.members.get(worker).and_then(|member| member.link.as_ref())
    }

    /// True when this life of the worker is the current one and its lease holds.
    pub(super) fn is_current(&self, worker: &WorkerId, incarnation: &WorkerIncarnation) -> bool {
        self.members
            .get(worker)
            .is_some_and(|member| member.incarnation == *incarnation && member.liveness == Liveness::Alive)
    }

    /// A place on a worker as it lives now.
    pub(super) fn place(&self, worker: &WorkerId) -> Option<Place> {
        let member = self.members.get(worker)?;
        Some(Place { worker: worker.clone(), incarnation: member.incarnation.clone() })
    }

    /// Ends the leases that ran out, and forgets workers lost long ago; gives the newly lost.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<WorkerId> {
        let (lease, since) = (self.lease, self.listening_since);
        let mut lost = Vec::new();
        for (worker, member) in &mut self.members {
            let heard = member.seen.at().max(since);
            if member.liveness == Liveness::Alive && now.saturating_duration_since(heard) > lease {
                member.liveness = Liveness::Lost;
                if let Some(link) = member.link.take() {
                    link.close(CloseReason::LeaseLost);
                }
                lost.push(worker.clone());
            }
        }
        self.members.retain(|_, member| {
            member.liveness == Liveness::Alive
                || now.saturating_duration_since(member.seen.at()) < FORGET_AFTER
        });
        lost
    }

    pub(super) fn standing(&self, place: &Place, now: Instant) -> Standing {
        let silent = format!("its agent was silent for {} s", self.lease.as_secs_f64());
        match self.members.get(&place.worker) {
            None if now.saturating_duration_since(self.listening_since) > self.lease => {
                Standing::Lost(silent)
            }
            None => Standing::Holds,
            Some(member) if member.incarnation != place.incarnation => {
                Standing::Lost("its agent started anew".to_owned())
            }
            Some(member) if member.liveness == Liveness::Lost => Standing::Lost(silent),
            Some(_) => Standing::Holds,
        }
    }

    /// Notes that a worker must let go of a generation.
    pub(super) fn note_stale(&mut self, worker: &WorkerId, held: &HeldGeneration) {
        if let Some(member) = self.members.get_mut(worker) {
            let key = (held.job.clone(), held.generation);
            member.stale.insert(key, held.running.len() as u32);
        }
    }

    /// A worker has let go of a generation.
    pub(super) fn released(&mut self, worker: &WorkerId, job: &JobId, generation: Generation) {
        if let Some(member) = self.members.get_mut(worker) {
            member.stale.remove(&(job.clone(), generation));
        }
    }

    /// This life of a worker takes no more ranks.
    pub(super) fn drain(&mut self, worker: &WorkerId, incarnation: &WorkerIncarnation) {
        if let Some(member) = self.members.get_mut(worker)
            && member.incarnation == *incarnation
        {
            member.draining = true;
        }
    }

    /// What living workers can take, given what jobs hold of them.
    pub(super) fn capacities(&self, held: &BTreeMap<WorkerId, Vec<HeldRank>>) -> Vec<Capacity> {
        let alive = self.members.iter().filter(|(_, member)| member.liveness == Liveness::Alive);
        let capacity = |(worker, member): (&WorkerId, &Member)| Capacity {
            worker: worker.clone(),
            slots: member.slots,
            free: match &member.link {
                Some(_) if member.draining => 0,
                Some(_) => member.slots.saturating_sub(used(member, held.get(worker))),
                None => 0,
            },
        };
        alive.map(capacity).collect()
    }

    pub(super) fn statuses(
        &self,
        held: &BTreeMap<WorkerId, Vec<HeldRank>>,
        now: Instant,
    ) -> Vec<WorkerStatus> {
        let status = |(worker, member): (&WorkerId, &Member)| WorkerStatus {
            worker: worker.clone(),
            incarnation: member.incarnation.clone(),
            hostname: member.hostname.clone(),
            version: member.version.clone(),
            slots: member.slots,
            used_slots: used(member, held.get(worker)),
            liveness: member.liveness,
            attached_unix_ms: member.attached_unix_ms,
            silence: now.saturating_duration_since(member.seen.at()),
            ranks: held.get(worker).cloned().unwrap_or_default(),
        };
        self.members.iter().map(status).collect()
    }

    /// Ends every stream.
    pub(super) fn close_all(&self, reason: &CloseReason) {
        for link in self.members.values().filter_map(|member| member.link.as_ref()) {
            link.close(reason.clone());
        }
    }
}

fn used(member: &Member, held: Option<&Vec<HeldRank>>) -> u32 {
    let stale: u32 = member.stale.values().sum();
    stale.saturating_add(held.map_or(0, Vec::len) as u32)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::super::Outbound;
    use super::*;

    const LEASE: Duration = Duration::from_secs(6);

    struct Scene {
        members: Members,
        start: Instant,
        links: u64,
    }

    impl Scene {
        fn new() -> Self {
            let start = Instant::now();
            Self { members: Members::new(LEASE, start), start, links: 0 }
        }

        fn at(&self, seconds: u64) -> Now {
            Now { unix_ms: seconds as i64 * 1000, at: self.start + Duration::from_secs(seconds) }
        }

        fn hello(&mut self, life: &str, seconds: u64) -> Result<mpsc::Receiver<Outbound>, String> {
            let now = self.at(seconds);
            let (outbound, inbox) = mpsc::channel(4);
            self.links += 1;
            let seen = LastSeen::new(now.at);
            let link = Link { id: self.links, outbound, closed: CancellationToken::new(), seen };
            let hello = Hello {
                worker: worker(),
                incarnation: WorkerIncarnation::new(life).unwrap(),
                hostname: "h".to_owned(),
                version: "1".to_owned(),
                slots: 2,
                held: Vec::new(),
            };
            self.members.admit(&hello, link, now).map(|()| inbox)
        }

        fn standing(&self, life: &str, seconds: u64) -> Standing {
            let incarnation = WorkerIncarnation::new(life).unwrap();
            self.members.standing(&Place { worker: worker(), incarnation }, self.at(seconds).at)
        }
    }

    fn worker() -> WorkerId {
        WorkerId::new("w").unwrap()
    }

    #[test]
    fn silence_for_a_lease_loses_the_worker_and_closes_its_stream() {
        let mut scene = Scene::new();
        let mut inbox = scene.hello("a", 0).unwrap();
        assert!(scene.members.expire(scene.at(6).at).is_empty());
        assert_eq!(scene.members.expire(scene.at(7).at), [worker()]);
        assert_eq!(inbox.try_recv().unwrap(), Outbound::Close(CloseReason::LeaseLost));
        assert!(matches!(scene.standing("a", 7), Standing::Lost(_)));
        assert!(scene.members.expire(scene.at(8).at).is_empty(), "it is lost once");
        scene.hello("a", 9).unwrap();
        assert_eq!(scene.standing("a", 9), Standing::Holds);
    }

    #[test]
    fn the_newer_agent_wins_and_the_older_may_not_return() {
        let mut scene = Scene::new();
        let mut old = scene.hello("a", 0).unwrap();
        scene.hello("b", 1).unwrap();
        assert_eq!(old.try_recv().unwrap(), Outbound::Close(CloseReason::Superseded));
        assert!(matches!(scene.standing("a", 1), Standing::Lost(_)));
        assert!(scene.hello("a", 2).unwrap_err().contains("its own id"));
    }

    #[test]
    fn a_broken_stream_alone_keeps_the_lease() {
        let mut scene = Scene::new();
        scene.hello("a", 0).unwrap();
        scene.members.detach(&worker(), 1);
        assert_eq!(scene.standing("a", 1), Standing::Holds);
        assert_eq!(scene.members.capacities(&BTreeMap::new())[0].free, 0, "it cannot be reached");
        scene.hello("a", 2).unwrap();
        scene.members.detach(&worker(), 1);
        assert!(scene.members.link(&worker()).is_some(), "the older stream's end is not the newer's");
    }

    #[test]
    fn leases_do_not_run_while_nobody_listens() {
        let mut scene = Scene::new();
        assert_eq!(scene.standing("a", 6), Standing::Holds, "it may still attach again");
        assert!(matches!(scene.standing("a", 7), Standing::Lost(_)));
        scene.hello("a", 7).unwrap();
        scene.members.listen_anew(scene.at(60).at);
        assert!(scene.members.expire(scene.at(66).at).is_empty());
        assert_eq!(scene.members.expire(scene.at(67).at), [worker()]);
    }
}
