//! What an HTTP/2 connection sends at one time leaves together. Its streams are tasks of their own, and each that has something to
//! send wakes the connection; without this, a change that a hundred watches of one client see would be a hundred looks at the
//! connection, a hundred TLS records, a hundred system calls. Instead the connection lets the tasks that are ready go first, and
//! what it then writes is kept until it has nothing more to do or a record is full.
//!
//! Invariant: nothing is kept while the connection waits, but for what the client's side has no room for.

use parking_lot::Mutex;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that a TLS record holds, in bytes.
const RECORD: usize = 16 << 10;
/// From here on gathering saves less than copying costs.
const LARGE: usize = RECORD / 2;

/// The connection's side of the stream below.
pub struct Gathering<S>(Arc<Mutex<Inner<S>>>);

/// The side of the one who runs the connection.
pub struct Gathered<S> {
    inner: Arc<Mutex<Inner<S>>>,
    /// The connection was woken and has let others go first.
    waited: bool,
}

struct Inner<S> {
    stream: S,
    /// Else what is written goes through: one request at a time has nothing to gather.
    many: bool,
    kept: Vec<u8>,
    /// How much of it has been sent.
    sent: usize,
    /// The stream may keep something, too: TLS does.
    unflushed: bool,
    /// What became of sending while the connection did not look.
    failed: Option<io::Error>,
}

/// `many`: HTTP/2 is spoken on the stream.
pub fn gather<S>(stream: S, many: bool) -> (Gathering<S>, Gathered<S>) {
    let inner = Arc::new(Mutex::new(Inner { stream, many, kept: Vec::new(), sent: 0, unflushed: false, failed: None }));
    (Gathering(inner.clone()), Gathered { inner, waited: false })
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Polls the connection, and sends what it has written. `busy`: others may be about to give it more to send.
    pub fn poll<F: Future>(&mut self, cx: &mut Context<'_>, busy: bool, connection: Pin<&mut F>) -> Poll<F::Output> {
        if busy && !self.waited {
            self.waited = true;
            // To the end of the queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waited = false;
        let polled = connection.poll(cx);
        if polled.is_pending() {
            let mut inner = self.inner.lock();
            if let Poll::Ready(Err(e)) = inner.poll_send(cx) {
                inner.failed = Some(e);
                cx.waker().wake_by_ref();
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Sends all that is kept, here and by the stream.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
            self.unflushed = true;
        }
        // Connections are many, and most wait.
        (self.kept, self.sent) = (Vec::new(), 0);
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.lock();
        match inner.failed.take() {
            Some(e) => Poll::Ready(Err(e)),
            None => Pin::new(&mut inner.stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.lock();
        if !inner.many {
            return Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs);
        }
        let size: usize = bufs.iter().map(|b| b.len()).sum();
        if inner.kept.len() + size > RECORD {
            ready!(inner.poll_send(cx))?;
        }
        if size >= LARGE && inner.kept.is_empty() {
            inner.unflushed = true;
            return Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs);
        }
        inner.kept.reserve_exact(RECORD - inner.kept.len());
        let room = RECORD - inner.kept.len();
        let before = inner.kept.len();
        for buf in bufs {
            let left = room - (inner.kept.len() - before);
            inner.kept.extend_from_slice(&buf[..buf.len().min(left)]);
        }
        Poll::Ready(Ok(inner.kept.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// HTTP/2 flushes after each frame; what is kept is sent when it has nothing more to do.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.lock();
        if inner.many { Poll::Ready(Ok(())) } else { Pin::new(&mut inner.stream).poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.lock();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Writes `frames`, flushing after each as HTTP/2 does, and then waits for ever or returns what the stream says.
    async fn connection(
        mut stream: Gathering<impl AsyncRead + AsyncWrite + Unpin>,
        frames: Vec<Vec<u8>>,
    ) -> io::Result<()> {
        for frame in frames {
            stream.write_all(&frame).await?;
            stream.flush().await?;
        }
        stream.read_u8().await.map(|_| ())
    }

    async fn run(
        mut gathered: Gathered<impl AsyncWrite + Unpin>,
        connection: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        let mut connection = pin!(connection);
        poll_fn(|cx| gathered.poll(cx, true, connection.as_mut())).await
    }

    /// Nothing comes, and nothing can be sent any more.
    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Broken {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn everything_comes_in_order_through_a_narrow_stream() {
        let (here, mut there) = tokio::io::duplex(1000);
        let (stream, gathered) = gather(here, true);
        // Small ones, ones that fill a record to the last byte, and ones that pass by.
        let sizes = [1, 300, RECORD - 301, 1, LARGE, LARGE - 1, RECORD, 3 * RECORD, 5];
        let frames: Vec<_> = sizes.iter().enumerate().map(|(n, size)| vec![n as u8; *size]).collect();
        let want = frames.concat();
        let sending = tokio::spawn(run(gathered, connection(stream, frames)));
        let mut got = vec![0; want.len()];
        there.read_exact(&mut got).await.unwrap();
        assert!(got == want);
        there.write_u8(0).await.unwrap();
        sending.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn frames_leave_together() {
        let (here, mut there) = tokio::io::duplex(2 * RECORD);
        let (stream, gathered) = gather(here, true);
        let sending = tokio::spawn(run(gathered, connection(stream, vec![vec![1; 100]; 50])));
        let mut got = vec![0; 2 * RECORD];
        assert_eq!(there.read(&mut got).await.unwrap(), 5000, "one read gets them all");
        drop(there);
        sending.await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn a_stream_that_is_broken_ends_the_connection() {
        let (stream, gathered) = gather(Broken, true);
        let e = run(gathered, connection(stream, vec![vec![1; 100]])).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn one_request_at_a_time_goes_through() {
        let (here, mut there) = tokio::io::duplex(1000);
        let (mut stream, _gathered) = gather(here, false);
        stream.write_all(b"answer").await.unwrap();
        let mut got = [0; 6];
        there.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"answer");
    }
}
