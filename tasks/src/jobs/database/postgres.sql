-- Triggers on River's table. Their names contain a version: a changed trigger gets the next one, and its installation
-- drops the old one.
--
-- The functions are SECURITY DEFINER, so that users who may change jobs need no rights on the tables of this crate. Their
-- search path is fixed, with pg_temp last, and other users may not execute them.

-- Fence around jobs that are worked by this crate. Each connection of a River client of this crate sets
-- `tower_offload.client` to the id of the client.
--
-- 1. A process whose jobs were recovered, because it stalled for longer than its lease, may continue and complete them.
--    Its updates have no effect if another client works on the job, or if the job is queued again.
-- 2. River's leader rescues jobs that have been running for an hour, and discards those of a kind that it does not know. A job
--    whose client has a valid lease is not rescued. A leader of this crate retries jobs of other clients instead of discarding them.
-- 3. If the tables of this crate were dropped, River works without them.
DROP FUNCTION IF EXISTS tower_offload_fence_1, tower_offload_changed_1, tower_offload_deleted_1 CASCADE;
CREATE OR REPLACE FUNCTION tower_offload_fence_2() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    writer text := current_setting('tower_offload.client', true);
    worker text := OLD.attempted_by[array_upper(OLD.attempted_by, 1)];
    is_rescue boolean := NEW.metadata -> 'river:rescue_count' IS DISTINCT FROM OLD.metadata -> 'river:rescue_count';
BEGIN
    IF OLD.state <> 'running' THEN
        IF writer LIKE 'to-%' AND NEW.state = OLD.state AND NEW.metadata -> 'output' IS DISTINCT FROM OLD.metadata -> 'output' THEN
            RETURN NULL;
        END IF;
        RETURN NEW;
    END IF;
    IF writer LIKE 'to-%' AND worker IS DISTINCT FROM writer AND NOT (is_rescue AND worker NOT LIKE 'to-%')
        AND (NEW.state <> 'running' OR NEW.metadata -> 'output' IS DISTINCT FROM OLD.metadata -> 'output')
    THEN
        RETURN NULL;
    END IF;
    IF is_rescue AND worker LIKE 'to-%' AND to_regclass('tower_offload_client') IS NOT NULL THEN
        IF EXISTS (SELECT 1 FROM tower_offload_client WHERE id = worker AND expires_at > clock_timestamp()) THEN
            RETURN NULL;
        END IF;
    END IF;
    IF is_rescue AND writer LIKE 'to-%' AND NEW.state = 'discarded' AND NEW.attempt < NEW.max_attempts THEN
        NEW.state := 'retryable';
        NEW.finalized_at := NULL;
        NEW.scheduled_at := clock_timestamp() + least(power(NEW.attempt, 4), 86400) * interval '1 second';
    END IF;
    RETURN NEW;
END $$;

-- Copies each change of a job's state to its record.
CREATE OR REPLACE FUNCTION tower_offload_changed_2() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    now_millis bigint := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
    failure jsonb := NEW.errors[array_upper(NEW.errors, 1)];
    output text := (NEW.metadata -> 'output')::text;
    is_final boolean := NEW.state IN ('completed', 'cancelled', 'discarded');
