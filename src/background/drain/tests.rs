use super::DrainCount;

#[test]
fn only_the_last_release_after_the_close_notifies() {
    let count = DrainCount::new();
    count.acquire();
    assert!(!count.release(), "no shutdown waits");
    count.acquire();
    count.acquire();
    count.close();
    assert!(count.has_guards());
    assert!(!count.release());
    assert!(count.has_guards());
    assert!(count.release());
    assert!(!count.has_guards());
    count.acquire();
    assert!(count.has_guards());
    assert!(count.release(), "a closed background runs hooks");
}
