//! Versions of the schema. Steps are only ever added: a database that has some of them gets the rest.

use crate::StoreError;

/// The steps that a database of that version lacks, with the version that each leads to.
///
/// # Errors
///
/// If it has steps that are not known here: a newer version of this crate has been at work.
pub(super) fn missing(
    steps: &'static [&'static str],
    version: i64,
) -> Result<impl Iterator<Item = (i64, &'static str)>, StoreError> {
    let have = usize::try_from(version).ok().filter(|version| *version <= steps.len());
    let have = have.ok_or_else(|| {
        let known = steps.len();
        StoreError::other(format!(
            "its schema has version {version} and this version of tower-offload knows {known}: use a newer one"
        ))
    })?;
    Ok((1..).zip(steps).skip(have).map(|(version, step)| (version, *step)))
}
