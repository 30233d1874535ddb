//! One SPDY connection, server side: streams that the client opens come out of [`Incoming`]; a [`Closer`] ends it.
//!
//! Flow control: Kubernetes' own clients do none and end a connection on a WINDOW_UPDATE frame that they do not know, so
//! windows count only once the peer has sent SETTINGS with a window or a WINDOW_UPDATE. Until then TCP's back-pressure and the
//! bounded queue of each stream hold a fast sender back.

use super::frame::{Decoder, Encoder, Frame, FrameError, Headers, INITIAL_WINDOW_SIZE, reset};
use crate::pipe::{ByteReader, ByteWriter, Credit, QUEUE};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

const DEFAULT_WINDOW: u32 = 64 * 1024;
/// Streams that one client may have open.
const MAX_STREAMS: usize = 2048;
/// How long the peer may take to hang up after our GOAWAY: it may have much to read until then, and be slow.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

pub type SpdyWriter = ByteWriter<Frame>;

/// A stream that the client opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: ByteReader,
    pub writer: SpdyWriter,
    out: mpsc::Sender<Frame>,
    reset: CancellationToken,
}

impl Stream {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Cancelled when the client has reset the stream, or has gone.
    pub fn was_reset(&self) -> CancellationToken {
        self.reset.clone()
    }

    /// Refuses the stream.
    pub async fn refuse(self) {
        self.reset.cancel();
        let _ = self.out.send(Frame::Reset { id: self.id, status: reset::REFUSED_STREAM }).await;
    }
}

/// The streams as they are opened; `None` once the client is gone.
pub struct Incoming {
    streams: mpsc::Receiver<Stream>,
    closed: CancellationToken,
}

impl Incoming {
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Cancelled when the connection has ended.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

/// Ends the connection in order: what was written before goes out, then GOAWAY. Dropping it does the same.
pub struct Closer {
    out: Option<mpsc::Sender<Frame>>,
    closed: CancellationToken,
}

impl Closer {
    /// Returns when the peer has hung up, or after a few seconds.
    pub async fn close(mut self) {
        if let Some(out) = self.out.take() {
            let _ = out.send(Frame::GoAway { last: 0, status: 0 }).await;
        }
        let _ = tokio::time::timeout(CLOSE_WAIT, self.closed.cancelled()).await;
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        let Some(out) = self.out.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { out.send(Frame::GoAway { last: 0, status: 0 }).await });
        }
    }
}

/// Serves SPDY on `io`, in tasks of its own.
pub fn serve<IO>(io: IO) -> (Incoming, Closer)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reading, writing) = tokio::io::split(io);
    let (out, out_rx) = mpsc::channel(4 * QUEUE);
    let (accept, streams) = mpsc::channel(QUEUE);
    let closed = CancellationToken::new();
    let reader = Reader {
        out: out.clone(),
        accept,
        streams: HashMap::new(),
        last: 0,
        window: DEFAULT_WINDOW,
        flow: Arc::new(AtomicBool::new(false)),
        ended: closed.clone(),
    };
    let done = closed.clone();
    tokio::spawn(async move {
        tokio::select! {
            r = reader.run(reading) => if let Err(e) = r {
                tracing::debug!(error = %with_source(&e), "SPDY connection ended");
            },
            () = write_frames(writing, out_rx) => {}
        }
        done.cancel();
    });
    (Incoming { streams, closed: closed.clone() }, Closer { out: Some(out), closed })
}

