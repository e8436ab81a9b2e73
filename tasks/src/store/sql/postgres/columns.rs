use sqlx::{Postgres, postgres::PgArguments, query::Query};

use crate::{Record, store::sql::row::Values};

/// Binds one array per column, so that a statement has the same text for any number of records.
pub(crate) fn bind<'q>(
    query: Query<'q, Postgres, PgArguments>,
    records: &[&Record],
) -> Query<'q, Postgres, PgArguments> {
    let rows: Vec<_> = records.iter().map(|record| Values::from(*record)).collect();
    query
        .bind(column(&rows, |row| row.id))
        .bind(column(&rows, |row| &*row.name))
        .bind(column(&rows, |row| row.owner.as_deref()))
        .bind(column(&rows, |row| row.state))
        .bind(column(&rows, |row| row.attempt))
        .bind(column(&rows, |row| row.max_attempts))
        .bind(column(&rows, |row| row.progress))
        .bind(column(&rows, |row| row.message.as_deref()))
        .bind(column(&rows, |row| row.version))
        .bind(column(&rows, |row| row.created_at))
        .bind(column(&rows, |row| row.started_at))
        .bind(column(&rows, |row| row.finished_at))
        .bind(column(&rows, |row| row.cancel_requested_at))
        .bind(column(&rows, |row| row.reason))
        .bind(column(&rows, |row| row.result))
        .bind(column(&rows, |row| row.error_class.as_deref()))
        .bind(column(&rows, |row| row.error_message.as_deref()))
        .bind(column(&rows, |row| row.error_detail))
}

fn column<'a, T>(rows: &'a [Values<'a>], value: impl Fn(&'a Values<'a>) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// The arrays of [`bind`], which are the parameters from `$2` on, as a table. With `second`, the
/// arrays of a second call of it, from `$20` on.
macro_rules! input {
    (second) => {
        concat!(
            "unnest($20::bytea[], $21::text[], $22::text[], $23::bigint[], $24::bigint[], $25::bigint[], $26::double precision[], $27::text[], $28::bigint[], $29::bigint[], $30::bigint[], $31::bigint[], $32::bigint[], $33::text[], $34::text[], $35::text[], $36::text[], $37::text[]) AS input(",
            columns!(),
            ")"
        )
    };
    () => {
        concat!(
            "unnest($2::bytea[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::double precision[], $9::text[], \
             $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::text[], $17::text[], \
             $18::text[], $19::text[]) AS input(",
            columns!(),
            ")"
        )
    };
}
pub(crate) use input;
