//! What the text of a literal stands for.

use super::Fault;
use super::lexer::{Kind, Token};
use super::value::Val;

/// The value of a literal; `None` for a token that is none.
pub(super) fn value(token: &Token) -> Result<Option<Val>, Fault> {
    let invalid = |what: &str| Fault { at: token.at, message: format!("invalid {what} literal") };
    let no_escape = || Fault { at: token.at, message: "unable to unescape string".into() };
    let text = token.text.as_str();
    Ok(Some(match token.kind {
        Kind::Constant => match text {
            "true" => Val::Bool(true),
            "false" => Val::Bool(false),
            _ => Val::Null,
        },
        Kind::Int => Val::Int(integer(text, false).ok_or_else(|| invalid("int"))?),
        Kind::Uint => {
            let digits = &text[..text.len() - 1];
            let parsed = match digits.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => digits.parse(),
            };
            Val::Uint(parsed.map_err(|_| invalid("uint"))?)
        }
        Kind::Float => Val::Double(text.parse().map_err(|_| invalid("double"))?),
        Kind::Text => {
            let bytes = content(text, false).ok_or_else(no_escape)?;
            Val::text(String::from_utf8(bytes).map_err(|_| no_escape())?)
        }
        Kind::Bytes => Val::Bytes(content(text, true).ok_or_else(no_escape)?.into()),
        _ => return Ok(None),
    }))
}

/// The value of a number that has a minus before it.
pub(super) fn negative(token: &Token) -> Result<Val, Fault> {
    let invalid = |what: &str| Fault { at: token.at, message: format!("invalid {what} literal") };
    match token.kind {
        Kind::Int => integer(&token.text, true).map(Val::Int).ok_or_else(|| invalid("int")),
        _ => token.text.parse::<f64>().map(|d| Val::Double(-d)).map_err(|_| invalid("double")),
    }
}

/// An integer, with the minus that stands before it: the least one has no positive counterpart.
fn integer(text: &str, negative: bool) -> Option<i64> {
    let sign = if negative { "-" } else { "" };
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16).ok(),
        None => format!("{sign}{text}").parse().ok(),
    }
}

/// What stands between the quotes. In strings, escapes are code points; in bytes, octets.
fn content(text: &str, bytes: bool) -> Option<Vec<u8>> {
    let quote_at = text.find(['"', '\''])?;
    let raw = text[..quote_at].contains(['r', 'R']);
    let quoted = &text[quote_at..];
    let width = if quoted.len() >= 6 && (quoted.starts_with("\"\"\"") || quoted.starts_with("'''")) { 3 } else { 1 };
    let inner = quoted.get(width..quoted.len() - width)?;
    // Go reads the ends of lines alike.
    let inner = inner.replace("\r\n", "\n").replace('\r', "\n");
    if raw {
        return Some(inner.into_bytes());
    }
    let mut out = Vec::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend(c.to_string().bytes());
            continue;
        }
        let kind = chars.next()?;
        let mut digits = |n: usize, radix: u32| {
            let text: String = chars.by_ref().take(n).collect();
            u32::from_str_radix(&text, radix).ok()
        };
        let (code, is_octet) = match kind {
            'a' => (7, false),
            'b' => (8, false),
            'f' => (12, false),
            'n' => (10, false),
            'r' => (13, false),
            't' => (9, false),
            'v' => (11, false),
            'x' | 'X' => (digits(2, 16)?, true),
            'u' | 'U' if bytes => return None,
            'u' => (digits(4, 16)?, false),
            'U' => (digits(8, 16)?, false),
            '0'..='3' => (kind.to_digit(8)? * 64 + digits(2, 8)?, true),
            other => (other as u32, false),
        };
        match (bytes, is_octet) {
            (true, true) => out.push(code as u8),
            _ => out.extend(char::from_u32(code)?.to_string().bytes()),
        }
    }
    Some(out)
}
