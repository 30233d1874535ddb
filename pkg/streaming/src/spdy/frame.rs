//! Frames as bytes: decoding for a server that reads a client's frames, encoding for what it answers.
//!
//! Header blocks share one zlib stream a direction, so a block that cannot be read ends the connection.

use super::dictionary;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use std::collections::BTreeMap;

/// The longest control frame that is taken.
const MAX_CONTROL: usize = 64 * 1024;
/// The longest header block after inflation.
const MAX_HEADERS: usize = 256 * 1024;

pub type Headers = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        id: u32,
        status: u32,
    },
    /// id and value of each setting.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// A part of a data frame; `fin` only with its last part.
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
}

/// Statuses of [`Frame::Reset`].
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const FLOW_CONTROL_ERROR: u32 = 7;
}

/// The setting that tells the initial window.
pub const INITIAL_WINDOW_SIZE: u32 = 7;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("SPDY version {0} where 3 was expected")]
    Version(u16),
    #[error("a control frame of type {0} is malformed")]
    Malformed(u16),
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a header block cannot be inflated")]
    Inflate,
    #[error("a header block is malformed")]
    HeaderBlock,
}

/// Takes frames out of the bytes that arrive.
pub struct Decoder {
    inflate: Decompress,
    /// The data frame that is being read: stream, bytes left, fin.
    data: Option<(u32, usize, bool)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { inflate: Decompress::new(true), data: None }
    }
}

impl Decoder {
    /// The next frame, or `None` when more bytes are needed.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((id, left, fin)) = self.data {
                if left > 0 && buf.is_empty() {
                    return Ok(None);
                }
                let part = buf.split_to(left.min(buf.len())).freeze();
                let left = left - part.len();
                self.data = (left > 0).then_some((id, left, fin));
                return Ok(Some(Frame::Data { id, fin: fin && left == 0, data: part }));
            }
            let Some(head) = buf.get(..8) else { return Ok(None) };
            let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if word & 0x8000_0000 == 0 {
                buf.advance(8);
                self.data = Some((word, length, flags & 1 != 0));
                continue;
            }
            if length > MAX_CONTROL {
                return Err(FrameError::TooLong(length));
            }
            if buf.len() < 8 + length {
                return Ok(None);
            }
            let (version, kind) = ((word >> 16 & 0x7fff) as u16, (word & 0xffff) as u16);
            if version != 3 {
                return Err(FrameError::Version(version));
            }
            buf.advance(8);
            let body = buf.split_to(length).freeze();
            // Types that we do not know are skipped (draft 3, section 2.2.1).
            if let Some(frame) = self.control(kind, flags, body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Frame>, FrameError> {
        let malformed = FrameError::Malformed(kind);
        let fin = flags & 1 != 0;
        let need = match kind {
            1 => 10,
            2 | 4 | 6 | 8 => 4,
            3 | 7 | 9 => 8,
            _ => return Ok(None),
        };
        if body.len() < need {
            return Err(malformed);
        }
        let first = body.get_u32();
        let id = first & 0x7fff_ffff;
        Ok(Some(match kind {
            1 => {
                body.advance(6);
                Frame::SynStream { id, fin, headers: self.headers(&body)? }
            }
            2 => Frame::SynReply { id, fin, headers: self.headers(&body)? },
            8 => Frame::Headers { id, fin, headers: self.headers(&body)? },
            3 => Frame::Reset { id, status: body.get_u32() },
            4 => {
                if body.len() / 8 < first as usize {
                    return Err(malformed);
                }
                Frame::Settings((0..first).map(|_| (body.get_u32() & 0x00ff_ffff, body.get_u32())).collect())
            }
            6 => Frame::Ping(first),
            7 => Frame::GoAway { last: id, status: body.get_u32() },
            _ => Frame::WindowUpdate { id, delta: body.get_u32() & 0x7fff_ffff },
        }))
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        let mut plain = Vec::with_capacity(1024);
        let mut input = block;
        loop {
            if plain.len() >= MAX_HEADERS {
                return Err(FrameError::Inflate);
            }
            plain.reserve(1024);
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self.inflate.decompress_vec(input, &mut plain, FlushDecompress::Sync);
            let used = (self.inflate.total_in() - before_in) as usize;
            input = input.get(used..).ok_or(FrameError::Inflate)?;
            match result {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary::bytes()).map_err(|_| FrameError::Inflate)?;
                    continue;
                }
                Err(_) => return Err(FrameError::Inflate),
                Ok(_) => {}
            }
            if used == 0 && self.inflate.total_out() == before_out {
                break;
            }
        }
        if input.is_empty() { parse_headers(&plain) } else { Err(FrameError::Inflate) }
    }
}

