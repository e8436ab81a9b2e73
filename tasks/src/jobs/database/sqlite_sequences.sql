-- Sequences and limits per key, like those for Postgres. A transaction that writes is the only one, so
-- the triggers act at once and need no locks. A trigger does not fire itself, neither directly nor
-- through others, so those of sequences and of limits are separate.
--
-- The queue `tower_offload_paused` has the jobs of paused kinds. Those with a limit are `pending` and
-- have no permit. They ask for it when they return to their queues.

DROP TRIGGER IF EXISTS tower_offload_joined;
DROP TRIGGER IF EXISTS tower_offload_sequence_joined;
DROP TRIGGER IF EXISTS tower_offload_sequence_left;
DROP TRIGGER IF EXISTS tower_offload_sequence_admitted;
DROP TRIGGER IF EXISTS tower_offload_limit_joined;
DROP TRIGGER IF EXISTS tower_offload_limit_left;
DROP TRIGGER IF EXISTS tower_offload_limit_admitted;
DROP TRIGGER IF EXISTS tower_offload_left;
DROP TRIGGER IF EXISTS tower_offload_left_deleted;
DROP TRIGGER IF EXISTS tower_offload_permit_returned;
DROP TRIGGER IF EXISTS tower_offload_postponed;
DROP TRIGGER IF EXISTS tower_offload_put_aside;
DROP TRIGGER IF EXISTS tower_offload_moved_back;
DROP TRIGGER IF EXISTS tower_offload_permit_wanted;
DROP TRIGGER IF EXISTS tower_offload_turn_wanted;
DROP TRIGGER IF EXISTS tower_offload_held_back;
DROP TRIGGER IF EXISTS tower_offload_rejoined;
DROP TRIGGER IF EXISTS tower_offload_promoted;

-- Makes a new job `pending`. It is promoted at once if its turn has come.
CREATE TRIGGER tower_offload_joined AFTER INSERT ON river_job
    WHEN json_valid(NEW.metadata, 9) AND (json_type(NEW.metadata, '$."tower_offload:sequence"') IS NOT NULL
        OR json_type(NEW.metadata, '$."tower_offload:at_most"') IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'job rejected: `tower_offload:sequence` in its metadata is not valid, it is a key of 1 to 255 bytes or an object with this `key` and a boolean `hold`')
    WHERE json_type(NEW.metadata, '$."tower_offload:sequence"') IS NOT NULL AND coalesce(octet_length(CASE json_type(NEW.metadata, '$."tower_offload:sequence"')
        WHEN 'text' THEN NEW.metadata ->> '$."tower_offload:sequence"'
        WHEN 'object' THEN CASE WHEN json_type(NEW.metadata, '$."tower_offload:sequence".key') = 'text'
            AND coalesce(json_type(NEW.metadata, '$."tower_offload:sequence".hold'), 'true') IN ('true', 'false')
            THEN NEW.metadata ->> '$."tower_offload:sequence".key' END END) NOT BETWEEN 1 AND 255 OR instr(CASE json_type(NEW.metadata, '$."tower_offload:sequence"')
        WHEN 'text' THEN NEW.metadata ->> '$."tower_offload:sequence"'
        WHEN 'object' THEN CASE WHEN json_type(NEW.metadata, '$."tower_offload:sequence".key') = 'text'
            AND coalesce(json_type(NEW.metadata, '$."tower_offload:sequence".hold'), 'true') IN ('true', 'false')
            THEN NEW.metadata ->> '$."tower_offload:sequence".key' END END, char(0)) > 0, 1);
    SELECT RAISE(ABORT, 'job rejected: `tower_offload:at_most` in its metadata is not valid, it is an object with a `key` of 1 to 255 bytes and a `max` of 1 to 1000')
    WHERE json_type(NEW.metadata, '$."tower_offload:at_most"') IS NOT NULL AND coalesce(octet_length(CASE WHEN json_type(NEW.metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(NEW.metadata, '$."tower_offload:at_most".max') = 'integer'
        AND NEW.metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN NEW.metadata ->> '$."tower_offload:at_most".key' END) NOT BETWEEN 1 AND 255 OR instr(CASE WHEN json_type(NEW.metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(NEW.metadata, '$."tower_offload:at_most".max') = 'integer'
        AND NEW.metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN NEW.metadata ->> '$."tower_offload:at_most".key' END, char(0)) > 0, 1);
    UPDATE river_job SET state = 'pending', unique_states = unique_states | 16 -- `pending`, which River requires too
    WHERE id = NEW.id AND (state = 'available' OR state IN ('retryable', 'scheduled') AND json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL);
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted, is_hold)
    SELECT id, 0, CASE json_type(metadata, '$."tower_offload:sequence"')
        WHEN 'text' THEN metadata ->> '$."tower_offload:sequence"'
        WHEN 'object' THEN CASE WHEN json_type(metadata, '$."tower_offload:sequence".key') = 'text'
            AND coalesce(json_type(metadata, '$."tower_offload:sequence".hold'), 'true') IN ('true', 'false')
            THEN metadata ->> '$."tower_offload:sequence".key' END END, 1, coalesce(metadata ->> '$."tower_offload:sequence".hold', 0)
    FROM river_job WHERE id = NEW.id AND state = 'pending' AND json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL;
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted)
    SELECT id, 1, CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END, metadata ->> '$."tower_offload:at_most".max'
    FROM river_job WHERE id = NEW.id AND state = 'pending' AND json_valid(metadata, 9) AND json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL
        AND NOT (json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL) AND queue <> 'tower_offload_paused';
