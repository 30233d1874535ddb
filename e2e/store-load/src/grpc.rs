//! gRPC as thin as it goes, so that the load leaves the machine to the server: HTTP/2 frames, and a message in each.

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

/// Before each message: a byte that tells of compression, and the length.
const PREFIX: usize = 5;

#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
    authority: String,
}

impl Client {
    /// A new connection to `HOST:PORT`.
    pub async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(endpoint).await.with_context(|| format!("cannot connect to {endpoint}"))?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(4 << 20).initial_connection_window_size(64 << 20).enable_push(false);
        let (requests, connection) = builder.handshake(stream).await?;
        // It ends with the last handle; an error ends the requests, too.
        tokio::spawn(connection);
        Ok(Client { requests, authority: endpoint.to_owned() })
    }

    async fn start(&self, path: &str) -> anyhow::Result<(h2::client::ResponseFuture, SendStream<Bytes>)> {
        let mut requests = self.requests.clone().ready().await?;
        let request = Request::post(format!("http://{}{path}", self.authority))
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        Ok(requests.send_request(request, false)?)
    }

    /// One request, one answer.
    pub async fn ask<A: Message + Default>(&self, path: &str, message: &impl Message) -> anyhow::Result<A> {
        let (answer, mut out) = self.start(path).await?;
        out.send_data(framed(message), true)?;
        let answer = answer.await?;
        check(answer.headers(), false).with_context(|| path.to_owned())?;
        let mut body = answer.into_body();
        let mut whole = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            whole.extend_from_slice(&part);
        }
        if let Some(trailers) = body.trailers().await? {
            check(&trailers, true).with_context(|| path.to_owned())?;
        }
        ensure!(whole.len() >= PREFIX, "{path}: no answer");
        whole.advance(PREFIX);
        Ok(A::decode(whole.freeze())?)
    }

    /// A stream in both directions. The server may answer only after the first message.
    pub async fn stream(&self, path: &str, first: &[impl Message]) -> anyhow::Result<(SendStream<Bytes>, Messages)> {
        let (answer, mut out) = self.start(path).await?;
        for message in first {
            out.send_data(framed(message), false)?;
        }
        let answer = answer.await?;
        check(answer.headers(), false)?;
        Ok((out, Messages { body: answer.into_body(), held: BytesMut::new() }))
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    message.encode_raw(&mut out);
    out.freeze()
}

/// An answer without a body has its status among the headers.
fn check(headers: &HeaderMap, last: bool) -> anyhow::Result<()> {
    match headers.get("grpc-status") {
        None if last => bail!("the answer has no status"),
        Some(status) if status != "0" => {
            let text = headers.get("grpc-message").map(|m| String::from_utf8_lossy(m.as_bytes()).into_owned());
            bail!("status {}: {}", status.to_str().unwrap_or("?"), text.unwrap_or_default());
        }
        _ => Ok(()),
    }
}

pub struct Messages {
    body: RecvStream,
    held: BytesMut,
}

impl Messages {
    /// `None`: the stream has ended.
    pub async fn next<A: Message + Default>(&mut self) -> anyhow::Result<Option<A>> {
        loop {
            if self.held.len() >= PREFIX {
                let length = u32::from_be_bytes([self.held[1], self.held[2], self.held[3], self.held[4]]) as usize;
                if self.held.len() >= PREFIX + length {
                    self.held.advance(PREFIX);
                    return Ok(Some(A::decode(self.held.split_to(length).freeze())?));
                }
            }
            let Some(part) = self.body.data().await else { return Ok(None) };
            let part = part?;
            self.body.flow_control().release_capacity(part.len())?;
            self.held.extend_from_slice(&part);
        }
    }
}
