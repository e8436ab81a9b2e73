use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
};

use super::DrainCount;

/// Two hooks run while a shutdown begins.
#[test]
fn shutdown_sees_the_hooks_or_is_notified() {
    loom::model(|| {
        // The second value is the number of hooks that have run, the third that of notifications.
        let shared = Arc::new((DrainCount::new(), AtomicU32::new(0), AtomicU32::new(0)));
        shared.0.acquire();
        shared.0.acquire();
        let run_hook = {
            let shared = shared.clone();
            move || {
                shared.1.fetch_add(1, Relaxed);
                if shared.0.release() {
                    shared.2.fetch_add(1, Relaxed);
                }
            }
        };
        let hooks = [thread::spawn(run_hook.clone()), thread::spawn(run_hook)];
        shared.0.close();
        let waits = shared.0.has_guards();
        assert!(waits || shared.1.load(Relaxed) == 2);
        hooks.into_iter().for_each(|hook| hook.join().unwrap());
        assert!(!waits || shared.2.load(Relaxed) == 1);
        assert!(!shared.0.has_guards());
    });
}
