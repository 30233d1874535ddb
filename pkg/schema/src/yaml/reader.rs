//! Bytes that are no text to a reader of YAML.

use super::YamlError;
use std::borrow::Cow;

/// The characters of a text in UTF-8, or of one in UTF-16 that begins with its byte order mark.
pub(super) fn text(bytes: &[u8]) -> Result<Cow<'_, str>, YamlError> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => Cow::Owned(utf16(rest, u16::from_le_bytes)?),
        [0xfe, 0xff, rest @ ..] => Cow::Owned(utf16(rest, u16::from_be_bytes)?),
        _ => Cow::Borrowed(utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))?),
    };
    match text.chars().all(allowed) {
        true => Ok(text),
        false => refuse("control characters are not allowed"),
    }
}

fn refuse<T>(why: &str) -> Result<T, YamlError> {
    Err(YamlError::Text(why.to_owned()))
}

fn utf8(bytes: &[u8]) -> Result<&str, YamlError> {
    std::str::from_utf8(bytes).or_else(|e| {
        let (valid, rest) = bytes.split_at(e.valid_up_to());
        let controls = std::str::from_utf8(valid).is_ok_and(|text| !text.chars().all(allowed));
        match rest.first() {
            Some(first) if !controls => refuse(malformed(*first, rest)),
            _ => refuse("control characters are not allowed"),
        }
    })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, YamlError> {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut text = String::new();
    for c in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        match c {
            Ok(c) => text.push(c),
            Err(e) if e.unpaired_surrogate() >= 0xdc00 => return refuse("unexpected low surrogate area"),
            Err(_) => return refuse("expected low surrogate area"),
        }
    }
    if odd.is_empty() { Ok(text) } else { refuse("incomplete UTF-16 character") }
}

fn allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// What is wrong with bytes that begin with no character.
fn malformed(first: u8, rest: &[u8]) -> &'static str {
    let (width, mut code) = match first {
        0xc0..=0xdf => (2, u32::from(first & 0x1f)),
        0xe0..=0xef => (3, u32::from(first & 0x0f)),
        0xf0..=0xf7 => (4, u32::from(first & 0x07)),
        _ => return "invalid leading UTF-8 octet",
    };
    let Some(octets) = rest.get(1..width) else { return "incomplete UTF-8 octet sequence" };
    for octet in octets {
        if octet & 0xc0 != 0x80 {
            return "invalid trailing UTF-8 octet";
        }
        code = code << 6 | u32::from(octet & 0x3f);
    }
    match (width, code) {
        (2, ..0x80) | (3, ..0x800) | (4, ..0x10000) => "invalid length of a UTF-8 sequence",
        _ => "invalid Unicode character",
    }
}
