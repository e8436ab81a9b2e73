//! Schema migrations. A step is never changed after its release; new steps are appended.

use crate::StoreError;

/// Returns the steps that a database of this version lacks, each with the version that it leads to.
///
/// # Errors
///
/// Returns an error if the version is greater than the number of steps: a newer version of this
/// crate has migrated the database.
pub(super) fn missing_steps(
    steps: &'static [&'static str],
    version: i64,
) -> Result<impl Iterator<Item = (i64, &'static str)>, StoreError> {
    let applied = usize::try_from(version).ok().filter(|version| *version <= steps.len());
    let applied = applied.ok_or_else(|| {
        let known = steps.len();
        StoreError::other(format!(
            "the schema has version {version}, but this version of tower-offload-tasks knows {known}: use a newer one"
        ))
    })?;
    Ok((1..).zip(steps).skip(applied).map(|(version, step)| (version, *step)))
}
