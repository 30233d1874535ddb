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
