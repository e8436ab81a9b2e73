use crate::{StoreError, text::sanitize};

/// The schema of all tables: one that the user has named, or the current schema of the session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Schema(Option<String>);

/// River's longest channel, `river_leadership`, follows the name and a dot, in 63 bytes.
const MAX_BYTES: usize = 46;

impl Schema {
    /// Checks a name.
    pub(crate) fn new(name: Option<&str>) -> Result<Self, StoreError> {
        let Some(name) = name else { return Ok(Self(None)) };
        // Postgres replaces this name, also in quotes.
        let is_user = name == "$user";
        if name.is_empty() || name.len() > MAX_BYTES || name.contains('\0') || is_user {
            let shown = sanitize(name, MAX_BYTES);
            return Err(StoreError::other(format!(
                "the schema name {shown:?} is not valid: use 1 to {MAX_BYTES} bytes without NUL, and not `$user`"
            )));
        }
        Ok(Self(Some(name.to_owned())))
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Returns the name of a table for a statement, with the schema if it is named.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) fn qualify(&self, table: &str) -> String {
        self.quoted().map_or_else(|| table.to_owned(), |schema| format!("{schema}.{table}"))
    }

    /// Returns the name as an identifier, which is also the search path that leads to it.
    pub(crate) fn quoted(&self) -> Option<String> {
        self.name().map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
    }

    /// Returns the statements that make a session use the schema, and no other.
    pub(crate) fn set_search_path(&self) -> String {
        self.quoted().map_or_else(String::new, |schema| format!("SET search_path = {schema};"))
    }

    /// Returns the statement that creates the schema.
    pub(super) fn create(&self) -> Option<String> {
        self.quoted().map(|schema| format!("CREATE SCHEMA IF NOT EXISTS {schema}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Schema;

    #[test]
    fn names_are_quoted() {
        let schema = Schema::new(Some("my\"jobs; DROP")).expect("a valid name");
        assert_eq!(schema.qualify("river_job"), "\"my\"\"jobs; DROP\".river_job");
        assert_eq!(schema.set_search_path(), "SET search_path = \"my\"\"jobs; DROP\";");
        assert_eq!(
            (Schema::default().qualify("river_job"), Schema::default().set_search_path()),
            ("river_job".into(), String::new())
        );
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        for name in ["", "a\0b", &"x".repeat(47)] {
            assert!(Schema::new(Some(name)).is_err_and(|error| error.to_string().contains("schema name")), "{name:?}");
        }
        assert!(Schema::new(Some(&"x".repeat(46))).is_ok());
    }
}
