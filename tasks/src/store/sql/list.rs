use sqlx::{Database, Encode, QueryBuilder, Type};

use super::row::list_columns;
use crate::store::{Filter, Page};

/// Builds the query for a page of a list. All values are bound, not quoted.
///
/// Returns `None` if no record can match, because stored texts do not contain NUL.
pub(super) fn query<DB: Database>(filter: &Filter, page: Page) -> Option<QueryBuilder<DB>>
where
    for<'q> &'q str: Encode<'q, DB> + Type<DB>,
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(concat!("SELECT ", list_columns!(), " FROM tower_offload_task WHERE 1 = 1"));
    for (column, value) in [("name", &filter.name), ("owner", &filter.owner)] {
        if let Some(value) = value {
            if value.contains('\0') {
                return None;
            }
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
    if let Some(id) = page.after {
        query.push(" AND id < ").push_bind(id.as_bytes().to_vec());
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(page.clamped().limit as i64 + 1);
    Some(query)
}
