//! Strings: the standard functions and cel-go's `ext/strings.go`. Places in a string are counted in characters.

use super::Found;
use super::patterns::regex;
use crate::cel::eval::{Result, TOO_EXPENSIVE};
use crate::cel::value::{Key, Val};
use std::sync::Arc;

/// The longest text that an expression may make: ten times what a request can bring.
const MAX_TEXT: usize = 30 << 20;
/// More digits than a double has; the standard library has room for so many.
const MAX_PRECISION: usize = u16::MAX as usize;

pub fn call(name: &str, arguments: &[Val]) -> Found {
    match (name, arguments) {
        ("size", [value]) => Some(Ok(Val::Int(match value {
            Val::Text(t) => t.chars().count() as i64,
            Val::Bytes(b) => b.len() as i64,
            Val::List(l) => l.len() as i64,
            Val::Map(m) => m.len() as i64,
            _ => return None,
        }))),
        ("string", [Val::Null]) => Some(Err("no such overload: string(null_type)".into())),
        ("string", [value]) => match value {
            Val::Text(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::Bool(_) => {
                Some(Ok(Val::text(super::display(value))))
            }
            Val::Timestamp(_) | Val::Duration(_) => Some(Ok(Val::text(super::display(value)))),
            Val::Bytes(b) => Some(
                std::str::from_utf8(b)
                    .map(Val::text)
                    .map_err(|_| "invalid UTF-8 in bytes, cannot convert to string".into()),
            ),
            Val::Ip(_) | Val::Cidr(..) => super::kubernetes::method("string", value, &[]),
            _ => None,
        },
        ("bytes", [Val::Text(t)]) => Some(Ok(Val::Bytes(t.as_bytes().into()))),
        ("bytes", [Val::Bytes(b)]) => Some(Ok(Val::Bytes(b.clone()))),
        ("strings.quote", [Val::Text(t)]) => Some(Ok(Val::text(quote(t)))),
        ("matches", [Val::Text(t), pattern]) => method("matches", t, std::slice::from_ref(pattern)),
        _ => None,
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out + "\""
}

pub fn method(name: &str, text: &Arc<str>, arguments: &[Val]) -> Found {
    let some = |v: Val| Some(Ok(v));
    match (name, arguments) {
        ("contains", [Val::Text(part)]) => some(Val::Bool(text.contains(&**part))),
        ("startsWith", [Val::Text(part)]) => some(Val::Bool(text.starts_with(&**part))),
        ("endsWith", [Val::Text(part)]) => some(Val::Bool(text.ends_with(&**part))),
        ("matches", [Val::Text(pattern)]) => Some(regex(pattern).map(|r| Val::Bool(r.is_match(text)))),
        ("find", [Val::Text(pattern)]) => {
            Some(regex(pattern).map(|r| Val::text(r.find(text).map_or("", |m| m.as_str()))))
        }
        ("findAll", [Val::Text(pattern)]) => Some(find_all(text, pattern, usize::MAX)),
        ("findAll", [Val::Text(pattern), Val::Int(n)]) => {
            Some(find_all(text, pattern, usize::try_from(*n).unwrap_or(usize::MAX)))
        }
        ("lowerAscii", []) => some(Val::text(text.to_ascii_lowercase())),
        ("upperAscii", []) => some(Val::text(text.to_ascii_uppercase())),
        ("trim", []) => some(Val::text(text.trim())),
        ("reverse", []) => some(Val::text(text.chars().rev().collect::<String>())),
        ("charAt", [Val::Int(at)]) => Some(char_at(text, *at)),
        ("substring", [Val::Int(from)]) => Some(substring(text, *from, text.chars().count() as i64)),
        ("substring", [Val::Int(from), Val::Int(to)]) => Some(substring(text, *from, *to)),
        ("indexOf", [Val::Text(part)]) => some(Val::Int(index_of(text, part, 0))),
        ("indexOf", [Val::Text(part), Val::Int(from)]) => {
            Some(start(text, part, *from).map(|from| Val::Int(from.map_or_else(|at| at, |f| index_of(text, part, f)))))
        }
        ("lastIndexOf", [Val::Text(part)]) => some(Val::Int(last_index_of(text, part, usize::MAX))),
        ("lastIndexOf", [Val::Text(part), Val::Int(to)]) => {
            Some(start(text, part, *to).map(|to| Val::Int(to.map_or_else(|at| at, |to| last_index_of(text, part, to)))))
        }
        ("replace", [Val::Text(from), Val::Text(to)]) => Some(replaced(text, from, to, usize::MAX)),
        ("replace", [Val::Text(from), Val::Text(to), Val::Int(n)]) => {
            Some(replaced(text, from, to, usize::try_from(*n).unwrap_or(usize::MAX)))
        }
        ("split", [Val::Text(by)]) => some(split(text, by, -1)),
        ("split", [Val::Text(by), Val::Int(n)]) => some(split(text, by, *n)),
        ("format", [Val::List(values)]) => Some(format(text, values).map(Val::text)),
        _ => None,
    }
}

/// Whether a text of this size may be made.
pub fn within_limit(size: usize) -> Result<()> {
    if size <= MAX_TEXT { Ok(()) } else { Err(TOO_EXPENSIVE.to_owned()) }
}

/// The first `most` occurrences of `from` replaced.
fn replaced(text: &str, from: &str, to: &str, most: usize) -> Result {
    let found = text.matches(from).take(most).count();
    within_limit(text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(Val::text(text.replacen(from, to, most)))
}

fn find_all(text: &str, pattern: &str, most: usize) -> Result {
    Ok(Val::list(regex(pattern)?.find_iter(text).take(most).map(|m| Val::text(m.as_str())).collect()))
}

fn offset(text: &str, at: i64) -> Result<usize> {
    let count = text.chars().count();
    usize::try_from(at).ok().filter(|at| *at <= count).ok_or_else(|| format!("index out of range: {at}"))
}

/// Where a search for a part begins; `Err`: what it comes to without one.
fn start(text: &str, part: &str, at: i64) -> Result<std::result::Result<usize, i64>> {
    let count = text.chars().count();
    let place = usize::try_from(at).map_err(|_| format!("index out of range: {at}"))?;
    Ok(match part.is_empty() {
        // Nothing is found everywhere.
        true => Err(place.min(count) as i64),
        false if place >= count => Err(-1),
        false => Ok(place),
    })
}

fn char_at(text: &str, at: i64) -> Result {
    let at = offset(text, at)?;
    Ok(Val::text(text.chars().nth(at).map(String::from).unwrap_or_default()))
}

fn substring(text: &str, from: i64, to: i64) -> Result {
    let (from, to) = (offset(text, from)?, offset(text, to)?);
    if from > to {
        return Err(format!("invalid substring range. start: {from}, end: {to}"));
    }
    Ok(Val::text(text.chars().skip(from).take(to - from).collect::<String>()))
}

fn index_of(text: &str, part: &str, from: usize) -> i64 {
    let skipped: usize = text.chars().take(from).map(char::len_utf8).sum();
    match text[skipped..].find(part) {
        Some(at) => text[..skipped + at].chars().count() as i64,
        None => -1,
    }
}

/// The last place that is not after `to`.
fn last_index_of(text: &str, part: &str, to: usize) -> i64 {
    let end: usize = text.chars().take(to).map(char::len_utf8).sum();
    let end = (end + part.len()).min(text.len());
    let end = (end..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    match text[..end].rfind(part) {
        Some(at) => text[..at].chars().count() as i64,
        None => -1,
    }
}

fn split(text: &str, by: &str, most: i64) -> Val {
    let texts = |parts: Vec<&str>| Val::list(parts.into_iter().map(Val::text).collect());
    let characters = || -> Vec<&str> { text.char_indices().map(|(i, c)| &text[i..i + c.len_utf8()]).collect() };
    match usize::try_from(most) {
        Ok(0) => Val::list(Vec::new()),
        Ok(n) if by.is_empty() => {
            let all = characters();
            if all.len() <= n {
                return texts(all);
            }
            let head: usize = all[..n - 1].iter().map(|p| p.len()).sum();
            let mut parts = all[..n - 1].to_vec();
            parts.push(&text[head..]);
            texts(parts)
        }
        Ok(n) => texts(text.splitn(n, by).collect()),
        Err(_) if by.is_empty() => texts(characters()),
        Err(_) => texts(text.split(by).collect()),
    }
}

/// `%s`, `%d`, `%f`, `%e`, `%b`, `%x`, `%X`, `%o` and `%%`, with a precision where it makes sense.
fn format(text: &str, values: &[Val]) -> Result<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            let number = digits
                .parse::<usize>()
                .map_err(|_| "could not parse formatting clause: unable to convert precision specifier to integer")?;
            if number > MAX_PRECISION {
                let m = format!("precision {number} exceeds maximum allowed precision {MAX_PRECISION}");
                return Err(format!("could not parse formatting clause: error while parsing precision: {m}"));
            }
            precision = Some(number);
        }
        let verb = chars.next().ok_or("could not parse formatting clause: unexpected end of string")?;
        let value = values.next().ok_or("index 0 out of range")?;
        out.push_str(&formatted(verb, precision, value)?);
        within_limit(out.len())?;
    }
    Ok(out)
}

fn formatted(verb: char, precision: Option<usize>, value: &Val) -> Result<String> {
    let refuse = || {
        format!("error during formatting: {verb:?} clause cannot be used on {}", value.type_name()).replace('\'', "\"")
    };
    match (verb, value) {
        ('s', _) => Ok(shown(value)),
        ('d', Val::Int(_) | Val::Uint(_)) => Ok(super::display(value)),
        ('d' | 'f' | 'e', Val::Double(d)) if !d.is_finite() => Ok(match d {
            d if d.is_nan() => "NaN".into(),
            d if *d > 0.0 => "Infinity".into(),
            _ => "-Infinity".into(),
        }),
        ('d', Val::Double(d)) => Ok(super::numbers::display(*d)),
        ('f', _) => Ok(format!("{:.*}", precision.unwrap_or(6), value.number().ok_or_else(refuse)?)),
        ('e', _) => {
            let text = format!("{:.*e}", precision.unwrap_or(6), value.number().ok_or_else(refuse)?);
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(("", exponent), |d| ("⁻", d));
            let raised = |c: char| c.to_digit(10).and_then(|d| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(d as usize));
            let digits: String = format!("{digits:0>2}").chars().filter_map(raised).collect();
            Ok(format!("{mantissa}×10{sign}{digits}"))
        }
        ('b', Val::Bool(b)) => Ok(u8::from(*b).to_string()),
        ('b', Val::Int(i)) => Ok(signed(*i, |m| format!("{m:b}"))),
        ('b', Val::Uint(u)) => Ok(format!("{u:b}")),
        ('o', Val::Int(i)) => Ok(signed(*i, |m| format!("{m:o}"))),
        ('o', Val::Uint(u)) => Ok(format!("{u:o}")),
        ('x', Val::Int(i)) => Ok(signed(*i, |m| format!("{m:x}"))),
        ('X', Val::Int(i)) => Ok(signed(*i, |m| format!("{m:X}"))),
        ('x', Val::Uint(u)) => Ok(format!("{u:x}")),
        ('X', Val::Uint(u)) => Ok(format!("{u:X}")),
        ('x' | 'X', Val::Text(t)) => Ok(hex(t.as_bytes(), verb)),
        ('x' | 'X', Val::Bytes(b)) => Ok(hex(b, verb)),
        ('d' | 'b' | 'o' | 'x' | 'X', _) => Err(refuse()),
        _ => Err(format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\"")),
    }
}

fn signed(i: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if i < 0 { "-" } else { "" }, digits(i.unsigned_abs()))
}

fn hex(bytes: &[u8], verb: char) -> String {
    bytes.iter().map(|b| if verb == 'X' { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
}

/// As `%s` shows a value, lists and maps included.
fn shown(value: &Val) -> String {
    match value {
        Val::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Val::Map(map) => {
            let entry = |(k, v): (&Key, &Val)| format!("{}: {}", shown(&k.value()), shown(v));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Val::Double(d) if d.is_infinite() => {
            if *d > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        other => super::display(other),
    }
}
