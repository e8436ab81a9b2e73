use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Poll, Wake, Waker},
};

use loom::{future::block_on, thread};

use super::Post;

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// What `Carrier` does, until so many wakers were carried. A waker that nobody carries is a `block_on` that never ends, and
/// loom reports it.
fn carry(post: &Post, count: &Count, until: u32) {
    let mut wakers = Vec::new();
    block_on(std::future::poll_fn(|cx| {
        loop {
            let ended = post.poll_take(cx, &mut wakers);
            if wakers.is_empty() {
                return if count.0.load(SeqCst) == until { Poll::Ready(()) } else { ended };
            }
            wakers.drain(..).for_each(Waker::wake);
        }
    }));
}

#[test]
fn two_threads_send_and_every_waker_is_carried() {
    loom::model(|| {
        let (post, count) = (Arc::new(Post::default()), Arc::new(Count(AtomicU32::new(0))));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (post, count) = (post.clone(), count.clone());
                thread::spawn(move || {
                    if let Some(carrier) = post.send(Waker::from(count)).unwrap() {
                        carrier.wake();
                    }
                })
            })
            .collect();
        carry(&post, &count, 2);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn a_carrier_that_goes_leaves_no_waker_behind() {
    loom::model(|| {
        let (post, count) = (Arc::new(Post::default()), Arc::new(Count(AtomicU32::new(0))));
        let sender = thread::spawn({
            let (post, count) = (post.clone(), count.clone());
            move || match post.send(Waker::from(count)) {
                Ok(None) => {}
                Ok(Some(carrier)) | Err(carrier) => carrier.wake(),
            }
        });
        post.leave().into_iter().for_each(Waker::wake);
        sender.join().unwrap();
        assert_eq!(count.0.load(SeqCst), 1);
    });
}