BEGIN
    IF to_regclass('tower_offload_task') IS NULL THEN
        RETURN NULL;
    END IF;
    IF failure IS NOT NULL AND (NEW.state = 'completed' OR failure ->> 'attempt' IS DISTINCT FROM NEW.attempt::text) THEN
        failure := NULL;
    END IF;
    UPDATE tower_offload_task AS task SET
        state = CASE
            WHEN NEW.state = 'running' THEN 1
            WHEN NEW.state = 'completed' THEN 10
            WHEN NEW.state = 'cancelled' THEN 12
            WHEN NEW.state = 'discarded' AND task.error_class = 'timeout' THEN 13
            WHEN NEW.state = 'discarded' THEN 11
            ELSE 0 END,
        attempt = NEW.attempt,
        max_attempts = NEW.max_attempts,
        due_at = CASE WHEN NEW.state IN ('available', 'scheduled', 'retryable') AND NEW.scheduled_at > clock_timestamp()
            THEN (extract(epoch FROM NEW.scheduled_at) * 1000)::bigint END,
        version = task.version + 1,
        progress = CASE WHEN NEW.state <> 'running' THEN task.progress END,
        message = CASE WHEN NEW.state <> 'running' THEN task.message END,
        started_at = CASE WHEN NEW.state = 'running' THEN greatest(now_millis, task.created_at)
            WHEN NEW.attempt > 0 THEN task.started_at END, -- an attempt that does not count leaves no start
        finished_at = CASE WHEN is_final THEN greatest(now_millis, task.started_at, task.created_at) END,
        reason = CASE WHEN NEW.state = 'cancelled' THEN 'requested' END,
        result = CASE WHEN NEW.state = 'completed' THEN coalesce(task.result, CASE WHEN octet_length(output) <= 131072 THEN output END) END,
        error_class = CASE WHEN NEW.state NOT IN ('running', 'completed', 'cancelled')
            THEN coalesce(task.error_class, CASE WHEN failure IS NOT NULL THEN 'error' END) END,
        error_message = CASE WHEN NEW.state NOT IN ('running', 'completed', 'cancelled')
            THEN coalesce(task.error_message, left(failure ->> 'error', 2048)) END,
        error_detail = CASE WHEN NEW.state NOT IN ('running', 'completed', 'cancelled') THEN task.error_detail END
    WHERE task.river_id = NEW.id AND task.state < 10;
    IF is_final THEN
        PERFORM pg_notify('tower_offload_ended', ''); -- once per transaction
    END IF;
    RETURN NULL;
END $$;

-- Marks the record of a deleted job as lost.
CREATE OR REPLACE FUNCTION tower_offload_deleted_2() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF to_regclass('tower_offload_task') IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE tower_offload_task AS task SET state = 14, reason = 'job_deleted', version = task.version + 1,
        finished_at = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, task.started_at, task.created_at)
    WHERE task.river_id = OLD.id AND task.state < 10;
    RETURN NULL;
END $$;

-- Marks the records of all jobs as lost. TRUNCATE fires no row triggers.
CREATE OR REPLACE FUNCTION tower_offload_truncated_2() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF to_regclass('tower_offload_task') IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE tower_offload_task AS task SET state = 14, reason = 'job_deleted', version = task.version + 1,
        finished_at = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, task.started_at, task.created_at)
    WHERE task.epoch = 0 AND task.river_id IS NOT NULL AND task.state < 10;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS tower_offload_fence_2 ON river_job;
DROP TRIGGER IF EXISTS tower_offload_changed_2 ON river_job;
DROP TRIGGER IF EXISTS tower_offload_deleted_2 ON river_job;
CREATE TRIGGER tower_offload_fence_2 BEFORE UPDATE ON river_job FOR EACH ROW EXECUTE FUNCTION tower_offload_fence_2();
CREATE TRIGGER tower_offload_changed_2 AFTER UPDATE ON river_job FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.attempt IS DISTINCT FROM NEW.attempt)
    EXECUTE FUNCTION tower_offload_changed_2();
CREATE TRIGGER tower_offload_deleted_2 AFTER DELETE ON river_job FOR EACH ROW EXECUTE FUNCTION tower_offload_deleted_2();
CREATE TRIGGER tower_offload_truncated_2 AFTER TRUNCATE ON river_job EXECUTE FUNCTION tower_offload_truncated_2();
DO $$
DECLARE
    name text;
    home regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = 'tower_offload_task'::regclass);
BEGIN
    FOREACH name IN ARRAY ARRAY['tower_offload_fence_2', 'tower_offload_changed_2', 'tower_offload_deleted_2', 'tower_offload_truncated_2'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %s, pg_temp', name, home);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %I() FROM PUBLIC', name);
    END LOOP;
END $$;
