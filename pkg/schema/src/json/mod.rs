//! JSON in and out as Go's decoder and encoder do it for the built-in types.
//!
//! Three steps that upstream does at once, because its values are structs: [`decode`] checks types, drops unknown fields
//! and reports them; [`canonicalize`] gives a value the form that it has after a round trip through Go's structs and the
//! protobuf that upstream stores (null and empty dropped, zero-valued fields without `omitempty` shown, quantities and times
//! in their canonical form); [`encode`] writes it.

mod canonical;
mod convert;
mod decode;
pub mod depth;
mod go;
mod scan;
mod strict;
mod write;

use serde_json::{Map, Value};

pub use canonical::{canonicalize, zero};
pub use convert::unconvertible;
pub(crate) use decode::decode_base64;
pub use decode::{DecodeError, Decoded, decode, decode_value};
pub use go::go_text;
pub(crate) use scan::number;
pub use strict::{doubled_fields, strange_operations};
pub use write::{append, encode, indented};

/// How the error ends about a text that is deeper.
pub const TOO_DEEP: &str = "exceeded max depth";

/// Reads what a server has written, or answered. As fast as it gets; a value too deep for that is read by [`parse`].
pub fn read(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|e| parse(bytes).map_err(|_| e))
}

/// Reads JSON without a schema, with the number handling and the error texts of Go's decoder.
pub fn parse(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut s = scan::Scanner::new(bytes);
    s.value().and_then(|value| s.end().map(|()| value)).map_err(|why| match why.starts_with(scan::UNFIT) {
        // Go looks through all of a text before it reads any of it.
        true => valid(bytes).map_or_else(DecodeError::Syntax, |()| DecodeError::Type(why)),
        false => DecodeError::Syntax(why),
    })
}

/// Why a text is no JSON.
fn valid(bytes: &[u8]) -> Result<(), String> {
    let mut s = scan::Scanner::new(bytes);
    s.skip()?;
    s.end()
}

/// Some fields of an object that are texts, as upstream looks at a text before it decodes it: all of it is looked through, and of
/// no other value is more told than its sort.
pub fn texts(bytes: &[u8], wanted: &[&str]) -> Result<Value, DecodeError> {
    let mut s = scan::Scanner::new(bytes);
    let mut found = Map::new();
    let mut read = || {
        let token = s.token()?;
        if token != scan::Token::Object {
            s.skip()?;
            return Ok(token.example());
        }
        s.object::<String>(&mut |s, key| {
            let token = s.token()?;
            if !wanted.contains(&&*key) {
                return s.skip();
            }
            let value = match token {
                scan::Token::String => Value::String(s.string()?.into_owned()),
                other => s.skip().map(|()| other.example())?,
            };
            found.insert(key.into_owned(), value);
            Ok(())
        })?;
        Ok(Value::Object(std::mem::take(&mut found)))
    };
    let value = read().map_err(DecodeError::Syntax)?;
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
