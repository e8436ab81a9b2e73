/// Migration steps. Times are milliseconds since the Unix epoch. `AUTOINCREMENT` prevents reuse of
/// the number of an epoch. Rows with a `river_id` belong to jobs, and have the epoch 0, which no
/// process has.
pub(super) const STEPS: &[&str] = &[
    "
CREATE TABLE tower_offload_process (
    epoch INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    started_at INTEGER NOT NULL
) STRICT;
CREATE TABLE tower_offload_task (
    id BLOB NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL,
    name TEXT NOT NULL,
    owner TEXT,
    state INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    progress REAL,
    message TEXT,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    cancel_requested_at INTEGER,
    reason TEXT,
    result TEXT,
    error_class TEXT,
    error_message TEXT,
    error_detail TEXT
) STRICT;
CREATE INDEX tower_offload_task_final ON tower_offload_task (finished_at, id) WHERE state >= 10;
CREATE INDEX tower_offload_task_live ON tower_offload_task (epoch) WHERE state < 10;
CREATE INDEX tower_offload_task_owner ON tower_offload_task (owner, id) WHERE owner IS NOT NULL;
CREATE TABLE tower_offload_tombstone (
    id BLOB NOT NULL PRIMARY KEY,
    owner TEXT,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX tower_offload_tombstone_expiry ON tower_offload_tombstone (expires_at, id);
",
    "
ALTER TABLE tower_offload_task ADD COLUMN river_id INTEGER;
CREATE UNIQUE INDEX tower_offload_task_river ON tower_offload_task (river_id);
CREATE INDEX tower_offload_task_cancel ON tower_offload_task (river_id)
    WHERE river_id IS NOT NULL AND state < 10 AND cancel_requested_at IS NOT NULL;
",
    "
ALTER TABLE tower_offload_task ADD COLUMN due_at INTEGER;
",
    "
ALTER TABLE tower_offload_task ADD COLUMN queue TEXT;
CREATE INDEX tower_offload_task_state ON tower_offload_task (state, id);
CREATE INDEX tower_offload_task_name ON tower_offload_task (name, state, id);
CREATE TABLE tower_offload_paused_kind (
    kind TEXT NOT NULL PRIMARY KEY,
    paused_at INTEGER NOT NULL
) STRICT;
",
    "
CREATE TABLE tower_offload_sequence (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    river_id INTEGER NOT NULL,
    is_limit INTEGER NOT NULL,
    key TEXT NOT NULL,
    is_admitted INTEGER NOT NULL DEFAULT 0,
    max_admitted INTEGER NOT NULL,
    is_hold INTEGER NOT NULL DEFAULT 0,
    blocked_since INTEGER,
    UNIQUE (river_id, is_limit)
) STRICT;
CREATE INDEX tower_offload_sequence_waiting ON tower_offload_sequence (key, is_limit, position) WHERE is_admitted = 0;
CREATE UNIQUE INDEX tower_offload_sequence_head ON tower_offload_sequence (key) WHERE is_admitted = 1 AND is_limit = 0;
CREATE INDEX tower_offload_sequence_permit ON tower_offload_sequence (key) WHERE is_admitted = 1 AND is_limit = 1;
CREATE INDEX tower_offload_sequence_blocked ON tower_offload_sequence (key) WHERE blocked_since IS NOT NULL;
",
    "
ALTER TABLE tower_offload_task ADD COLUMN parent BLOB;
CREATE TABLE tower_offload_schedule (
    name TEXT NOT NULL PRIMARY KEY,
    last_tick INTEGER NOT NULL
) STRICT;
",
];

pub(super) const CREATE_MIGRATION: &str = "
CREATE TABLE IF NOT EXISTS tower_offload_migration (
    version INTEGER NOT NULL PRIMARY KEY,
    applied_at INTEGER NOT NULL
) STRICT";
