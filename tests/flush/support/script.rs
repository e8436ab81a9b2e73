//! Responses that end in every way. The path of the request is the script.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TRAILER, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::{BoxError, Door, events::Event};

/// A step of a body.
enum Step {
    Data(usize),
    Error,
    Forever,
    Panic,
    Trailers(HeaderMap),
    Wait(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// A body that runs its steps, and reports its drop.
pub(crate) struct Script {
    steps: VecDeque<Step>,
    /// If `true`, the body reports its length and its end.
    knows_its_end: bool,
    path: String,
    events: mpsc::UnboundedSender<Event>,
}

/// Shared by all scripts of a server.
#[derive(Clone)]
pub(crate) struct Stage {
    /// Gated bodies wait here.
    pub(crate) gate: Door,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl Stage {
    /// Returns the response of a script. `key` identifies its body in events.
    ///
    /// | script | response |
    /// |---|---|
    /// | `/full/n` | one frame of n bytes, with a known end |
    /// | `/chunks/n/size` | n frames, without a known length |
    /// | `/length/n/size` | n frames with `content-length`, and no end |
    /// | `/gated/n/m` | n bytes, the gate, m bytes |
    /// | `/held/n` | the gate, n bytes |
    /// | `/hang/n` | n bytes, and no end |
    /// | `/error/n/size`, `/panic-in-body/n/size` | n frames, then an error or a panic |
    /// | `/trailers/n` | n bytes and trailers |
    /// | `/grpc/status` | 10 bytes and `grpc-status` in trailers |
    /// | `/short/declared/n`, `/long/declared/n` | n bytes, with another `content-length` |
    /// | `/status/code/n` | n bytes with this status |
    /// | `/empty` | no body |
    /// | `/both/n` | n bytes, with `content-length` and `transfer-encoding` |
    /// | `/two/n` | n bytes, with two different lengths |
    /// | `/word/n` | n bytes without a known length, and a `content-length` that is not a number |
    pub(crate) fn play(&self, key: &str, script: &str) -> Response<Script> {
        let mut words = script.split('?').next().unwrap().trim_start_matches('/').split('/');
        let kind = words.next().unwrap();
        let numbers: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
        let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
        let frames = || (0..number(0)).map(|_| Step::Data(number(1)));
        let mut declared = None;
        let mut status = StatusCode::OK;
        let mut knows_its_end = false;
        let steps: VecDeque<Step> = match kind {
            "both" => {
                declared = Some(number(0));
                knows_its_end = true;
                [Step::Data(number(0))].into()
            }
            "chunks" => frames().collect(),
            "empty" => {
                knows_its_end = true;
                VecDeque::new()
            }
            "error" => frames().chain([Step::Error]).collect(),
            "full" => {
                knows_its_end = true;
                [Step::Data(number(0))].into()
            }
            "gated" => {
                let gate = self.gate.clone();
                [Step::Data(number(0)), Step::Wait(Box::pin(gate.pass())), Step::Data(number(1))].into()
            }
            "grpc" => [Step::Data(10), Step::Trailers(trailers("grpc-status", number(0)))].into(),
            "held" => [Step::Wait(Box::pin(self.gate.clone().pass())), Step::Data(number(0))].into(),
            "hang" => [Step::Data(number(0)), Step::Forever].into(),
            "length" => {
                declared = Some(number(0) * number(1));
                frames().chain([Step::Forever]).collect()
            }
            "long" | "short" => {
                declared = Some(number(0));
                [Step::Data(number(1))].into()
            }
            "panic-in-body" => frames().chain([Step::Panic]).collect(),
            "status" => {
                status = StatusCode::from_u16(u16::try_from(number(0)).unwrap()).unwrap();
                knows_its_end = true;
                [Step::Data(number(1))].into()
            }
            "trailers" => [Step::Data(number(0)), Step::Trailers(trailers("x-after", 1))].into(),
            "two" | "word" => [Step::Data(number(0))].into(),
            _ => panic!("no script {script}"),
        };
        let body = Script { steps, knows_its_end, path: key.to_owned(), events: self.events.clone() };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        if let Some(declared) = declared {
            response.headers_mut().insert(CONTENT_LENGTH, declared.into());
        }
        if kind == "grpc" {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        let fields: &[(HeaderName, &'static str)] = match kind {
            "both" => &[(TRANSFER_ENCODING, "chunked")],
            "trailers" => &[(TRAILER, "x-after")],
            "two" => &[(CONTENT_LENGTH, "0"), (CONTENT_LENGTH, "7")],
            "word" => &[(CONTENT_LENGTH, "abc")],
            _ => &[],
        };
        for (name, value) in fields {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        response
    }
}

fn trailers(name: &'static str, value: usize) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), value.into())])
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match self.steps.front_mut() {
                None => return Poll::Ready(None),
                Some(Step::Forever) => return Poll::Pending,
                Some(Step::Wait(gate)) => ready!(gate.as_mut().poll(cx)),
                _ => (),
            }
            let Some(step) = self.steps.pop_front() else { return Poll::Ready(None) };
            return Poll::Ready(Some(match step {
                Step::Data(size) => Ok(Frame::data(Bytes::from(vec![b'x'; size]))),
                Step::Error => Err("the body failed".into()),
                Step::Panic => panic!("a body panics"),
                Step::Trailers(trailers) => Ok(Frame::trailers(trailers)),
                Step::Forever | Step::Wait(_) => continue,
            }));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        if !self.knows_its_end {
            return SizeHint::default();
        }
        let rest = self.steps.iter().map(|step| if let Step::Data(size) = step { *size } else { 0 }).sum::<usize>();
        SizeHint::with_exact(rest as u64)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.events.send(Event::BodyDropped { path: self.path.clone() });
    }
}
