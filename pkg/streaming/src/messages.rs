//! A WebSocket on which only the server speaks: `binary.k8s.io` and `base64.binary.k8s.io` for bytes such as logs, and
//! watches, where each event is a message. What the client sends is ignored (apiserver `wsstream`).

use crate::channel::base64;
use crate::negotiate::{self, Refusal};
use crate::websocket;
use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

const BASE64: &str = "base64.binary.k8s.io";
const PROTOCOLS: &[&str] = &["binary.k8s.io", BASE64];
/// Messages that wait for a slow client.
const QUEUE: usize = 16;

/// How a piece of the stream becomes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Binary,
    Text,
    Base64,
}

impl Framing {
    fn message(self, piece: Bytes) -> Message {
        match self {
            Framing::Binary => Message::Binary(piece),
            Framing::Text => Message::Text(String::from_utf8_lossy(&piece).into_owned().into()),
            Framing::Base64 => {
                let mut out = String::with_capacity(piece.len() / 3 * 4 + 4);
                base64::encode(&piece, &mut out);
                Message::Text(out.into())
            }
        }
    }
}

/// An accepted request: send the response, then run [`Messages::send`] in a task of its own.
pub struct Messages {
    upgrade: hyper::upgrade::OnUpgrade,
    framing: Framing,
    /// An empty message goes first, so that the client knows that it is heard.
    greets: bool,
}

/// A stream of bytes; where one message ends and the next begins means nothing.
pub fn accept_bytes<B>(request: &mut Request<B>) -> Result<(Response<Body>, Messages), Refusal> {
    let agreed = negotiate::agree(request, PROTOCOLS, &[])?;
    let framing = if agreed.protocol == BASE64 { Framing::Base64 } else { Framing::Binary };
    Ok((agreed.response, Messages { upgrade: agreed.upgrade, framing, greets: true }))
}

/// A stream of events, each a message: of text or of bytes.
pub fn accept_events<B>(request: &mut Request<B>, text: bool) -> Result<(Response<Body>, Messages), Refusal> {
    let agreed = negotiate::agree(request, PROTOCOLS, &[])?;
    let framing = if text { Framing::Text } else { Framing::Binary };
    Ok((agreed.response, Messages { upgrade: agreed.upgrade, framing, greets: false }))
}

impl Messages {
    /// Sends the pieces until they end or the client is gone, then closes the WebSocket.
    pub async fn send<S, E>(self, pieces: S) -> hyper::Result<()>
    where
        S: Stream<Item = Result<Bytes, E>>,
    {
        let io = TokioIo::new(self.upgrade.await?);
        run(io, self.framing, self.greets, pieces).await;
        Ok(())
    }
}

async fn run<IO, S, E>(io: IO, framing: Framing, greets: bool, pieces: S)
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Stream<Item = Result<Bytes, E>>,
{
    let (out, queue) = mpsc::channel(QUEUE);
    let closed = CancellationToken::new();
    let gone = closed.clone();
    let feeding = async move {
        let mut pieces = pin!(pieces);
        if greets {
            let _ = out.send(framing.message(Bytes::new())).await;
        }
        loop {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                () = gone.cancelled() => return,
            };
            let Some(Ok(piece)) = piece else { return };
            if out.send(framing.message(piece)).await.is_err() {
                return;
            }
        }
    };
    let socket = websocket::server(io).await;
    tokio::join!(feeding, websocket::pump(socket, queue, closed.clone(), |_| std::future::ready(())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    async fn received(framing: Framing, greets: bool) -> Vec<Message> {
        let (server, client) = tokio::io::duplex(1024);
        let pieces = futures::stream::iter([Ok::<_, Infallible>(Bytes::from("a\n")), Ok(Bytes::from("bc"))]);
        let serving = tokio::spawn(run(server, framing, greets, pieces));
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let mut out = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            out.push(message);
        }
        serving.await.unwrap();
        out.retain(|m| !m.is_close());
        out
    }

    #[tokio::test]
    async fn each_framing_carries_the_pieces() {
        let binary = |s: &'static str| Message::Binary(Bytes::from(s));
        let text = |s: &'static str| Message::Text(s.into());
        assert_eq!(received(Framing::Binary, true).await, [binary(""), binary("a\n"), binary("bc")]);
        assert_eq!(received(Framing::Base64, true).await, [text(""), text("YQo="), text("YmM=")]);
        assert_eq!(received(Framing::Text, false).await, [text("a\n"), text("bc")]);
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_the_stream() {
        let (server, client) = tokio::io::duplex(1024);
        let endless = futures::stream::pending::<Result<Bytes, Infallible>>();
        let serving = tokio::spawn(run(server, Framing::Binary, true, endless));
        drop(client);
        serving.await.unwrap();
    }
}
