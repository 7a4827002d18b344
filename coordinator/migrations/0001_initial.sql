CREATE TABLE jobs (
    id                    TEXT PRIMARY KEY NOT NULL,
    name                  TEXT NOT NULL,
    spec_toml             TEXT NOT NULL,
    world_size            INTEGER NOT NULL,
    priority              INTEGER NOT NULL,
    max_restarts          INTEGER NOT NULL,
    bits                  TEXT NOT NULL,
    created_unix_ms       INTEGER NOT NULL,
    idempotency_key       TEXT UNIQUE,
    state                 TEXT NOT NULL CHECK (state IN
        ('queued', 'starting', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')),
    reason                TEXT NOT NULL,
    intent                TEXT NOT NULL CHECK (intent IN ('train', 'cancel')),
    generation            INTEGER NOT NULL,
    restarts              INTEGER NOT NULL,
    fruitless             INTEGER NOT NULL,
    last_cause            TEXT,
    started_unix_ms       INTEGER,
    ended_unix_ms         INTEGER,
    dropped_step_records  INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state);

-- Each registered generation; `run` is the placement and what its ranks came to, as JSON.
CREATE TABLE generations (
    job_id      TEXT NOT NULL REFERENCES jobs (id),
    generation  INTEGER NOT NULL,
    run         TEXT NOT NULL,
    PRIMARY KEY (job_id, generation)
) STRICT, WITHOUT ROWID;

-- The curves. `payload` is the record as it was reported, an encoded anybit.v1.MetricRecord.
-- `ordinal` is the step, and for skipped steps their running count.
CREATE TABLE metrics (
    job_id      TEXT NOT NULL REFERENCES jobs (id),
    kind        TEXT NOT NULL CHECK (kind IN ('step', 'skipped', 'evaluation', 'checkpoint')),
    ordinal     INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    revision    INTEGER NOT NULL,
    payload     BLOB NOT NULL,
    PRIMARY KEY (job_id, kind, ordinal)
) STRICT;
CREATE UNIQUE INDEX metrics_by_revision ON metrics (job_id, revision);
CREATE INDEX metrics_by_kind ON metrics (job_id, kind, revision);

CREATE TABLE checkpoints (
    job_id      TEXT NOT NULL REFERENCES jobs (id),
    generation  INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    payload     BLOB NOT NULL,
    PRIMARY KEY (job_id, generation, step)
) STRICT;

-- What happened to each job, for people who ask later.
CREATE TABLE transitions (
    id          INTEGER PRIMARY KEY,
    job_id      TEXT NOT NULL REFERENCES jobs (id),
    generation  INTEGER NOT NULL,
    unix_ms     INTEGER NOT NULL,
    from_state  TEXT NOT NULL,
    to_state    TEXT NOT NULL,
    reason      TEXT NOT NULL
) STRICT;
CREATE INDEX transitions_by_job ON transitions (job_id, id);

-- The last batch counted of each agent, so that one sent twice is counted once.
CREATE TABLE deliveries (
    incarnation  TEXT PRIMARY KEY NOT NULL,
    sequence     INTEGER NOT NULL
) STRICT;

-- The newest revision of any metric.
CREATE TABLE revision (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    value  INTEGER NOT NULL
) STRICT;
INSERT INTO revision (id, value) VALUES (1, 0);
