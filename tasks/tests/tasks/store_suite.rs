//! Tests that every store must pass. The tests of a store implement [`Backend`] and call
//! [`store_suite!`], which generates a test for each case. Each test has a store of its own.

use std::time::Duration;

use tower_offload_tasks::{
    Failure, Json, Reason, Record, Retention, TaskId, TaskState, TaskStore, Timestamp,
    store::{Epoch, Filter, Found, Lease, Op, Page, Process, Written},
};

/// Creates stores of one kind.
pub(crate) trait Backend: Sized {
    type Store: TaskStore;

    /// Creates an empty backend. Returns `None`, and prints why, if that is not possible here.
    async fn fresh() -> Option<Self>;

    /// Opens the store as another process does when it starts.
    async fn open(&self) -> Self::Store;

    /// Lets the lease of this epoch expire, as if its process was killed. Its owner has dropped the
    /// lease.
    async fn lose_process(&self, _epoch: Epoch) {}

    /// Lets the process of this epoch judge others, as if it had been steady for a lease.
    async fn make_steady(&self, _epoch: Epoch) {}

    /// Lets time pass for the finished records in the store.
    async fn age(&self, store: &Self::Store, epoch: Epoch, records: Vec<Record>, age: Duration) {
        let aged = records.into_iter().map(|record| {
            let finished_at = record.finished_at.map(|at| at.before(age));
            accept(&record_at(record, finished_at))
        });
        store.write(epoch, &aged.collect::<Vec<_>>()).await.unwrap();
    }
}

fn record_at(mut record: Record, finished_at: Option<Timestamp>) -> Record {
    record.finished_at = finished_at;
    record
}

macro_rules! store_suite {
    ($backend:ty) => {
        store_suite!($backend:
            record_is_read_as_it_was_written
            record_accepted_twice_is_stored_once
            update_of_an_older_version_has_no_effect
            final_record_never_changes
            final_record_written_twice_is_done
            unknown_id_is_reported_as_unknown
            unfinished_records_of_a_lost_process_are_lost
            second_epoch_of_a_living_process_ends_no_other
            writes_after_the_end_of_the_epoch_are_fenced
            cancel_request_is_stored_and_listed_for_the_owner
            sweep_evicts_the_oldest_final_records_with_tombstones
            sweep_evicts_records_that_are_too_old
            list_is_filtered_paged_and_sorted_newest_first
            large_batch_has_a_result_for_each_operation
            written_records_are_visible_at_once_to_all_clients
        );
    };
    ($backend:ty: $($case:ident)+) => {
        $(
            #[tokio::test]
            async fn $case() {
                if let Some(backend) = <$backend as $crate::store_suite::Backend>::fresh().await {
                    $crate::store_suite::$case(&backend).await;
                }
            }
        )+
    };
}

pub(crate) use store_suite;

pub(crate) fn id(number: u16) -> TaskId {
    let mut bytes = [0; TaskId::BYTES];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    bytes[21] = 255;
    TaskId::from_bytes(bytes)
}

/// Returns the real time, because a store may compare it with its own.
pub(crate) fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

pub(crate) fn queued(number: u16) -> Record {
    Record::new(id(number), "report", now())
}

pub(crate) fn running(number: u16) -> Record {
    let mut record = queued(number);
    (record.state, record.attempt, record.started_at, record.version) = (TaskState::Running, 1, Some(now()), 2);
    record
}

pub(crate) fn succeeded(number: u16, finished_at: Timestamp) -> Record {
    let mut record = running(number);
    (record.state, record.finished_at, record.version) = (TaskState::Succeeded, Some(finished_at), 3);
    record.result = Some(Json::new(&number).unwrap());
    record
}

pub(crate) fn accept(record: &Record) -> Op {
    Op::Accept(Box::new(record.clone()))
}

pub(crate) fn update(record: &Record) -> Op {
    Op::Update(Box::new(record.clone()))
}

