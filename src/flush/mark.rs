//! The field that carries the stream of an HTTP/2 request from the transport to the service.
//!
//! hyper does not pass on the identifier of a stream. So the transport appends a field to each
//! request that it delivers ([`inbound`](super::inbound)), and the service removes it before any
//! other code sees the request.
//!
//! The name is `www-authenticate`, because it is in the static table of HPACK and belongs to
//! responses (RFC 9110, section 11.6.1). A client may send it nevertheless: the transport appends
//! its own behind all others, and only its own is removed.
//!
//! A block that ends within a representation takes the first bytes of the field for the rest of it.
//! It must stay the error that it is without the field:
//!
//! * A string without Huffman coding contains the first byte of the field or its length, which are
//!   valid neither in a name nor in a value.
//! * A string with Huffman coding cannot end with the index of the name, because no code ends like
//!   it and it is no padding. It cannot contain the [`GUARD`], because that contains the code EOS
//!   (RFC 7541, section 5.2).
//! * If the string ends before or within the guard, an integer that is too long, a size update
//!   behind a field, or a string longer than the rest follows (sections 4.2 and 5.1).
//! * An index or a length that is not complete ends with the first byte of the field. One of the
//!   above follows.
//!
//! The value also contains a secret of the connection, so that a client cannot name the stream of
//! another request even if the server takes such a block.

use std::hash::{BuildHasher, RandomState};

use http::{
    HeaderMap, HeaderName,
    header::{Entry, WWW_AUTHENTICATE},
};

use super::frames::StreamId;

pub(super) const NAME: HeaderName = WWW_AUTHENTICATE;

/// The first bytes of the field: a literal without indexing, whose name is entry 61 of the static
/// table (RFC 7541, section 6.2.2 and appendix A), and whose value is not Huffman-coded.
const PREFIX: [u8; 3] = [0x0f, 61 - 0x0f, VALUE_LENGTH as u8];
/// The first bytes of the value. EOS has 30 ones, and no other code ends with more than ten.
const GUARD: [u8; 5] = [0xff; 5];
const ID_LENGTH: usize = 5;
const SECRET_LENGTH: usize = 6;
const VALUE_LENGTH: usize = GUARD.len() + SECRET_LENGTH + ID_LENGTH;

/// The length of the field on the wire. In a header list it counts as 64 bytes (RFC 9113, section
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
        let (guard, rest) = value.split_at_mut(GUARD.len());
        guard.copy_from_slice(&GUARD);
        rest[..SECRET_LENGTH].copy_from_slice(&self.secret);
        rest[SECRET_LENGTH..].copy_from_slice(&id);
        field
    }

    /// Removes the field from a request, and returns its stream. Returns `None`, and removes
    /// nothing, if the field is missing.
    pub(super) fn take(&self, headers: &mut HeaderMap) -> Option<StreamId> {
        // A full map has no entries, since these need room for one more name.
        if let Ok(Entry::Occupied(entry)) = headers.try_entry(NAME) {
            if entry.iter().nth(1).is_none() {
                let stream = self.read(entry.get().as_bytes())?;
                entry.remove();
                return Some(stream);
            }
        }
        let mut values = headers.get_all(NAME).into_iter();
        let stream = self.read(values.next_back()?.as_bytes())?;
        let rest: Vec<_> = values.cloned().collect();
        headers.remove(NAME);
        for value in rest {
            headers.append(NAME, value);
        }
        Some(stream)
    }

    fn read(&self, value: &[u8]) -> Option<StreamId> {
        let id: [u8; ID_LENGTH] = value.strip_prefix(&GUARD)?.strip_prefix(&self.secret)?.try_into().ok()?;
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
