//! SPDY/3.1, the server's side of what remote command and port-forward need of it (chromium.org, "SPDY Protocol - Draft 3.1").

mod connection;
mod dictionary;
pub mod frame;

pub use connection::{Closer, Incoming, SpdyWriter, Stream, serve};