END;

-- The first member of a sequence is its head. The others wait.
CREATE TRIGGER tower_offload_sequence_joined AFTER INSERT ON tower_offload_sequence
    WHEN NEW.is_limit = 0
BEGIN
    UPDATE tower_offload_sequence SET is_admitted = 1 WHERE position = NEW.position AND NOT EXISTS (
        SELECT 1 FROM tower_offload_sequence AS head WHERE head.key = NEW.key AND head.is_limit = 0 AND head.is_admitted = 1);
END;

CREATE TRIGGER tower_offload_sequence_left AFTER DELETE ON tower_offload_sequence
    WHEN OLD.is_limit = 0
BEGIN
    UPDATE tower_offload_sequence SET is_admitted = 1 WHERE position = (
        SELECT position FROM tower_offload_sequence AS waiting
        WHERE waiting.key = OLD.key AND waiting.is_limit = 0 AND waiting.is_admitted = 0 ORDER BY position LIMIT 1
    ) AND NOT EXISTS (
        SELECT 1 FROM tower_offload_sequence AS head WHERE head.key = OLD.key AND head.is_limit = 0 AND head.is_admitted = 1);
END;

-- The head of a sequence may run, or waits for its limit, or until it is due.
CREATE TRIGGER tower_offload_sequence_admitted AFTER UPDATE OF is_admitted ON tower_offload_sequence
    WHEN NEW.is_limit = 0 AND NEW.is_admitted = 1 AND OLD.is_admitted = 0
BEGIN
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted)
    SELECT id, 1, CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END, metadata ->> '$."tower_offload:at_most".max'
    FROM river_job WHERE id = NEW.river_id AND state = 'pending' AND json_valid(metadata, 9) AND json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL
        AND scheduled_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', '+5 seconds') AND queue <> 'tower_offload_paused'
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.river_id AND is_limit = 1);
    UPDATE river_job SET state = CASE WHEN scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now', '+5 seconds') THEN 'scheduled' ELSE 'available' END
    WHERE id = NEW.river_id AND state = 'pending'
        AND (queue <> 'tower_offload_paused' OR CASE WHEN json_valid(metadata, 9) THEN json_type(metadata, '$."tower_offload:at_most"') END IS NULL
            OR scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now', '+5 seconds'))
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.river_id AND is_limit = 1);
END;

CREATE TRIGGER tower_offload_limit_joined AFTER INSERT ON tower_offload_sequence
    WHEN NEW.is_limit = 1
BEGIN
    UPDATE tower_offload_sequence SET is_admitted = 1 WHERE position = NEW.position
        AND (SELECT count(*) FROM tower_offload_sequence AS permit
            WHERE permit.key = NEW.key AND permit.is_limit = 1 AND permit.is_admitted = 1) < NEW.max_admitted
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS waiting
            WHERE waiting.key = NEW.key AND waiting.is_limit = 1 AND waiting.is_admitted = 0 AND waiting.position < NEW.position);
END;

-- Admits those that have waited for longest, up to the first whose limit is reached.
CREATE TRIGGER tower_offload_limit_left AFTER DELETE ON tower_offload_sequence
    WHEN OLD.is_limit = 1
BEGIN
    UPDATE tower_offload_sequence SET is_admitted = 1 WHERE position IN (
        SELECT position FROM (
            SELECT position, min(max_admitted - number) OVER (ORDER BY position) AS free FROM (
                SELECT position, max_admitted, row_number() OVER (ORDER BY position) AS number FROM tower_offload_sequence AS waiting
                WHERE waiting.key = OLD.key AND waiting.is_limit = 1 AND waiting.is_admitted = 0
                ORDER BY position LIMIT 1000
            )
        ) WHERE free >= (SELECT count(*) FROM tower_offload_sequence AS permit
            WHERE permit.key = OLD.key AND permit.is_limit = 1 AND permit.is_admitted = 1));
END;

CREATE TRIGGER tower_offload_limit_admitted AFTER UPDATE OF is_admitted ON tower_offload_sequence
    WHEN NEW.is_limit = 1 AND NEW.is_admitted = 1 AND OLD.is_admitted = 0
