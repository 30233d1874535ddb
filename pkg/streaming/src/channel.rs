//! The WebSocket channel protocols: each message starts with the number of its channel, as a byte or, in the base64 forms,
//! as one digit followed by base64 text.

use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
/// `v5.channel.k8s.io`: the payload's one byte names the channel that ends.
pub const CLOSE: u8 = 255;

/// How messages carry their channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

impl Encoding {
    pub fn encode(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Encoding::Binary => {
                let mut out = BytesMut::with_capacity(data.len() + 1);
                out.put_u8(channel);
                out.put_slice(data);
                Message::Binary(out.freeze())
            }
            Encoding::Base64 => {
                let mut out = String::with_capacity(data.len() / 3 * 4 + 5);
                out.push(char::from(b'0' + channel % 10));
                base64::encode(data, &mut out);
                Message::Text(out.into())
            }
        }
    }

    /// The channel and payload of a message; `None` for control messages and for what is malformed (upstream skips those).
    pub fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let first = *data.first()?;
        match self {
            Encoding::Binary => Some((first, data.slice(1..))),
            Encoding::Base64 => {
                let channel = first.checked_sub(b'0').filter(|c| *c < 10)?;
                Some((channel, base64::decode(&data[1..])?.into()))
            }
        }
    }
}

/// Standard base64 with padding (RFC 4648, section 4).
pub(crate) mod base64 {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub fn encode(data: &[u8], out: &mut String) {
        for chunk in data.chunks(3) {
            let word = chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
            for i in 0..4 {
                if i <= chunk.len() {
                    out.push(char::from(ALPHABET[(word >> (18 - 6 * i) & 63) as usize]));
                } else {
                    out.push('=');
                }
            }
        }
    }

    pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
        if !text.len().is_multiple_of(4) {
            return None;
        }
        let mut out = Vec::with_capacity(text.len() / 4 * 3);
        let groups = text.len() / 4;
        for (g, chunk) in text.chunks(4).enumerate() {
            let pad = chunk.iter().rev().take_while(|c| **c == b'=').count();
            if pad > 2 || (pad > 0 && g + 1 != groups) {
                return None;
            }
            let mut word = 0u32;
            for c in &chunk[..4 - pad] {
                word = word << 6 | ALPHABET.iter().position(|a| a == c)? as u32;
            }
            word <<= 6 * pad;
            out.extend_from_slice(&word.to_be_bytes()[1..4 - pad]);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_messages_look_as_upstream_writes_them() {
        assert_eq!(Encoding::Base64.encode(STDOUT, b"hello"), Message::Text("1aGVsbG8=".into()));
        assert_eq!(Encoding::Binary.encode(ERROR, b"x"), Message::Binary(Bytes::from_static(b"\x03x")));
        assert_eq!(Encoding::Base64.decode(Message::Text("0!".into())), None);
        assert_eq!(Encoding::Base64.decode(Message::Text("0YQ==YQ==".into())), None);
        assert_eq!(Encoding::Binary.decode(Message::Binary(Bytes::new())), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(channel in 0u8..10, data: Vec<u8>) {
            for encoding in [Encoding::Binary, Encoding::Base64] {
                let (c, d) = encoding.decode(encoding.encode(channel, &data)).unwrap();
                prop_assert_eq!((c, d.to_vec()), (channel, data.clone()));
            }
        }

        #[test]
        fn no_message_panics(data: Vec<u8>, text: String) {
            for encoding in [Encoding::Binary, Encoding::Base64] {
                let _ = encoding.decode(Message::Binary(data.clone().into()));
                let _ = encoding.decode(Message::Text(text.clone().into()));
            }
        }
    }
}
