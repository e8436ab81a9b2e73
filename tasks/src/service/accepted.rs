use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};

use super::{
    Access, StatusService,
    prefer::{self, Prefer},
    respond::vary_by_prefer,
    wait::Wait,
};
use crate::{Accepted, Status, store::Found};

impl StatusService {
    /// The answer to who asked for a task, as the `Prefer` of their request would have it
    /// ([RFC 7240](https://www.rfc-editor.org/rfc/rfc7240)). `headers` are those of the request.
    ///
    /// | `Prefer` | answer |
    /// |---|---|
    /// | none | 202 at once, as [`Accepted::into_response`] |
    /// | `respond-async` | the same, and that it was applied |
    /// | `wait=n` | 200 with the final status as soon as the task is over, however it ended; 202 with the status of then after n seconds |
    /// | both | so too |
    ///
    /// `n` is bounded by [`max_wait`](Self::max_wait), and who waits takes one of the [`max_streams`](Self::max_streams) places; without a free
    /// one nobody waits. `Preference-Applied` says what was done.
    ///
    /// A task that was registered with an `AfterResponse` begins only after this very response. It is not waited for: 202 at once.
    /// Whoever wants clients to be able to wait registers with a [`Background`](tower_offload::Background).
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled, if it has to wait.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, because the client has left, the task goes on.
    pub async fn respond<B: From<Bytes>>(&self, mut accepted: Accepted, headers: &HeaderMap) -> Response<B> {
        let prefer = Prefer::read(headers);
        let wait = Wait::admit(&self.config, prefer.wait.filter(|_| !accepted.awaits_response()));
        if let Some(wait) = &wait {
            match wait.for_end(&self.config, accepted.id(), &Access::All).await {
                Ok(Found::Record(record)) => accepted.set_status(Status::from(&*record)),
                Ok(_) => {} // it is kept no more: what is known is that it was accepted
                Err(error) => error.report(),
            }
        }
        let is_over = wait.is_some() && accepted.status().state.is_final();
        let mut response = accepted.into_response();
        if is_over {
            *response.status_mut() = StatusCode::OK;
        }
        let respond_async = (prefer.respond_async && !is_over).then(|| "respond-async".to_owned());
        let wait = wait.map(|wait| wait.preference());
        prefer::note_applied(response.headers_mut(), respond_async.into_iter().chain(wait));
        vary_by_prefer(&mut response);
        response
    }
}
