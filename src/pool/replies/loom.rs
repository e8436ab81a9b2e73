use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use loom::{sync::Notify, thread};

use super::{Post, watch::Watch};
use crate::pool::call::Reply;

/// The wakers of a runtime's tasks are all of one kind; so here callers and carrier have the same type.
struct Task {
    woken: AtomicU32,
    /// Loom reports a thread that waits for this for ever.
    notify: Notify,
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self { woken: AtomicU32::new(0), notify: Notify::new() })
    }

    fn woken(&self) -> u32 {
        self.woken.load(SeqCst)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, SeqCst);
        self.notify.notify();
    }
}

fn reply(caller: &Arc<Task>) -> Reply {
    Reply { waker: Waker::from(caller.clone()), is_task: true }
}

/// A list whose carrier was polled once.
fn driven(carrier: &Arc<Task>) -> Arc<Post> {
    let post = Arc::new(Post::default());
    assert!(post.poll_take(&mut Context::from_waker(&Waker::from(carrier.clone())), &mut Vec::new()).is_pending());
    post
}

/// What `Carrier` does, until the caller was woken so often.
fn carry(post: &Post, carrier: &Arc<Task>, caller: &Task, until: u32) {
    let (waker, mut wakers) = (Waker::from(carrier.clone()), Vec::new());
    loop {
        let ended = post.poll_take(&mut Context::from_waker(&waker), &mut wakers);
        if wakers.is_empty() {
            if caller.woken() == until {
                return;
            }
            assert_eq!(ended, Poll::Pending);
            carrier.notify.wait();
        }
        wakers.drain(..).for_each(Waker::wake);
    }
}

#[test]
fn two_threads_send_and_every_caller_is_carried() {
    loom::model(|| {
        let (carrier, caller) = (Task::new(), Task::new());
        let post = driven(&carrier);
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (post, caller) = (post.clone(), caller.clone());
                thread::spawn(move || post.send(reply(&caller), false).wake())
            })
            .collect();
        carry(&post, &carrier, &caller, 2);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(caller.woken(), 2);
    });
}

#[test]
fn a_list_that_is_recalled_while_the_carrier_comes_wakes_everybody_once() {
    loom::model(|| {
        let (carrier, caller) = (Task::new(), Task::new());
        let post = driven(&carrier);
        let sender = thread::spawn({
            let (post, caller) = (post.clone(), caller.clone());
            move || {
                post.send(reply(&caller), false).wake();
                post.send(reply(&caller), false).wake();
                post.recall().wake();
            }
        });
        let mut wakers = Vec::new();
        let _ = post.poll_take(&mut Context::from_waker(&Waker::from(carrier.clone())), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        sender.join().unwrap();
        assert_eq!(caller.woken(), 2);
    });
}

#[test]
fn a_carrier_that_goes_leaves_nobody_behind() {
    loom::model(|| {
        let (carrier, caller) = (Task::new(), Task::new());
        let post = driven(&carrier);
        let sender = thread::spawn({
            let (post, caller) = (post.clone(), caller.clone());
            move || post.send(reply(&caller), false).wake()
        });
        post.leave().into_iter().for_each(Waker::wake);
        sender.join().unwrap();
        assert_eq!(caller.woken(), 1);
    });
}

/// The carrier never comes: either the watch that is about to end sees the list, or the sender sees that nobody watches.
#[test]
fn a_list_that_is_filled_while_the_watch_ends_is_watched() {
    loom::model(|| {
        let (carrier, caller) = (Task::new(), Task::new());
        let (post, watch) = (driven(&carrier), Arc::new(Watch::new()));
        assert!(watch.is_missing());
        let sender = thread::spawn({
            let (post, caller, watch) = (post.clone(), caller.clone(), watch.clone());
            move || {
                post.send(reply(&caller), false).wake();
                watch.is_missing()
            }
        });
        let ended = watch.end(|| post.is_empty());
        let watches = !ended || sender.join().unwrap();
        assert!(watches);
    });
}
