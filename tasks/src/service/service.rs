use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header::ALLOW};
use tokio::sync::Semaphore;
use tower_service::Service;

use super::{
    Access, Action, ResponseBody, ResponseFuture, StatusAlias,
    accept::prefers_html,
    access::Authorize,
    cancel::cancel,
    config::Config,
    events::events,
    list::{Wanted, list},
    page,
    prefer::Prefer,
    problem::{self, Problem},
    respond::{self, Answer},
    routes::{self, NotFound, Operation},
    show::show,
    source::Source,
};
use crate::{
    TaskId,
    panic::{catch_unwind, drop_payload},
};
use tower_offload::offload::RequestHead as Head;

/// Tells the status of tasks over HTTP, at paths below where it is mounted. See the [module docs](crate::service).
#[derive(Clone)]
pub struct StatusService {
    pub(super) config: Config,
}

impl StatusService {
    pub(crate) fn new(source: impl Source) -> Self {
        Self { config: Config::new(Arc::new(source)) }
    }

    /// With places for streams that others have too.
    pub(super) fn sharing(mut self, streams: Arc<Semaphore>) -> Self {
        self.config.streams = streams;
        self
    }

    /// Decides what a request may do; it runs for each, so it should look at what an outer layer has left in the head's extensions rather
    /// than ask a server.
    ///
    /// By default who has an id may see and follow that task if it has no owner, and nothing else is allowed: not to list, to open the
    /// page, or to cancel. If it panics the answer is 500.
    pub fn authorize(mut self, decide: impl Fn(&Head<'_>, &Action) -> Access + Send + Sync + 'static) -> Self {
        self.config.authorize = Authorize::new(decide);
        self
    }

    /// Nothing is changed through this service: whoever asks to cancel gets 403.
    pub fn read_only(mut self) -> Self {
        self.config.is_read_only = true;
        self
    }

    /// After how much silence a stream of events sends a comment, so that nobody on the way takes it for dead. Default 15 seconds, half
    /// of what proxies usually wait.
    pub fn keep_alive(mut self, silence: Duration) -> Self {
        self.config.keep_alive = silence.max(Duration::from_millis(1));
        self
    }

    /// How long a client may wait for the end of a task with `Prefer: wait=n`. Default 30 seconds: proxies give up after 60.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.config.max_wait = wait;
        self
    }

    /// How many streams of events may be open, and clients be waiting, at the same time. Default 1024: some kilobytes each, and all services
    /// of the same [`Tasks`](crate::Tasks) together. Beyond that a stream gets 503, and who would wait is answered at once.
    ///
    /// Set here they are of this service and its clones alone.
    pub fn max_streams(mut self, streams: usize) -> Self {
        let streams = streams.min(Semaphore::MAX_PERMITS);
        (self.config.max_streams, self.config.streams) = (streams, Arc::new(Semaphore::new(streams)));
        self
    }

    /// The same statuses as `GET /status?task_id=`. See [`StatusAlias`].
    pub fn alias(&self) -> StatusAlias {
        StatusAlias::new(self.config.clone())
    }

    fn answer(&self, head: &Head<'_>) -> ResponseFuture {
        let is_head = head.method() == Method::HEAD;
        match self.dispatch(head, is_head) {
            Ok(future) => future.finished(is_head),
            Err(answer) => ResponseFuture::ready(respond::finish(*answer, is_head)),
        }
    }

    fn dispatch(&self, head: &Head<'_>, is_head: bool) -> Result<ResponseFuture, Box<Answer>> {
        let (operation, id) = routes::find(head.method(), head.uri().path()).map_err(not_found)?;
        let config = self.config.clone();
        let id = || id.parse::<TaskId>().map_err(|_| refuse(problem::unknown()));
        let may = |action| allowed(&self.config, head, action);
        Ok(match operation {
            Operation::Cancel if config.is_read_only => return Err(refuse(forbidden("the service is read-only"))),
            Operation::Cancel => {
                let id = id()?;
                let access = may(Action::Cancel(id))?;
                ResponseFuture::new(cancel(config, id, access))
            }
            #[cfg(feature = "openapi")]
            Operation::Describe => {
                may(Action::Describe)?;
                ResponseFuture::ready(super::openapi::answer())
            }
            Operation::Events => {
                let id = id()?;
                let access = may(Action::Events(id))?;
                let told = head.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
                ResponseFuture::new(events(config, id, access, told))
            }
            Operation::List if prefers_html(head.headers()) => {
                may(Action::Page)?;
                ResponseFuture::ready(page::answer())
            }
            Operation::List => {
                let access = may(Action::List)?;
                let wanted = Wanted::read(head.uri().query().unwrap_or_default()).map_err(refuse)?;
                ResponseFuture::new(list(config, access, wanted))
            }
            Operation::Show => {
                let id = id()?;
                let access = may(Action::Show(id))?;
                let wait = Prefer::read(head.headers()).wait.filter(|_| !is_head);
                ResponseFuture::new(show(config, id, access, wait))
            }
        })
    }
}

/// What a request may do, if it may.
pub(super) fn allowed(config: &Config, head: &Head<'_>, action: Action) -> Result<Access, Box<Answer>> {
    match catch_unwind(|| config.authorize.decide(head, &action)) {
        Ok(Access::Denied) => Err(refuse(forbidden("this is not allowed"))),
        Ok(access) => Ok(access),
        Err(payload) => {
            drop_payload(payload);
            Err(refuse(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "nobody could say whether this is allowed")))
        }
    }
}

fn forbidden(why: &'static str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, why)
}

pub(super) fn refuse(problem: Problem) -> Box<Answer> {
    Box::new(problem.into_response())
}

fn not_found(why: NotFound) -> Box<Answer> {
    match why {
        NotFound::Path => refuse(Problem::new(StatusCode::NOT_FOUND, "there is nothing here")),
        NotFound::Method(allowed) => refuse_method(&allowed),
    }
}

pub(super) fn refuse_method(allowed: &str) -> Box<Answer> {
    let mut answer = refuse(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done here"));
    answer.headers_mut().extend(HeaderValue::from_str(allowed).ok().map(|allowed| (ALLOW, allowed)));
    answer
}

impl<B> Service<Request<B>> for StatusService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The body of the request is dropped unread.
    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.answer(&Head::new(&request))
    }
}

impl fmt::Debug for StatusService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusService").field("config", &self.config).finish_non_exhaustive()
    }
}
