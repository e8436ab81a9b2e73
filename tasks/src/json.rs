use std::{error::Error, fmt, io};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// A value as JSON text, at most [64 KiB](Json::MAX_BYTES) of it: what tasks return is for a status, and every store keeps it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Value, description = "A value as JSON, at most 64 KiB of it.")]
pub struct Json(Box<RawValue>);

impl Json {
    /// How many bytes of text a value may have. What is larger belongs into a file or a table, and its name into the result.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// The text of a value.
    ///
    /// # Errors
    ///
    /// If it cannot be written as JSON, or is too large.
    pub fn new(value: &impl Serialize) -> Result<Self, Unserialisable> {
        let mut text = Bounded(Vec::new());
        let written = serde_json::to_writer(&mut text, value);
        written.map_err(|error| {
            Unserialisable(if error.is_io() {
                format!("its JSON is larger than {} bytes", Self::MAX_BYTES)
            } else {
                format!("it cannot be written as JSON: {error}")
            })
        })?;
        let text = String::from_utf8(text.0).map_err(|error| Unserialisable(error.to_string()))?;
        Self::from_text(text)
    }

    /// From what [`as_str`](Self::as_str) gave.
    ///
    /// # Errors
    ///
    /// If it is no JSON.
    pub fn from_text(text: String) -> Result<Self, Unserialisable> {
        RawValue::from_string(text).map(Self).map_err(|error| Unserialisable(format!("it is no JSON: {error}")))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// If the text is of another type's value.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Unserialisable> {
        serde_json::from_str(self.as_str()).map_err(|error| Unserialisable(format!("it is of another type: {error}")))
    }
}

impl PartialEq for Json {
    /// By text.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

/// Stops a value that is too large while it is written.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > Json::MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A value that is not, or has not become, the JSON that it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserialisable(String);

impl fmt::Display for Unserialisable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Unserialisable {}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use super::Json;

    #[test]
    fn a_value_up_to_the_limit_is_kept_and_one_byte_more_is_not() {
        let longest = "x".repeat(Json::MAX_BYTES - 2);
        assert_eq!(Json::new(&longest).unwrap().parse::<String>().unwrap(), longest);
        assert_eq!(Json::new(&(longest + "x")).unwrap_err().to_string(), "its JSON is larger than 65536 bytes");
    }

    #[test]
    fn a_value_that_json_has_no_words_for_says_why() {
        let error = Json::new(&HashMap::from([((1, 2), 3)])).unwrap_err();
        assert_eq!(error.to_string(), "it cannot be written as JSON: key must be a string");
        assert!(Json::from_text("{".to_owned()).is_err());
    }
}
