use std::{
    error::Error,
    fmt,
    future::poll_fn,
    io::{self, Read},
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::sync::mpsc;

use crate::pool::{
    self, Admitted, CallError, Pool, Priority, QueuePermit,
    call::{self, CallFailure, JoinHandle, OnCallerDrop},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// How much is read at a time: a socket buffer's worth, as `std::io::copy` and hyper do it.
const READ_SIZE: usize = 64 * 1024;

/// A response body from a blocking iterator or [`Read`], stepped on a pool.
///
/// The source is at most one item ahead of what was taken from the body: it is stepped once for the item that waits to be
/// taken, not for the one after it. While it waits for that it holds no thread. Dropping the body drops the source on
/// the pool.
///
/// The body is one call of the pool: it takes a place in the queue when it is made, so a full pool is known before the
/// head is sent, and its steps are never refused.
///
/// ```
/// use http_body_util::BodyExt;
/// use tower_offload::{ThreadPool, offload::SyncBody};
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = ThreadPool::blocking(4);
/// let lines = (0..3).map(|number| Ok::<_, std::io::Error>(format!("line {number}\n")));
/// let body = SyncBody::new(pool, lines).expect("room in the queue");
/// assert_eq!(body.collect().await.unwrap().to_bytes(), "line 0\nline 1\nline 2\n");
/// # }
/// ```
///
/// # Panics
///
/// A panic of the source is resumed where the body is polled, which ends the connection, as it does for any body.
pub struct SyncBody {
    items: mpsc::Receiver<Result<Bytes, BoxError>>,
    /// `None` once the source has ended.
    source: Option<JoinHandle<()>>,
}

impl SyncBody {
    /// A body of the iterator's items: `Bytes`, `String`, `Vec<u8>`. An error ends the body, and so does a shutdown of the pool, with
    /// [`CallError::Closed`]: a body that was cut short never looks complete.
    ///
    /// # Errors
    ///
    /// If the pool has no room, or is shut down.
    pub fn new<P, I, T, E>(pool: P, source: I) -> Result<Self, CallError>
    where
        P: Pool,
        I: IntoIterator<Item = Result<T, E>>,
        I::IntoIter: Send + 'static,
        T: Into<Bytes>,
        E: Into<BoxError>,
    {
        let priority = Priority::Normal;
        let slot = QueuePermit::try_acquire_counted(pool.into_shared(), priority)?;
        Ok(Self::spawn(
            Admitted { queue_permit: slot, layer_permit: call::CurrentCall::layer_permit(), priority },
            source.into_iter(),
        ))
    }

    /// A body of what the reader reads, in pieces of up to 64 KiB. An interrupted read is tried again; any other error
    /// ends the body.
    ///
    /// # Errors
    ///
    /// If the pool has no room, or is shut down.
    pub fn from_read<P, R>(pool: P, mut reader: R) -> Result<Self, CallError>
    where
        P: Pool,
        R: Read + Send + 'static,
    {
        let mut buffer = BytesMut::new();
        Self::new(
            pool,
            std::iter::from_fn(move || {
                buffer.resize(READ_SIZE, 0);
                loop {
                    match reader.read(&mut buffer) {
                        Ok(0) => return None,
                        Ok(read) => return Some(Ok(buffer.split_to(read).freeze())),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Some(Err(error)),
                    }
                }
            }),
        )
    }

    fn spawn<I, T, E>(admitted: Admitted, mut source: I) -> Self
    where
        I: Iterator<Item = Result<T, E>> + Send + 'static,
        T: Into<Bytes>,
        E: Into<BoxError>,
    {
        // One item may wait in the channel: that is the one ahead. The source is not asked before there is room for it.
        let (sender, items) = mpsc::channel(1);
        let steps = async move {
            while let Ok(permit) = sender.reserve().await {
                match source.next() {
                    Some(item) => {
                        let last = item.is_err();
                        permit.send(item.map(Into::into).map_err(Into::into));
                        if last {
                            break;
                        }
                    }
                    None => break,
                }
                // Gives the thread back: between two items others have their turn.
                yield_once().await;
            }
        };
        let source = pool::spawn(admitted, call::Context::capture(), OnCallerDrop::CancelOnPool, steps);
        Self { items, source: Some(source) }
    }
}

impl Body for SyncBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(item) = ready!(self.items.poll_recv(cx)) {
            return Poll::Ready(Some(item.map(Frame::data)));
        }
        // The sender is gone: the source has ended, or is about to say why not.
        if let Some(source) = &mut self.source {
            let ended = ready!(Pin::new(source).poll(cx));
            self.source = None;
            match ended {
                Ok(()) => {}
                Err(CallFailure::Rejected(rejection)) => return Poll::Ready(Some(Err(rejection.into()))),
                Err(CallFailure::Panicked(payload)) => resume_unwind(payload),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }
}

/// Pending once, woken at once.
fn yield_once() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

impl fmt::Debug for SyncBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncBody").field("ended", &self.source.is_none()).finish_non_exhaustive()
    }
}
