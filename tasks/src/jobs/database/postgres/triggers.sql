-- Triggers on River's table. The comment of the fence is their version, which the installation
-- compares.
--
-- The functions are SECURITY DEFINER, so that users who may change jobs need no rights on the
-- tables of this crate. Their search path is fixed, with pg_temp last, and other users may not
-- execute them.

-- Fence around jobs that are worked by this crate. Each connection of a River client of this crate
-- sets `tower_offload.client` to the id of the client. Each end of an attempt names its claim in
-- the metadata: when the job was claimed, by the clock of this server, and the delay before the
-- next attempt.
--
-- 1. An end has no effect unless its claim is the current one. The job may have been recovered,
--    handed back or claimed again, by another process or by the same one, before River writes the
--    end. The name of the claim is not stored, and one that another program has stored is no end.
-- 2. The next attempt is due after the delay by the clock of this server. River writes times of the
--    clock of its host. Only the end of a row that River cannot decode has no claim, and keeps
--    River's time.
-- 3. River's leader rescues jobs that have been running for an hour, and discards those of a kind
--    that it does not know. A job whose client has a valid lease is not rescued. A leader of this
--    crate retries jobs of other clients instead of discarding them.
-- 4. If the tables of this crate were dropped, River works without them.
CREATE OR REPLACE FUNCTION tower_offload_fence() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    writer text := current_setting('tower_offload.client', true);
    worker text := OLD.attempted_by[array_upper(OLD.attempted_by, 1)];
    is_rescue boolean := NEW.metadata -> 'river:rescue_count' IS DISTINCT FROM OLD.metadata -> 'river:rescue_count';
    claim jsonb := NEW.metadata -> 'tower_offload:end';
BEGIN
    IF claim IS NOT NULL THEN
        NEW.metadata := NEW.metadata - 'tower_offload:end';
    END IF;
    IF claim IS NOT NULL AND claim IS DISTINCT FROM OLD.metadata -> 'tower_offload:end' THEN
        IF OLD.state <> 'running' OR claim ->> 'claimed_at' IS DISTINCT FROM (extract(epoch FROM OLD.attempted_at) * 1000000)::bigint::text THEN
            RETURN NULL;
        END IF;
        IF NEW.state IN ('available', 'retryable', 'scheduled') AND jsonb_typeof(claim -> 'delay') = 'number' THEN
            NEW.scheduled_at := clock_timestamp() + (claim ->> 'delay')::bigint * interval '1 millisecond';
        END IF;
        IF NEW.finalized_at IS NOT NULL THEN
            NEW.finalized_at := clock_timestamp();
        END IF;
    END IF;
    IF OLD.state <> 'running' THEN
        RETURN NEW;
    END IF;
    IF writer LIKE 'to-%' AND worker IS DISTINCT FROM writer AND NOT (is_rescue AND worker NOT LIKE 'to-%') AND NEW.state <> 'running' THEN
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

-- Schedules a delayed job by the clock of this server. River writes the time of the clock of its
-- host. Also removes the end of another job, whose metadata a program has copied.
CREATE OR REPLACE FUNCTION tower_offload_inserted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    NEW.metadata := NEW.metadata - 'tower_offload:end';
    IF jsonb_typeof(NEW.metadata -> 'tower_offload:delay') = 'number' THEN
        NEW.scheduled_at := clock_timestamp() + (NEW.metadata ->> 'tower_offload:delay')::bigint * interval '1 millisecond';
        NEW.metadata := NEW.metadata - 'tower_offload:delay';
    END IF;
    RETURN NEW;
END $$;