fn parse_headers(mut block: &[u8]) -> Result<Headers, FrameError> {
    fn number(block: &mut &[u8]) -> Result<usize, FrameError> {
        if block.len() < 4 { Err(FrameError::HeaderBlock) } else { Ok(block.get_u32() as usize) }
    }
    fn text(block: &mut &[u8]) -> Result<String, FrameError> {
        let n = number(block)?;
        let (now, later) = block.split_at_checked(n).ok_or(FrameError::HeaderBlock)?;
        *block = later;
        String::from_utf8(now.to_vec()).map_err(|_| FrameError::HeaderBlock)
    }
    let count = number(&mut block)?;
    let mut out = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        out.insert(name, text(&mut block)?);
    }
    Ok(out)
}

/// Puts frames into bytes.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::best(), true);
        // A fresh compressor takes any dictionary.
        if let Err(e) = deflate.set_dictionary(&dictionary::bytes()) {
            tracing::error!(error = %e, "zlib refuses the SPDY dictionary");
        }
        Encoder { deflate }
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(fin) << 24 | (length as u32 & 0x00ff_ffff));
}

impl Encoder {
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.headers(headers);
                control(out, 1, *fin, block.len() + 10);
                out.put_u32(*id);
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(out, 2, *id, *fin, headers),
            Frame::Headers { id, fin, headers } => self.with_headers(out, 8, *id, *fin, headers),
            Frame::Reset { id, status } => {
                control(out, 3, false, 8);
                out.put_u32(*id);
                out.put_u32(*status);
            }
            Frame::Settings(settings) => {
                control(out, 4, false, 4 + 8 * settings.len());
                out.put_u32(settings.len() as u32);
                for (id, value) in settings {
                    out.put_u32(*id);
                    out.put_u32(*value);
                }
            }
            Frame::Ping(id) => {
                control(out, 6, false, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last, status } => {
                control(out, 7, false, 8);
                out.put_u32(*last);
                out.put_u32(*status);
            }
            Frame::WindowUpdate { id, delta } => {
                control(out, 9, false, 8);
                out.put_u32(*id);
                out.put_u32(*delta);
            }
            Frame::Data { id, fin, data } => {
                out.put_u32(id & 0x7fff_ffff);
                out.put_u32(u32::from(*fin) << 24 | (data.len() as u32 & 0x00ff_ffff));
                out.put_slice(data);
            }
        }
    }

    fn with_headers(&mut self, out: &mut BytesMut, kind: u16, id: u32, fin: bool, headers: &Headers) {
        let block = self.headers(headers);
        control(out, kind, fin, block.len() + 4);
        out.put_u32(id);
        out.put_slice(&block);
    }

    fn headers(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut input = plain.as_slice();
        loop {
            block.reserve(256);
            let (before_in, before_out) = (self.deflate.total_in(), self.deflate.total_out());
            if self.deflate.compress_vec(input, &mut block, FlushCompress::Sync).is_err() {
                break;
            }
            let used = (self.deflate.total_in() - before_in) as usize;
            input = input.get(used..).unwrap_or_default();
            // A flush is over when it leaves room in the output.
            if input.is_empty() && (block.len() < block.capacity() || self.deflate.total_out() == before_out) {
                break;
            }
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn frames_survive_the_wire_in_pieces_of_any_size() {
        let long = "x".repeat(5000);
        let frames = vec![
            Frame::SynStream { id: 1, fin: false, headers: headers(&[("streamtype", "error"), ("port", "80")]) },
            Frame::SynReply { id: 1, fin: true, headers: Headers::new() },
            Frame::Headers { id: 1, fin: false, headers: headers(&[("a", &long), ("content-type", "text/plain")]) },
            Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 1024)]),
            Frame::Ping(7),
            Frame::WindowUpdate { id: 3, delta: 99 },
            Frame::Reset { id: 3, status: reset::PROTOCOL_ERROR },
            Frame::GoAway { last: 5, status: 0 },
        ];
        let mut encoder = Encoder::default();
        let mut wire = BytesMut::new();
        frames.iter().for_each(|f| encoder.encode(f, &mut wire));
        for piece in [1, 3, 64, wire.len()] {
            let mut decoder = Decoder::default();
            let (mut buf, mut got) = (BytesMut::new(), Vec::new());
            for part in wire.chunks(piece) {
                buf.extend_from_slice(part);
                while let Some(f) = decoder.decode(&mut buf).unwrap() {
                    got.push(f);
                }
            }
            assert_eq!(got, frames, "pieces of {piece}");
        }
    }

    #[test]
    fn a_data_frame_comes_in_parts_and_ends_once() {
        let mut wire = BytesMut::new();
        Encoder::default().encode(&Frame::Data { id: 5, fin: true, data: Bytes::from_static(b"abcdef") }, &mut wire);
        let mut first = wire.split_to(10);
        let mut decoder = Decoder::default();
        let part = |fin, data: &'static [u8]| Some(Frame::Data { id: 5, fin, data: Bytes::from_static(data) });
        assert_eq!(decoder.decode(&mut first).unwrap(), part(false, b"ab"));
        assert_eq!(decoder.decode(&mut first).unwrap(), None);
        assert_eq!(decoder.decode(&mut wire).unwrap(), part(true, b"cdef"));
        // An empty frame with FIN is how a stream ends.
        let mut end = BytesMut::from(&[0, 0, 0, 5, 1, 0, 0, 0][..]);
        assert_eq!(decoder.decode(&mut end).unwrap(), part(true, b""));
    }

    /// Bytes that another SPDY implementation's compressor wrote: zlib level 9 with the dictionary, sync flush.
    #[test]
    fn a_foreign_header_block_is_read() {
        let block = FOREIGN;
        let mut wire = BytesMut::new();
        control(&mut wire, 1, false, block.len() + 10);
        wire.put_u32(1);
        wire.put_bytes(0, 6);
        wire.put_slice(block);
        let frame = Decoder::default().decode(&mut wire).unwrap();
        let want = headers(&[("streamtype", "data"), ("port", "8080"), ("requestid", "0")]);
        assert_eq!(frame, Some(Frame::SynStream { id: 1, fin: false, headers: want }));
    }
    const FOREIGN: &[u8] = &[
        120, 249, 227, 198, 167, 194, 2, 37, 58, 112, 58, 43, 41, 74, 77, 204, 69, 42, 74, 18, 33, 165, 114, 17, 56, 3,
        88, 24, 88, 24, 0, 105, 206, 34, 72, 44, 102, 130, 82, 55, 163, 1, 0, 0, 0, 255, 255,
    ];

    proptest! {
        #[test]
        fn no_bytes_panic_the_decoder(parts: Vec<Vec<u8>>) {
            let mut decoder = Decoder::default();
            let mut buf = BytesMut::new();
            for part in parts {
                buf.extend_from_slice(&part);
                while let Ok(Some(_)) = decoder.decode(&mut buf) {}
            }
        }

        #[test]
        fn no_control_frame_panics_the_decoder(kind in 0u16..12, flags: u8, body: Vec<u8>) {
            let mut wire = BytesMut::new();
            control(&mut wire, kind, false, body.len());
            wire[4] = flags;
            wire.put_slice(&body);
            let _ = Decoder::default().decode(&mut wire);
        }
    }
}
