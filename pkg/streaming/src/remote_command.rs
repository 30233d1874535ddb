//! Exec and attach: from a request to stdin, stdout, stderr, terminal sizes and the error channel.

use crate::channel::{self, Encoding};
use crate::exit::Outcome;
use crate::idle::Idle;
use crate::negotiate::{self, Refusal, Transport};
use crate::pipe::{ByteReader, ByteWriter};
use crate::spdy;
use crate::websocket;
use axum::body::Body;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// Over WebSocket; the base64 forms are for browsers.
const WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v5.base64.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const SPDY: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// How long a client may take to open the streams that it announced (apimachinery `DefaultStreamCreationTimeout`).
const STREAM_WAIT: Duration = Duration::from_secs(30);
const MAX_RESIZE: usize = 4096;

/// The streams that the request's query asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Options {
    /// The rules of upstream's kubelet: something must be asked for, and a terminal has no stderr of its own.
    pub fn check(mut self) -> Result<Self, Refusal> {
        if self.tty && self.stderr {
            self.stderr = false;
        }
        if !self.stdin && !self.stdout && !self.stderr {
            return Err(Refusal::BadRequest("you must specify at least 1 of stdin, stdout, stderr".into()));
        }
        Ok(self)
    }
}

/// What a terminal says when its window changes: `{"Width":80,"Height":24}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

fn parse_size(text: &[u8]) -> Option<TerminalSize> {
    let v: serde_json::Value = serde_json::from_slice(text).ok()?;
    let side = |name| v.get(name).and_then(serde_json::Value::as_u64).and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: side("Width")?, height: side("Height")? })
}

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A session. Give the streams away, run the command, drop them, then call [`Finish::finish`].
pub struct RemoteCommand {
    pub stdin: Option<BoxRead>,
    pub stdout: Option<BoxWrite>,
    pub stderr: Option<BoxWrite>,
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    pub tty: bool,
    /// Cancelled when the client has gone.
    pub closed: CancellationToken,
    pub finish: Finish,
}

/// Tells the client how the command ended and hangs up.
pub struct Finish {
    error: BoxWrite,
    as_status: bool,
    /// Our halves of the streams that only the client writes. They end after everything else: from the end of its stdin's
    /// client-go takes it that nobody reads that any more, and sends no more of it, be it the first byte.
    silent: Vec<spdy::SpdyWriter>,
    closer: Option<spdy::Closer>,
}

impl Finish {
    pub async fn finish(mut self, outcome: &Outcome) {
        let bytes = outcome.bytes(self.as_status);
        // A client that has gone does not hear it.
        if !bytes.is_empty() && self.error.write_all(&bytes).await.is_err() {
            return;
        }
        let _ = self.error.shutdown().await;
        drop(self.error);
        for mut stream in self.silent {
            let _ = stream.shutdown().await;
        }
        if let Some(closer) = self.closer.take() {
            closer.close().await;
        }
    }
}