/// Begins an epoch whose owner is never gone.
pub(crate) async fn begin<S: TaskStore>(store: &S) -> Epoch {
    let lease = begin_lease(store).await;
    let epoch = lease.epoch;
    std::mem::forget(lease);
    epoch
}

pub(crate) async fn begin_lease<S: TaskStore>(store: &S) -> Lease {
    store.begin(&Process::new("suite", now())).await.unwrap()
}

pub(crate) async fn found<S: TaskStore>(store: &S, number: u16) -> Option<Record> {
    store.get(id(number)).await.unwrap().into_record()
}

pub(crate) async fn record_is_read_as_it_was_written(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let mut record = queued(1);
    record.owner = Some("O'Brien; DROP TABLE \"x\" -- \u{1f980}".to_owned());
    record.name = "<b>name</b> \\u0000 %_".to_owned();
    assert_eq!(store.write(epoch, &[accept(&record)]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 1).await.unwrap(), record);

    (record.state, record.attempt, record.max_attempts, record.version) = (TaskState::Running, 2, 5, 9);
    (record.progress, record.message) = (Some(0.1 + 0.2), Some("half\nway".to_owned()));
    (record.started_at, record.cancel_requested_at) = (Some(now()), Some(now()));
    assert_eq!(store.write(epoch, &[update(&record)]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 1).await.unwrap(), record);

    (record.state, record.finished_at, record.version) = (TaskState::Failed, Some(now()), 10);
    record.failure = Some(Failure::new("class", "it's \"so\"").detail(&["a\0b"]));
    record.reason = Some(Reason::Requested);
    assert_eq!(store.write(epoch, &[update(&record)]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 1).await.unwrap(), record);

    let mut with_result = succeeded(2, now());
    with_result.result =
        Some(Json::try_from("{\"b\":1.10, \"a\":\"\\u0000\",\"b\":18446744073709551616}".to_owned()).unwrap());
    assert_eq!(store.write(epoch, &[accept(&with_result)]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 2).await.unwrap(), with_result, "the text is unchanged");
}

/// If the reply is lost, the record is accepted again.
pub(crate) async fn record_accepted_twice_is_stored_once(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    assert_eq!(store.write(epoch, &[accept(&queued(1))]).await.unwrap(), [Written::Done]);
    let run = running(1);
    assert_eq!(store.write(epoch, &[update(&run)]).await.unwrap(), [Written::Done]);
    assert_eq!(store.write(epoch, &[accept(&queued(1))]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 1).await.unwrap(), run);
    assert_eq!(store.list(&Filter::default(), Page::default()).await.unwrap().records.len(), 1);
}

pub(crate) async fn update_of_an_older_version_has_no_effect(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let newest = running(1);
    store.write(epoch, &[accept(&newest)]).await.unwrap();
    assert_eq!(store.write(epoch, &[update(&queued(1))]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 1).await.unwrap(), newest);
}

pub(crate) async fn final_record_never_changes(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let last = succeeded(1, now());
    store.write(epoch, &[accept(&last)]).await.unwrap();
    let mut late = running(1);
    late.version = 100;
    let cancel = Op::RequestCancel { id: id(1), now: now() };
    assert_eq!(store.write(epoch, &[update(&late)]).await.unwrap(), [Written::Fenced]);
    assert_eq!(store.write(epoch, &[cancel]).await.unwrap(), [Written::Fenced]);
    assert_eq!(found(&store, 1).await.unwrap(), last);
}

