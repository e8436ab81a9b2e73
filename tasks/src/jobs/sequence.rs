//! Keys that jobs share: sequences and limits.

use serde_json::{Value, json};

use super::{Jobs, queue::Queue};
use crate::{AcceptError, StoreError, operation::BlockedSequence};

/// Key of the sequence in River's metadata. Any client can set it.
const SEQUENCE_KEY: &str = "tower_offload:sequence";
/// Key of the limit in River's metadata. Any client can set it.
const AT_MOST_KEY: &str = "tower_offload:at_most";
/// Maximum length of a key. The triggers have the same bounds.
const MAX_KEY_BYTES: usize = 255;
/// Maximum number of jobs that a limit allows. The end of a job counts those that are in flight.
const MAX_AT_MOST: u32 = 1000;
/// Maximum number of sequences in a list, and of waiting jobs that are counted for each.
pub(super) const MAX_BLOCKED: i64 = 1000;

/// The sequence and the limit of a job.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) sequence: Option<String>,
    pub(super) is_hold: bool,
    pub(super) at_most: Option<(u32, String)>,
}

impl Keys {
    pub(super) fn is_empty(&self) -> bool {
        self.sequence.is_none() && self.at_most.is_none()
    }

    pub(super) fn validate(&self) -> Result<(), AcceptError> {
        match &self.sequence {
            Some(key) => validate_key("sequence", key)?,
            None if self.is_hold => {
                let message = "`hold_on_failure` has no effect without a sequence: call `sequence` too";
                return Err(AcceptError::invalid("sequence", message));
            }
            None => {}
        }
        let Some((max, key)) = &self.at_most else { return Ok(()) };
        validate_key("limit", key)?;
        if (1..=MAX_AT_MOST).contains(max) {
            return Ok(());
        }
        Err(AcceptError::invalid(
            "limit",
            format!("the maximum of `at_most` must be between 1 and {MAX_AT_MOST}, got {max}"),
        ))
    }

    /// Adds the keys to River's metadata.
    pub(super) fn write_to(&self, metadata: &mut Value) {
        if let Some(key) = &self.sequence {
            metadata[SEQUENCE_KEY] = if self.is_hold { json!({ "key": key, "hold": true }) } else { json!(key) };
        }
        if let Some((max, key)) = &self.at_most {
            metadata[AT_MOST_KEY] = json!({ "key": key, "max": max });
        }
    }
}

fn validate_key(option: &'static str, key: &str) -> Result<(), AcceptError> {
    let message = match key.len() {
        0 => format!("the key of the {option} is empty"),
        bytes if bytes > MAX_KEY_BYTES => {
            format!("the key of the {option} has {bytes} bytes, at most {MAX_KEY_BYTES} are allowed")
        }
        _ if key.contains('\0') => format!("the key of the {option} contains NUL"),
        _ => return Ok(()),
    };
    Err(AcceptError::invalid(option, message))
}

impl Jobs {
    /// Returns the sequences that [hold](super::Enqueue::hold_on_failure) because a job has failed,
    /// those that have waited for longest first, and at most 1000.
    ///
    /// A sequence leaves the list when it is [released](Self::release_sequence), or when its job is
    /// retried.
    ///
    /// # Errors
    ///
    /// Returns an error if the database fails.
    pub async fn blocked_sequences(&self) -> Result<Vec<BlockedSequence>, StoreError> {
        self.queue().environment.database.blocked_sequences().await
    }

    /// Continues a sequence that [holds](super::Enqueue::hold_on_failure): its next job may run.
    ///
    /// Returns `false` if the sequence does not hold, and nothing changes then. The job that has
    /// failed leaves the sequence. If it is retried later, it runs after those that are waiting.
    ///
    /// # Errors
    ///
    /// Returns an error if the database fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the sequence may be released or not.
    pub async fn release_sequence(&self, key: &str) -> Result<bool, StoreError> {
        release(self.queue(), key).await
    }
}

pub(super) async fn release(queue: &Queue, key: &str) -> Result<bool, StoreError> {
    if key.contains('\0') {
        return Ok(false); // Postgres would reject it
    }
    queue.environment.database.release_sequence(key).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{Keys, MAX_KEY_BYTES};

    fn keys(sequence: Option<String>, is_hold: bool, at_most: Option<(u32, String)>) -> Keys {
        Keys { sequence, is_hold, at_most }
    }

    #[test]
    fn limit_and_hold_are_checked() {
        for (max, is_valid) in [(0, false), (1, true), (1000, true), (1001, false)] {
            assert_eq!(keys(None, false, Some((max, "api".to_owned()))).validate().is_ok(), is_valid, "{max}");
        }
        assert!(keys(None, true, None).validate().is_err(), "there is no sequence to hold");
        assert!(keys(None, false, None).validate().is_ok());
    }

    proptest! {
        #[test]
        fn keys_that_the_triggers_accept_are_valid(key in any::<String>(), is_hold in any::<bool>()) {
            let is_valid = (1..=MAX_KEY_BYTES).contains(&key.len()) && !key.contains('\0');
            prop_assert_eq!(keys(Some(key.clone()), is_hold, None).validate().is_ok(), is_valid);
            prop_assert_eq!(keys(None, false, Some((1, key))).validate().is_ok(), is_valid);
        }

        #[test]
        fn metadata_has_the_keys(key in any::<String>(), is_hold in any::<bool>(), max in 1_u32..1000) {
            let mut metadata = json!({});
            keys(Some(key.clone()), is_hold, Some((max, key.clone()))).write_to(&mut metadata);
            let sequence = &metadata["tower_offload:sequence"];
            let found = if is_hold { &sequence["key"] } else { sequence };
            prop_assert_eq!(found, &json!(key));
            prop_assert_eq!(sequence["hold"].as_bool().unwrap_or_default(), is_hold);
            prop_assert_eq!(&metadata["tower_offload:at_most"], &json!({ "key": key, "max": max }));
        }
    }
}
