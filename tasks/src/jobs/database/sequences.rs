//! Sequences and limits. The triggers decide which job may run; here are the lists and the checks.

use riverqueue::sqlx;

use super::Database;
use crate::{StoreError, TaskId, Timestamp, jobs::sequence::MAX_BLOCKED, operation::BlockedSequence};

/// Maximum number of sequences that one check heals.
const MAX_HEALED: i64 = 1000;

type BlockedRow = (String, Option<Vec<u8>>, i64, i64);

fn blocked_sequence((key, held_by, since, waiting): BlockedRow) -> BlockedSequence {
    let held_by = held_by.and_then(|id| id.try_into().ok()).map(TaskId::from_bytes);
    let since = Timestamp::from_millis(u64::try_from(since).unwrap_or_default());
    BlockedSequence::new(key, held_by, since, u64::try_from(waiting).unwrap_or_default())
}

impl Database {
    /// Returns the sequences that hold because a job has failed.
    pub(in crate::jobs) async fn blocked_sequences(&self) -> Result<Vec<BlockedSequence>, StoreError> {
        let rows: Vec<BlockedRow> = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => {
                let query = sqlx::query_as(postgres::BLOCKED).bind(MAX_BLOCKED);
                postgres.read(async |connection| query.fetch_all(connection).await).await?
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(sqlite) => {
                let query = sqlx::query_as(sqlite::BLOCKED).bind(MAX_BLOCKED);
                sqlite.read(async |connection| query.fetch_all(connection).await).await?
            }
        };
        Ok(rows.into_iter().map(blocked_sequence).collect())
    }

    /// Continues a sequence that holds. Returns `false` if it does not.
    pub(in crate::jobs) async fn release_sequence(&self, key: &str) -> Result<bool, StoreError> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => {
                let release = sqlx::query_scalar::<_, i64>(postgres::RELEASE).bind(key);
                let released = postgres.read(async |connection| release.fetch_one(connection).await);
                released.await.map(|released| released > 0)
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(sqlite) => {
                let released = sqlite.change(async |connection| {
                    sqlx::query(sqlite::RELEASE).bind(key).execute(connection).await.map(|done| done.rows_affected())
                });
                released.await.map(|released| released > 0)
            }
        }
    }

    /// Heals sequences and limits in which no job can run although jobs wait. Returns the number of
    /// jobs that were wrong. There are none, unless the triggers were disabled. Those of paused
    /// kinds wait without a permit.
    pub(in crate::jobs) async fn heal_sequences(&self) -> Result<u64, StoreError> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => {
                let heal = sqlx::query_scalar::<_, i64>(postgres::HEAL).bind(MAX_HEALED);
                let healed = postgres.read(async |connection| heal.fetch_one(connection).await);
                healed.await.map(|healed| u64::try_from(healed).unwrap_or_default())
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(sqlite) => {
                let healed = sqlite.change(async |connection| {
                    let mut healed = 0;
                    for heal in sqlite::HEAL {
                        healed += sqlx::query(heal).bind(MAX_HEALED).execute(&mut *connection).await?.rows_affected();
                    }
                    Ok(healed)
                });
                healed.await
            }
        }
    }
}

#[cfg(feature = "postgres")]
pub(super) mod postgres {
    pub(super) const BLOCKED: &str = "
SELECT blocked.key, task.id, (extract(epoch FROM blocked.blocked_since) * 1000)::bigint, (SELECT count(*) FROM (
        SELECT 1 FROM tower_offload_sequence AS waiting
        WHERE waiting.key = blocked.key AND NOT waiting.is_limit AND NOT waiting.is_admitted LIMIT $1) AS waiting)
FROM tower_offload_sequence AS blocked LEFT JOIN tower_offload_task AS task ON task.river_id = blocked.river_id
WHERE blocked.blocked_since IS NOT NULL ORDER BY blocked.blocked_since, blocked.key LIMIT $1";

    /// Only the transaction's settlement changes members, see `sequences.sql`.
    pub(super) const RELEASE: &str = "
WITH released AS (
    INSERT INTO tower_offload_touched (xact, river_id, sequence, is_released)
    SELECT txid_current(), river_id, key, true FROM tower_offload_sequence WHERE key = $1 AND blocked_since IS NOT NULL
    RETURNING 1
), settle AS (
    INSERT INTO tower_offload_touched (xact, river_id) SELECT txid_current(), 0 FROM released RETURNING 1
)
SELECT count(*) FROM settle";

    /// Settles the keys of at most `$1` jobs that were skipped because other transactions had
    /// locked them.
    pub(in super::super) const RETRY_SKIPPED: &str = "
WITH skipped AS (
    INSERT INTO tower_offload_touched (xact, river_id, sequence, at_most)
    SELECT txid_current(), river_id, max(key) FILTER (WHERE NOT is_limit), max(key) FILTER (WHERE is_limit)
    FROM tower_offload_sequence WHERE river_id IN (SELECT river_id FROM tower_offload_sequence WHERE is_skipped LIMIT $1)
    GROUP BY river_id RETURNING 1
)
INSERT INTO tower_offload_touched (xact, river_id) SELECT txid_current(), 0 WHERE EXISTS (SELECT 1 FROM skipped)";