-- Copies each change of a job's state to its record. Each update of a job that has ended does so
-- again, for ends that were written while the triggers were disabled. A job that has ended and is
-- retried reopens its record.
CREATE OR REPLACE FUNCTION tower_offload_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
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
    IF OLD.finalized_at IS NOT NULL AND NOT is_final THEN
        UPDATE tower_offload_task AS task SET state = 0, progress = NULL, message = NULL, finished_at = NULL, cancel_requested_at = NULL,
            reason = NULL, result = NULL, error_class = NULL, error_message = NULL, error_detail = NULL, retained_since = NULL
        WHERE task.river_id = NEW.id AND task.state >= 10;
    END IF;
    UPDATE tower_offload_task AS task SET
        state = CASE
            WHEN NEW.state = 'running' THEN 1
            WHEN NEW.state = 'completed' THEN 10
            WHEN NEW.state = 'cancelled' THEN 12
            WHEN NEW.state = 'discarded' AND task.error_class = 'timeout' THEN 13
            WHEN NEW.state = 'discarded' THEN 11
            ELSE 0 END,
        -- A process of an earlier version inserts none.
        queue = coalesce(task.queue, nullif(NEW.queue, 'tower_offload_paused')),
        attempt = NEW.attempt,
        max_attempts = NEW.max_attempts,
        due_at = CASE WHEN NEW.state IN ('available', 'pending', 'scheduled', 'retryable') AND NEW.scheduled_at > clock_timestamp()
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

-- Marks the record of a deleted job, or after a TRUNCATE those of all jobs, as lost. OLD is NULL
-- then.
CREATE OR REPLACE FUNCTION tower_offload_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    -- The TRUNCATE has excluded all other transactions that have changed jobs.
    IF TG_OP = 'TRUNCATE' AND to_regclass('tower_offload_sequence') IS NOT NULL THEN
        DELETE FROM tower_offload_sequence;
    END IF;
    IF to_regclass('tower_offload_task') IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE tower_offload_task AS task SET state = 14, reason = 'job_deleted', version = task.version + 1,
        finished_at = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, task.started_at, task.created_at)
    WHERE task.epoch = 0 AND task.river_id IS NOT NULL AND task.state < 10 AND (TG_OP = 'TRUNCATE' OR task.river_id = OLD.id);
    RETURN NULL;
END $$;
DO $$
DECLARE
    -- Of earlier versions. Otherwise both would run.
    old text[] := ARRAY['fence_1', 'changed_1', 'deleted_1', 'fence_2', 'changed_2', 'deleted_2', 'truncated_2', 'delayed'];
    name text;
BEGIN
    FOREACH name IN ARRAY old || ARRAY['fence', 'inserted', 'changed', 'deleted', 'truncated'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS tower_offload_%s ON river_job', name);
    END LOOP;
    FOREACH name IN ARRAY old LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS tower_offload_%s()', name);
    END LOOP;
END $$;
CREATE TRIGGER tower_offload_fence BEFORE UPDATE ON river_job FOR EACH ROW EXECUTE FUNCTION tower_offload_fence();
CREATE TRIGGER tower_offload_inserted BEFORE INSERT ON river_job FOR EACH ROW
    WHEN (NEW.metadata ?| ARRAY['tower_offload:delay', 'tower_offload:end']) EXECUTE FUNCTION tower_offload_inserted();
CREATE TRIGGER tower_offload_changed AFTER UPDATE ON river_job FOR EACH ROW
    -- The record does not show that a job is promoted in its sequence.
    WHEN ((OLD.state IS DISTINCT FROM NEW.state AND NOT (OLD.state = 'pending' AND NEW.state IN ('available', 'scheduled')))
        OR OLD.attempt IS DISTINCT FROM NEW.attempt OR NEW.finalized_at IS NOT NULL)
    EXECUTE FUNCTION tower_offload_changed();
CREATE TRIGGER tower_offload_deleted AFTER DELETE ON river_job FOR EACH ROW EXECUTE FUNCTION tower_offload_deleted();
CREATE TRIGGER tower_offload_truncated AFTER TRUNCATE ON river_job EXECUTE FUNCTION tower_offload_deleted();
DO $$
DECLARE
    name text;
    home regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = 'tower_offload_task'::regclass);
BEGIN
    FOREACH name IN ARRAY ARRAY['tower_offload_fence', 'tower_offload_inserted', 'tower_offload_changed', 'tower_offload_deleted'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %s, pg_temp', name, home);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %I() FROM PUBLIC', name);
    END LOOP;
END $$;
-- Jobs of earlier versions.
UPDATE tower_offload_task AS task SET queue = job.queue FROM river_job AS job WHERE job.id = task.river_id AND task.queue IS NULL;
