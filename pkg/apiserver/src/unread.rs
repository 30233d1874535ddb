//! What nobody has read of a request's body. A stream that is reset while its client still sends makes some clients lose the
//! answer that came before; so, before a refusal goes out, a little of what is on its way is read.

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// More is not worth it: the client finds its stream reset.
const MOST: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(500);

type Home = Arc<Mutex<Option<Body>>>;

/// The body for a handler; what is left of it goes home when the handler drops it.
struct Lent {
    body: Option<Body>,
    home: Home,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.home.lock() = self.body.take();
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|b| b.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(|b| b.size_hint()).unwrap_or_default()
    }
}

/// The rest of a body, once its handler has ended.
pub struct Rest(Home);

pub fn lend(request: Request<Body>) -> (Request<Body>, Rest) {
    let home = Home::default();
    if request.body().is_end_stream() {
        return (request, Rest(home));
    }
    let lent = |body| Body::new(Lent { body: Some(body), home: home.clone() });
    (request.map(lent), Rest(home))
}

impl Rest {
    /// Reads a little of what is left.
    pub async fn read(self) {
        let Some(mut body) = self.0.lock().take() else { return };
        let reading = async {
            let mut seen = 0;
            while seen < MOST && !body.is_end_stream() {
                match body.frame().await {
                    Some(Ok(frame)) => seen += frame.data_ref().map_or(0, Bytes::len),
                    _ => return,
                }
            }
        };
        // A client that has stopped sending waits for the answer.
        let _ = tokio::time::timeout(PATIENCE, reading).await;
    }
}
