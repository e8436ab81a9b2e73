//! The store in memory: the suite, and what is its own.

use tower_offload_tasks::{
    MemoryStore, Record, TaskStore, Timestamp,
    store::{Epoch, Op, Process, Written},
};

use super::store_suite::{Backend, id, store_suite};

struct InMemory(MemoryStore);

impl Backend for InMemory {
    type Store = MemoryStore;

    async fn fresh() -> Option<Self> {
        Some(Self(MemoryStore::new()))
    }

    async fn open(&self) -> MemoryStore {
        self.0.clone()
    }

    async fn lose_process(&self, _: Epoch) {} // the next to begin has the store
}

store_suite!(InMemory);

/// F7
#[tokio::test]
async fn at_its_capacity_a_record_takes_the_place_of_a_final_one_or_is_refused() {
    let store = MemoryStore::with_capacity(1);
    let epoch = store.begin(&Process::new("", Timestamp::default())).await.unwrap().epoch;
    let accept = |number| [Op::Accept(Box::new(Record::new(id(number), "", Timestamp::default())))];
    assert_eq!(store.write(epoch, &accept(1)).await.unwrap(), [Written::Done]);
    assert_eq!(store.write(epoch, &accept(2)).await.unwrap(), [Written::Full]);
    store.end(epoch, Timestamp::default()).await.unwrap();
    let epoch = store.begin(&Process::new("", Timestamp::default())).await.unwrap().epoch;
    assert_eq!(store.write(epoch, &accept(2)).await.unwrap(), [Written::Done]);
}
