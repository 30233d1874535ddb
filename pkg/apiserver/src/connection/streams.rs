//! The streams of an HTTP/2 connection, one task each. A client has until its request's deadline to take the answer: then the
//! stream is reset, and the others on its connection go on. A body cannot see to that by itself, for nobody asks it for more
//! while the client's window is shut.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use tokio::time::Instant;

tokio::task_local! {
    static UNTIL: Cell<Option<Instant>>;
}

/// Runs them.
#[derive(Clone)]
pub struct Streams;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(UNTIL.scope(Cell::new(None), in_time(stream)));
    }
}

/// The client has this long to take the answer of the stream whose task this is, if it is one's.
pub fn answer_by(until: Instant) {
    let _ = UNTIL.try_with(|this| this.set(Some(until)));
}

async fn in_time(stream: impl Future<Output = ()>) {
    let mut stream = pin!(stream);
    let answered = poll_fn(|cx| match (stream.as_mut().poll(cx), UNTIL.with(Cell::get)) {
        (Poll::Ready(()), _) => Poll::Ready(None),
        (Poll::Pending, Some(until)) => Poll::Ready(Some(until)),
        (Poll::Pending, None) => Poll::Pending,
    });
    // Most answers go out at once, and need no timer.
    if let Some(until) = answered.await
        && tokio::time::timeout_at(until, stream).await.is_err()
    {
        tracing::debug!("a client did not take its answer: the stream is reset");
    }
}