/// If the reply is lost, the final record is written again, perhaps after the epoch has ended.
pub(crate) async fn final_record_written_twice_is_done(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let last = succeeded(1, now());
    store.write(epoch, &[accept(&running(1)), accept(&running(2))]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.write(epoch, &[update(&last)]).await.unwrap(), [Written::Done]);
    }
    let mut other = last.clone();
    (other.state, other.result) = (TaskState::Failed, None);
    assert_eq!(store.write(epoch, &[update(&other)]).await.unwrap(), [Written::Fenced]);

    store.end(epoch, now()).await.unwrap();
    let next = begin(&store).await;
    for epoch in [epoch, next] {
        let written = store.write(epoch, &[update(&last), update(&succeeded(2, now()))]).await.unwrap();
        assert_eq!(written, [Written::Done, Written::Fenced], "the second was lost with the epoch");
    }
    assert_eq!(found(&store, 1).await.unwrap(), last);
}

pub(crate) async fn unknown_id_is_reported_as_unknown(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    assert_eq!(store.get(id(1)).await.unwrap(), Found::Unknown);
    let ops = [update(&running(1)), Op::RequestCancel { id: id(2), now: now() }];
    assert_eq!(store.write(epoch, &ops).await.unwrap(), [Written::Unknown, Written::Unknown]);
    assert_eq!(store.get(id(1)).await.unwrap(), Found::Unknown);
}

pub(crate) async fn unfinished_records_of_a_lost_process_are_lost(backend: &impl Backend) {
    let first = backend.open().await;
    let lease = begin_lease(&first).await;
    let epoch = lease.epoch;
    let finished = succeeded(3, now());
    first.write(epoch, &[accept(&queued(1)), accept(&running(2)), accept(&finished)]).await.unwrap();
    drop(lease);
    backend.lose_process(epoch).await;

    let second = backend.open().await;
    let next = begin(&second).await;
    assert!(next > epoch);
    backend.make_steady(next).await;
    second.mark_lost(next, now()).await.unwrap();
    for number in [1, 2] {
        let record = found(&second, number).await.unwrap();
        assert_eq!((record.state, record.reason), (TaskState::Lost, Some(Reason::ProcessLost)));
        assert!(record.finished_at.is_some());
    }
    assert_eq!(found(&second, 3).await.unwrap(), finished);
    let mut late = succeeded(2, now());
    late.version = 100;
    assert_eq!(first.write(epoch, &[update(&late), accept(&queued(4))]).await.unwrap(), [Written::Fenced; 2]);
    assert!(!first.renew(epoch).await.unwrap());
    assert_eq!(found(&second, 2).await.unwrap().state, TaskState::Lost);
    assert_eq!(found(&second, 4).await, None);
}

/// Two `Tasks` of one process may use one store.
pub(crate) async fn second_epoch_of_a_living_process_ends_no_other(backend: &impl Backend) {
    let store = backend.open().await;
    let (first, second) = (begin(&store).await, begin(&store).await);
    backend.make_steady(second).await;
    store.write(first, &[accept(&running(1))]).await.unwrap();
    store.write(second, &[accept(&running(2))]).await.unwrap();
    assert_eq!(store.mark_lost(second, now()).await.unwrap(), 0);
    assert!(store.renew(first).await.unwrap() && store.renew(second).await.unwrap());
    for number in [1, 2] {
        assert_eq!(found(&store, number).await.unwrap().state, TaskState::Running);
    }
    let request = [Op::RequestCancel { id: id(1), now: now() }];
    assert_eq!(store.write(second, &request).await.unwrap(), [Written::Done]);
    assert_eq!(store.cancel_requests(first).await.unwrap(), [id(1)]);
    assert_eq!(store.cancel_requests(second).await.unwrap(), []);

    store.end(second, now()).await.unwrap();
    assert_eq!(found(&store, 1).await.unwrap().state, TaskState::Running);
    assert_eq!(found(&store, 2).await.unwrap().state, TaskState::Lost);
    let mut done = succeeded(1, now());
    done.version = 9;
    assert_eq!(store.write(first, &[update(&done)]).await.unwrap(), [Written::Done]);
}

