//! What both databases keep: Postgres refuses some JSON that SQLite and `serde_json` have nothing against, and River would try to write it
//! for ever, with all that it writes in the same statement.

use serde_json::Value;

/// The value of a text, or why it cannot be kept.
pub(super) fn check(json: &str) -> Result<Value, &'static str> {
    // Also refuses numbers that are too large and what is nested too deep.
    let value: Value = serde_json::from_str(json).map_err(|_| "it is no JSON that every database keeps")?;
    if has_nul(&value) { Err("there is a NUL in it") } else { Ok(value) }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::String(text) => text.contains('\0'),
        Value::Bool(_) | Value::Null | Value::Number(_) => false,
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::check;

    #[test]
    fn what_postgres_refuses_is_known_before_it_is_asked() {
        assert!(check(r#"{"a": ["\\u0000", 1.5, null]}"#).is_ok(), "a backslash and some letters");
        for refused in [r#""\u0000""#, r#"{"a\u0000": 1}"#, r#"[["\\\u0000"]]"#, "1e400", "{"] {
            assert!(check(refused).is_err(), "{refused}");
        }
    }
}
