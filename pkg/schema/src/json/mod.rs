//! JSON in and out as Go's decoder and encoder do it for the built-in types.
//!
//! Three steps that upstream does at once, because its values are structs: [`decode`] checks types, drops unknown fields
//! and reports them; [`canonicalize`] gives a value the form that it has after a round trip through Go's structs and the
//! protobuf that upstream stores (null and empty dropped, zero-valued fields without `omitempty` shown, quantities and times
//! in their canonical form); [`encode`] writes it.

mod canonical;
mod convert;
mod decode;
mod go;
mod scan;
mod strict;

use serde_json::Value;

pub use canonical::{canonicalize, zero};
pub use convert::unconvertible;
pub(crate) use decode::decode_base64;
pub use decode::{DecodeError, Decoded, decode, decode_value};
pub use go::{go_float, go_text};
pub use strict::{doubled_fields, strange_operations};

/// The deepest nesting that any decoder of this crate takes.
pub const MAX_DEPTH: usize = scan::MAX_DEPTH;

/// How the error ends about a text that is deeper.
pub const TOO_DEEP: &str = "exceeded max depth";

/// Reads what a server has written, or answered. As fast as it gets; a value too deep for that is read by [`parse`].
pub fn read(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|e| parse(bytes).map_err(|_| e))
}

/// How deep lists and objects lie in each other.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Reads JSON without a schema, with the number handling and the error texts of Go's decoder.
pub fn parse(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut s = scan::Scanner::new(bytes);
    let value = s.value().map_err(DecodeError::Syntax)?;
    s.end().map_err(DecodeError::Syntax)?;
    Ok(value)
}

/// The text of a string in its quotes. Of what is none it is empty.
pub(crate) fn string(quoted: &[u8]) -> String {
    scan::Scanner::new(quoted).string().map(std::borrow::Cow::into_owned).unwrap_or_default()
}

/// JSON text with the characters that Go's encoder escapes for HTML.
pub fn html_escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Compact JSON.
pub fn encode(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
