use bytes::Bytes;
use http::{HeaderMap, Response};

use super::{
    StatusAlias, StatusService,
    source::{Changes, Source, StreamsEnd},
};
use crate::{
    Accepted, Record, Subscription, TaskId, Tasks,
    store::{Filter, Found, Listing, Page, StoreFuture},
};

impl Tasks {
    /// Tells the status of these tasks over HTTP: mount it at the [base path](crate::TasksBuilder::base_path).
    ///
    /// By default who has an id may ask for its status and its events, and nothing else is allowed. See the
    /// [module docs](crate::service).
    pub fn service(&self) -> StatusService {
        StatusService::new(self.clone()).sharing(self.streams().permits.clone())
    }

    /// The answer to who asked for a task, as they prefer it, with the defaults of [`service`](Self::service). See
    /// [`StatusService::respond`].
    ///
    /// # Panics
    ///
    /// As [`StatusService::respond`].
    ///
    /// # Cancel safety
    ///
    /// As [`StatusService::respond`].
    pub async fn respond<B: From<Bytes>>(&self, accepted: Accepted, headers: &HeaderMap) -> Response<B> {
        self.service().respond(accepted, headers).await
    }

    /// The same as `GET /status?task_id=`, with the default of [`service`](Self::service). For another one there is
    /// [`StatusService::alias`].
    pub fn status_alias(&self) -> StatusAlias {
        self.service().alias()
    }
}

impl Source for Tasks {
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        Box::pin(Tasks::get(self, id))
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(Tasks::list(self, filter, page))
    }

    fn cancel(&self, id: TaskId) -> StoreFuture<'_, Found> {
        Box::pin(Tasks::cancel(self, id))
    }

    fn subscribe(&self, id: TaskId) -> StoreFuture<'_, Option<Box<dyn Changes>>> {
        Box::pin(async move {
            let subscription = Tasks::subscribe(self, id).await?;
            Ok(subscription.map(|subscription| Box::new(subscription) as _))
        })
    }

    fn is_closed(&self) -> bool {
        Tasks::is_closed(self)
    }

    fn streams_end(&self) -> StreamsEnd {
        Box::pin(self.streams().ended())
    }
}

impl Changes for Subscription {
    fn record(&self) -> &Record {
        Subscription::record(self)
    }

    fn changed(&mut self) -> StoreFuture<'_, bool> {
        Box::pin(async { Ok(Subscription::changed(self).await?.is_some()) })
    }
}
