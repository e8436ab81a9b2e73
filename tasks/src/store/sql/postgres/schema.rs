/// Migration steps. Times are milliseconds since the Unix epoch, except in the lease columns, which
/// only the server's clock writes and reads. Rows with a `river_id` belong to jobs, and have the
/// epoch 0, which no process has.
pub(super) const STEPS: &[&str] = &[
    "
CREATE TABLE tower_offload_process (
    epoch bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    started_at bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE TABLE tower_offload_task (
    id bytea NOT NULL PRIMARY KEY,
    epoch bigint NOT NULL,
    name text NOT NULL,
    owner text,
    state bigint NOT NULL,
    attempt bigint NOT NULL,
    max_attempts bigint NOT NULL,
    progress double precision,
    message text,
    version bigint NOT NULL,
    created_at bigint NOT NULL,
    started_at bigint,
    finished_at bigint,
    cancel_requested_at bigint,
    reason text,
    result text,
    error_class text,
    error_message text,
    error_detail text
);
CREATE INDEX tower_offload_task_final ON tower_offload_task (finished_at, id) WHERE state >= 10;
CREATE INDEX tower_offload_task_live ON tower_offload_task (epoch) WHERE state < 10;
CREATE INDEX tower_offload_task_owner ON tower_offload_task (owner, id) WHERE owner IS NOT NULL;
CREATE TABLE tower_offload_tombstone (
    id bytea NOT NULL PRIMARY KEY,
    owner text,
    expires_at bigint NOT NULL
);
CREATE INDEX tower_offload_tombstone_expiry ON tower_offload_tombstone (expires_at, id);
",
    "
ALTER TABLE tower_offload_task ADD COLUMN river_id bigint;
CREATE UNIQUE INDEX tower_offload_task_river ON tower_offload_task (river_id);
CREATE INDEX tower_offload_task_cancel ON tower_offload_task (river_id)
    WHERE river_id IS NOT NULL AND state < 10 AND cancel_requested_at IS NOT NULL;
CREATE TABLE tower_offload_client (
    id text NOT NULL PRIMARY KEY,
    name text NOT NULL,
    expires_at timestamptz NOT NULL
);
",
    "
ALTER TABLE tower_offload_task ADD COLUMN due_at bigint;
",
];

pub(super) const CREATE_MIGRATION: &str = "
CREATE TABLE IF NOT EXISTS tower_offload_migration (
    version bigint NOT NULL PRIMARY KEY,
    applied_at bigint NOT NULL
)";
