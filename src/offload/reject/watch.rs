#[cfg(not(feature = "after-response"))]
use std::marker::PhantomData;

use http::{Request, Response};

#[cfg(feature = "after-response")]
use crate::after_response::OffloadedCall;

/// Receives the response of an offloaded call, even if the caller has left. Returned by
/// [`Reject::watch`](super::Reject::watch).
///
/// It reports to the `AfterResponse` of the request whether the handler succeeded. If the work
/// fails, panics or is dropped, the watch is dropped instead.
pub struct Watch<Res>(Inner<Res>);

/// The call, and the function that ends it with a response.
#[cfg(feature = "after-response")]
type Inner<Res> = (OffloadedCall, fn(OffloadedCall, &Res));
/// Never created.
#[cfg(not(feature = "after-response"))]
type Inner<Res> = (std::convert::Infallible, PhantomData<fn(&Res)>);

impl<B> Watch<Response<B>> {
    /// Returns a watch if the request has an `AfterResponse`.
    pub(crate) fn of<A>(request: &Request<A>) -> Option<Self> {
        #[cfg(feature = "after-response")]
        {
            request.extensions().get().map(|after| Self((OffloadedCall::begin(after), OffloadedCall::respond::<B>)))
        }
        #[cfg(not(feature = "after-response"))]
        {
            let _ = request;
            None
        }
    }
}

impl<Res> Watch<Res> {
    pub(crate) fn respond(self, response: &Res) {
        #[cfg(feature = "after-response")]
        {
            let (call, respond) = self.0;
            respond(call, response);
        }
        #[cfg(not(feature = "after-response"))]
        {
            let _ = response;
            match self.0.0 {}
        }
    }
}
