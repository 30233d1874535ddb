//! What clients send on connections that were upgraded: SPDY, and WebSockets with the channels of remote commands and
//! forwarded ports.

use bytes::{Bytes, BytesMut};
use futures::future::join;
use isopod_streaming::exit::Outcome;
use isopod_streaming::spdy::frame::{Decoder, Encoder, Frame};
use isopod_streaming::{Options, port_forward as forward, remote_command as remote};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Frames are the same in pieces of any size; what was read is written so that it is read as the same.
pub fn spdy(data: &[u8]) {
    let read = |piece: usize| {
        let (mut decoder, mut buffer, mut all) = (Decoder::default(), BytesMut::new(), Vec::new());
        for part in data.chunks(piece.max(1)) {
            buffer.extend_from_slice(part);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(frame)) => all.push(frame),
                    Ok(None) => break,
                    Err(_) => return (all, true),
                }
            }
        }
        (all, false)
    };
    let (whole, failed) = read(data.len());
    let (pieces, also) = read(3);
    assert_eq!((joined(&pieces), also), (joined(&whole), failed));
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    let sent: Vec<Frame> = whole.into_iter().filter(is_ours).collect();
    sent.iter().for_each(|f| encoder.encode(f, &mut wire));
    let (mut decoder, mut got) = (Decoder::default(), Vec::new());
    while let Some(frame) = decoder.decode(&mut wire).expect("what was encoded can be decoded") {
        got.push(frame);
    }
    assert_eq!(joined(&got), joined(&sent));
}

/// A header block that is too long for one frame is nothing that we send.
fn is_ours(frame: &Frame) -> bool {
    match frame {
        Frame::SynStream { headers, .. } | Frame::SynReply { headers, .. } | Frame::Headers { headers, .. } => {
            headers.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() < 32 << 10
        }
        _ => true,
    }
}

/// Parts of one data frame together: where they were cut depends on the pieces that came.
fn joined(frames: &[Frame]) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    for frame in frames {
        match (all.last_mut(), frame) {
            (Some(Frame::Data { id, fin, data }), Frame::Data { id: next, fin: ends, data: more })
                if id == next && !*fin =>
            {
                *data = Bytes::from([&data[..], &more[..]].concat());
                *fin = *ends;
            }
            _ => all.push(frame.clone()),
        }
    }
    all
}

/// Time does not pass but where all wait.
fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime of one thread needs nothing").block_on(work);
}

/// Sends all bytes and goes when the other side has nothing to say any more.
async fn client(mut io: DuplexStream, data: &[u8]) {
    let _ = io.write_all(data).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), io.read_to_end(&mut answer)).await;
}

const PIPE: usize = 1 << 20;

/// A command with all streams ends whatever its client sends, and reads no more than was sent.
pub fn remote_command(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let protocols = ["v5.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"];
    let options = Options { stdin: true, stdout: true, stderr: true, tty: false };
    run(async {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let session = async {
            let which = usize::from(*choice);
            let session = match protocols.get(which) {
                Some(protocol) => Ok(remote::over_websocket(ours, protocol, options).await),
                None => remote::over_spdy(ours, "v4.channel.k8s.io", options).await,
            };
            let Ok(mut session) = session else { return };
            let mut input = Vec::new();
            if let Some(mut stdin) = session.stdin.take() {
                let _ = tokio::time::timeout(Duration::from_secs(1), stdin.read_to_end(&mut input)).await;
            }
            assert!(input.len() <= rest.len(), "{} bytes of {}", input.len(), rest.len());
            session.finish.finish(&Outcome::Exited(0)).await;
        };
        join(session, client(theirs, rest)).await;
    });
}

/// Ports that are forwarded say back what they get, and end.
pub fn port_forward(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    run(async {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let session = async {
            let mut session = match choice {
                0 => forward::over_channels(ours, "v4.channel.k8s.io", &[80, 443]).await,
                1 => forward::over_channels(ours, "base64.channel.k8s.io", &[80]).await,
                _ => forward::over_spdy(ours),
            };
            let ports = async {
                while let Some(mut port) = session.next().await {
                    let echo = async { tokio::io::copy(&mut port.from_client, &mut port.to_client).await.unwrap_or(0) };
                    let _ = tokio::time::timeout(Duration::from_secs(1), echo).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(5), ports).await;
        };
        join(session, client(theirs, rest)).await;
    });
}
