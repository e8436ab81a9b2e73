-- Sequences and limits per key. ARCHITECTURE.md has the invariants and the order of the locks.
--
-- A job names its sequence and its limit in the metadata, which any client can set:
--
--     "tower_offload:sequence": "customer:7" or {"key": "customer:7", "hold": true}
--     "tower_offload:at_most": {"key": "api", "max": 3}
--
-- A job that may not run yet is `pending`. `tower_offload_sequence` has its members. The triggers on
-- `river_job` note which jobs a transaction has changed in `tower_offload_touched`, and the
-- transaction settles their keys when it commits, in `tower_offload_settle`. Only that function
-- writes the members, while it holds the locks of their keys.
--
-- The queue `tower_offload_paused` has the jobs of paused kinds. Those with a limit are `pending` and
-- have no permit. They ask for it when they return to their queues.

-- Returns the key of the sequence, or of the limit, or NULL if there is none or it is not valid.
CREATE OR REPLACE FUNCTION tower_offload_key(metadata jsonb, is_limit boolean) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN octet_length(value.key) BETWEEN 1 AND 255 THEN value.key END FROM (
        SELECT CASE
            WHEN is_limit THEN CASE
                WHEN jsonb_typeof(metadata #> '{tower_offload:at_most,key}') = 'string'
                    AND metadata #>> '{tower_offload:at_most,max}' ~ '^([1-9][0-9]{0,2}|1000)$'
                THEN metadata #>> '{tower_offload:at_most,key}' END
            WHEN jsonb_typeof(metadata -> 'tower_offload:sequence') = 'string' THEN metadata ->> 'tower_offload:sequence'
            WHEN jsonb_typeof(metadata #> '{tower_offload:sequence,key}') = 'string'
                AND coalesce(jsonb_typeof(metadata #> '{tower_offload:sequence,hold}'), 'boolean') = 'boolean'
            THEN metadata #>> '{tower_offload:sequence,key}' END AS key
    ) AS value
$$;

-- Makes a new job `pending`. Its transaction promotes it when it commits, if its turn has come.
CREATE OR REPLACE FUNCTION tower_offload_joining() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    has_sequence boolean := NEW.metadata ? 'tower_offload:sequence';
BEGIN
    IF to_regclass('tower_offload_sequence') IS NULL OR to_regclass('tower_offload_touched') IS NULL THEN
        RETURN NEW;
    END IF;
    IF has_sequence AND tower_offload_key(NEW.metadata, false) IS NULL THEN
        RAISE EXCEPTION 'job rejected: `tower_offload:sequence` in its metadata is not valid'
            USING ERRCODE = '22023', HINT = 'It is a key of 1 to 255 bytes, or an object with this `key` and a boolean `hold`.';
    END IF;
    IF NEW.metadata ? 'tower_offload:at_most' AND tower_offload_key(NEW.metadata, true) IS NULL THEN
        RAISE EXCEPTION 'job rejected: `tower_offload:at_most` in its metadata is not valid'
            USING ERRCODE = '22023', HINT = 'It is an object with a `key` of 1 to 255 bytes and a `max` of 1 to 1000.';
    END IF;
    IF NEW.state = 'available' OR has_sequence AND NEW.state IN ('retryable', 'scheduled') THEN
        NEW.state := 'pending';
    END IF;
    IF NEW.unique_states IS NOT NULL THEN
        NEW.unique_states := set_bit(NEW.unique_states, 3, 1); -- `pending`, which River requires too
    END IF;
    RETURN NEW;
END $$;

-- Keeps a job `pending` until it is admitted, whichever client updates it. The keys of a job do not
-- change.
CREATE OR REPLACE FUNCTION tower_offload_sequenced() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    name text;
    was_final boolean := OLD.finalized_at IS NOT NULL;
    is_waiting boolean;
    has_turn boolean;
    has_permit boolean;
BEGIN
    FOREACH name IN ARRAY ARRAY['tower_offload:sequence', 'tower_offload:at_most'] LOOP
        IF OLD.metadata -> name IS DISTINCT FROM NEW.metadata -> name THEN
            NEW.metadata := NEW.metadata - name;
            IF OLD.metadata ? name THEN
                NEW.metadata := NEW.metadata || jsonb_build_object(name, OLD.metadata -> name);
            END IF;
        END IF;
    END LOOP;
    IF NEW.state NOT IN ('available', 'retryable', 'running', 'scheduled') OR to_regclass('tower_offload_sequence') IS NULL
        OR to_regclass('tower_offload_touched') IS NULL
    THEN
        RETURN NEW;
    END IF;
    SELECT bool_or(NOT is_admitted) FILTER (WHERE NOT is_limit), bool_or(is_admitted) FILTER (WHERE NOT is_limit),
        bool_or(is_admitted) FILTER (WHERE is_limit)
        INTO is_waiting, has_turn, has_permit FROM tower_offload_sequence WHERE river_id = NEW.id;
    -- A job that has ended may have left meanwhile, so it always asks again.
    IF tower_offload_key(NEW.metadata, false) IS NOT NULL AND (was_final OR is_waiting OR OLD.state = 'pending' AND has_turn IS NULL) THEN
        NEW.state := 'pending';
    ELSIF tower_offload_key(NEW.metadata, true) IS NOT NULL AND NEW.state IN ('available', 'running')
        AND (was_final OR has_permit IS NOT TRUE AND OLD.state NOT IN ('available', 'running'))
    THEN
        NEW.state := 'pending';
    END IF;
    RETURN NEW;
END $$;

-- Notes that this transaction has changed a job. The row 0 makes it settle once.
CREATE OR REPLACE FUNCTION tower_offload_touch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    job record;
BEGIN
    IF to_regclass('tower_offload_touched') IS NULL OR to_regclass('tower_offload_sequence') IS NULL THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        job := OLD;
    ELSE
        job := NEW;
    END IF;
    INSERT INTO tower_offload_touched (xact, river_id, sequence, at_most) VALUES
        (txid_current(), 0, NULL, NULL),
        (txid_current(), job.id, tower_offload_key(job.metadata, false), tower_offload_key(job.metadata, true))
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- Settles the keys of the jobs that this transaction has changed: members whose jobs have ended
-- leave, new ones join, and those whose turn has come are promoted. Runs when the transaction
-- commits.
--
-- 1. The locks of all its sequences, in the order of their numbers, and then those of all its
--    limits. Each statement after a lock sees what the previous holder has committed, which needs
--    READ COMMITTED.
-- 2. A job that another transaction has locked is not waited for, because that one may be waiting
--    for a lock of this one. It is skipped, and promoted when that transaction settles, or by the
--    next tick of a process (`retry_skipped`).
CREATE OR REPLACE FUNCTION tower_offload_settle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    ids bigint[];
    sequences text[];
    limits text[];
    releases boolean[];
    candidates bigint[];
    ready bigint[];
    promoted bigint[];
    queues text[];
    bucket integer;
    name text;
    admitted integer;
    waiter record;
    soon timestamptz := clock_timestamp() + interval '5 seconds';
BEGIN
    WITH touched AS (DELETE FROM tower_offload_touched WHERE xact = txid_current() RETURNING *)
    SELECT array_agg(river_id ORDER BY river_id), array_agg(sequence ORDER BY river_id), array_agg(at_most ORDER BY river_id),
        array_agg(is_released ORDER BY river_id)
        INTO ids, sequences, limits, releases FROM touched WHERE river_id <> 0;
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'a transaction that inserts or ends jobs with a sequence or a limit must be READ COMMITTED, and this one is %',
            upper(current_setting('transaction_isolation')) USING ERRCODE = '0A000', HINT = 'BEGIN ISOLATION LEVEL READ COMMITTED';
    END IF;
    FOR bucket IN SELECT DISTINCT hashtext(key) & 1023 FROM unnest(sequences) AS touched(key) WHERE key IS NOT NULL ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(1953458020, bucket);
    END LOOP;

    WITH ended AS (
        SELECT member.river_id,
            member.is_admitted AND member.is_hold AND NOT touched.is_released AND job.state IS DISTINCT FROM 'completed' AS is_blocking
        FROM unnest(ids, releases) AS touched(river_id, is_released)
        JOIN tower_offload_sequence AS member ON member.river_id = touched.river_id AND NOT member.is_limit
        LEFT JOIN river_job AS job ON job.id = touched.river_id
        WHERE job.id IS NULL OR job.finalized_at IS NOT NULL
    ), blocked AS (
        UPDATE tower_offload_sequence AS member SET blocked_since = clock_timestamp() FROM ended
        WHERE ended.is_blocking AND member.river_id = ended.river_id AND NOT member.is_limit AND member.blocked_since IS NULL
    )
    DELETE FROM tower_offload_sequence AS member USING ended
    WHERE NOT ended.is_blocking AND member.river_id = ended.river_id AND NOT member.is_limit;
    -- The job that blocks its sequence was retried.
    UPDATE tower_offload_sequence AS member SET blocked_since = NULL
    WHERE member.river_id = ANY(ids) AND NOT member.is_limit AND member.blocked_since IS NOT NULL
        AND EXISTS (SELECT 1 FROM river_job AS job WHERE job.id = member.river_id AND job.finalized_at IS NULL);
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted, is_hold)
    SELECT job.id, false, touched.key, 1, coalesce((job.metadata #>> '{tower_offload:sequence,hold}')::boolean, false)
    FROM unnest(ids, sequences) AS touched(river_id, key) JOIN river_job AS job ON job.id = touched.river_id
    WHERE touched.key IS NOT NULL AND job.state = 'pending'
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS member WHERE member.river_id = job.id AND NOT member.is_limit)
    ORDER BY job.id;
    WITH head AS (
        UPDATE tower_offload_sequence AS member SET is_admitted = true
        FROM (SELECT DISTINCT key FROM unnest(sequences) AS touched(key) WHERE key IS NOT NULL) AS touched
        CROSS JOIN LATERAL (
            SELECT waiting.river_id FROM tower_offload_sequence AS waiting
            WHERE waiting.key = touched.key AND NOT waiting.is_limit AND NOT waiting.is_admitted ORDER BY waiting.position LIMIT 1
        ) AS first
        WHERE member.river_id = first.river_id AND NOT member.is_limit AND NOT EXISTS (
            SELECT 1 FROM tower_offload_sequence AS head WHERE head.key = touched.key AND NOT head.is_limit AND head.is_admitted)
        RETURNING member.river_id
    )
    SELECT ids || coalesce(array_agg(head.river_id), '{}') INTO candidates FROM head;

    SELECT array_agg(touched.key) INTO limits FROM (
        SELECT key FROM unnest(limits) AS own(key)
        UNION SELECT tower_offload_key(job.metadata, true) FROM river_job AS job WHERE job.id = ANY(candidates)
    ) AS touched WHERE touched.key IS NOT NULL;
    IF limits IS NOT NULL THEN
        FOR bucket IN SELECT DISTINCT hashtext(key) & 1023 FROM unnest(limits) AS touched(key) ORDER BY 1 LOOP
            PERFORM pg_advisory_xact_lock(1953458021, bucket);
        END LOOP;
        -- Not before that of the previous holder, so a job that it has let wait for the limit is due.
        soon := clock_timestamp() + interval '5 seconds';
        DELETE FROM tower_offload_sequence AS member
        WHERE member.river_id = ANY(ids) AND member.is_limit AND NOT EXISTS (
            SELECT 1 FROM river_job AS job WHERE job.id = member.river_id AND (job.state IN ('available', 'running')
                OR job.state = 'pending' AND job.scheduled_at <= soon AND job.queue <> 'tower_offload_paused'));
        INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted)
        SELECT job.id, true, tower_offload_key(job.metadata, true), (job.metadata #>> '{tower_offload:at_most,max}')::integer
        FROM river_job AS job
        WHERE job.id = ANY(candidates) AND job.state = 'pending' AND tower_offload_key(job.metadata, true) IS NOT NULL
            AND job.scheduled_at <= soon AND job.queue <> 'tower_offload_paused'
            AND (tower_offload_key(job.metadata, false) IS NULL OR EXISTS (
                SELECT 1 FROM tower_offload_sequence AS head
                WHERE head.river_id = job.id AND NOT head.is_limit AND head.is_admitted AND head.blocked_since IS NULL))
            AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS member WHERE member.river_id = job.id AND member.is_limit)
        ORDER BY job.id;
        FOREACH name IN ARRAY limits LOOP
            SELECT count(*) INTO admitted FROM tower_offload_sequence AS member
            WHERE member.key = name AND member.is_limit AND member.is_admitted;
            FOR waiter IN
                SELECT member.river_id, member.max_admitted FROM tower_offload_sequence AS member
                WHERE member.key = name AND member.is_limit AND NOT member.is_admitted ORDER BY member.position
            LOOP
                EXIT WHEN admitted >= waiter.max_admitted;
                UPDATE tower_offload_sequence SET is_admitted = true WHERE river_id = waiter.river_id AND is_limit;
                admitted := admitted + 1;
                candidates := candidates || waiter.river_id;
            END LOOP;
        END LOOP;
    END IF;

    -- Of a job that another key has admitted, this transaction may have only the lock of the limit.
    UPDATE tower_offload_sequence SET is_skipped = false
    WHERE is_skipped AND river_id = ANY(candidates) AND key = ANY(CASE WHEN is_limit THEN limits ELSE sequences END);
    SELECT array_agg(job.id) INTO ready FROM river_job AS job
    WHERE job.id = ANY(candidates) AND job.state = 'pending'
        AND (tower_offload_key(job.metadata, false) IS NULL OR EXISTS (
            SELECT 1 FROM tower_offload_sequence AS head
            WHERE head.river_id = job.id AND NOT head.is_limit AND head.is_admitted AND head.blocked_since IS NULL))
        AND (tower_offload_key(job.metadata, true) IS NULL OR job.scheduled_at > soon
            OR EXISTS (SELECT 1 FROM tower_offload_sequence AS permit WHERE permit.river_id = job.id AND permit.is_limit AND permit.is_admitted));
    IF ready IS NULL THEN
        RETURN NULL;
    END IF;
    WITH free AS (
        SELECT job.id FROM river_job AS job WHERE job.id = ANY(ready) AND job.state = 'pending' ORDER BY job.id FOR UPDATE SKIP LOCKED
    ), changed AS (
        UPDATE river_job AS job SET state = (CASE WHEN job.scheduled_at > soon
            THEN 'scheduled' ELSE 'available' END)::river_job_state
        FROM free WHERE job.id = free.id RETURNING job.id, job.queue, job.state
    )
    SELECT coalesce(array_agg(changed.id), '{}'), array_agg(DISTINCT changed.queue) FILTER (WHERE changed.state = 'available')
        INTO promoted, queues FROM changed;
    IF cardinality(promoted) < cardinality(ready) THEN
        UPDATE tower_offload_sequence SET is_skipped = true
        WHERE river_id = ANY(ready) AND NOT river_id = ANY(promoted) AND key = ANY(CASE WHEN is_limit THEN limits ELSE sequences END);
    END IF;
    PERFORM pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', woken.queue)::text)
    FROM unnest(queues) AS woken(queue);
    RETURN NULL;
END $$;

DO $$
DECLARE
    name text;
    home regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = 'tower_offload_task'::regclass);
BEGIN
    FOREACH name IN ARRAY ARRAY['joining', 'sequenced', 'touched_by_insert', 'touched_by_update', 'touched_by_delete'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS tower_offload_%s ON river_job', name);
    END LOOP;
    DROP TRIGGER IF EXISTS tower_offload_settle ON tower_offload_touched;
    FOREACH name IN ARRAY ARRAY['tower_offload_joining', 'tower_offload_sequenced', 'tower_offload_touch', 'tower_offload_settle'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %s, pg_temp', name, home);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %I() FROM PUBLIC', name);
    END LOOP;
END $$;
-- A plan may be made while the tables are empty, and is then kept.
ALTER FUNCTION tower_offload_settle() SET enable_seqscan = off;
ALTER FUNCTION tower_offload_settle() SET enable_hashjoin = off;
ALTER FUNCTION tower_offload_settle() SET enable_mergejoin = off;
CREATE TRIGGER tower_offload_joining BEFORE INSERT ON river_job FOR EACH ROW
    WHEN (NEW.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most']) EXECUTE FUNCTION tower_offload_joining();
CREATE TRIGGER tower_offload_sequenced BEFORE UPDATE ON river_job FOR EACH ROW
    WHEN (OLD.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most']
        OR NEW.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most']) EXECUTE FUNCTION tower_offload_sequenced();
CREATE TRIGGER tower_offload_touched_by_insert AFTER INSERT ON river_job FOR EACH ROW
    WHEN (NEW.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most']) EXECUTE FUNCTION tower_offload_touch();
CREATE TRIGGER tower_offload_touched_by_update AFTER UPDATE ON river_job FOR EACH ROW
    WHEN (NEW.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most'] AND (NEW.state = 'pending'
        OR (OLD.finalized_at IS NULL) <> (NEW.finalized_at IS NULL)
        OR NEW.metadata ? 'tower_offload:at_most' AND OLD.state IN ('available', 'running') AND NEW.state IN ('retryable', 'scheduled')))
    EXECUTE FUNCTION tower_offload_touch();
CREATE TRIGGER tower_offload_touched_by_delete AFTER DELETE ON river_job FOR EACH ROW
    WHEN (OLD.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most'] AND OLD.finalized_at IS NULL)
    EXECUTE FUNCTION tower_offload_touch();
CREATE CONSTRAINT TRIGGER tower_offload_settle AFTER INSERT ON tower_offload_touched DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.river_id = 0) EXECUTE FUNCTION tower_offload_settle();