/// An accepted request: send `response`, then await [`Pending::ready`] in a task of its own.
pub struct Pending {
    upgrade: hyper::upgrade::OnUpgrade,
    transport: Transport,
    protocol: &'static str,
    options: Options,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the connection was not upgraded")]
    Upgrade(#[from] hyper::Error),
    #[error("the client opened only {got} of {want} streams in time")]
    Streams { got: usize, want: usize },
}

/// Negotiates. The response is to be sent as it is.
pub fn accept<B>(request: &mut Request<B>, options: Options) -> Result<(Response<Body>, Pending), Refusal> {
    let options = options.check()?;
    let agreed = negotiate::agree(request, WEBSOCKET, SPDY)?;
    let pending = Pending { upgrade: agreed.upgrade, transport: agreed.transport, protocol: agreed.protocol, options };
    Ok((agreed.response, pending))
}

impl Pending {
    /// The session, once the client has read the response and opened its streams. It ends when nothing comes or goes for as
    /// long as `idle`.
    pub async fn ready(self, idle: Duration) -> Result<RemoteCommand, SessionError> {
        let io = Idle::new(TokioIo::new(self.upgrade.await?), idle);
        match self.transport {
            Transport::WebSocket => Ok(over_websocket(io, self.protocol, self.options).await),
            Transport::Spdy => over_spdy(io, self.protocol, self.options).await,
        }
    }
}

/// Serves an upgraded WebSocket.
pub async fn over_websocket<IO>(io: IO, protocol: &str, options: Options) -> RemoteCommand
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let encoding = if protocol.contains("base64") { Encoding::Base64 } else { Encoding::Binary };
    let half_close = protocol.starts_with("v5.");
    let as_status = protocol.starts_with("v4.") || half_close;
    let (out, out_rx) = mpsc::channel::<Message>(crate::pipe::QUEUE);
    let closed = CancellationToken::new();
    let writer = |channel: u8| -> BoxWrite {
        let wrap = move |data: bytes::Bytes| encoding.encode(channel, &data);
        Box::new(ByteWriter::new(out.clone(), wrap, None, closed.clone(), None))
    };
    let (stdin_tx, stdin) = ByteReader::new();
    let (resize_tx, resize) = mpsc::channel(8);
    let first = match options {
        Options { stdout: true, .. } => channel::STDOUT,
        Options { stderr: true, .. } => channel::STDERR,
        _ => channel::ERROR,
    };
    let session = RemoteCommand {
        stdin: options.stdin.then(|| Box::new(stdin) as BoxRead),
        stdout: options.stdout.then(|| writer(channel::STDOUT)),
        stderr: options.stderr.then(|| writer(channel::STDERR)),
        resize: options.tty.then_some(resize),
        tty: options.tty,
        closed: closed.clone(),
        finish: Finish { error: writer(channel::ERROR), as_status, silent: Vec::new(), closer: None },
    };
    let to_stdin = Arc::new(Mutex::new(options.stdin.then_some(stdin_tx)));
    let on_message = move |message| {
        let (to_stdin, resize_tx) = (to_stdin.clone(), resize_tx.clone());
        async move {
            match encoding.decode(message) {
                Some((channel::STDIN, data)) => {
                    let sender = to_stdin.lock().unwrap_or_else(|e| e.into_inner()).clone();
                    if let Some(sender) = sender.filter(|_| !data.is_empty()) {
                        let _ = sender.send(data).await;
                    }
                }
                Some((channel::RESIZE, data)) => {
                    if let Some(size) = parse_size(&data) {
                        let _ = resize_tx.try_send(size);
                    }
                }
                Some((channel::CLOSE, data)) if half_close && data.first() == Some(&channel::STDIN) => {
                    to_stdin.lock().unwrap_or_else(|e| e.into_inner()).take();
                }
                _ => {}
            }
        }
    };
    let socket = websocket::server(io).await;
    // Tells the client that the other side is there; an empty message on the lowest channel that we write.
    let _ = out.send(encoding.encode(first, &[])).await;
    drop(out);
    tokio::spawn(websocket::pump(socket, out_rx, closed, on_message));
    session
}

