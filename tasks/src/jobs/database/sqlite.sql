-- Triggers on River's table, like those for Postgres. One process owns the file and there is one
-- clock, so the fence compares claims only, and River's times are right.

-- Other programs write to this table too, so its JSON may be invalid.

-- Those of earlier versions, too. Otherwise both would run.
DROP TRIGGER IF EXISTS tower_offload_fence_1;
DROP TRIGGER IF EXISTS tower_offload_changed_1;
DROP TRIGGER IF EXISTS tower_offload_deleted_1;
DROP TRIGGER IF EXISTS tower_offload_fence_2;
DROP TRIGGER IF EXISTS tower_offload_changed_2;
DROP TRIGGER IF EXISTS tower_offload_deleted_2;
DROP TRIGGER IF EXISTS tower_offload_fence;
DROP TRIGGER IF EXISTS tower_offload_claimed;
DROP TRIGGER IF EXISTS tower_offload_changed;
DROP TRIGGER IF EXISTS tower_offload_deleted;

-- An end of an attempt names its claim in the metadata. It has no effect unless that claim is the
-- current one. If the attempt has ended already, River changes only the metadata. The name stays in
-- the metadata until the next claim, so only a new one is compared.
CREATE TRIGGER tower_offload_fence BEFORE UPDATE ON river_job
    WHEN json_valid(NEW.metadata, 9) AND NEW.metadata -> '$."tower_offload:end"' IS NOT NULL
        AND NEW.metadata -> '$."tower_offload:end"' IS NOT CASE WHEN json_valid(OLD.metadata, 9) THEN OLD.metadata -> '$."tower_offload:end"' END
        AND NEW.metadata ->> '$."tower_offload:end".claimed_at'
            IS NOT CAST(round(unixepoch(OLD.attempted_at, 'subsec') * 1000000) AS INTEGER)
BEGIN
    SELECT RAISE(IGNORE);
END;

-- Removes the end of the previous attempt. River repeats it if the reply of the database was lost,
-- and it is a new one then.
CREATE TRIGGER tower_offload_claimed AFTER UPDATE ON river_job
    WHEN NEW.state = 'running' AND OLD.attempted_at IS NOT NEW.attempted_at
        AND json_valid(NEW.metadata, 9) AND NEW.metadata -> '$."tower_offload:end"' IS NOT NULL
BEGIN
    UPDATE river_job SET metadata = jsonb_remove(metadata, '$."tower_offload:end"') WHERE id = NEW.id;
END;

-- Copies each change of a job's state to its record. Each update of a job that has ended does so
-- again, for ends that were written without this trigger. A job that has ended and is retried
-- reopens its record. The record does not show that a job is promoted in its sequence.
CREATE TRIGGER tower_offload_changed AFTER UPDATE ON river_job
    WHEN OLD.state IS NOT NEW.state AND NOT (OLD.state = 'pending' AND NEW.state IN ('available', 'scheduled'))
        OR OLD.attempt IS NOT NEW.attempt OR NEW.finalized_at IS NOT NULL
BEGIN
    UPDATE tower_offload_task SET state = 0, progress = NULL, message = NULL, finished_at = NULL, cancel_requested_at = NULL, reason = NULL,
        result = NULL, error_class = NULL, error_message = NULL, error_detail = NULL
    WHERE river_id = NEW.id AND state >= 10 AND OLD.finalized_at IS NOT NULL AND NEW.finalized_at IS NULL;
    UPDATE tower_offload_task SET
        state = CASE
            WHEN NEW.state = 'running' THEN 1
            WHEN NEW.state = 'completed' THEN 10
            WHEN NEW.state = 'cancelled' THEN 12
            WHEN NEW.state = 'discarded' AND error_class = 'timeout' THEN 13
            WHEN NEW.state = 'discarded' THEN 11
            ELSE 0 END,
        queue = coalesce(queue, nullif(NEW.queue, 'tower_offload_paused')),
        attempt = NEW.attempt,
        max_attempts = NEW.max_attempts,
        due_at = CASE WHEN NEW.state IN ('available', 'pending', 'scheduled', 'retryable') AND NEW.scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now')
            THEN CAST(unixepoch(NEW.scheduled_at, 'subsec') * 1000 AS INTEGER) END,
        version = version + 1,
        progress = CASE WHEN NEW.state <> 'running' THEN progress END,
        message = CASE WHEN NEW.state <> 'running' THEN message END,
        started_at = CASE WHEN NEW.state = 'running'
            THEN max(CAST(unixepoch('subsec') * 1000 AS INTEGER), created_at)
            WHEN NEW.attempt > 0 THEN started_at END, -- an attempt that does not count leaves no start
        finished_at = CASE WHEN NEW.state IN ('completed', 'cancelled', 'discarded')
            THEN max(CAST(unixepoch('subsec') * 1000 AS INTEGER), coalesce(started_at, created_at)) END,
        reason = CASE WHEN NEW.state = 'cancelled' THEN 'requested' END,
        result = CASE WHEN NEW.state = 'completed' THEN coalesce(result, CASE WHEN json_valid(NEW.metadata, 9)
            AND octet_length(NEW.metadata -> '$.output') <= 131072 THEN NEW.metadata -> '$.output' END) END,
        error_class = CASE WHEN NEW.state NOT IN ('running', 'completed', 'cancelled')
            THEN coalesce(error_class, CASE WHEN json_valid(NEW.errors, 9) AND NEW.errors ->> '$[#-1].attempt' = NEW.attempt THEN 'error' END) END,
        error_message = CASE WHEN NEW.state NOT IN ('running', 'completed', 'cancelled')
            THEN coalesce(error_message,
                CASE WHEN json_valid(NEW.errors, 9) AND NEW.errors ->> '$[#-1].attempt' = NEW.attempt
                    THEN substr(NEW.errors ->> '$[#-1].error', 1, 2048) END) END,
        error_detail = CASE WHEN NEW.state NOT IN ('running', 'completed', 'cancelled') THEN error_detail END
    WHERE river_id = NEW.id AND state < 10;
END;

-- Marks the record of a deleted job as lost.
CREATE TRIGGER tower_offload_deleted AFTER DELETE ON river_job
BEGIN
    UPDATE tower_offload_task SET state = 14, reason = 'job_deleted', version = version + 1,
        finished_at = max(CAST(unixepoch('subsec') * 1000 AS INTEGER), coalesce(started_at, created_at))
    WHERE river_id = OLD.id AND state < 10;
END;

-- Jobs of earlier versions.
UPDATE tower_offload_task SET queue = (SELECT queue FROM river_job WHERE id = river_id) WHERE river_id IS NOT NULL AND queue IS NULL;

