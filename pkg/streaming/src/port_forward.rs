//! Port-forward: from a request to one pair of streams (data, error) for each forwarded connection.
//!
//! Three ways lead here: SPDY, SPDY inside a WebSocket, and WebSocket channels (two for each port that the query names).

use crate::channel::Encoding;
use crate::idle::Idle;
use crate::negotiate::{self, Refusal, Transport};
use crate::pipe::{ByteReader, ByteWriter};
use crate::tunnel::Tunnel;
use crate::{spdy, websocket};
use axum::body::Body;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET: &[&str] = &[TUNNELLED, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "portforward.k8s.io"];
const SPDY: &[&str] = &["portforward.k8s.io"];

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// One connection to one port of the pod.
pub struct ForwardedPort {
    pub port: u16,
    pub from_client: BoxRead,
    pub to_client: BoxWrite,
    /// Takes a text when the connection could not be made. client-go ends all of its connections when there is one.
    pub error: BoxWrite,
    /// Cancelled when the client wants no more of this connection, or has gone.
    pub given_up: CancellationToken,
}

/// The connections as the client asks for them.
pub struct PortForward {
    ports: mpsc::Receiver<ForwardedPort>,
    /// Cancelled when the client has gone.
    pub closed: CancellationToken,
    _closer: Option<spdy::Closer>,
}

impl PortForward {
    /// `None`: the client has gone, or can ask for no more.
    pub async fn next(&mut self) -> Option<ForwardedPort> {
        self.ports.recv().await
    }
}

/// An accepted request: send the response, then await [`Pending::ready`] in a task of its own.
pub struct Pending {
    upgrade: hyper::upgrade::OnUpgrade,
    transport: Transport,
    protocol: &'static str,
    ports: Vec<u16>,
}

/// `ports`: those that the query names; only WebSocket channels need them.
pub fn accept<B>(request: &mut Request<B>, ports: Vec<u16>) -> Result<(Response<Body>, Pending), Refusal> {
    let agreed = negotiate::agree(request, WEBSOCKET, SPDY)?;
    let channels = agreed.transport == Transport::WebSocket && agreed.protocol != TUNNELLED;
    if channels && ports.is_empty() {
        return Err(Refusal::BadRequest("query parameter \"port\" is required".into()));
    }
    if channels && ports.len() > 127 {
        return Err(Refusal::BadRequest("at most 127 ports can be forwarded over one WebSocket".into()));
    }
    let pending = Pending { upgrade: agreed.upgrade, transport: agreed.transport, protocol: agreed.protocol, ports };
    Ok((agreed.response, pending))
}

impl Pending {
    /// The session, once the client has read the response. It ends when nothing comes or goes for as long as `idle`.
    pub async fn ready(self, idle: Duration) -> Result<PortForward, hyper::Error> {
        let io = Idle::new(TokioIo::new(self.upgrade.await?), idle);
        Ok(match (self.transport, self.protocol) {
            (Transport::Spdy, _) => over_spdy(io),
            (Transport::WebSocket, TUNNELLED) => over_spdy(Tunnel::new(websocket::server(io).await)),
            (Transport::WebSocket, protocol) => over_channels(io, protocol, &self.ports).await,
        })
    }
}

/// Serves SPDY: pairs the `error` and `data` streams of one request id.
pub fn over_spdy<IO>(io: IO) -> PortForward
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut incoming, closer) = spdy::serve(io);
    let closed = incoming.closed();
    let (tx, ports) = mpsc::channel(crate::pipe::QUEUE);
    tokio::spawn(async move {
        let mut waiting: HashMap<String, spdy::Stream> = HashMap::new();
        while let Some(stream) = incoming.next().await {
            let kind = stream.header("streamtype").to_owned();
            if !matches!(kind.as_str(), "data" | "error") || waiting.len() > 1000 {
                stream.refuse().await;
                continue;
            }
            let id = request_id(&stream, &kind);
            let Some(other) = waiting.remove(&id) else {
                waiting.insert(id, stream);
                continue;
            };
            if other.header("streamtype") == kind {
                other.refuse().await;
                stream.refuse().await;
                continue;
            }
            let (data, error) = if kind == "data" { (stream, other) } else { (other, stream) };
            let Ok(port @ 1..) = data.header("port").parse::<u16>() else {
                data.refuse().await;
                error.refuse().await;
                continue;
            };
            let pair = ForwardedPort {
                port,
                given_up: data.was_reset(),
                from_client: Box::new(data.reader),
                to_client: Box::new(data.writer),
                error: Box::new(error.writer),
            };
            if tx.send(pair).await.is_err() {
                return;
            }
        }
    });
    PortForward { ports, closed, _closer: Some(closer) }
}

/// Clients before `requestID` open the error stream first and the data stream right after it, so its id is two higher.
fn request_id(stream: &spdy::Stream, kind: &str) -> String {
    match stream.header("requestid") {
        "" if kind == "error" => stream.id.to_string(),
        "" => stream.id.saturating_sub(2).to_string(),
        id => id.to_owned(),
    }
}

