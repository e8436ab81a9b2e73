use std::{
    env, fs,
    path::{Path, PathBuf},
};

use plotters::style::RGBColor;

use crate::{BoxError, Table};

pub(crate) const WIDTH: u32 = 1120;
pub(crate) const TITLE_HEIGHT: u32 = 56;
pub(crate) const FONT: (&str, u32) = ("sans-serif", 21);
pub(crate) const GREY: RGBColor = RGBColor(90, 90, 90);

/// A picture in SVG.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The name of its file.
    pub name: &'static str,
    /// A description for readers who cannot see the picture.
    pub caption: String,
    /// The source of the picture.
    pub svg: String,
}

impl Picture {
    /// Writes the pictures into cargo's target directory.
    pub fn write_all(bench: &str, pictures: &[Self]) -> Result<(), BoxError> {
        let directory = target_directory();
        fs::create_dir_all(&directory)?;
        for Self { name, svg, .. } in pictures {
            let path = directory.join(name);
            fs::write(&path, svg).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            eprintln!("{bench}: picture in {}", path.display());
        }
        Ok(())
    }
}

fn target_directory() -> PathBuf {
    let executable = env::current_exe().unwrap_or_default();
    let of_executable = executable.ancestors().find(|path| path.ends_with("target")).map(Path::to_path_buf);
    let directory = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or(of_executable);
    directory.unwrap_or_else(|| PathBuf::from("target"))
}

/// Everything that a page says about one scene, for readers who do not know the benchmark.
#[derive(Debug, Clone)]
pub struct Part {
    /// The heading.
    pub heading: &'static str,
    /// What was done.
    pub done: String,
    /// What is expected, in plain words. Empty if the scene has no goal.
    pub goal: String,
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// The figures.
    pub tables: Vec<Table>,
    /// The goals of this scene.
    pub goals: Option<Table>,
    /// Notes that explain the table.
    pub notes: Vec<String>,
}
