/// Migration steps. Times are milliseconds since the Unix epoch by the clocks of the processes,
/// except in columns of type `timestamptz`, which only the server's clock writes and reads. Rows
/// with a `river_id` belong to jobs, and have the epoch 0, which no process has.
///
/// `retained_since` is the time at which a record became final, for retention. A trigger sets it,
/// because records are written by several statements and by the triggers of jobs.
///
/// `tower_offload_sequence` has the members of sequences and limits, and `tower_offload_touched` the
/// jobs that transactions have changed and not settled yet. No transaction commits rows of the
/// latter, so it needs no log.
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
ALTER TABLE tower_offload_process ADD COLUMN steady_since timestamptz NOT NULL DEFAULT clock_timestamp();
ALTER TABLE tower_offload_client ADD COLUMN steady_since timestamptz NOT NULL DEFAULT clock_timestamp();
ALTER TABLE tower_offload_task ADD COLUMN retained_since timestamptz;
UPDATE tower_offload_task SET retained_since = least(to_timestamp(finished_at / 1000.0), clock_timestamp()) WHERE state >= 10;
DROP INDEX IF EXISTS tower_offload_task_final;
CREATE INDEX tower_offload_task_retained ON tower_offload_task (retained_since, id) WHERE state >= 10;
CREATE OR REPLACE FUNCTION tower_offload_retained() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.retained_since := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER tower_offload_retained BEFORE INSERT OR UPDATE ON tower_offload_task FOR EACH ROW
    WHEN (NEW.state >= 10 AND NEW.retained_since IS NULL) EXECUTE FUNCTION tower_offload_retained();
",
    "
ALTER TABLE tower_offload_task ADD COLUMN due_at bigint;
",
    "
ALTER TABLE tower_offload_task ADD COLUMN queue text;
CREATE INDEX tower_offload_task_state ON tower_offload_task (state, id);
CREATE INDEX tower_offload_task_name ON tower_offload_task (name, state, id);
CREATE TABLE tower_offload_paused_kind (
    kind text NOT NULL PRIMARY KEY,
    paused_at bigint NOT NULL
);
",
    "
CREATE TABLE tower_offload_sequence (
    river_id bigint NOT NULL,
    is_limit boolean NOT NULL,
    key text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    is_admitted boolean NOT NULL DEFAULT false,
    max_admitted integer NOT NULL,
    is_hold boolean NOT NULL DEFAULT false,
    is_skipped boolean NOT NULL DEFAULT false,
    blocked_since timestamptz,
    PRIMARY KEY (river_id, is_limit)
);
CREATE INDEX tower_offload_sequence_waiting ON tower_offload_sequence (key, is_limit, position) WHERE NOT is_admitted;
CREATE UNIQUE INDEX tower_offload_sequence_head ON tower_offload_sequence (key) WHERE is_admitted AND NOT is_limit;
CREATE INDEX tower_offload_sequence_permit ON tower_offload_sequence (key) WHERE is_admitted AND is_limit;
CREATE INDEX tower_offload_sequence_blocked ON tower_offload_sequence (key) WHERE blocked_since IS NOT NULL;
CREATE INDEX tower_offload_sequence_skipped ON tower_offload_sequence (river_id) WHERE is_skipped;
CREATE UNLOGGED TABLE tower_offload_touched (
    xact bigint NOT NULL,
    river_id bigint NOT NULL,
    sequence text,
    at_most text,
    is_released boolean NOT NULL DEFAULT false,
    PRIMARY KEY (xact, river_id)
);
",
    "
ALTER TABLE tower_offload_task ADD COLUMN parent bytea;
CREATE TABLE tower_offload_schedule (
    name text NOT NULL PRIMARY KEY,
    last_tick bigint NOT NULL
);
",
];

pub(super) const CREATE_MIGRATION: &str = "
CREATE TABLE IF NOT EXISTS tower_offload_migration (
    version bigint NOT NULL PRIMARY KEY,
    applied_at bigint NOT NULL
)";
