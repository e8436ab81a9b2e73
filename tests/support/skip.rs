/// Prints why a test does not run on this machine. The test must return then.
///
/// # Panics
///
/// Panics if `TOWER_OFFLOAD_REQUIRE_ALL` is set, as in `.ci/run`, so that no test is skipped
/// unseen.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var_os("TOWER_OFFLOAD_REQUIRE_ALL").is_none(), "a test cannot run: {reason}");
    println!("skipped: {reason}");
}
