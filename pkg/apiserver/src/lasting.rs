//! Requests that become connections of another protocol. Their answer is only the beginning: for the audit log and the metrics
//! they end when the connection does.

use http::Response;
use std::future::Future;
use tokio_util::sync::CancellationToken;

/// Tells the end of the connection that an answer hands over, among the answer's extensions.
#[derive(Clone)]
pub struct Lasting(CancellationToken);

impl Lasting {
    /// Runs the connection that `answer` hands over.
    pub fn run<B>(answer: &mut Response<B>, connection: impl Future<Output = ()> + Send + 'static) {
        let ended = CancellationToken::new();
        answer.extensions_mut().insert(Lasting(ended.clone()));
        let ended = ended.drop_guard();
        tokio::spawn(async move {
            let _ended = ended;
            connection.await;
        });
    }

    pub fn of<B>(answer: &Response<B>) -> Option<Self> {
        answer.extensions().get::<Lasting>().cloned()
    }

    pub async fn ended(self) {
        self.0.cancelled().await;
    }
}