/// Serves an upgraded SPDY connection: waits for the streams that the options promise.
pub async fn over_spdy<IO>(io: IO, protocol: &str, options: Options) -> Result<RemoteCommand, SessionError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let version: u8 = protocol.strip_prefix('v').and_then(|p| p[..1].parse().ok()).unwrap_or(1);
    let resizes = options.tty && version >= 3;
    let want = 1
        + usize::from(options.stdin)
        + usize::from(options.stdout)
        + usize::from(options.stderr)
        + usize::from(resizes);
    let (mut incoming, closer) = spdy::serve(io);
    let closed = incoming.closed();
    let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
    let mut got = 0;
    let opening = async {
        while got < want {
            let Some(stream) = incoming.next().await else { return };
            let slot = match stream.header("streamtype") {
                "error" => &mut error,
                "stdin" if options.stdin => &mut stdin,
                "stdout" if options.stdout => &mut stdout,
                "stderr" if options.stderr => &mut stderr,
                "resize" if resizes => &mut resize,
                _ => {
                    stream.refuse().await;
                    continue;
                }
            };
            if slot.is_none() {
                got += 1;
                *slot = Some(stream);
            } else {
                stream.refuse().await;
            }
        }
    };
    let _ = tokio::time::timeout(STREAM_WAIT, opening).await;
    let (Some(error), true) = (error, got == want) else {
        return Err(SessionError::Streams { got, want });
    };
    // Later streams have no meaning: refuse them until the connection ends.
    tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            stream.refuse().await;
        }
    });
    let mut silent = Vec::new();
    let mut only_read = |stream: spdy::Stream| {
        silent.push(stream.writer);
        stream.reader
    };
    let stdin = stdin.map(|s| Box::new(only_read(s)) as BoxRead);
    let resize = resize.map(|s| sizes(only_read(s)));
    Ok(RemoteCommand {
        stdin,
        stdout: stdout.map(|s| Box::new(s.writer) as BoxWrite),
        stderr: stderr.map(|s| Box::new(s.writer) as BoxWrite),
        resize,
        tty: options.tty,
        closed,
        finish: Finish { error: Box::new(error.writer), as_status: version >= 4, silent, closer: Some(closer) },
    })
}

