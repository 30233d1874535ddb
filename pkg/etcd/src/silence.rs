//! Clients that connect and say nothing: nobody keeps a connection without having begun to speak on it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What every client begins HTTP/2 with, or half of the shortest request over HTTP/1.
const BEGINNING: usize = 24;

/// A stream that tells when its client has begun.
pub struct Spoken<S> {
    stream: S,
    /// How many bytes of the beginning are still to come.
    missing: usize,
    begun: Arc<Notify>,
}

/// Waits for a client's beginning.
pub struct Silence(Arc<Notify>);

pub fn listening<S>(stream: S) -> (Spoken<S>, Silence) {
    let begun = Arc::new(Notify::new());
    (Spoken { stream, missing: BEGINNING, begun: begun.clone() }, Silence(begun))
}

impl Silence {
    /// Returns if the client has not begun after `patience`, and never if it has.
    pub async fn outlasts(self, patience: Duration) {
        if tokio::time::timeout(patience, self.0.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Spoken<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buf.filled().len() - before);
            if self.missing == 0 {
                self.begun.notify_one();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Spoken<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
