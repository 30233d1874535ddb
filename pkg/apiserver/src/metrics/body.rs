//! Bodies that are measured while they are sent.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body, and what is to be done when it ends, however it does: with the bytes that were sent of it.
pub struct Measured<F: FnOnce(u64)> {
    body: Body,
    sent: u64,
    end: Option<F>,
}

impl<F: FnOnce(u64) + Send + Unpin + 'static> Measured<F> {
    /// Calls `end` when the response is sent; at once if its size is known.
    pub fn over(response: Response, end: F) -> Response {
        if let Some(size) = response.body().size_hint().exact() {
            end(size);
            return response;
        }
        response.map(|body| Body::new(Measured { body, sent: 0, end: Some(end) }))
    }
}

impl<F: FnOnce(u64) + Unpin> http_body::Body for Measured<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<F: FnOnce(u64)> Drop for Measured<F> {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end(self.sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test]
    async fn what_was_sent_is_told_at_the_end() {
        let told = Arc::new(AtomicU64::new(0));
        let end = |told: &Arc<AtomicU64>| {
            let told = told.clone();
            move |bytes| told.store(bytes + 1, Ordering::SeqCst)
        };
        let response = Measured::over(Response::new(Body::from("abc")), end(&told));
        assert_eq!(told.load(Ordering::SeqCst), 4, "its size is known");
        drop(response);
        let chunks = ["ab", "cde"].map(|c| Ok::<_, std::convert::Infallible>(Bytes::from(c)));
        let body = || Body::from_stream(futures::stream::iter(chunks.clone()));
        let response = Measured::over(Response::new(body()), end(&told));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "abcde");
        assert_eq!(told.load(Ordering::SeqCst), 6);
        drop(Measured::over(Response::new(body()), end(&told)));
        assert_eq!(told.load(Ordering::SeqCst), 1, "nobody wanted it");
    }
}
