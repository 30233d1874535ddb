//! gRPC's health check (`grpc.health.v1.Health/Check`) over HTTP/2 frames: what a probe needs and no more. Header blocks of
//! requests are not read, since there is one method; the answers' use literals only, so that no table has to be kept.

use std::io::{Read, Write};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

pub const SERVING: u8 = 1;
pub const NOT_SERVING: u8 = 2;
pub const SERVICE_UNKNOWN: u8 = 3;

/// `:status: 200` of the static table, then `content-type: application/grpc` with its name of the static table.
const HEAD: &[u8] = b"\x88\x0f\x10\x10application/grpc";
const TRAILER: &[u8] = b"\x00\x0bgrpc-status\x010";

fn frame(out: &mut impl Write, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
    let mut head = [0; 9];
    head[..3].copy_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    (head[3], head[4]) = (kind, flags);
    head[5..].copy_from_slice(&stream.to_be_bytes());
    out.write_all(&[&head, payload].concat())
}

/// Serves a connection whose first line and the empty one after it have been read. `status` answers for a service's name.
pub fn serve(mut from: impl Read, mut to: impl Write, status: impl Fn(&str) -> u8) -> std::io::Result<()> {
    // What is left of the preface.
    from.read_exact(&mut [0; 6])?;
    frame(&mut to, SETTINGS, 0, 0, &[])?;
    let mut message = Vec::new();
    loop {
        let mut head = [0; 9];
        if from.read_exact(&mut head).is_err() {
            return Ok(());
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        from.read_exact(&mut payload)?;
        let (kind, flags, stream) = (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                frame(&mut to, kind, ACK, 0, if kind == PING { &payload } else { &[] })?
            }
            HEADERS => message.clear(),
            DATA => message.extend_from_slice(&payload),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            // Five bytes of gRPC, then field 1: the service's name.
            let name = message.get(7..).and_then(|n| std::str::from_utf8(n).ok()).unwrap_or_default();
            frame(&mut to, HEADERS, END_HEADERS, stream, HEAD)?;
            frame(&mut to, DATA, 0, stream, &[0, 0, 0, 0, 2, 8, status(name)])?;
            frame(&mut to, HEADERS, END_HEADERS | END_STREAM, stream, TRAILER)?;
        }
    }
}
