use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::stream::EventStream;

/// The body of what a [`StatusService`](super::StatusService) answers.
#[derive(Default)]
pub struct ResponseBody(Content);

#[derive(Default)]
enum Content {
    #[default]
    Ended,
    Events(Box<EventStream>),
    Whole(Bytes),
}

impl ResponseBody {
    pub(super) fn of_events(stream: EventStream) -> Self {
        Self(Content::Events(Box::new(stream)))
    }
}

impl From<Bytes> for ResponseBody {
    fn from(bytes: Bytes) -> Self {
        Self(if bytes.is_empty() { Content::Ended } else { Content::Whole(bytes) })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match &mut self.0 {
            Content::Ended => return Poll::Ready(None),
            Content::Events(stream) => std::task::ready!(stream.poll(cx)),
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Content::Ended;
                Some(bytes)
            }
        };
        if frame.is_none() {
            self.0 = Content::Ended; // gives back what the stream holds
        }
        Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Ended => SizeHint::with_exact(0),
            Content::Events(_) => SizeHint::default(),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("size_hint", &self.size_hint()).finish_non_exhaustive()
    }
}