    /// Every transaction settles its keys when it commits, so a snapshot shows none of these:
    ///
    /// 1. a key with waiting members, none of which is admitted,
    /// 2. a member whose job has ended or does not exist, or a permit of a job that waits for its
    ///    next attempt,
    /// 3. a job that waits although it is admitted, and that was not skipped,
    /// 4. a job that waits and is no member.
    pub(super) const HEAL: &str = "
WITH wrong AS (
    SELECT * FROM (
        SELECT river_id FROM (
            SELECT DISTINCT ON (member.key, member.is_limit) member.river_id FROM tower_offload_sequence AS member
            WHERE NOT member.is_admitted AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS other
                WHERE other.key = member.key AND other.is_limit = member.is_limit AND other.is_admitted)
            ORDER BY member.key, member.is_limit, member.position
        ) AS stuck
        UNION SELECT member.river_id FROM tower_offload_sequence AS member LEFT JOIN river_job AS job ON job.id = member.river_id
        WHERE member.blocked_since IS NULL
            AND (job.id IS NULL OR job.finalized_at IS NOT NULL OR member.is_limit AND job.state IN ('retryable', 'scheduled'))
        UNION SELECT member.river_id FROM tower_offload_sequence AS member JOIN river_job AS job ON job.id = member.river_id
        WHERE member.is_admitted AND job.state = 'pending' AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS other
            WHERE other.river_id = member.river_id AND (other.is_skipped OR NOT other.is_admitted))
            AND job.queue <> 'tower_offload_paused'
        UNION SELECT job.id FROM river_job AS job
        WHERE job.state = 'pending' AND job.queue <> 'tower_offload_paused' AND job.metadata ?| ARRAY['tower_offload:sequence', 'tower_offload:at_most']
            AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS member WHERE member.river_id = job.id)
            AND coalesce(tower_offload_key(job.metadata, false), tower_offload_key(job.metadata, true)) IS NOT NULL
    ) AS wrong LIMIT $1
), touched AS (
    INSERT INTO tower_offload_touched (xact, river_id, sequence, at_most)
    SELECT txid_current(), wrong.river_id,
        coalesce((SELECT key FROM tower_offload_sequence AS member WHERE member.river_id = wrong.river_id AND NOT member.is_limit),
            tower_offload_key(job.metadata, false)),
        coalesce((SELECT key FROM tower_offload_sequence AS member WHERE member.river_id = wrong.river_id AND member.is_limit),
            tower_offload_key(job.metadata, true))
    FROM wrong LEFT JOIN river_job AS job ON job.id = wrong.river_id RETURNING 1
), settle AS (
    INSERT INTO tower_offload_touched (xact, river_id) SELECT txid_current(), 0 WHERE EXISTS (SELECT 1 FROM touched)
)
SELECT count(*) FROM touched";
}

#[cfg(feature = "sqlite")]
mod sqlite {
    pub(super) const BLOCKED: &str = "
SELECT blocked.key, task.id, blocked.blocked_since, (SELECT count(*) FROM (
        SELECT 1 FROM tower_offload_sequence AS waiting
        WHERE waiting.key = blocked.key AND waiting.is_limit = 0 AND waiting.is_admitted = 0 LIMIT $1) AS waiting)
FROM tower_offload_sequence AS blocked LEFT JOIN tower_offload_task AS task ON task.river_id = blocked.river_id
WHERE blocked.blocked_since IS NOT NULL ORDER BY blocked.blocked_since, blocked.key LIMIT $1";

    /// A trigger admits the next job.
    pub(super) const RELEASE: &str = "DELETE FROM tower_offload_sequence WHERE key = $1 AND blocked_since IS NOT NULL";

    /// Heads that block their sequence, jobs that wait although they are admitted, members whose
    /// jobs have ended or do not exist, and keys without an admitted member. Triggers do the rest.
    pub(super) const HEAL: [&str; 4] = [
        "
UPDATE tower_offload_sequence SET blocked_since = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE position IN (
    SELECT member.position FROM tower_offload_sequence AS member LEFT JOIN river_job AS job ON job.id = member.river_id
    WHERE member.is_limit = 0 AND member.is_admitted = 1 AND member.is_hold = 1 AND member.blocked_since IS NULL
        AND (job.id IS NULL OR job.finalized_at IS NOT NULL AND job.state <> 'completed') LIMIT $1)",
        "
UPDATE river_job SET state = CASE WHEN scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now', '+5 seconds') THEN 'scheduled' ELSE 'available' END
WHERE id IN (
    SELECT job.id FROM tower_offload_sequence AS member JOIN river_job AS job ON job.id = member.river_id
    WHERE member.is_admitted = 1 AND job.state = 'pending' AND job.queue <> 'tower_offload_paused'
        AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS other
            WHERE other.river_id = job.id AND other.is_admitted = 0) LIMIT $1)",
        "
DELETE FROM tower_offload_sequence WHERE position IN (
    SELECT member.position FROM tower_offload_sequence AS member LEFT JOIN river_job AS job ON job.id = member.river_id
    WHERE member.blocked_since IS NULL AND (job.id IS NULL OR job.finalized_at IS NOT NULL
        OR member.is_limit = 1 AND job.state IN ('retryable', 'scheduled')) LIMIT $1)",
        "
UPDATE tower_offload_sequence SET is_admitted = 1 WHERE position IN (
    SELECT member.position FROM tower_offload_sequence AS member
    WHERE member.is_admitted = 0 AND NOT EXISTS (SELECT 1 FROM tower_offload_sequence AS other
        WHERE other.key = member.key AND other.is_limit = member.is_limit
            AND (other.is_admitted = 1 OR other.position < member.position)) LIMIT $1)",
    ];
}
