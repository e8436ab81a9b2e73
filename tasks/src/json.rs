use std::{error::Error, fmt, io, str::FromStr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// A JSON text of at most [64 KiB](Json::MAX_BYTES), such as the result of a task.
///
/// The limit keeps statuses small enough for every store and every client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(value_type = Value, description = "A JSON value of at most 64 KiB.")
)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Maximum number of bytes of the text that [`new`](Self::new) produces. Store a larger value
    /// in a file or a table, and return its name.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Serializes `value`.
    ///
    /// # Errors
    ///
    /// Returns an error if the value cannot be represented in JSON, or if its text is too large.
    pub fn new(value: &impl Serialize) -> Result<Self, JsonError> {
        let mut text = LimitedWriter(Vec::new());
        serde_json::to_writer(&mut text, value).map_err(|error| {
            JsonError(if error.is_io() {
                format!("the JSON text exceeds {} bytes", Self::MAX_BYTES)
            } else {
                format!("the value cannot be represented in JSON: {error}")
            })
        })?;
        String::from_utf8(text.0).map_err(|error| JsonError(error.to_string()))?.try_into()
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Deserializes the value.
    ///
    /// # Errors
    ///
    /// Returns an error if the value is of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        let mismatch = |error| JsonError(format!("the JSON value has another type: {error}"));
        serde_json::from_str(self.as_str()).map_err(mismatch)
    }
}

impl TryFrom<String> for Json {
    type Error = JsonError;

    /// Keeps the text unchanged, without a limit on its size.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not JSON.
    fn try_from(text: String) -> Result<Self, JsonError> {
        RawValue::from_string(text).map(Self).map_err(|error| JsonError(format!("invalid JSON: {error}")))
    }
}

impl FromStr for Json {
    type Err = JsonError;

    fn from_str(text: &str) -> Result<Self, JsonError> {
        text.to_owned().try_into()
    }
}

impl PartialEq for Json {
    /// Compares the texts.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

/// Fails once more than [`Json::MAX_BYTES`] bytes are written.
struct LimitedWriter(Vec<u8>);

impl io::Write for LimitedWriter {
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

/// Error converting a value to or from [`Json`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError(String);

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for JsonError {}

impl From<JsonError> for io::Error {
    fn from(error: JsonError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use super::Json;

    #[test]
    fn values_up_to_the_limit_are_accepted() {
        let longest = "x".repeat(Json::MAX_BYTES - 2);
        assert_eq!(Json::new(&longest).unwrap().parse::<String>().unwrap(), longest);
        assert_eq!(Json::new(&(longest + "x")).unwrap_err().to_string(), "the JSON text exceeds 65536 bytes");
    }

    #[test]
    fn values_without_a_json_form_are_rejected_with_the_cause() {
        let error = Json::new(&HashMap::from([((1, 2), 3)])).unwrap_err();
        assert_eq!(error.to_string(), "the value cannot be represented in JSON: key must be a string");
        assert!("{".parse::<Json>().is_err());
    }
}
