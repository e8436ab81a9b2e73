use std::marker::PhantomData;

use riverqueue::{InsertBatch, InsertOpts, JobArgs};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::jobs::Job;

/// A job as River has it: its text. It becomes a value where that cannot hurt.
pub(in crate::jobs) struct Arguments<J> {
    text: Box<RawValue>,
    job: PhantomData<fn() -> J>,
}

impl<J: Job> Arguments<J> {
    /// The text that River's clients in every language make of it.
    pub(in crate::jobs) fn encode(job: &J) -> Result<Box<RawValue>, serde_json::Error> {
        riverqueue::encoding::encode_args(job)
    }

    pub(super) fn decode(&self) -> Result<J, serde_json::Error> {
        serde_json::from_str(self.text.get())
    }

    /// Puts a text that [`encode`](Self::encode) made into a batch.
    pub(in crate::jobs) fn push(batch: &mut InsertBatch, text: &RawValue, options: InsertOpts) {
        batch.push_with(Self { text: text.to_owned(), job: PhantomData }, options);
    }
}

impl<J> Serialize for Arguments<J> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl<'de, J> Deserialize<'de> for Arguments<J> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { text: Box::deserialize(deserializer)?, job: PhantomData })
    }
}

impl<J: Job> JobArgs for Arguments<J> {
    const KIND: &'static str = J::KIND;
}
