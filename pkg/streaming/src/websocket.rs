//! Pumps one WebSocket: messages out of a queue into the socket, messages from the socket to a handler.

use futures::{SinkExt, StreamExt};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

/// The largest message that is taken from a client.
const MAX_MESSAGE: usize = 4 << 20;
/// How long the peer may take to answer our close: it may have much to read until then, and be slow.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

pub(crate) async fn server<IO>(io: IO) -> WebSocketStream<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Runs until both directions have ended. The socket is closed when all senders of `out` are gone; `closed` is cancelled when
/// the peer is gone. `on_message` may wait: that slows the peer down and does not hold back what goes out.
pub(crate) async fn pump<IO, F, Fut>(
    socket: WebSocketStream<IO>,
    mut out: mpsc::Receiver<Message>,
    closed: CancellationToken,
    mut on_message: F,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Message) -> Fut,
    Fut: Future<Output = ()>,
{
    let (mut sink, mut stream) = socket.split();
    let gone = closed.clone();
    let reading = async move {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_close() {
                // Goes on until the stream ends, which flushes our answer.
                gone.cancel();
            } else {
                on_message(message).await;
            }
        }
        gone.cancel();
    };
    let writing = async {
        while let Some(message) = out.recv().await {
            if sink.feed(message).await.is_err() || (out.is_empty() && sink.flush().await.is_err()) {
                // Nobody hears us: take what comes, so that writers see an end.
                closed.cancel();
                out.close();
            }
        }
        let bye = Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
        match sink.send(bye).await {
            Ok(()) | Err(Error::ConnectionClosed) => {}
            Err(e) => tracing::debug!(error = %e, "cannot close a WebSocket cleanly"),
        }
    };
    tokio::pin!(reading);
    tokio::select! {
        () = &mut reading => {}
        () = async { writing.await; let _ = tokio::time::timeout(CLOSE_WAIT, closed.cancelled()).await; } => {}
    }
}
