use sqlx::{Database, Encode, QueryBuilder, Type};

use super::row::list_columns;
use crate::{
    TaskState,
    store::{
        Filter, Page,
        list::{MAX_SCANNED, ids_with_prefix},
    },
};

/// The queries for a page of a list. All values are bound, not quoted.
pub(super) struct ListQuery<DB: Database> {
    /// Returns up to `limit + 1` records.
    pub(super) records: QueryBuilder<DB>,
    /// Returns the id of the last record that the page may read, if `records` returns fewer.
    pub(super) end: Option<QueryBuilder<DB>>,
}

/// How a database finds a text.
pub(super) struct Dialect {
    /// Function that returns the position of its second argument in the first one.
    pub(super) position: &'static str,
    /// Makes `lower` convert ASCII letters only.
    pub(super) collation: &'static str,
}

/// Builds the queries for a page of a list. Returns `None` if no record can match, because stored
/// texts do not contain NUL.
///
/// An index gives the records of a state, or of a name and a state, in the order of their ids. If
/// all conditions are of this kind, each state is a query of its own for one page, and the newest
/// records of all are the page.
///
/// Other conditions are tested on the records that an index gives, at most [`MAX_SCANNED`].
pub(super) fn queries<DB: Database>(filter: &Filter, page: Page, dialect: &Dialect) -> Option<ListQuery<DB>>
where
    for<'q> &'q str: Encode<'q, DB> + Type<DB>,
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let texts = [&filter.name, &filter.owner, &filter.queue, &filter.text];
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        return None;
    }
    let limit = page.clamped().limit as i64 + 1;
    let is_scanned = filter.owner.is_some() || filter.unowned || filter.queue.is_some() || filter.text.is_some();
    let mut branches = Vec::new();
    if !is_scanned && filter.river_id.is_none() && (filter.name.is_some() || !filter.states.is_empty()) {
        let states = if filter.states.is_empty() { &TaskState::ALL[..] } else { &filter.states };
        branches.extend(states.iter().map(std::slice::from_ref));
        branches.sort_unstable_by_key(|states| i16::from(states[0]));
        branches.dedup();
    } else {
        branches.push(&filter.states[..]);
    }
    let mut records = QueryBuilder::new("SELECT * FROM (");
    for (index, states) in branches.iter().enumerate() {
        records.push(if index == 0 { "SELECT * FROM (SELECT " } else { " UNION ALL SELECT * FROM (SELECT " });
        records.push(concat!(list_columns!(), " FROM tower_offload_task"));
        push_indexed(&mut records, filter, states, page);
        records.push(" ORDER BY id DESC LIMIT ").push_bind(if is_scanned { MAX_SCANNED as i64 } else { limit });
        records.push(format_args!(") AS branch_{index}"));
    }
    records.push(") AS found WHERE 1 = 1");
    if is_scanned {
        push_scanned(&mut records, filter, dialect);
    }
    records.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    let end = is_scanned.then(|| {
        let mut end = QueryBuilder::new("SELECT id FROM tower_offload_task");
        push_indexed(&mut end, filter, branches[0], page);
        end.push(" ORDER BY id DESC LIMIT 1 OFFSET ").push_bind(MAX_SCANNED as i64 - 1);
        end
    });
    Some(ListQuery { records, end })
}

/// Adds the conditions for which there is an index.
fn push_indexed<DB: Database>(query: &mut QueryBuilder<DB>, filter: &Filter, states: &[TaskState], page: Page)
where
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    query.push(" WHERE 1 = 1");
    if let Some(river_id) = filter.river_id {
        query.push(" AND river_id = ").push_bind(river_id);
    }
    if let Some(owner) = &filter.owner {
        query.push(" AND owner = ").push_bind(owner.clone());
    }
    // With more states, or with an owner, the records are read in the order of another index.
    if let ([state], None) = (states, &filter.owner) {
        query.push(format_args!(" AND state = {}", i16::from(*state)));
        if let Some(name) = &filter.name {
            query.push(" AND name = ").push_bind(name.clone());
        }
    }
    if let Some(id) = page.after {
        query.push(" AND id < ").push_bind(id.as_bytes().to_vec());
    }
}

/// Adds the conditions for which there may be no index.
fn push_scanned<DB: Database>(query: &mut QueryBuilder<DB>, filter: &Filter, dialect: &Dialect)
where
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
{
    for (column, value) in [("name", &filter.name), ("queue", &filter.queue)] {
        if let Some(value) = value {
            query.push(format_args!(" AND {column} = ")).push_bind(value.clone());
        }
    }
    if filter.unowned {
        query.push(" AND owner IS NULL");
    }
    if !filter.states.is_empty() {
        let numbers: Vec<_> = filter.states.iter().map(|state| i16::from(*state).to_string()).collect();
        query.push(format_args!(" AND state IN ({})", numbers.join(", ")));
    }
    if let Some(text) = &filter.text {
        let text = text.to_ascii_lowercase();
        let Dialect { position, collation } = dialect;
        query.push(" AND (1 = 0");
        for column in ["name", "message", "error_class", "error_message"] {
            query
                .push(format_args!(" OR {position}(lower({column}{collation}), "))
                .push_bind(text.clone())
                .push(") > 0");
        }
        if let Some((first, last)) = ids_with_prefix(&text) {
            query.push(" OR id BETWEEN ").push_bind(first.as_bytes().to_vec());
            query.push(" AND ").push_bind(last.as_bytes().to_vec());
        }
        query.push(")");
    }
}