/// Reads the JSON texts of a resize stream: one after another, nothing or white space between them.
fn sizes(mut reader: ByteReader) -> mpsc::Receiver<TerminalSize> {
    let (tx, rx) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut text = Vec::new();
        while let Ok(1..) = reader.read_buf(&mut text).await {
            while let Some(end) = text.iter().position(|b| *b == b'}') {
                let one: Vec<u8> = text.drain(..=end).collect();
                if let Some(size) = parse_size(&one)
                    && tx.send(size).await.is_err()
                {
                    return;
                }
            }
            if text.len() > MAX_RESIZE {
                return;
            }
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::frame::{Decoder, Encoder, Frame};
    use bytes::{Bytes, BytesMut};
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    const ALL: Options = Options { stdin: true, stdout: true, stderr: true, tty: false };

    /// Upper-cases stdin to stdout, then exits with 3.
    async fn run(mut session: RemoteCommand) {
        let mut input = String::new();
        session.stdin.take().unwrap().read_to_string(&mut input).await.unwrap();
        session.stdout.take().unwrap().write_all(input.to_uppercase().as_bytes()).await.unwrap();
        session.stderr = None;
        session.finish.finish(&Outcome::Exited(3)).await;
    }

    #[tokio::test]
    async fn v5_closes_stdin_and_reports_the_exit_code() {
        let (a, b) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        let serving = tokio::spawn(async move { run(over_websocket(b, "v5.channel.k8s.io", ALL).await).await });
        client.send(Message::Binary(Bytes::from_static(b"\x00hello"))).await.unwrap();
        client.send(Message::Ping(Bytes::new())).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
        let mut got: [Vec<u8>; 4] = Default::default();
        let mut ponged = false;
        while let Some(Ok(m)) = client.next().await {
            match m {
                Message::Binary(d) => got[d[0] as usize].extend_from_slice(&d[1..]),
                Message::Pong(_) => ponged = true,
                _ => {}
            }
        }
        serving.await.unwrap();
        assert!(ponged);
        assert_eq!(got[1], b"HELLO");
        let status: serde_json::Value = serde_json::from_slice(&got[3]).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }

    #[tokio::test]
    async fn base64_carries_text_and_sizes() {
        let (a, b) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        let options = Options { stdout: true, tty: true, ..Default::default() };
        let mut session = over_websocket(b, "v4.base64.channel.k8s.io", options).await;
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Text("1".into()));
        client.send(Message::Text("4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9".into())).await.unwrap();
        assert_eq!(session.resize.as_mut().unwrap().recv().await, Some(TerminalSize { width: 80, height: 24 }));
        session.stdout.take().unwrap().write_all(b"ok").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Text("1b2s=".into()));
        drop(client);
        session.closed.cancelled().await;
    }

    /// A client that opens the streams of [`ALL`], and what it has heard.
    struct SpdyClient {
        io: tokio::io::DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
        buf: BytesMut,
        data: [Vec<u8>; 8],
        ends: Vec<u32>,
    }

    impl SpdyClient {
        async fn open(io: tokio::io::DuplexStream) -> Self {
            let (encoder, decoder) = (Encoder::default(), Decoder::default());
            let (buf, data, ends) = (BytesMut::new(), Default::default(), Vec::new());
            let mut client = SpdyClient { io, encoder, decoder, buf, data, ends };
            for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
                let headers = [("streamtype".to_owned(), kind.to_owned())].into();
                client.send(Frame::SynStream { id, fin: false, headers }).await;
            }
            client
        }

        async fn send(&mut self, frame: Frame) {
            let mut wire = BytesMut::new();
            self.encoder.encode(&frame, &mut wire);
            self.io.write_all(&wire).await.unwrap();
        }

        /// Hears frames until `enough`, or the GOAWAY.
        async fn hear(&mut self, enough: impl Fn(&Self) -> bool) {
            while !enough(self) {
                let frame = loop {
                    match self.decoder.decode(&mut self.buf).unwrap() {
                        Some(frame) => break frame,
                        None => assert!(self.io.read_buf(&mut self.buf).await.unwrap() > 0),
                    }
                };
                match frame {
                    Frame::Data { id, fin, data } => {
                        self.data[id as usize].extend_from_slice(&data);
                        self.ends.extend(fin.then_some(id));
                    }
                    Frame::GoAway { .. } => return,
                    _ => {}
                }
            }
        }
    }

    #[tokio::test]
    async fn spdy_v4_opens_its_streams_and_reports_the_exit_code() {
        let (a, b) = tokio::io::duplex(4096);
        let serving = tokio::spawn(async move { run(over_spdy(b, "v4.channel.k8s.io", ALL).await.unwrap()).await });
        let mut client = SpdyClient::open(a).await;
        client.send(Frame::Data { id: 3, fin: true, data: "hello".into() }).await;
        client.hear(|_| false).await;
        let SpdyClient { data, mut ends, io, .. } = client;
        drop(io);
        serving.await.unwrap();
        assert_eq!(data[5], b"HELLO");
        assert!(String::from_utf8_lossy(&data[1]).contains("NonZeroExitCode"));
        // The status after all output, and nothing that could be taken for the end of stdin before.
        assert_eq!(ends[2..], [1, 3]);
        ends.sort_unstable();
        assert_eq!(ends, [1, 3, 5, 7]);
    }

    /// client-go drops what it has not sent yet of its stdin when our half of that stream ends.
    #[tokio::test]
    async fn a_spdy_client_is_not_told_that_nobody_reads_its_stdin_before_the_command_has_ended() {
        let (a, b) = tokio::io::duplex(4096);
        let serving = tokio::spawn(async move {
            let mut session = over_spdy(b, "v4.channel.k8s.io", ALL).await.unwrap();
            session.stdout.as_mut().unwrap().write_all(b"started").await.unwrap();
            run(session).await;
        });
        let mut client = SpdyClient::open(a).await;
        client.hear(|c| c.data[5] == b"started").await;
        let input = if client.ends.contains(&3) { Bytes::new() } else { Bytes::from_static(b"hello") };
        client.send(Frame::Data { id: 3, fin: true, data: input }).await;
        client.hear(|_| false).await;
        assert_eq!(client.data[5], b"startedHELLO");
        drop(client.io);
        serving.await.unwrap();
    }

    #[test]
    fn options_are_checked() {
        assert!(Options::default().check().is_err());
        assert!(!Options { tty: true, ..ALL }.check().unwrap().stderr);
    }
}