BEGIN
    UPDATE river_job SET state = 'available' WHERE id = NEW.river_id AND state = 'pending';
END;

-- A job that has ended leaves, or blocks its sequence.
CREATE TRIGGER tower_offload_left AFTER UPDATE ON river_job
    WHEN OLD.finalized_at IS NULL AND NEW.finalized_at IS NOT NULL
BEGIN
    UPDATE tower_offload_sequence SET blocked_since = CAST(unixepoch('subsec') * 1000 AS INTEGER)
    WHERE river_id = NEW.id AND is_limit = 0 AND is_admitted = 1 AND is_hold = 1 AND NEW.state <> 'completed';
    DELETE FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 0 AND blocked_since IS NULL;
    DELETE FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1;
END;

CREATE TRIGGER tower_offload_left_deleted AFTER DELETE ON river_job
    WHEN OLD.finalized_at IS NULL
BEGIN
    UPDATE tower_offload_sequence SET blocked_since = CAST(unixepoch('subsec') * 1000 AS INTEGER)
    WHERE river_id = OLD.id AND is_limit = 0 AND is_admitted = 1 AND is_hold = 1;
    DELETE FROM tower_offload_sequence WHERE river_id = OLD.id AND is_limit = 0 AND blocked_since IS NULL;
    DELETE FROM tower_offload_sequence WHERE river_id = OLD.id AND is_limit = 1;
END;

-- A job that waits for its next attempt does not count towards its limit.
CREATE TRIGGER tower_offload_permit_returned AFTER UPDATE ON river_job
    WHEN OLD.state IN ('available', 'running') AND NEW.state IN ('retryable', 'scheduled')
BEGIN
    DELETE FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1;
END;

-- When it is due it asks again, whichever client made it available.
CREATE TRIGGER tower_offload_permit_wanted AFTER UPDATE ON river_job
    WHEN NEW.state IN ('available', 'running') AND OLD.state IN ('pending', 'retryable', 'scheduled') AND json_valid(NEW.metadata, 9)
        AND json_type(NEW.metadata, '$."tower_offload:at_most"') IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1 AND is_admitted = 1)
BEGIN
    UPDATE river_job SET state = 'pending' WHERE id = NEW.id;
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted)
    SELECT id, 1, CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END, metadata ->> '$."tower_offload:at_most".max'
    FROM river_job WHERE id = NEW.id AND state = 'pending' AND json_valid(metadata, 9) AND json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL
        AND queue <> 'tower_offload_paused'
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND (is_limit = 1 OR is_admitted = 0));
END;

-- A job that waits for its limit and is no longer due stops waiting.
CREATE TRIGGER tower_offload_postponed AFTER UPDATE OF scheduled_at ON river_job
    WHEN NEW.state = 'pending' AND NEW.scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now', '+5 seconds')
        AND (NEW.queue = 'tower_offload_paused' OR EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1))
BEGIN
    DELETE FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1;
    UPDATE river_job SET state = 'scheduled' WHERE id = NEW.id AND state = 'pending'
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_admitted = 0);
END;

-- A job of a paused kind returns its permit, and asks again when it returns to its queue.
CREATE TRIGGER tower_offload_put_aside AFTER UPDATE ON river_job
    WHEN OLD.state IN ('available', 'running') AND NEW.state = 'pending' AND NEW.queue = 'tower_offload_paused'
BEGIN
    DELETE FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1;
END;

CREATE TRIGGER tower_offload_moved_back AFTER UPDATE OF queue ON river_job
    WHEN NEW.state = 'pending' AND OLD.queue = 'tower_offload_paused' AND NEW.queue <> 'tower_offload_paused'
BEGIN
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted)
    SELECT id, 1, CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END, metadata ->> '$."tower_offload:at_most".max'
    FROM river_job WHERE id = NEW.id AND state = 'pending' AND json_valid(metadata, 9) AND json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND (is_limit = 1 OR is_admitted = 0));
END;

-- A job keeps waiting for its turn, whichever client updates it.
CREATE TRIGGER tower_offload_turn_wanted AFTER UPDATE ON river_job
    WHEN OLD.state IS NOT NEW.state AND NEW.state IN ('available', 'retryable', 'running', 'scheduled')
        AND EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 0 AND is_admitted = 0)
BEGIN
    UPDATE river_job SET state = 'pending' WHERE id = NEW.id;
END;

-- A job that was admitted, or is not due, does not wait.
CREATE TRIGGER tower_offload_held_back AFTER UPDATE ON river_job
    WHEN OLD.state IN ('available', 'retryable', 'running', 'scheduled') AND NEW.state = 'pending'
