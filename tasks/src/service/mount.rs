//! Where the service is mounted.

#[cfg(all(feature = "axum", feature = "tracing"))]
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

#[cfg(all(feature = "axum", feature = "tracing"))]
use axum::extract::NestedPath;

/// Returns the path of a request within the service: without the path of `base_path`, unless what
/// is in front of the service has removed it already.
pub(super) fn path_within<'a>(path: &'a str, base_path: &str) -> &'a str {
    match path.strip_prefix(path_of(base_path)) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => path,
    }
}

/// Returns the path of a URL, or the path itself.
fn path_of(base_path: &str) -> &str {
    match base_path.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |start| &rest[start..]),
        None => base_path,
    }
}

/// Reports once that a service is nested elsewhere than its base path says. `Location` is wrong
/// then, and only a request shows it: a service does not learn its path when it is mounted.
#[derive(Clone, Default)]
pub(super) struct MountCheck {
    #[cfg(all(feature = "axum", feature = "tracing"))]
    has_reported: Arc<AtomicBool>,
}

impl MountCheck {
    pub(super) fn check(&self, extensions: &http::Extensions, base_path: &str) {
        #[cfg(all(feature = "axum", feature = "tracing"))]
        if let Some(nested) = extensions.get::<NestedPath>().filter(|nested| is_elsewhere(nested.as_str(), base_path)) {
            if !self.has_reported.swap(true, Ordering::Relaxed) {
                let nested_at = nested.as_str();
                tracing::warn!(
                    nested_at,
                    base_path,
                    "the `Location` of accepted tasks is wrong: give `TasksBuilder::base_path` the path at which the \
                     status service is nested"
                );
            }
        }
        #[cfg(not(all(feature = "axum", feature = "tracing")))]
        let _ = (extensions, base_path);
    }
}

/// Returns `false` if a base path can lead to a service that is nested at `nested`. A proxy in
/// front of the server may remove the beginning of the base path.
#[cfg(any(test, all(feature = "axum", feature = "tracing")))]
fn is_elsewhere(nested: &str, base_path: &str) -> bool {
    let has_parameters = nested.contains('{'); // they differ by request
    !has_parameters && !path_of(base_path).ends_with(nested.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_path_is_removed_from_a_path_only_once_and_at_its_end() {
        for (path, base_path, within) in [
            ("/tasks/x", "/tasks", "/x"),
            ("/tasks", "/tasks", ""),
            ("/tasks/", "/tasks", "/"),
            ("/x", "/tasks", "/x"),
            ("/tasksx", "/tasks", "/tasksx"),
            ("/tasks/tasks/x", "/tasks", "/tasks/x"),
            ("/a/tasks/x", "/tasks", "/a/tasks/x"),
            ("/x", "", "/x"),
            ("/api/tasks/x/events", "https://example.com/api/tasks", "/x/events"),
            ("/x", "https://example.com", "/x"),
        ] {
            assert_eq!(path_within(path, base_path), within, "{path} in {base_path:?}");
        }
    }

    #[test]
    fn service_is_elsewhere_unless_a_base_path_ends_with_its_path() {
        for (nested, base_path, expected) in [
            ("/tasks", "/tasks", false),
            ("/api/tasks", "/tasks", true),
            ("/tasks", "/v1/tasks", false),
            ("/tasks/", "https://example.com/v1/tasks", false),
            ("/{tenant}/tasks", "/tasks", false),
            ("/jobs", "/tasks", true),
            ("/tasks", "", true),
        ] {
            assert_eq!(is_elsewhere(nested, base_path), expected, "{nested} and {base_path:?}");
        }
    }
}
