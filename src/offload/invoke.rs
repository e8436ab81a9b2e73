use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::Inspect;

pin_project! {
    /// The work of a call: `call` on the service that was polled ready, then its future, both with what the layer carries
    /// along; and the drop of either as well.
    pub(super) struct Invoke<S, Req, A>
    where
        S: Service<Req>,
        A: Inspect<Req>,
    {
        inspect: A,
        carried: A::Carried,
        #[pin]
        state: State<S, Req>,
    }

    impl<S, Req, A> PinnedDrop for Invoke<S, Req, A>
    where
        S: Service<Req>,
        A: Inspect<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            this.inspect.within(this.carried, &mut || this.state.set(State::Done));
        }
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        /// Not called yet. `None` only while `call` runs.
        Ready { call: Option<(S, Req)> },
        Called { #[pin] future: S::Future },
        Done,
    }
}

impl<S, Req, A> Invoke<S, Req, A>
where
    S: Service<Req>,
    A: Inspect<Req>,
{
    pub(super) fn new(service: S, request: Req, inspect: A, carried: A::Carried) -> Self {
        Self { inspect, carried, state: State::Ready { call: Some((service, request)) } }
    }
}

impl<S, Req, A> Future for Invoke<S, Req, A>
where
    S: Service<Req>,
    A: Inspect<Req>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut polled = None;
        this.inspect.within(this.carried, &mut || {
            if polled.is_none() {
                polled = Some(this.state.as_mut().poll(cx));
            }
        });
        polled.expect("the scope that was given to `carry` has to call its second argument")
    }
}

impl<S, Req> State<S, Req>
where
    S: Service<Req>,
{
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<S::Response, S::Error>> {
        loop {
            match self.as_mut().project() {
                StateProjection::Ready { call } => {
                    let (mut service, request) = call.take().expect("`call` panicked, and the future was polled again");
                    let future = service.call(request);
                    drop(service); // not needed any more; its drop may be work too
                    self.set(Self::Called { future });
                }
                StateProjection::Called { future } => {
                    let result = ready!(future.poll(cx));
                    self.set(Self::Done);
                    return Poll::Ready(result);
                }
                StateProjection::Done => panic!("an offloaded call was polled after it ended"),
            }
        }
    }
}
