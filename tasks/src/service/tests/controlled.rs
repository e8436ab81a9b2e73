use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use crate::{
    BulkAction, BulkReport, Failure, Json, MemoryStore, OperationError, Reason, Record, Retention, StatusService,
    StoreError, TaskId, TaskState, TaskStore, Timestamp,
    operation::{BlockedSequence, Change, OperationFuture, Pausable, QueueState, Queues},
    record::Ending,
    service::{
        Access, Limits, ResponseBody,
        source::{Changes, Source, StreamsEnded},
    },
    store::{Epoch, Filter, Found, Listing, Op, Page, Process, StoreFuture, Summary},
};

/// A [`Source`] whose tasks change only when the test changes them.
#[derive(Clone)]
pub(super) struct Controlled(Arc<Inner>);

struct Inner {
    store: MemoryStore,
    epoch: Epoch,
    accepted: AtomicU64,
    active: Mutex<HashMap<TaskId, watch::Sender<Record>>>,
    is_closed: AtomicBool,
    fault: Mutex<Option<fn() -> StoreError>>,
    /// `true` if subscriptions fail. Other reads work.
    changes_fail: AtomicBool,
    /// Lists are read once a permit is free.
    list_permits: Semaphore,
    streams_ended: watch::Sender<bool>,
    refusal: Mutex<Option<fn() -> OperationError>>,
    /// The operations that the service has called, with their arguments.
    operations: Mutex<Vec<String>>,
}

impl Controlled {
    pub(super) async fn new() -> Self {
        let store = MemoryStore::new();
        let epoch = store.begin(&Process::new("test", Timestamp::default())).await.unwrap().epoch;
        let (active, is_closed, fault) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        let (accepted, streams_ended) = (AtomicU64::new(0), watch::Sender::new(false));
        let list_permits = Semaphore::new(Semaphore::MAX_PERMITS);
        let changes_fail = AtomicBool::new(false);
        let (refusal, operations) = (Mutex::default(), Mutex::default());
        let inner = Inner {
            store,
            epoch,
            accepted,
            active,
            is_closed,
            fault,
            changes_fail,
            list_permits,
            streams_ended,
            refusal,
            operations,
        };
        Self(Arc::new(inner))
    }

    /// Returns a service with the default options.
    pub(super) fn default_service(&self) -> StatusService {
        StatusService::new(self.clone(), Limits::new())
    }

    /// Returns a service that permits everything.
    pub(super) fn service(&self) -> StatusService {
        self.default_service().authorize(|_, _| Access::All)
    }

    pub(super) async fn accept(&self, name: &str) -> TaskId {
        self.accept_of(name, None).await
    }

    pub(super) async fn accept_of(&self, name: &str, owner: Option<&str>) -> TaskId {
        // Ids of the same millisecond have no order, so each task has a millisecond of its own.
        let time = now().after(Duration::from_millis(self.0.accepted.fetch_add(1, Relaxed)));
        let mut record = Record::new(TaskId::generate(time).unwrap(), name, now());
        record.owner = owner.map(str::to_owned);
        let id = record.id;
        self.write(Op::Accept(Box::new(record.clone()))).await;
        self.0.active.lock().unwrap().insert(id, watch::Sender::new(record));
        id
    }

    /// Delays a queued task until `millis` milliseconds from now.
    pub(super) async fn delay(&self, id: TaskId, millis: u64) {
        self.change(id, |record| {
            record.due_at = Some(now().after(Duration::from_millis(millis)));
            record.version += 1;
        })
        .await;
    }

    pub(super) async fn start(&self, id: TaskId) {
        self.change(id, |record| assert!(record.start(now()))).await;
    }

    pub(super) async fn advance(&self, id: TaskId, progress: f64, message: &str) {
        self.change(id, |record| assert!(record.advance(Some(progress), Some(message.to_owned())))).await;
    }

    pub(super) async fn succeed(&self, id: TaskId) {
        self.finish(id, Ending::Succeeded(Json::new(&["row"]).unwrap())).await;
    }

