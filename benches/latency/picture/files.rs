use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{load, percentiles, timeline};
use crate::latency::{BoxError, record::Record};

/// One picture, complete.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// Of its file.
    pub(crate) name: &'static str,
    /// What it shows, for whoever does not see it.
    pub(crate) caption: String,
    pub(crate) svg: String,
}

/// Those for which there is something to show.
pub(crate) fn all(records: &[Record]) -> Result<Vec<Picture>, BoxError> {
    let pictures = [load::draw(records)?, timeline::draw(records)?, percentiles::draw(records)?];
    Ok(pictures.into_iter().flatten().collect())
}

/// Returns where they are.
pub(crate) fn write(directory: &Path, pictures: &[Picture]) -> Result<Vec<PathBuf>, BoxError> {
    fs::create_dir_all(directory)?;
    pictures
        .iter()
        .map(|picture| {
            let path = directory.join(picture.name);
            fs::write(&path, &picture.svg).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            Ok(path)
        })
        .collect()
}

/// Cargo's target directory.
pub(crate) fn default_directory() -> PathBuf {
    let of_executable = || {
        let executable = env::current_exe().ok()?;
        executable.ancestors().find(|path| path.ends_with("target")).map(Path::to_path_buf)
    };
    let directory = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(of_executable);
    directory.unwrap_or_else(|| PathBuf::from("target"))
}