/// Serves WebSocket channels: 2i carries the data of the i-th port, 2i + 1 its errors. Each starts with the port's number,
/// two bytes little-endian.
pub async fn over_channels<IO>(io: IO, protocol: &str, wanted: &[u16]) -> PortForward
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let encoding = if protocol.contains("base64") { Encoding::Base64 } else { Encoding::Binary };
    let (out, out_rx) = mpsc::channel::<Message>(crate::pipe::QUEUE);
    let (tx, ports) = mpsc::channel(wanted.len().max(1));
    let closed = CancellationToken::new();
    let socket = websocket::server(io).await;
    let mut inputs = Vec::new();
    let mut pairs = Vec::new();
    for (i, port) in wanted.iter().enumerate() {
        let writer = |channel: usize| {
            let wrap = move |data: bytes::Bytes| encoding.encode(channel as u8, &data);
            ByteWriter::new(out.clone(), wrap, None, closed.clone(), None)
        };
        let (input, reader) = ByteReader::new();
        inputs.push(input);
        pairs.push((*port, reader, writer(2 * i), writer(2 * i + 1)));
    }
    drop(out);
    let on_message = move |message| {
        let sender = encoding.decode(message).and_then(|(channel, data)| {
            let input = inputs.get(usize::from(channel / 2)).filter(|_| channel.is_multiple_of(2))?;
            Some((input.clone(), data))
        });
        async move {
            if let Some((sender, data)) = sender {
                let _ = sender.send(data).await;
            }
        }
    };
    tokio::spawn(websocket::pump(socket, out_rx, closed.clone(), on_message));
    for (port, reader, mut data, mut error) in pairs {
        let number = port.to_le_bytes();
        if data.write_all(&number).await.is_err() || error.write_all(&number).await.is_err() {
            break;
        }
        let (from_client, to_client, error) = (Box::new(reader), Box::new(data), Box::new(error));
        // The queue has room for all of them.
        let _ = tx.send(ForwardedPort { port, from_client, to_client, error, given_up: closed.clone() }).await;
    }
    PortForward { ports, closed, _closer: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::frame::{Decoder, Encoder, Frame, Headers};
    use bytes::{Bytes, BytesMut};
    use futures::{SinkExt, StreamExt};
    use tokio::io::AsyncReadExt;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    async fn echo(mut session: PortForward) {
        while let Some(mut p) = session.next().await {
            tokio::spawn(async move {
                tokio::io::copy(&mut p.from_client, &mut p.to_client).await.unwrap();
                p.error.write_all(format!("port {}", p.port).as_bytes()).await.unwrap();
            });
        }
    }

    fn headers(kind: &str, id: &str) -> Headers {
        let h = [("streamtype", kind), ("port", "8080"), ("requestid", id)];
        h.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    async fn speak_spdy<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, request: &str) {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        encoder.encode(&Frame::SynStream { id: 1, fin: true, headers: headers("error", request) }, &mut wire);
        encoder.encode(&Frame::SynStream { id: 3, fin: false, headers: headers("data", request) }, &mut wire);
        encoder.encode(&Frame::Data { id: 3, fin: true, data: "ping".into() }, &mut wire);
        io.write_all(&wire).await.unwrap();
        io.flush().await.unwrap();
        let (mut decoder, mut buf) = (Decoder::default(), BytesMut::new());
        let (mut data, mut error, mut ends) = (vec![], vec![], 0);
        while ends < 2 {
            assert!(io.read_buf(&mut buf).await.unwrap() > 0);
            while let Some(frame) = decoder.decode(&mut buf).unwrap() {
                if let Frame::Data { id, fin, data: d } = frame {
                    if id == 3 {
                        data.extend_from_slice(&d)
                    } else {
                        error.extend_from_slice(&d)
                    }
                    ends += usize::from(fin);
                }
            }
        }
        assert_eq!((data.as_slice(), error.as_slice()), (&b"ping"[..], &b"port 8080"[..]));
    }

    #[tokio::test]
    async fn spdy_pairs_streams_by_request_or_by_id() {
        for request in ["7", ""] {
            let (a, b) = tokio::io::duplex(4096);
            tokio::spawn(echo(over_spdy(b)));
            speak_spdy(a, request).await;
        }
    }

    #[tokio::test]
    async fn a_reset_gives_one_connection_up() {
        let (mut a, b) = tokio::io::duplex(4096);
        let mut session = over_spdy(b);
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        for (error, data, request) in [(1, 3, "0"), (5, 7, "1")] {
            encoder.encode(&Frame::SynStream { id: error, fin: true, headers: headers("error", request) }, &mut wire);
            encoder.encode(&Frame::SynStream { id: data, fin: false, headers: headers("data", request) }, &mut wire);
        }
        encoder.encode(&Frame::Reset { id: 3, status: 5 }, &mut wire);
        a.write_all(&wire).await.unwrap();
        let (first, second) = (session.next().await.unwrap(), session.next().await.unwrap());
        first.given_up.cancelled().await;
        assert!(!second.given_up.is_cancelled() && !session.closed.is_cancelled());
        drop(a);
        second.given_up.cancelled().await;
    }

    #[tokio::test]
    async fn spdy_goes_through_a_websocket() {
        let (a, b) = tokio::io::duplex(4096);
        let server = Tunnel::new(websocket::server(b).await);
        tokio::spawn(echo(over_spdy(server)));
        let client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        speak_spdy(Tunnel::new(client), "0").await;
    }

    #[tokio::test]
    async fn channels_start_with_their_port() {
        let (a, b) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        tokio::spawn(echo(over_channels(b, "v4.channel.k8s.io", &[80, 8080]).await));
        let mut first = Vec::new();
        for _ in 0..4 {
            first.push(client.next().await.unwrap().unwrap().into_data().to_vec());
        }
        assert_eq!(first, [vec![0, 80, 0], vec![1, 80, 0], vec![2, 0x90, 0x1f], vec![3, 0x90, 0x1f]]);
        client.send(Message::Binary(Bytes::from_static(b"\x02ping"))).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap().into_data(), "\x02ping");
    }
}