BEGIN
    UPDATE river_job SET state = CASE WHEN OLD.state IN ('retryable', 'scheduled') THEN OLD.state ELSE 'available' END
    WHERE id = NEW.id AND state = 'pending' AND json_valid(metadata, 9)
        AND (queue <> 'tower_offload_paused' OR json_type(metadata, '$."tower_offload:at_most"') IS NULL OR OLD.state IN ('retryable', 'scheduled'))
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_admitted = 0)
        AND (json_type(metadata, '$."tower_offload:at_most"') IS NULL OR OLD.state IN ('retryable', 'scheduled')
            OR EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1))
        AND (EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id)
            OR json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL AND NOT (json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL));
END;

-- A job that has ended and is retried rejoins at the end, or continues the sequence that it blocks.
CREATE TRIGGER tower_offload_rejoined AFTER UPDATE ON river_job
    WHEN OLD.finalized_at IS NOT NULL AND NEW.finalized_at IS NULL AND json_valid(NEW.metadata, 9) AND (json_type(NEW.metadata, '$."tower_offload:sequence"') IS NOT NULL
        OR json_type(NEW.metadata, '$."tower_offload:at_most"') IS NOT NULL)
BEGIN
    UPDATE river_job SET state = 'pending' WHERE id = NEW.id AND NOT (json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL AND coalesce(octet_length(CASE json_type(metadata, '$."tower_offload:sequence"')
        WHEN 'text' THEN metadata ->> '$."tower_offload:sequence"'
        WHEN 'object' THEN CASE WHEN json_type(metadata, '$."tower_offload:sequence".key') = 'text'
            AND coalesce(json_type(metadata, '$."tower_offload:sequence".hold'), 'true') IN ('true', 'false')
            THEN metadata ->> '$."tower_offload:sequence".key' END END) NOT BETWEEN 1 AND 255 OR instr(CASE json_type(metadata, '$."tower_offload:sequence"')
        WHEN 'text' THEN metadata ->> '$."tower_offload:sequence"'
        WHEN 'object' THEN CASE WHEN json_type(metadata, '$."tower_offload:sequence".key') = 'text'
            AND coalesce(json_type(metadata, '$."tower_offload:sequence".hold'), 'true') IN ('true', 'false')
            THEN metadata ->> '$."tower_offload:sequence".key' END END, char(0)) > 0, 1))
        AND NOT (json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL AND coalesce(octet_length(CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END) NOT BETWEEN 1 AND 255 OR instr(CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END, char(0)) > 0, 1));
    UPDATE tower_offload_sequence SET is_admitted = 0, blocked_since = NULL WHERE river_id = NEW.id AND blocked_since IS NOT NULL;
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted, is_hold)
    SELECT id, 0, CASE json_type(metadata, '$."tower_offload:sequence"')
        WHEN 'text' THEN metadata ->> '$."tower_offload:sequence"'
        WHEN 'object' THEN CASE WHEN json_type(metadata, '$."tower_offload:sequence".key') = 'text'
            AND coalesce(json_type(metadata, '$."tower_offload:sequence".hold'), 'true') IN ('true', 'false')
            THEN metadata ->> '$."tower_offload:sequence".key' END END, 1, coalesce(metadata ->> '$."tower_offload:sequence".hold', 0)
    FROM river_job WHERE id = NEW.id AND state = 'pending' AND json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 0);
    UPDATE tower_offload_sequence SET is_admitted = 1
    WHERE river_id = NEW.id AND is_limit = 0 AND is_admitted = 0 AND NOT EXISTS (
        SELECT 1 FROM tower_offload_sequence AS head WHERE head.key = tower_offload_sequence.key AND head.is_limit = 0 AND head.is_admitted = 1);
    INSERT INTO tower_offload_sequence (river_id, is_limit, key, max_admitted)
    SELECT id, 1, CASE WHEN json_type(metadata, '$."tower_offload:at_most".key') = 'text' AND json_type(metadata, '$."tower_offload:at_most".max') = 'integer'
        AND metadata ->> '$."tower_offload:at_most".max' BETWEEN 1 AND 1000 THEN metadata ->> '$."tower_offload:at_most".key' END, metadata ->> '$."tower_offload:at_most".max'
    FROM river_job WHERE id = NEW.id AND state = 'pending' AND json_valid(metadata, 9) AND json_type(metadata, '$."tower_offload:at_most"') IS NOT NULL
        AND NOT (json_type(metadata, '$."tower_offload:sequence"') IS NOT NULL) AND queue <> 'tower_offload_paused'
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence WHERE river_id = NEW.id AND is_limit = 1);
END;

-- Wakes the clients, as River does.
CREATE TRIGGER tower_offload_promoted AFTER UPDATE ON river_job
    WHEN OLD.state = 'pending' AND NEW.state = 'available'
BEGIN
    INSERT INTO river_notification (payload, topic) VALUES (json_object('queue', NEW.queue), 'river_insert');
END;
