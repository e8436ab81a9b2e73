//! The field that carries the stream of an HTTP/2 request from the transport to the service.
//!
//! hyper does not pass on the identifier of a stream. So the transport appends a field to each
//! request that it delivers ([`inbound`](super::inbound)), and the service removes it before any
//! other code sees the request.
//!
//! The name is `age`, because it is in the static table of HPACK and belongs to responses (RFC
//! 9111, section 5.1). A client may send it nevertheless: the transport appends its own behind all
//! others, and only that one is removed.
//!
//! The value contains a secret of the connection. Without it, a client could name the stream of
//! another request, in a block that ends within a string and so swallows the appended field.

use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, header::AGE};

use super::frames::StreamId;

/// The first bytes of the field: a literal without indexing, whose name is entry 21 of the static
/// table (RFC 7541, section 6.2.2 and appendix A), and whose value is not Huffman-coded.
const PREFIX: [u8; 3] = [0x0f, 21 - 0x0f, VALUE_LENGTH as u8];
const ID_LENGTH: usize = 5;
const SECRET_LENGTH: usize = 6;
const VALUE_LENGTH: usize = SECRET_LENGTH + ID_LENGTH;

/// The length of the field on the wire. In a header list it counts as 46 bytes (RFC 9113, section
/// 6.5.2).
pub(super) const FIELD_LENGTH: usize = PREFIX.len() + VALUE_LENGTH;

/// Writes and reads the field on one connection.
pub(super) struct Mark {
    secret: [u8; SECRET_LENGTH],
}

impl Mark {
    /// Chooses a secret.
    pub(super) fn new() -> Self {
        let random = RandomState::new().hash_one(());
        Self { secret: to_digits(random) }
    }

    /// Returns the field for a request on this stream.
    pub(super) fn field(&self, stream: StreamId) -> [u8; FIELD_LENGTH] {
        let id: [u8; ID_LENGTH] = to_digits(stream.as_u32().into());
        let mut field = [0; FIELD_LENGTH];
        let (prefix, value) = field.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(&PREFIX);
        value[..SECRET_LENGTH].copy_from_slice(&self.secret);
        value[SECRET_LENGTH..].copy_from_slice(&id);
        field
    }

    /// Removes the field from a request, and returns its stream. Returns `None`, and removes
    /// nothing, if the field is missing.
    pub(super) fn take(&self, headers: &mut HeaderMap) -> Option<StreamId> {
        // An entry would need room for one more name, which a full map does not have.
        let mut values = headers.get_all(AGE).into_iter();
        let stream = self.read(values.next_back()?.as_bytes())?;
        let rest: Vec<_> = values.cloned().collect();
        headers.remove(AGE);
        for value in rest {
            headers.append(AGE, value);
        }
        Some(stream)
    }

    fn read(&self, value: &[u8]) -> Option<StreamId> {
        let id: [u8; ID_LENGTH] = value.strip_prefix(&self.secret)?.try_into().ok()?;
        let number = id.iter().rev().fold(0, |number, digit| number << 7 | u32::from(digit & 0x7f));
        Some(StreamId::new(number))
    }
}

/// Encodes seven bits in each byte, the lowest first, as bytes that are valid in a field value (RFC
/// 9110, section 5.5: `obs-text`).
fn to_digits<const N: usize>(number: u64) -> [u8; N] {
    std::array::from_fn(|digit| 0x80 | (number >> (7 * digit)) as u8)
}

#[cfg(test)]
mod tests;
