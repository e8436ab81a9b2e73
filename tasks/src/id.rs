use std::{borrow::Cow, error::Error, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Timestamp;

/// Id of a task: the time of its creation, followed by 128 random bits.
///
/// Ids cannot be guessed, and they sort by time. The text form has 36 characters of
/// [Crockford's base32](https://www.crockford.com/base32.html) in lower case and sorts like the id.
/// Parsing accepts neither upper case nor the look-alikes `i`, `l` and `o`, so each id has exactly
/// one spelling.
///
/// ```
/// use tower_offload_tasks::TaskId;
///
/// let id: TaskId = "00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0".parse()?;
/// assert_eq!(id.to_string(), "00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0");
/// assert!("00Y8J7G1Z0B3T4KF6N2VQWHX9M5C7D1E8PR0".parse::<TaskId>().is_err());
/// # Ok::<(), tower_offload_tasks::ParseTaskIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(
        value_type = String,
        pattern = "^[01][0-9a-hjkmnp-tv-z]{35}$",
        description = "The id of a task. Ids cannot be guessed, and they sort by the time of creation.",
        example = "00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0"
    )
)]
pub struct TaskId([u8; TaskId::BYTES]);

impl TaskId {
    /// Number of bytes: 6 bytes of time and 16 random bytes.
    pub const BYTES: usize = TIME_BYTES + 16;

    /// Generates an id for a task created at `now`.
    ///
    /// # Errors
    ///
    /// Returns an error if the system has no random bytes.
    pub(crate) fn generate(now: Timestamp) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::BYTES];
        let [_, _, time @ ..] = now.as_millis().to_be_bytes();
        bytes[..TIME_BYTES].copy_from_slice(&time);
        getrandom::fill(&mut bytes[TIME_BYTES..])?;
        Ok(Self(bytes))
    }

    /// Creates an id from its bytes.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, which sort like the id.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

const TIME_BYTES: usize = 6;
const CHARACTERS: usize = 36;
/// Base32 without `i`, `l`, `o` and `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Number of leading zero bits in the text: 36 characters have 180 bits, an id has 176.
const PADDING: u32 = 4;

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0_u8; CHARACTERS];
        let (mut bits, mut count, mut written) = (0_u32, PADDING, 0);
        for byte in self.0 {
            bits = bits << 8 | u32::from(byte);
            count += 8;
            while count >= 5 {
                count -= 5;
                text[written] = ALPHABET[(bits >> count & 31) as usize];
                written += 1;
            }
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for TaskId {
    type Err = ParseTaskIdError;

    fn from_str(text: &str) -> Result<Self, ParseTaskIdError> {
        if text.len() != CHARACTERS {
            return Err(ParseTaskIdError(()));
        }
        let mut bytes = [0; Self::BYTES];
        let (mut bits, mut count, mut written) = (0_u32, 0, 0);
        for (index, character) in text.bytes().enumerate() {
            let value = ALPHABET.iter().position(|known| *known == character).ok_or(ParseTaskIdError(()))?;
            bits = bits << 5 | value as u32;
            count += 5;
            if index == 0 {
                if bits >> (5 - PADDING) != 0 {
                    return Err(ParseTaskIdError(()));
                }
                count -= PADDING;
            }
            if count >= 8 {
                count -= 8;
                bytes[written] = (bits >> count) as u8;
                written += 1;
            }
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Error parsing a [`TaskId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseTaskIdError(());

impl fmt::Display for ParseTaskIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid task id: expected 36 characters of lower-case base32")
    }
}

impl Error for ParseTaskIdError {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::{CHARACTERS, TaskId};
    use crate::Timestamp;

    proptest! {
        #[test]
        fn ids_round_trip_and_sort_like_their_text(one: [u8; 22], other: [u8; 22]) {
            let (one, other) = (TaskId::from_bytes(one), TaskId::from_bytes(other));
            prop_assert_eq!(one.to_string().parse(), Ok(one));
            prop_assert_eq!(one.to_string().len(), CHARACTERS);
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
        }

        #[test]
        fn each_id_has_one_spelling(text in "[0-9a-zA-Z]{36}|[01][0-9a-hjkmnp-tv-z]{35}|\\PC{0,40}") {
            if let Ok(id) = text.parse::<TaskId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn ids_differ_within_a_millisecond_and_sort_by_time() {
        let (early, late) = (Timestamp::from_millis(1), Timestamp::from_millis(2));
        let ids: HashSet<_> = (0..1000).map(|_| TaskId::generate(early).unwrap()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().max() < Some(&TaskId::generate(late).unwrap()));
    }
}
