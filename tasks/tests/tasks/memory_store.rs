//! The store in memory: the suite, and tests of its capacity.

use tower_offload_tasks::{
    MemoryStore, Record, TaskStore, Timestamp,
    store::{Op, Written},
};

use super::store_suite::{Backend, begin, id, store_suite};

struct InMemory(MemoryStore);

impl Backend for InMemory {
    type Store = MemoryStore;

    async fn fresh() -> Option<Self> {
        Some(Self(MemoryStore::new()))
    }

    async fn open(&self) -> MemoryStore {
        self.0.clone()
    }
}

store_suite!(InMemory);

#[tokio::test]
async fn full_store_evicts_a_final_record_or_rejects_the_new_one() {
    let store = MemoryStore::with_capacity(1);
    let epoch = begin(&store).await;
    let accept = |number| [Op::Accept(Box::new(Record::new(id(number), "", Timestamp::default())))];
    assert_eq!(store.write(epoch, &accept(1)).await.unwrap(), [Written::Done]);
    assert_eq!(store.write(epoch, &accept(2)).await.unwrap(), [Written::Full]);
    store.end(epoch, Timestamp::default()).await.unwrap();
    let epoch = begin(&store).await;
    assert_eq!(store.write(epoch, &accept(2)).await.unwrap(), [Written::Done]);
}