    pub(super) async fn fail(&self, id: TaskId, message: &str) {
        self.finish(id, Ending::Failed(Failure::new("io", message))).await;
    }

    pub(super) async fn finish(&self, id: TaskId, ending: Ending) {
        self.change(id, |record| assert!(record.finish(ending, now()))).await;
    }

    /// Ends all subscriptions to a task.
    pub(super) fn forget(&self, id: TaskId) {
        self.0.active.lock().unwrap().remove(&id);
    }

    pub(super) async fn evict_all_final(&self) {
        self.0.store.sweep(now(), &Retention::default().max_records(0)).await.unwrap();
    }

    /// Blocks all lists until [`release_lists`](Self::release_lists).
    pub(super) fn hold_lists(&self) {
        self.0.list_permits.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(super) fn release_lists(&self) {
        self.0.list_permits.add_permits(1000);
    }

    pub(super) fn close(&self) {
        self.0.is_closed.store(true, Relaxed);
    }

    pub(super) fn end_streams(&self) {
        self.0.streams_ended.send_replace(true);
    }

    pub(super) fn fail_with(&self, fault: fn() -> StoreError) {
        *self.0.fault.lock().unwrap() = Some(fault);
    }

    /// Refuses all operations.
    pub(super) fn refuse_with(&self, refusal: fn() -> OperationError) {
        *self.0.refusal.lock().unwrap() = Some(refusal);
    }

    /// Returns the operations that were called since the last call of this method.
    pub(super) fn take_operations(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.operations.lock().unwrap())
    }

    fn operation(&self, text: String) -> Result<(), OperationError> {
        self.fault()?;
        self.0.operations.lock().unwrap().push(text);
        self.0.refusal.lock().unwrap().map_or(Ok(()), |refusal| Err(refusal()))
    }

    pub(super) fn fail_changes(&self) {
        self.0.changes_fail.store(true, Relaxed);
    }

    async fn change(&self, id: TaskId, change: impl FnOnce(&mut Record)) {
        let mut record = self.0.store.get(id).await.unwrap().into_record().unwrap();
        change(&mut record);
        self.write(Op::Update(Box::new(record.clone()))).await;
        let active = self.0.active.lock().unwrap();
        active[&id].send_replace(record);
    }

    async fn write(&self, op: Op) {
        self.0.store.write(self.0.epoch, &[op]).await.unwrap();
    }

    fn fault(&self) -> Result<(), StoreError> {
        self.0.fault.lock().unwrap().map_or(Ok(()), |fault| Err(fault()))
    }
}

fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