fn with_source(e: &ConnectionError) -> String {
    match std::error::Error::source(e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("cannot read")]
    Read(#[source] io::Error),
    #[error("protocol error")]
    Frame(#[source] FrameError),
    #[error("the writing side has ended")]
    WriterGone,
}

/// Returns after GOAWAY was sent and the peer had time to hang up, or when writing fails.
async fn write_frames<W: AsyncWrite>(writing: W, mut out: mpsc::Receiver<Frame>) {
    tokio::pin!(writing);
    let mut encoder = Encoder::default();
    let mut buf = BytesMut::new();
    while let Some(frame) = out.recv().await {
        let last = matches!(frame, Frame::GoAway { .. });
        encoder.encode(&frame, &mut buf);
        if !last && !out.is_empty() && buf.len() < 64 * 1024 {
            continue;
        }
        if writing.write_all(&buf).await.is_err() || writing.flush().await.is_err() {
            return;
        }
        buf.clear();
        if last {
            break;
        }
    }
    let _ = writing.shutdown().await;
    // The reading side goes on meanwhile: a socket closed with unread input would reset what the peer has not read yet.
    tokio::time::sleep(CLOSE_WAIT).await;
}

struct Open {
    /// `None` after the client's FIN, or when nobody reads.
    to_reader: Option<mpsc::Sender<Bytes>>,
    credit: Arc<Semaphore>,
    reset: CancellationToken,
}

struct Reader {
    out: mpsc::Sender<Frame>,
    accept: mpsc::Sender<Stream>,
    streams: HashMap<u32, Open>,
    /// The highest stream id so far.
    last: u32,
    /// The initial window that the peer grants.
    window: u32,
    flow: Arc<AtomicBool>,
    ended: CancellationToken,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.ended.cancel();
        for open in self.streams.values() {
            open.reset.cancel();
            open.credit.close();
        }
    }
}

impl Reader {
    async fn run<R: AsyncRead>(mut self, reading: R) -> Result<(), ConnectionError> {
        tokio::pin!(reading);
        let mut decoder = Decoder::default();
        let mut buf = BytesMut::with_capacity(16 * 1024);
        loop {
            while let Some(frame) = decoder.decode(&mut buf).map_err(ConnectionError::Frame)? {
                if !self.take(frame).await? {
                    return Ok(());
                }
            }
            if buf.capacity() - buf.len() < 4096 {
                buf.reserve(32 * 1024);
            }
            if reading.read_buf(&mut buf).await.map_err(ConnectionError::Read)? == 0 {
                return Ok(());
            }
        }
    }

    /// False: the client said goodbye.
    async fn take(&mut self, frame: Frame) -> Result<bool, ConnectionError> {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, headers).await?,
            Frame::Data { id, fin, data } => self.data(id, fin, data).await?,
            Frame::Reset { id, .. } => {
                if let Some(open) = self.streams.remove(&id) {
                    open.reset.cancel();
                    open.credit.close();
                }
            }
            // Odd ids are the client's: answer them (draft 3, section 2.6.5).
            Frame::Ping(id) if id % 2 == 1 => self.send(Frame::Ping(id)).await?,
            Frame::Settings(settings) => {
                if let Some((_, size)) = settings.iter().find(|(id, _)| *id == INITIAL_WINDOW_SIZE) {
                    self.flow.store(true, Ordering::Relaxed);
                    self.window = *size;
                }
            }
            Frame::WindowUpdate { id, delta } => {
                self.flow.store(true, Ordering::Relaxed);
                if let Some(open) = self.streams.get(&id) {
                    let room = Semaphore::MAX_PERMITS - open.credit.available_permits();
                    open.credit.add_permits((delta as usize).min(room));
                }
            }
            Frame::Headers { id, fin: true, .. } => self.finish(id),
            Frame::GoAway { .. } => return Ok(false),
            Frame::Ping(_) | Frame::SynReply { .. } | Frame::Headers { .. } => {}
        }
        Ok(true)
    }

    async fn send(&self, frame: Frame) -> Result<(), ConnectionError> {
        self.out.send(frame).await.map_err(|_| ConnectionError::WriterGone)
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), ConnectionError> {
        // Streams whose both sides have ended are forgotten here, where the table would grow.
        self.streams.retain(|_, open| open.to_reader.is_some() || Arc::strong_count(&open.credit) > 1);
        if id.is_multiple_of(2) || id <= self.last {
            return self.send(Frame::Reset { id, status: reset::PROTOCOL_ERROR }).await;
        }
        self.last = id;
        if self.streams.len() >= MAX_STREAMS {
            return self.send(Frame::Reset { id, status: reset::REFUSED_STREAM }).await;
        }
        let (to_reader, reader) = ByteReader::new();
        let credit = Arc::new(Semaphore::new(self.window as usize));
        let reset = CancellationToken::new();
        let end = Frame::Data { id, fin: true, data: Bytes::new() };
        let wrap = move |data| Frame::Data { id, fin: false, data };
        let window = Credit::new(credit.clone(), self.flow.clone());
        let writer = ByteWriter::new(self.out.clone(), wrap, Some(end), reset.clone(), Some(window));
        self.streams.insert(id, Open { to_reader: (!fin).then_some(to_reader), credit, reset: reset.clone() });
        self.send(Frame::SynReply { id, fin: false, headers: Headers::new() }).await?;
        let stream = Stream { id, headers, reader, writer, out: self.out.clone(), reset };
        if let Err(mpsc::error::SendError(stream)) = self.accept.send(stream).await {
            stream.refuse().await;
        }
        Ok(())
    }

    async fn data(&mut self, id: u32, fin: bool, data: Bytes) -> Result<(), ConnectionError> {
        let Some(open) = self.streams.get_mut(&id) else {
            if id > self.last {
                self.send(Frame::Reset { id, status: reset::INVALID_STREAM }).await?;
            }
            return Ok(());
        };
        let n = data.len() as u32;
        if n > 0
            && let Some(to_reader) = &open.to_reader
            && to_reader.send(data).await.is_err()
        {
            open.to_reader = None;
        }
        if fin {
            self.finish(id);
        } else if n > 0 && self.flow.load(Ordering::Relaxed) {
            self.send(Frame::WindowUpdate { id, delta: n }).await?;
        }
        Ok(())
    }

    fn finish(&mut self, id: u32) {
        if let Some(open) = self.streams.get_mut(&id) {
            open.to_reader = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::DuplexStream;

    struct Client {
        io: DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
        buf: BytesMut,
    }

    impl Client {
        fn new(io: DuplexStream) -> Self {
            Client { io, encoder: Encoder::default(), decoder: Decoder::default(), buf: BytesMut::new() }
        }
        async fn send(&mut self, frame: Frame) {
            let mut out = BytesMut::new();
            self.encoder.encode(&frame, &mut out);
            self.io.write_all(&out).await.unwrap();
        }
        async fn recv(&mut self) -> Frame {
            loop {
                if let Some(f) = self.decoder.decode(&mut self.buf).unwrap() {
                    return f;
                }
                assert!(self.io.read_buf(&mut self.buf).await.unwrap() > 0, "the server hung up");
            }
        }
        async fn open(&mut self, id: u32) {
            self.send(Frame::SynStream { id, fin: false, headers: Headers::new() }).await;
            assert_eq!(self.recv().await, Frame::SynReply { id, fin: false, headers: Headers::new() });
        }
    }

    fn pair() -> (Client, Incoming, Closer) {
        let (a, b) = tokio::io::duplex(4096);
        let (incoming, closer) = serve(b);
        (Client::new(a), incoming, closer)
    }

    #[tokio::test]
    async fn streams_carry_data_both_ways_and_half_close() {
        let (mut client, mut incoming, closer) = pair();
        client.open(1).await;
        let mut stream = incoming.next().await.unwrap();
        client.send(Frame::Data { id: 1, fin: false, data: "hello ".into() }).await;
        client.send(Frame::Data { id: 1, fin: true, data: "world".into() }).await;
        let mut got = String::new();
        stream.reader.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello world");
        stream.writer.write_all(b"answer").await.unwrap();
        drop(stream);
        assert_eq!(client.recv().await, Frame::Data { id: 1, fin: false, data: "answer".into() });
        assert_eq!(client.recv().await, Frame::Data { id: 1, fin: true, data: Bytes::new() });
        client.send(Frame::Ping(3)).await;
        assert_eq!(client.recv().await, Frame::Ping(3));
        let closing = tokio::spawn(closer.close());
        assert_eq!(client.recv().await, Frame::GoAway { last: 0, status: 0 });
        drop(client);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_reset_stream_cannot_be_written() {
        let (mut client, mut incoming, _closer) = pair();
        client.open(1).await;
        let mut stream = incoming.next().await.unwrap();
        client.send(Frame::Reset { id: 1, status: 5 }).await;
        let mut rest = Vec::new();
        stream.reader.read_to_end(&mut rest).await.unwrap();
        assert!(stream.writer.write_all(b"x").await.is_err());
        // Ids may not come again or be even.
        for id in [1, 2] {
            client.send(Frame::SynStream { id, fin: false, headers: Headers::new() }).await;
            assert_eq!(client.recv().await, Frame::Reset { id, status: reset::PROTOCOL_ERROR });
        }
    }

    #[tokio::test]
    async fn windows_count_once_the_peer_uses_them() {
        let (mut client, mut incoming, _closer) = pair();
        client.send(Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 4)])).await;
        client.open(1).await;
        let mut stream = incoming.next().await.unwrap();
        let writing = tokio::spawn(async move {
            stream.writer.write_all(b"abcdefgh").await.unwrap();
            stream
        });
        assert_eq!(client.recv().await, Frame::Data { id: 1, fin: false, data: "abcd".into() });
        client.send(Frame::WindowUpdate { id: 1, delta: 4 }).await;
        let mut got = Vec::new();
        while got.len() < 4 {
            match client.recv().await {
                Frame::Data { data, .. } => got.extend_from_slice(&data),
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(got, b"efgh");
        let mut stream = writing.await.unwrap();
        client.send(Frame::Data { id: 1, fin: false, data: "xy".into() }).await;
        assert_eq!(client.recv().await, Frame::WindowUpdate { id: 1, delta: 2 });
        let mut two = [0; 2];
        stream.reader.read_exact(&mut two).await.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_panic_a_connection(bytes: Vec<u8>, header in 0u16..12) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut a, b) = tokio::io::duplex(4096);
                let (mut incoming, _closer) = serve(b);
                let mut wire = vec![0x80, 3];
                wire.extend(header.to_be_bytes());
                wire.extend(bytes);
                let _ = a.write_all(&wire).await;
                drop(a);
                while incoming.next().await.is_some() {}
            });
        }
    }
}
