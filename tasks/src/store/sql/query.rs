//! Queries whose text depends on what is asked. Values are always bound.

use sqlx::{Database, Encode, QueryBuilder, Type};

use super::row::columns;
use crate::store::{Filter, Page};

/// `None` if nothing can fit: no text in the store has NUL in it.
pub(super) fn list<DB: Database>(filter: &Filter, page: Page) -> Option<QueryBuilder<DB>>
where
    for<'q> &'q str: Encode<'q, DB> + Type<DB>,
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE 1 = 1"));
    for (column, wanted) in [("name", &filter.name), ("owner", &filter.owner)] {
        if let Some(wanted) = wanted {
            if wanted.contains('\0') {
                return None;
            }
            query.push(format_args!(" AND {column} = ")).push_bind(wanted.clone());
        }
    }
    if !filter.states.is_empty() {
        let codes: Vec<_> = filter.states.iter().map(|state| state.code().to_string()).collect();
        query.push(format_args!(" AND state IN ({})", codes.join(", ")));
    }
    if let Some(before) = page.before {
        query.push(" AND id < ").push_bind(before.as_bytes().to_vec());
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(page.limit as i64 + 1);
    Some(query)
}
