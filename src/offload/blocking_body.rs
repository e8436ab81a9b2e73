use std::{
    error::Error,
    fmt,
    io::{self, Read},
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::{sync::mpsc, task::yield_now};

use crate::pool::{
    Admitted, CallError, CallOptions, PermitKind, Pool, QueuePermit,
    call::{CallFailure, Context as CallContext, CurrentCall, JoinHandle, OnCallerDrop},
    cancelled, spawn,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Buffer size of one read, large enough that the cost of a hop to the pool does not matter.
const READ_SIZE: usize = 64 * 1024;

/// A response body that a pool produces from a blocking iterator or [`Read`].
///
/// The source is at most one item ahead of the client: the next item is produced when the previous
/// one has been taken from the body. While the body waits for the client it occupies no thread.
/// Dropping the body drops the source on the pool.
///
/// The body is one call of the pool. It enters the queue when it is created, so a full pool is
/// reported before the head of the response is sent; after that no step of it is rejected.
///
/// ```
/// use http_body_util::BodyExt;
/// use tower_offload::{ThreadPool, offload::BlockingBody};
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = ThreadPool::blocking(4);
/// let lines = (0..3).map(|number| Ok::<_, std::io::Error>(format!("line {number}\n")));
/// let body = BlockingBody::new(pool, lines).expect("room in the queue");
/// assert_eq!(body.collect().await.unwrap().to_bytes(), "line 0\nline 1\nline 2\n");
/// # }
/// ```
///
/// # Panics
///
/// A panic of the source is resumed where the body is polled. Like a panic of any body, it ends the
/// connection.
pub struct BlockingBody {
    items: mpsc::Receiver<Result<Bytes, BoxError>>,
    /// `None` after the source has ended.
    source: Option<JoinHandle<()>>,
}

impl BlockingBody {
    /// Creates a body from the items of an iterator: `Bytes`, `String` or `Vec<u8>`.
    ///
    /// An error ends the body. A shutdown of the pool ends it with [`CallError::Closed`], so that a
    /// truncated body never looks complete.
    ///
    /// # Errors
    ///
    /// Returns an error if the pool is full or shut down.
    pub fn new<P, I, T, E>(pool: P, source: I) -> Result<Self, CallError>
    where
        P: Pool,
        I: IntoIterator<Item = Result<T, E>>,
        I::IntoIter: Send + 'static,
        T: Into<Bytes>,
        E: Into<BoxError>,
    {
        // The deadline of the request does not apply: a download may take longer than its head.
        let options = CallOptions::new();
        let queue_permit = QueuePermit::try_acquire_counted(pool.into_shared(), options, PermitKind::Exempt)?;
        Ok(Self::spawn(
            Admitted { queue_permit, layer_permit: CurrentCall::layer_permit(), options },
            source.into_iter(),
        ))
    }

    /// Creates a body from a reader, in chunks of up to 64 KiB.
    ///
    /// An interrupted read is retried until the body is dropped or the timeout of the pool's
    /// shutdown has passed. Any other error ends the body.
    ///
    /// # Errors
    ///
    /// Returns an error if the pool is full or shut down.
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
                        // A reader may be interrupted forever.
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                            if cancelled() {
                                return Some(Err(CallError::Closed.into()));
                            }
                        }
                        Err(error) => return Some(Err(BoxError::from(error))),
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
        // With a capacity of 1, the source is at most one item ahead of the client.
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
                yield_now().await; // other calls run between two items
            }
        };
        let source = spawn(admitted, CallContext::capture(), OnCallerDrop::CancelOnPool, steps);
        Self { items, source: Some(source) }
    }
}

impl Body for BlockingBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(item) = ready!(self.items.poll_recv(cx)) {
            return Poll::Ready(Some(item.map(Frame::data)));
        }
        // The sender was dropped, so the call has ended or is about to; its result is the reason.
        if let Some(source) = &mut self.source {
            let ended = ready!(Pin::new(source).poll(cx));
            self.source = None;
            match ended {
                Ok(()) => {}
                Err(CallFailure::Rejected(error)) => return Poll::Ready(Some(Err(error.into()))),
                Err(CallFailure::Panicked(payload)) => resume_unwind(payload),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }
}

impl fmt::Debug for BlockingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingBody").field("ended", &self.source.is_none()).finish_non_exhaustive()
    }
}
