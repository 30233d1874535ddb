//! Clients that connect and say nothing: nobody keeps a connection without having begun to speak on it.

use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::Notify;
use tokio_util::io::InspectReader;

/// What every client begins HTTP/2 with, or half of the shortest request over HTTP/1.
const BEGINNING: usize = 24;

/// Waits for a client's beginning.
pub struct Silence(Arc<Notify>);

/// A client's stream, and what tells when it has begun.
pub fn listening<S: AsyncRead>(stream: S) -> (InspectReader<S, impl FnMut(&[u8])>, Silence) {
    let begun = Arc::new(Notify::new());
    let (tell, mut missing) = (begun.clone(), BEGINNING);
    let hear = move |bytes: &[u8]| {
        if missing > 0 {
            missing = missing.saturating_sub(bytes.len());
            if missing == 0 {
                tell.notify_one();
            }
        }
    };
    (InspectReader::new(stream, hear), Silence(begun))
}

impl Silence {
    /// Returns if the client has not begun after `patience`, and never if it has.
    pub async fn outlasts(self, patience: Duration) {
        if tokio::time::timeout(patience, self.0.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn is_silent(said: &[u8]) -> bool {
        let (mut client, server) = tokio::io::duplex(64);
        let (mut stream, silence) = listening(server);
        client.write_all(said).await.unwrap();
        let reading = async move {
            let mut byte = [0; 1];
            while stream.read(&mut byte).await.is_ok_and(|n| n > 0) {}
        };
        let reading = tokio::spawn(reading);
        let silent = silence.outlasts(Duration::from_millis(50));
        let silent = tokio::time::timeout(Duration::from_millis(200), silent).await.is_ok();
        reading.abort();
        silent
    }

    #[tokio::test]
    async fn who_has_begun_is_waited_for() {
        assert!(is_silent(b"").await);
        assert!(is_silent(b"PRI * HTTP/2.0\r\n").await);
        assert!(!is_silent(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
        assert!(!is_silent(b"GET /health HTTP/1.1\r\nHost: x\r\n").await);
    }
}
