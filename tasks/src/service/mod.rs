//! Status of tasks over HTTP: a tower service for axum's `nest_service`, or for hyper alone.
//!
//! | request | response |
//! |---|---|
//! | `GET /{id}` | 200 with the [`Status`](crate::Status); 404 if unknown; 410 if evicted |
//! | `GET /{id}` with `Prefer: wait=n` | the same, when the task finishes or after `n` seconds |
//! | `GET /{id}/events` | server-sent events until the task finishes; 204 if there are none left |
//! | `DELETE /{id}` | requests cancellation: 202, or 200 if the task has finished |
//! | `GET /?state=&name=&limit=&after=` | a list, newest first, with `Link: <..>; rel="next"` |
//! | `GET /` with `Accept: text/html` | a page that shows and controls tasks (feature `page`) |
//! | `GET /openapi.json` | the OpenAPI document (feature `openapi`) |
//! | `POST /{id}/retry` | queues a finished job again, under the same id: 200 with the status |
//! | `POST /{id}/discard` | ends a queued job, which has failed with class `discarded` |
//! | `PATCH /{id}` with `{"due_at":"2026-03-01T12:30:00Z"}` | changes when a queued job is due |
//! | `POST /bulk` | retries, cancels or discards up to 1000 tasks, see [below](#operations) |
//! | `GET /summary` | the number of tasks by state, name and queue, the oldest, and percentiles |
//! | `GET /queues` | queues and kinds of jobs, and which of them are paused |
//! | `POST /queues/{name}/pause` and `/resume`, `/kinds/{name}/..` | pauses or resumes a queue or a kind |
//! | `GET /sequences` | sequences that hold because a job has failed |
//! | `POST /sequences/release` with `{"key":"customer:7"}` | continues such a sequence |
//!
//! A task that failed has a status too, and unfinished tasks have `Retry-After`. A task of another
//! owner is reported as unknown. Event streams resume after `Last-Event-ID`. Errors are
//! `application/problem+json`. The cause of a store error is an event of level `ERROR` (feature
//! `tracing`), and it is never sent to the client. HEAD is handled like GET without a body. Other
//! methods are 405.
//!
//! A list omits results and the details of failures. A page ends early if it exceeds 1 MiB, and at
//! most 16 lists are read at a time: a further request gets 503. A list can also be selected by
//! `queue`, `owner`, `river_id`, the job's id in River's table, and `text`, which the name, the
//! message or the error contains, or with which the id begins. A list by text, queue or owner reads
//! at most 20 000 records, so its page may be short, or empty, although it has a next one.
//!
//! ```
//! use axum::Router;
//! use tower_offload_tasks::{MemoryStore, Tasks};
//!
//! let tasks = Tasks::new(MemoryStore::new());
//! let app: Router = Router::new()
//!     .nest_service("/tasks", tasks.service())
//!     .route_service("/status", tasks.status_alias());
//! # let _ = app;
//! ```
//!
//! # Mounting
//!
//! The `Location` of an accepted task is the [base path](crate::TasksBuilder::base_path), `/tasks`
//! by default, and its id. A service does not know where it is mounted until it gets a request, and
//! the first task may be accepted before, so the two must agree:
//!
//! | mounted with | base path |
//! |---|---|
//! | axum's `nest_service("/tasks", service)` | the default |
//! | `nest_service("/api/jobs", service)`, or `"/jobs"` in `nest("/api", ..)` | `/api/jobs` |
//! | `fallback_service(service)`, or hyper alone | the default, or the empty path for `/{id}` |
//! | any, behind a proxy that removes `/api` | `/api/tasks`, or `https://example.com/api/tasks` |
//!
//! The service accepts paths with and without the base path in front, so it also works where
//! nothing removes that. If it is nested elsewhere, its first request is an event of level `WARN`
//! (features `axum` and `tracing`).
//!
//! # Authorization
//!
//! By default a client that knows the id of a task may read its status and its events, if the task
//! has no owner. Ids cannot be guessed. The OpenAPI document, which contains nothing about any
//! task, is open to every client. All other actions are denied (403) until
//! [`StatusService::authorize`] permits them. Tasks of other owners look like unknown tasks.
//!
//! A status contains the result and the error message of the task, so a client that has the id can
//! read both.
//!
//! ```
//! use std::time::Duration;
//! use tower_offload_tasks::{MemoryStore, Tasks, service::{Access, Action}};
//!
//! /// Set by the authentication layer of the application, in the extensions of the request.
//! #[derive(Clone)]
//! struct User { name: String, is_admin: bool }
//!
//! let tasks = Tasks::new(MemoryStore::new());
//! let service = tasks
//!     .service()
//!     .authorize(|head, action| match (head.extensions().get::<User>(), action) {
//!         (Some(user), _) if user.is_admin => Access::All,
//!         (Some(user), _) => Access::Owner(user.name.clone()),
//!         (None, Action::Show(_)) => Access::Public,
//!         (None, _) => Access::Denied,
//!     })
//!     .max_wait(Duration::from_secs(20))
//!     .max_streams(200);
//! # let _ = service;
//! ```
//!
//! The page contains nothing about any task. It sends requests with the credentials that the
//! browser has for its origin, such as a session cookie. For a bearer token it has a form: the tab
//! keeps the token in its session storage and sends it as `Authorization`. A browser opens the page
//! without that token, so permit [`Action::Page`] to every client then. The page hides what the
//! service does not have, and shows the reason for what is denied. Responses do not permit other
//! origins, so pages of other sites cannot read or cancel tasks.
//!
//! # Operations
//!
//! The operations of the last rows are those of [`Tasks`] and of [`Jobs`](crate::jobs::Jobs). They
//! change jobs, so this process needs a job queue on the same store, also one without workers:
//! otherwise they are 501 with `"reason":"no_queue"`, and for a task that is not a job with
//! `"reason":"not_a_job"`. Only cancellation, also by `POST /bulk`, works for all tasks. If the
//! state of a job does not permit an operation, it is 409 with `"reason":"state"`; `deleted` means
//! that River has deleted the finished job, and `duplicate` that an equal unique job exists.
//!
//! The body of `POST /bulk` is `{"action":"retry","filter":{"state":"failed"}}`. The filter has the
//! fields of a list, and may be `{}`. A `"limit"` from 1 to 1000 is the maximum number of tasks
//! that are changed. The response is `{"changed":3,"remaining":false}`. While `remaining` is true,
//! repeat it with `"after"` of the response. One such request with [`Access::All`] and one of all
//! others are answered at a time, and a further one gets 503. Jobs that succeeded are retried only
//! if the filter names that state.
//!
//! **Forms of other sites.** A browser sends the cookies of this site with a form that another site
//! posts. Therefore each POST and PATCH needs `Content-Type: application/json`, also without a
//! body, and is 415 otherwise: a browser asks before it sends that for another site, and this
//! service does not permit it. Keep that in mind before you add a CORS layer around it.
//!
//! A body has at most 64 KiB, and must arrive within 10 s. It is read after the request was
//! authorized. The summary, queues, pauses and sequences need [`Access::All`].
//!
//! # Limits
//!
//! Each event stream and each waiting request holds one of
//! [`max_streams`](StatusService::max_streams) permits. A client that never reads holds its permit
//! until its connection ends, so set timeouts in the server. A list has at most 1000 tasks.
//!
//! # Shutdown
//!
//! A graceful shutdown waits for open connections, and a stream lasts as long as its task. Wrap the
//! signal that stops the server in [`Tasks::end_streams_on`]. Clients reconnect after a second and
//! resume.
//!
//! # When not to use it
//!
//! To watch many thousand tasks, query the store instead.