impl Source for Controlled {
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        match self.fault() {
            Ok(()) => self.0.store.get(id),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let _permit = self.0.list_permits.acquire().await.unwrap();
            self.fault()?;
            self.0.store.list(filter, page).await
        })
    }

    fn cancel(&self, id: TaskId) -> StoreFuture<'_, Found> {
        Box::pin(async move {
            let Some(record) = self.get(id).await?.into_record() else { return self.get(id).await };
            if !record.state.is_final() {
                self.change(id, |record| {
                    record.request_cancel(now());
                    if record.state == TaskState::Queued {
                        record.finish(Ending::Cancelled(Reason::Requested, None), now());
                    }
                })
                .await;
            }
            self.get(id).await
        })
    }

    fn summary(&self) -> StoreFuture<'_, Arc<Summary>> {
        Box::pin(async {
            self.fault()?;
            Ok(Arc::new(self.0.store.summary(now()).await?))
        })
    }

    fn change(&self, id: TaskId, change: Change) -> OperationFuture<'_, Record> {
        Box::pin(async move {
            self.operation(format!("{change:?}"))?;
            Ok(self.get(id).await?.into_record().unwrap())
        })
    }

    fn bulk<'a>(&'a self, action: BulkAction, filter: &'a Filter, page: Page) -> OperationFuture<'a, BulkReport> {
        Box::pin(async move {
            self.operation(format!("{action:?} {filter:?} {page:?}"))?;
            Ok(BulkReport { changed: 3, ..BulkReport::default() })
        })
    }

    fn queues(&self) -> OperationFuture<'_, Queues> {
        Box::pin(async {
            self.operation("Queues".to_owned())?;
            let state = |name| vec![QueueState::new(name, false)];
            Ok(Queues { queues: state("default"), kinds: state("report") })
        })
    }

    fn set_paused<'a>(&'a self, what: Pausable, name: &'a str, is_paused: bool) -> OperationFuture<'a, ()> {
        Box::pin(async move { self.operation(format!("{what:?} {name} {is_paused}")) })
    }

    fn blocked_sequences(&self) -> OperationFuture<'_, Vec<BlockedSequence>> {
        Box::pin(async {
            self.operation("Sequences".to_owned())?;
            Ok(vec![BlockedSequence::new("customer:7".to_owned(), None, Timestamp::default(), 2)])
        })
    }

    fn release_sequence<'a>(&'a self, key: &'a str) -> OperationFuture<'a, bool> {
        Box::pin(async move { self.operation(format!("Release {key}")).map(|()| key == "customer:7") })
    }

    fn subscribe(&self, id: TaskId) -> StoreFuture<'_, Option<Box<dyn Changes>>> {
        Box::pin(async move {
            self.fault()?;
            let receiver = self.0.active.lock().unwrap().get(&id).map(watch::Sender::subscribe);
            Ok(receiver.map(|mut receiver| {
                let record = receiver.borrow_and_update().clone();
                Box::new(Subscribed { record, receiver, tasks: self.clone() }) as _
            }))
        })
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Relaxed)
    }

    fn base_path(&self) -> &str {
        "/tasks"
    }

    fn streams_ended(&self) -> StreamsEnded {
        let mut streams_ended = self.0.streams_ended.subscribe();
        Box::pin(async move { drop(streams_ended.wait_for(|ended| *ended).await) })
    }
}

struct Subscribed {
    record: Record,
    receiver: watch::Receiver<Record>,
    tasks: Controlled,
}

impl Changes for Subscribed {
    fn record(&self) -> &Record {
        &self.record
    }

    fn changed(&mut self) -> StoreFuture<'_, bool> {
        Box::pin(async {
            if self.tasks.0.changes_fail.load(Relaxed) {
                return Err(StoreError::unavailable("the server has gone"));
            }
            if self.record.state.is_final() || self.receiver.changed().await.is_err() {
                return Ok(false);
            }
            self.record = self.receiver.borrow_and_update().clone();
            Ok(true)
        })
    }
}

pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns `true` for a problem response, whose body repeats the status.
    pub(super) fn is_problem(&self, status: u16) -> bool {
        self.status == status
            && self.header("content-type") == "application/problem+json"
            && self.json()["status"] == status
    }
}

pub(super) fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let method: Method = method.parse().unwrap();
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

/// Returns the response without reading its body.
pub(super) async fn open<S>(
    service: &S,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> http::Response<ResponseBody>
where
    S: tower::Service<Request<Empty<Bytes>>, Response = http::Response<ResponseBody>> + Clone,
    S::Error: std::fmt::Debug,
{
    service.clone().oneshot(request(method, target, headers)).await.unwrap()
}

pub(super) async fn send<S>(service: &S, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply
where
    S: tower::Service<Request<Empty<Bytes>>, Response = http::Response<ResponseBody>> + Clone,
    S::Error: std::fmt::Debug,
{
    let (head, body) = open(service, method, target, headers).await.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status, headers: head.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// Sends a request with a body.
pub(super) async fn send_body<B>(
    service: &StatusService,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: B,
) -> Reply
where
    B: http_body::Body + Send + 'static,
{
    let request = request(method, target, headers).map(|_| body);
    let (head, body) = service.clone().oneshot(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status, headers: head.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

pub(super) async fn get(service: &StatusService, target: &str) -> Reply {
    send(service, "GET", target, &[]).await
}