pub(crate) async fn writes_after_the_end_of_the_epoch_are_fenced(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&running(1))]).await.unwrap();
    assert!(store.renew(epoch).await.unwrap());
    store.end(epoch, now()).await.unwrap();
    assert!(!store.renew(epoch).await.unwrap());
    assert_eq!(found(&store, 1).await.unwrap().state, TaskState::Lost);
    assert_eq!(store.write(epoch, &[accept(&queued(2))]).await.unwrap(), [Written::Fenced]);
}

pub(crate) async fn cancel_request_is_stored_and_listed_for_the_owner(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1)), accept(&queued(2))]).await.unwrap();
    let at = now();
    let request = |now| [Op::RequestCancel { id: id(1), now }];
    assert_eq!(store.write(epoch, &request(at)).await.unwrap(), [Written::Done]);
    let later = at.after(Duration::from_secs(9));
    assert_eq!(store.write(epoch, &request(later)).await.unwrap(), [Written::Done], "the first request counts");
    assert_eq!(store.cancel_requests(epoch).await.unwrap(), [id(1)]);

    let mut unaware = running(1);
    unaware.version = 2; // equal to the version after the request
    store.write(epoch, &[update(&unaware)]).await.unwrap();
    let record = found(&store, 1).await.unwrap();
    assert_eq!((record.state, record.version, record.cancel_requested_at), (TaskState::Running, 2, Some(at)));
    unaware.version = 100;
    store.write(epoch, &[update(&unaware)]).await.unwrap();
    let record = found(&store, 1).await.unwrap();
    assert_eq!((record.state, record.cancel_requested_at), (TaskState::Running, Some(at)));

    let mut finished = succeeded(1, now());
    finished.version = 101;
    store.write(epoch, &[update(&finished)]).await.unwrap();
    assert_eq!(store.cancel_requests(epoch).await.unwrap(), []);
}

pub(crate) async fn sweep_evicts_the_oldest_final_records_with_tombstones(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let second = Duration::from_secs(1);
    let mut oldest = succeeded(9, now());
    oldest.owner = Some("ann".to_owned());
    let newer = [succeeded(1, now().after(second)), succeeded(2, now().after(2 * second))];
    store.write(epoch, &[accept(&queued(3)), accept(&running(4)), accept(&oldest)]).await.unwrap();
    for record in &newer {
        store.write(epoch, &[accept(record)]).await.unwrap();
    }

    let retention = Retention::default().max_records(2).tombstone_ttl(60 * second);
    assert_eq!(store.sweep(now(), &retention).await.unwrap().evicted, 1);
    assert_eq!(store.get(id(9)).await.unwrap(), Found::Evicted { owner: Some("ann".to_owned()) });
    assert_eq!(store.sweep(now(), &retention).await.unwrap().evicted, 0);
    let brief = retention.max_records(0).tombstone_ttl(second / 2);
    assert_eq!(store.sweep(now(), &brief).await.unwrap().evicted, 2);
    assert!(found(&store, 3).await.is_some() && found(&store, 4).await.is_some());
    assert_eq!(store.get(id(1)).await.unwrap(), Found::Evicted { owner: None });
    assert_eq!(store.write(epoch, &[update(&oldest)]).await.unwrap(), [Written::Unknown]);

    tokio::time::sleep(second).await; // tombstones on Postgres go by the server's clock
    assert_eq!(store.sweep(now(), &retention).await.unwrap().forgotten, 2, "the tombstones that have expired");
    assert_eq!(store.get(id(1)).await.unwrap(), Found::Unknown);
    assert_eq!(store.get(id(9)).await.unwrap(), Found::Evicted { owner: Some("ann".to_owned()) });
}

pub(crate) async fn sweep_evicts_records_that_are_too_old(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let hour = Duration::from_secs(3600);
    backend.age(&store, epoch, vec![succeeded(1, now())], 2 * hour).await;
    store.write(epoch, &[accept(&succeeded(2, now()))]).await.unwrap();
    assert_eq!(store.sweep(now(), &Retention::default().max_age(hour)).await.unwrap().evicted, 1);
    assert_eq!((found(&store, 1).await, found(&store, 2).await.is_some()), (None, true));
}

