use std::{sync::Arc, thread};

use tokio::runtime::Handle;

use crate::sync::{Mutex, lock};

/// Does something with foreign values that may block, on a thread of its own within the current runtime, which does not
/// wait for it. Not on a pool: its threads may all be stuck, and that may be the reason.
pub(super) fn aside<T: Send + 'static>(values: Vec<T>, each: fn(T)) {
    if values.is_empty() {
        return;
    }
    let runtime = Handle::current();
    let values = Arc::new(Mutex::new(values));
    let all = move |values: &Mutex<Vec<T>>| std::mem::take(&mut *lock(values)).into_iter().for_each(each);
    let theirs = values.clone();
    let spawned = thread::Builder::new().name("background-drain".to_owned()).spawn(move || {
        let _inside = runtime.enter();
        all(&theirs);
    });
    if spawned.is_err() {
        all(&values); // better late than never
    }
}
