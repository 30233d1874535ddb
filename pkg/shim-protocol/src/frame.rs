//! Frames of an attached connection: one byte saying which stream, a length (four bytes, little endian), the bytes.

/// Which stream a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdin,
    Stdout,
    Stderr,
    /// The client's stdin ended. Empty.
    StdinClosed,
    /// Width and height, two bytes each, little endian.
    Resize,
}

/// Larger frames are a protocol error.
pub const MAX_FRAME: usize = 1 << 20;
const HEADER: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

impl Stream {
    fn from_byte(b: u8) -> Option<Self> {
        [Stream::Stdin, Stream::Stdout, Stream::Stderr, Stream::StdinClosed, Stream::Resize].get(b as usize).copied()
    }
}

pub fn encode(stream: Stream, data: &[u8], out: &mut Vec<u8>) {
    out.push(stream as u8);
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(data);
}

pub fn resize(width: u16, height: u16, out: &mut Vec<u8>) {
    let mut body = [0; 4];
    body[..2].copy_from_slice(&width.to_le_bytes());
    body[2..].copy_from_slice(&height.to_le_bytes());
    encode(Stream::Resize, &body, out);
}

/// Width and height of a [`Stream::Resize`] frame.
pub fn size(body: &[u8]) -> Option<(u16, u16)> {
    let body: &[u8; 4] = body.try_into().ok()?;
    Some((u16::from_le_bytes([body[0], body[1]]), u16::from_le_bytes([body[2], body[3]])))
}

/// Takes one whole frame off the front of `buffer`, if it is there.
pub fn take(buffer: &mut Vec<u8>) -> Result<Option<(Stream, Vec<u8>)>, BadFrame> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let stream = Stream::from_byte(header[0]).ok_or(BadFrame)?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > MAX_FRAME {
        return Err(BadFrame);
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    let body = buffer[HEADER..HEADER + length].to_vec();
    buffer.drain(..HEADER + length);
    Ok(Some((stream, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_joined_and_cut() {
        let mut bytes = Vec::new();
        encode(Stream::Stdout, b"hello", &mut bytes);
        resize(80, 24, &mut bytes);
        encode(Stream::StdinClosed, b"", &mut bytes);
        let (mut buffer, mut got) = (Vec::new(), Vec::new());
        for b in bytes {
            buffer.push(b);
            while let Some(frame) = take(&mut buffer).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got[0], (Stream::Stdout, b"hello".to_vec()));
        assert_eq!(size(&got[1].1), Some((80, 24)));
        assert_eq!(got[2], (Stream::StdinClosed, vec![]));
    }

    #[test]
    fn an_unknown_stream_or_size_is_refused() {
        assert_eq!(take(&mut vec![9, 0, 0, 0, 0]), Err(BadFrame));
        assert_eq!(take(&mut vec![0, 0xff, 0xff, 0xff, 0xff]), Err(BadFrame));
    }
}