mod access;
mod alias;
mod config;
mod events;
mod handlers;
mod limits;
mod list;
mod mount;
mod negotiate;
#[cfg(feature = "openapi")]
mod openapi;
mod operations;
#[cfg(feature = "page")]
mod page;
mod response;
mod routes;
mod source;

use std::{
    convert::Infallible,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use tower_offload::offload::RequestHead;
use tower_service::Service;

pub(crate) use self::limits::Limits;
use self::{
    access::Authorize,
    config::Config,
    list::{ListQuery, list},
    mount::path_within,
    negotiate::Prefer,
    operations::Dispatched,
    response::{Response, method_not_allowed, unknown_task},
    routes::{Operation, RouteError},
    source::Source,
};
pub use self::{
    access::{Access, Action},
    alias::StatusAlias,
    response::{ResponseBody, ResponseFuture},
};
use crate::{Accepted, TaskId, Tasks, problem::Problem};

impl Tasks {
    /// Returns a service for the status of these tasks. [Mount](crate::service#mounting) it at the
    /// [base path](crate::TasksBuilder::base_path).
    ///
    /// By default clients may read only tasks whose id they know and that have no owner. See the
    /// [module documentation](crate::service#authorization).
    pub fn service(&self) -> StatusService {
        StatusService::new(self.clone(), self.limits().clone())
    }

    /// Converts an accepted task to a response, like [`StatusService::respond`] with the default
    /// options.
    ///
    /// # Panics
    ///
    /// Like [`StatusService::respond`].
    ///
    /// # Cancel safety
    ///
    /// Like [`StatusService::respond`].
    pub async fn respond<B: From<Bytes>>(&self, accepted: Accepted, headers: &HeaderMap) -> http::Response<B> {
        self.service().respond(accepted, headers).await
    }

    /// Returns a service for `GET /status?task_id=`, with the default options. For other options
    /// use [`StatusService::alias`].
    pub fn status_alias(&self) -> StatusAlias {
        self.service().alias()
    }
}

/// Reports the status of tasks over HTTP. Returned by [`Tasks::service`].
///
/// See the [module documentation](crate::service).
#[derive(Clone)]
#[must_use = "a service does nothing until it is mounted"]
pub struct StatusService {
    config: Config,
}

impl StatusService {
    fn new(source: impl Source, limits: Limits) -> Self {
        Self { config: Config::new(source, limits) }
    }

    /// Sets the callback that authorizes each request.
    ///
    /// It runs on the thread of the request, so it should not block. Usually it reads what an
    /// authentication layer has put into the extensions of the request. If it panics, the response
    /// is 500.
    ///
    /// Default: see [`Action`].
    pub fn authorize(mut self, callback: impl Fn(&RequestHead<'_>, &Action) -> Access + Send + Sync + 'static) -> Self {
        self.config.authorize = Authorize::new(callback);
        self
    }

    /// Rejects all requests except GET and HEAD with 403.
    pub fn read_only(mut self) -> Self {
        self.config.is_read_only = true;
        self
    }

    /// Sets the interval of comments in idle event streams, which keep proxies from closing the
    /// connection. At least a millisecond. Default: 15 seconds.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.config.keep_alive = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets the maximum time that a request waits with `Prefer: wait=n`. Default: 30 seconds, since
    /// proxies commonly close a connection after 60 seconds without a response.
    pub fn max_wait(mut self, timeout: Duration) -> Self {
        self.config.max_wait = timeout;
        self
    }

    /// Sets the maximum number of open event streams and waiting requests. Each needs a few
    /// kilobytes. Default: 1024, shared by all services of one [`Tasks`].
    ///
    /// A further stream gets 503, and a further request does not wait. A limit that is set here
    /// applies to this service and its clones only.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.config.limits.set_max_streams(streams);
        self
    }

    /// Returns a service for `GET /status?task_id=` with the same options.
    pub fn alias(&self) -> StatusAlias {
        StatusAlias::new(self.config.clone())
    }

    /// Converts an accepted task to a response, according to the `Prefer` header of the request
    /// ([RFC 7240](https://www.rfc-editor.org/rfc/rfc7240)). `headers` are the headers of the
    /// request.
    ///
    /// | `Prefer` | response |
    /// |---|---|
    /// | none | 202 at once, like [`Accepted::into_response`] |
    /// | `respond-async` | 202 at once |
    /// | `wait=n` | 200 with the final status when the task finishes, or 202 after `n` seconds |
    /// | `respond-async, wait=n` | like `wait=n` |
    ///
    /// `n` is limited by [`max_wait`](Self::max_wait). If no permit of
    /// [`max_streams`](Self::max_streams) is free, the response is 202 at once.
    /// `Preference-Applied` lists the preferences that were applied.
    ///
    /// A task that was submitted to an `AfterResponse` starts after this response, so the request
    /// does not wait for it. If clients should be able to wait, submit the task to a
    /// [`Background`](tower_offload::Background).
    ///
    /// # Panics
    ///
    /// The future panics if it waits outside of a Tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped because the client has left, the task continues.
    pub async fn respond<B: From<Bytes>>(&self, accepted: Accepted, headers: &HeaderMap) -> http::Response<B> {
        handlers::respond(&self.config, accepted, headers).await
    }

    fn dispatch(&self, head: &RequestHead<'_>, operation: Operation, segment: &str) -> Result<Dispatched, Problem> {
        let config = self.config.clone();
        let id = || segment.parse::<TaskId>().map_err(|_| unknown_task());
        let authorize = |action| self.config.authorize(head, action);
        Ok(Dispatched::Response(match operation {
            #[cfg(feature = "page")]
            Operation::List if negotiate::prefers_html(head.headers()) => {
                authorize(Action::Page)?;
                ResponseFuture::ready(page::respond(config.is_read_only))
            }
            Operation::List => {
                let access = authorize(Action::List)?;
                let query = ListQuery::parse(head.uri().query().unwrap_or_default())?;
                ResponseFuture::new(list(config, access, query))
            }
            #[cfg(feature = "openapi")]
            Operation::Describe => {
                authorize(Action::Describe)?;
                ResponseFuture::ready(openapi::respond(config.source.base_path()))
            }
            Operation::Show => {
                let id = id()?;
                let access = authorize(Action::Show(id))?;
                let wait = Prefer::parse(head.headers()).wait.filter(|_| head.method() != Method::HEAD);
                ResponseFuture::new(handlers::show(config, id, access, wait))
            }
            Operation::Cancel => {
                let id = id()?;
                if config.is_read_only {
                    return Err(config.limits.deny(&Action::Cancel(id), "the service is read-only"));
                }
                let access = authorize(Action::Cancel(id))?;
                ResponseFuture::new(handlers::cancel(config, id, access))
            }
            Operation::Events => {
                let id = id()?;
                let access = authorize(Action::Events(id))?;
                let last = head.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
                ResponseFuture::new(handlers::events(config, id, access, last))
            }
            operation => return operations::dispatch(&config, head, operation, segment),
        }))
    }
}

impl<B> Service<Request<B>> for StatusService
where
    B: Body + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Responds to a request. Its body is dropped unread, unless the operation needs it: then at
    /// most 64 KiB are read, within 10 s, after the request was authorized.
    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let head = RequestHead::new(&request);
        let base_path = self.config.source.base_path();
        self.config.mount.check(head.extensions(), base_path);
        let ready = |response| Dispatched::Response(ResponseFuture::ready(response));
        let problem = |problem: Problem| ready(problem.into_response());
        let dispatched = match routes::find(head.method(), path_within(head.uri().path(), base_path)) {
            Ok((operation, segment)) => self.dispatch(&head, operation, segment).unwrap_or_else(problem),
            Err(RouteError::PathNotFound) => problem(Problem::new(StatusCode::NOT_FOUND, "no such path")),
            Err(RouteError::MethodNotAllowed(allowed)) => ready(method_not_allowed(&allowed)),
        };
        let (parts, body) = request.into_parts();
        dispatched.with_body(body).for_method(&parts.method)
    }
}

impl fmt::Debug for StatusService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusService").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
