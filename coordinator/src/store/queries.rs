//! Every statement of the SQLite store, by name.

pub(super) const JOB_BY_KEY: &str = "SELECT id, spec_toml FROM jobs WHERE idempotency_key = ?1";

pub(super) const INSERT_JOB: &str = "
INSERT INTO jobs (id, name, spec_toml, world_size, priority, max_restarts, bits, created_unix_ms,
                  idempotency_key, state, reason, intent, generation, restarts, fruitless)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0, 0, 0)";

pub(super) const UPDATE_JOB: &str = "
UPDATE jobs SET state = ?2, reason = ?3, intent = ?4, generation = ?5, restarts = ?6,
                fruitless = ?7, last_cause = ?8, started_unix_ms = ?9, ended_unix_ms = ?10
WHERE id = ?1";

pub(super) const PUT_GENERATION: &str = "
INSERT INTO generations (job_id, generation, run) VALUES (?1, ?2, ?3)
ON CONFLICT (job_id, generation) DO UPDATE SET run = excluded.run";

pub(super) const INSERT_TRANSITION: &str = "
INSERT INTO transitions (job_id, generation, unix_ms, from_state, to_state, reason)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

pub(super) const HISTORY: &str =
    "SELECT from_state, to_state, reason FROM transitions WHERE job_id = ?1 ORDER BY id";

pub(super) const UNFINISHED: &str = "
SELECT jobs.*, CASE state WHEN 'queued' THEN NULL ELSE run END AS run
FROM jobs LEFT JOIN generations ON job_id = id AND generations.generation = jobs.generation
WHERE state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY id";

pub(super) const JOB: &str = "
SELECT jobs.*, CASE state WHEN 'queued' THEN NULL ELSE run END AS run
FROM jobs LEFT JOIN generations ON job_id = id AND generations.generation = jobs.generation
WHERE id = ?1";

// ?1: a JSON array of states; empty: any.
pub(super) const LIST: &str = "
SELECT jobs.*, CASE state WHEN 'queued' THEN NULL ELSE run END AS run
FROM jobs LEFT JOIN generations ON job_id = id AND generations.generation = jobs.generation
WHERE (json_array_length(?1) = 0 OR state IN (SELECT value FROM json_each(?1)))
  AND (?2 IS NULL OR id < ?2)
ORDER BY id DESC LIMIT ?3";

// ?2 is past every id that begins with ?1.
pub(super) const IDS_WITH_PREFIX: &str =
    "SELECT id FROM jobs WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3";

pub(super) const REVISION: &str = "SELECT value FROM revision";

pub(super) const SET_REVISION: &str = "UPDATE revision SET value = ?1";

pub(super) const PUT_METRIC: &str = "
INSERT INTO metrics (job_id, kind, ordinal, generation, revision, payload)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (job_id, kind, ordinal) DO UPDATE
SET generation = excluded.generation, revision = excluded.revision, payload = excluded.payload
WHERE excluded.generation > metrics.generation";

pub(super) const PUT_CHECKPOINT: &str = "
INSERT INTO checkpoints (job_id, generation, step, payload) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (job_id, generation, step) DO UPDATE SET payload = excluded.payload";

pub(super) const COUNT_DELIVERY: &str = "
INSERT INTO deliveries (incarnation, sequence) VALUES (?1, ?2)
ON CONFLICT (incarnation) DO UPDATE SET sequence = excluded.sequence
WHERE excluded.sequence > deliveries.sequence";

pub(super) const ADD_DROPPED: &str =
    "UPDATE jobs SET dropped_step_records = dropped_step_records + ?2 WHERE id = ?1";

pub(super) const METRICS_AFTER: &str = "
SELECT revision, payload FROM metrics
WHERE job_id = ?1 AND revision > ?2 AND (?3 OR kind NOT IN ('step', 'skipped'))
ORDER BY revision LIMIT ?4";

// Step records come in order, and there are too many to sort.
pub(super) const NEWEST_STEP: &str = "
SELECT payload FROM metrics WHERE job_id = ?1 AND kind = 'step' ORDER BY revision DESC LIMIT 1";

pub(super) const NEWEST_EVALUATION: &str = "
SELECT payload FROM metrics WHERE job_id = ?1 AND kind = 'evaluation'
ORDER BY generation DESC, ordinal DESC LIMIT 1";

pub(super) const COUNTERS: &str = "
SELECT dropped_step_records,
       (SELECT coalesce(max(ordinal), 0) FROM metrics WHERE job_id = ?1 AND kind = 'skipped') AS skipped,
       (SELECT coalesce(max(revision), 0) FROM metrics WHERE job_id = ?1) AS revision
FROM jobs WHERE id = ?1";

pub(super) const CHECKPOINTS: &str =
    "SELECT payload FROM checkpoints WHERE job_id = ?1 ORDER BY generation DESC, step DESC LIMIT ?2";

pub(super) const NEWEST_CHECKPOINT: &str =
    "SELECT payload FROM checkpoints WHERE job_id = ?1 ORDER BY generation DESC, step DESC LIMIT 1";
