//! The records as pictures, in SVG.

mod canvas;
mod files;
mod load;
mod percentiles;
mod timeline;

pub(crate) use self::files::{Picture, all, default_directory, write};
