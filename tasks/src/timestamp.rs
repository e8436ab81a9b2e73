use std::{
    borrow::Cow,
    error::Error,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A wall-clock time in whole milliseconds since the Unix epoch.
///
/// Its text form is RFC 3339 in UTC with three decimals: `2026-03-01T12:30:00.250Z`. Parsing
/// accepts only this form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(
        value_type = String,
        format = DateTime,
        description = "A time in UTC with milliseconds.",
        example = "2026-03-01T12:30:00.250Z"
    )
)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Creates a timestamp from milliseconds since the Unix epoch.
    ///
    /// Values after `9999-12-30T22:00:00Z` become that time.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(MAX_MILLIS))
    }

    /// Returns the number of milliseconds since the Unix epoch.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the time `duration` earlier, but not before the Unix epoch.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// Returns the time `duration` later, but not after the largest timestamp.
    pub fn after(self, duration: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(millis(duration)))
    }
}

/// The largest argument that `jiff::Timestamp::from_millisecond` accepts.
const MAX_MILLIS: u64 = 253_402_207_200_000;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<SystemTime> for Timestamp {
    /// Times before the Unix epoch become the epoch.
    fn from(time: SystemTime) -> Self {
        Self::from_millis(millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
        write!(f, "{:.3}", time.ok_or(fmt::Error)?)
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, ParseTimestampError> {
        let time: jiff::Timestamp = text.parse().map_err(|_| ParseTimestampError(()))?;
        let millis = u64::try_from(time.as_millisecond()).map_err(|_| ParseTimestampError(()))?;
        let time = Self::from_millis(millis);
        // Only one spelling of a time is valid, so that texts are equal if and only if times are.
        if time.to_string() == text { Ok(time) } else { Err(ParseTimestampError(())) }
    }
}

/// Error parsing a [`Timestamp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseTimestampError(());

impl fmt::Display for ParseTimestampError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid timestamp: expected a time such as `2026-03-01T12:30:00.250Z`")
    }
}

impl Error for ParseTimestampError {}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Source of the wall-clock times in records. Tests can replace it.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    pub(crate) fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from((self.0)())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_MILLIS, Timestamp};

    proptest! {
        #[test]
        fn timestamps_round_trip_and_sort_like_their_text(one in 0..=MAX_MILLIS, other in 0..=MAX_MILLIS) {
            let (one, other) = (Timestamp::from_millis(one), Timestamp::from_millis(other));
            prop_assert_eq!(one.to_string().parse(), Ok(one));
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
        }

        #[test]
        fn parsing_any_text_does_not_panic(text in "\\PC{0,30}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{12}Z") {
            let _ = text.parse::<Timestamp>();
        }
    }

    #[test]
    fn known_dates_have_their_rfc_3339_text() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_772_368_200_250, "2026-03-01T12:30:00.250Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (MAX_MILLIS, "9999-12-30T22:00:00.000Z"),
            (u64::MAX, "9999-12-30T22:00:00.000Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn other_spellings_of_a_time_are_rejected() {
        for text in ["2026-03-01T12:30:00Z", "2026-03-01T12:30:00.250+00:00", "2026-03-01 12:30:00.250Z", ""] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?}");
        }
    }
}
