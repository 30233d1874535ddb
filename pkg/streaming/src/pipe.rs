//! The byte streams that callers see: a reader fed with chunks through a bounded queue, and a writer that turns what is
//! written into messages on a bounded queue. The bounds are what carries back-pressure across a connection.

use bytes::{Buf, Bytes};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, PollSemaphore, PollSender};

/// Chunks that wait in one direction of one stream.
pub(crate) const QUEUE: usize = 8;
/// The longest chunk that a writer makes of one write.
pub(crate) const CHUNK: usize = 32 * 1024;

/// Reads the chunks that arrive for one stream; ends when its feeding side is dropped.
pub struct ByteReader {
    chunks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl ByteReader {
    pub(crate) fn new() -> (mpsc::Sender<Bytes>, ByteReader) {
        let (tx, chunks) = mpsc::channel(QUEUE);
        (tx, ByteReader { chunks, rest: Bytes::new() })
    }
}

impl AsyncRead for ByteReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.rest = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

/// The credit that the peer's flow control leaves to one stream. `None` in a writer: the peer does no flow control.
pub(crate) struct Credit {
    pub permits: PollSemaphore,
    /// Set once the peer has shown that it does flow control at all.
    pub on: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Credit {
    pub fn new(permits: std::sync::Arc<Semaphore>, on: std::sync::Arc<std::sync::atomic::AtomicBool>) -> Self {
        Credit { permits: PollSemaphore::new(permits), on }
    }
}

type Wrap<M> = Box<dyn Fn(Bytes) -> M + Send + Sync>;

/// Writes chunks as messages of type `M`; sends its end mark once, on shutdown or on drop.
pub struct ByteWriter<M: Send + 'static> {
    out: PollSender<M>,
    wrap: Wrap<M>,
    end: Option<M>,
    finished: bool,
    reset: CancellationToken,
    credit: Option<Credit>,
}

impl<M: Send + 'static> ByteWriter<M> {
    pub(crate) fn new(
        out: mpsc::Sender<M>,
        wrap: impl Fn(Bytes) -> M + Send + Sync + 'static,
        end: Option<M>,
        reset: CancellationToken,
        credit: Option<Credit>,
    ) -> Self {
        ByteWriter { out: PollSender::new(out), wrap: Box::new(wrap), end, finished: false, reset, credit }
    }

    fn poll_credit(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        let Some(credit) = self.credit.as_mut().filter(|c| c.on.load(std::sync::atomic::Ordering::Relaxed)) else {
            return Poll::Ready(Ok(want));
        };
        let have = credit.permits.as_ref().available_permits();
        let take = want.min(have.max(1));
        match ready!(credit.permits.poll_acquire_many(cx, take as u32)) {
            Some(permit) => permit.forget(),
            None => return Poll::Ready(Err(broken())),
        }
        Poll::Ready(Ok(take))
    }
}

// Nothing in it is pinned: messages are moved out of it whole.
impl<M: Send + 'static> Unpin for ByteWriter<M> {}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the stream's connection has ended")
}

impl<M: Send + 'static> AsyncWrite for ByteWriter<M> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished || self.reset.is_cancelled() {
            return Poll::Ready(Err(broken()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.out.poll_reserve(cx)).map_err(|_| broken())?;
        let n = ready!(self.poll_credit(cx, buf.len().min(CHUNK)))?;
        let message = (self.wrap)(Bytes::copy_from_slice(&buf[..n]));
        self.out.send_item(message).map_err(|_| broken())?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        if self.end.is_some() && !self.reset.is_cancelled() {
            ready!(self.out.poll_reserve(cx)).map_err(|_| broken())?;
            if let Some(end) = self.end.take() {
                self.out.send_item(end).map_err(|_| broken())?;
            }
        }
        self.finished = true;
        self.out.close();
        Poll::Ready(Ok(()))
    }
}

impl<M: Send + 'static> Drop for ByteWriter<M> {
    fn drop(&mut self) {
        if self.finished || self.reset.is_cancelled() {
            return;
        }
        let (Some(end), Some(out)) = (self.end.take(), self.out.get_ref().cloned()) else { return };
        self.out.abort_send();
        if let Err(mpsc::error::TrySendError::Full(end)) = out.try_send(end)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { out.send(end).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_joins_chunks_and_ends_with_its_feeder() {
        let (tx, mut reader) = ByteReader::new();
        for part in ["ab", "", "cde"] {
            tx.send(Bytes::from(part)).await.unwrap();
        }
        drop(tx);
        let mut all = String::new();
        reader.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "abcde");
    }

    #[tokio::test]
    async fn a_writer_sends_its_end_mark_once() {
        let (tx, mut rx) = mpsc::channel::<Option<Bytes>>(4);
        let mut writer = ByteWriter::new(tx, Some, Some(None), CancellationToken::new(), None);
        writer.write_all(b"hi").await.unwrap();
        writer.shutdown().await.unwrap();
        assert!(writer.write_all(b"more").await.is_err());
        drop(writer);
        assert_eq!(rx.recv().await, Some(Some(Bytes::from("hi"))));
        assert_eq!(rx.recv().await, Some(None));
        assert_eq!(rx.recv().await, None);
    }

    #[tokio::test]
    async fn a_writer_waits_for_credit_once_the_peer_does_flow_control() {
        let (tx, mut rx) = mpsc::channel::<Bytes>(4);
        let permits = std::sync::Arc::new(Semaphore::new(3));
        let on = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let credit = Credit::new(permits.clone(), on);
        let mut writer = ByteWriter::new(tx, |b| b, None, CancellationToken::new(), Some(credit));
        let writing = tokio::spawn(async move { writer.write_all(b"abcdef").await });
        assert_eq!(rx.recv().await.unwrap(), "abc");
        tokio::task::yield_now().await;
        assert!(rx.try_recv().is_err() && !writing.is_finished());
        permits.add_permits(10);
        // The waiter asked for one permit, so the rest may come in two pieces.
        let mut rest = rx.recv().await.unwrap().to_vec();
        while let Some(more) = rx.recv().await {
            rest.extend_from_slice(&more);
        }
        assert_eq!(rest, b"def");
        writing.await.unwrap().unwrap();
    }
}