pub(crate) async fn list_is_filtered_paged_and_sorted_newest_first(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let mut ops: Vec<_> = (1..=5).map(|number| accept(&queued(number))).collect();
    let mut other = running(6);
    (other.name, other.owner) = ("other".to_owned(), Some("ann".to_owned()));
    ops.extend([accept(&other), accept(&succeeded(7, now()))]);
    store.write(epoch, &ops).await.unwrap();

    let numbers = async |filter: Filter, page| {
        let listing = store.list(&filter, page).await.unwrap();
        let numbers: Vec<_> = listing.records.iter().map(|record| record.id.as_bytes()[1]).collect();
        (numbers, listing.next)
    };
    let all = Filter::default();
    assert_eq!(numbers(all.clone(), Page::default()).await, (vec![7, 6, 5, 4, 3, 2, 1], None));
    assert_eq!(numbers(all.clone(), Page::first(3)).await, (vec![7, 6, 5], Some(id(5))));
    assert_eq!(numbers(all.clone(), Page::first(3).after(id(5))).await, (vec![4, 3, 2], Some(id(2))));
    assert_eq!(numbers(all.clone(), Page::first(3).after(id(2))).await, (vec![1], None));
    assert_eq!(numbers(all.clone(), Page::first(7)).await.1, None, "the page holds all records");
    assert_eq!(numbers(all.clone().owner("ann"), Page::default()).await, (vec![6], None));
    assert_eq!(numbers(all.clone().name("other").owner("bob"), Page::default()).await, (vec![], None));
    assert_eq!(numbers(all.clone().name("' OR 1=1 --"), Page::default()).await, (vec![], None));
    let finished_or_running = all.clone().state(TaskState::Running).state(TaskState::Succeeded);
    assert_eq!(numbers(finished_or_running, Page::default()).await, (vec![7, 6], None));
    assert_eq!(numbers(all.name("report").state(TaskState::Queued), Page::first(2)).await, (vec![5, 4], Some(id(4))));
}

pub(crate) async fn large_batch_has_a_result_for_each_operation(backend: &impl Backend) {
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let accepts: Vec<_> = (0..512).map(|number| accept(&queued(number))).collect();
    assert_eq!(store.write(epoch, &accepts).await.unwrap(), [Written::Done; 512]);
    let mut ops: Vec<_> = (0..512).map(|number| update(&running(number))).collect();
    ops[100] = update(&running(1000));
    ops[200] = accept(&queued(2000));
    let written = store.write(epoch, &ops).await.unwrap();
    assert_eq!(written.len(), 512);
    assert!(written.iter().enumerate().all(|(index, written)| (*written == Written::Unknown) == (index == 100)));
    assert_eq!(found(&store, 511).await.unwrap().state, TaskState::Running);
    assert_eq!(found(&store, 200).await.unwrap().state, TaskState::Queued);
    assert!(found(&store, 2000).await.is_some());
    assert_eq!(store.write(epoch, &[]).await.unwrap(), []);
}

pub(crate) async fn written_records_are_visible_at_once_to_all_clients(backend: &impl Backend) {
    let store = &backend.open().await;
    let epoch = begin(store).await;
    let clients = (0..32).map(|client| async move {
        for number in (client * 16)..(client * 16 + 16) {
            let written = store.write(epoch, &[accept(&queued(number))]).await.unwrap();
            assert_eq!(written, [Written::Done]);
            assert!(found(store, number).await.is_some());
            store.write(epoch, &[update(&succeeded(number, now()))]).await.unwrap();
            assert_eq!(found(store, number).await.unwrap().state, TaskState::Succeeded);
        }
    });
    futures_util::future::join_all(clients).await;
}
