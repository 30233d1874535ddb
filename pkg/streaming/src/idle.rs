//! A connection that ends when nothing has come or gone for too long: who was there may be gone without a word, and what runs
//! for it would go on for ever (kubelet `streamingConnectionIdleTimeout`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Reading tells the end, so somebody has to read.
pub struct Idle<IO> {
    io: IO,
    limit: Duration,
    active: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<IO> Idle<IO> {
    pub fn new(io: IO, limit: Duration) -> Self {
        Idle { io, limit, active: Instant::now(), timer: Box::pin(tokio::time::sleep(limit)) }
    }

    /// Ready when it has been idle for too long. The timer is only put off when it has run out: most bytes cost no timer.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let end = self.active + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Idle<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_pending() {
            return self.poll_end(cx).map(Ok);
        }
        self.active = Instant::now();
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Idle<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.active = Instant::now();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_bytes_either_way_put_that_off() {
        let begin = Instant::now();
        let (mut peer, io) = tokio::io::duplex(64);
        let (mut reading, mut writing) = tokio::io::split(Idle::new(io, LIMIT));
        let heard = tokio::spawn(async move {
            let mut all = Vec::new();
            reading.read_to_end(&mut all).await.unwrap();
            (all, begin.elapsed())
        });
        tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
        peer.write_all(b"in").await.unwrap();
        tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
        writing.write_all(b"out").await.unwrap();
        let (all, after) = heard.await.unwrap();
        assert_eq!((all.as_slice(), after), (&b"in"[..], 3 * LIMIT - Duration::from_secs(2)));
    }
}
