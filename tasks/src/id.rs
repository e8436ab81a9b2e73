use std::{error::Error, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use super::Timestamp;

/// Names a task: 128 random bits behind the time of its making, so that ids cannot be guessed and sort by time.
///
/// As text 36 characters of [Crockford's base32](https://www.crockford.com/base32.html) in lower case, which sort as the ids do. Nothing
/// else is read: no upper case, no look-alikes, so that an id has one spelling.
///
/// ```
/// use tower_offload_tasks::TaskId;
///
/// let id: TaskId = "00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0".parse()?;
/// assert_eq!(id.to_string(), "00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0");
/// assert!("00Y8J7G1Z0B3T4KF6N2VQWHX9M5C7D1E8PR0".parse::<TaskId>().is_err());
/// # Ok::<(), tower_offload_tasks::InvalidTaskId>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-hjkmnp-tv-z]{36}$")]
pub struct TaskId([u8; TaskId::BYTES]);

impl TaskId {
    /// How many bytes it has: 6 of time, 16 random.
    pub const BYTES: usize = TIME_BYTES + 16;

    /// A new one, made at that time.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes to give.
    pub(crate) fn random(now: Timestamp) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::BYTES];
        let [_, _, time @ ..] = now.as_millis().to_be_bytes();
        bytes[..TIME_BYTES].copy_from_slice(&time);
        getrandom::fill(&mut bytes[TIME_BYTES..])?;
        Ok(Self(bytes))
    }

    /// From what [`as_bytes`](Self::as_bytes) gave.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// For stores: in the order of the ids.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

const TIME_BYTES: usize = 6;
const CHARACTERS: usize = 36;
/// No i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 36 characters have 180 bits and the bytes 176: so many at the front are zero.
const PADDING: u32 = 4;

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0_u8; CHARACTERS];
        let (mut bits, mut count, mut place) = (0_u32, PADDING, 0);
        for byte in self.0 {
            bits = bits << 8 | u32::from(byte);
            count += 8;
            while count >= 5 {
                count -= 5;
                text[place] = ALPHABET[(bits >> count & 31) as usize];
                place += 1;
            }
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for TaskId {
    type Err = InvalidTaskId;

    fn from_str(text: &str) -> Result<Self, InvalidTaskId> {
        if text.len() != CHARACTERS {
            return Err(InvalidTaskId(()));
        }
        let mut bytes = [0; Self::BYTES];
        let (mut bits, mut count, mut place) = (0_u32, 0, 0);
        for (index, character) in text.bytes().enumerate() {
            let value = ALPHABET.iter().position(|known| *known == character).ok_or(InvalidTaskId(()))?;
            bits = bits << 5 | value as u32;
            count += 5;
            if index == 0 {
                if bits >> (5 - PADDING) != 0 {
                    return Err(InvalidTaskId(()));
                }
                count -= PADDING;
            }
            if count >= 8 {
                count -= 8;
                bytes[place] = (bits >> count) as u8;
                place += 1;
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
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A text is no [`TaskId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidTaskId(());

impl fmt::Display for InvalidTaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the id of a task")
    }
}

impl Error for InvalidTaskId {}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
