//! What a scalar is: by its tag, or by how it looks.

use super::YamlError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::cmp::Ordering;

/// A scalar's value, and the key that it is of a map.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// One that is no `i64`.
    Uint(u64),
    Float(f64),
    Text(String),
}

impl Scalar {
    fn order(&self) -> (u8, u64, &str) {
        match self {
            Scalar::Null => (0, 0, ""),
            Scalar::Bool(b) => (1, u64::from(*b), ""),
            Scalar::Int(i) => (2, i.cast_unsigned(), ""),
            Scalar::Uint(u) => (3, *u, ""),
            // Both zeros are one key.
            Scalar::Float(x) => (4, if *x == 0.0 { 0 } else { x.to_bits() }, ""),
            Scalar::Text(text) => (5, 0, text),
        }
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Scalar {}

const LONG: &str = "tag:yaml.org,2002:";
const NULL: &str = "tag:yaml.org,2002:null";
const BOOL: &str = "tag:yaml.org,2002:bool";
const STR: &str = "tag:yaml.org,2002:str";
const INT: &str = "tag:yaml.org,2002:int";
const FLOAT: &str = "tag:yaml.org,2002:float";
const TIMESTAMP: &str = "tag:yaml.org,2002:timestamp";
const BINARY: &str = "tag:yaml.org,2002:binary";

/// The value of a scalar. Of a tag that is not one of these it is text.
pub(super) fn resolve(tag: &str, text: &str) -> Result<Scalar, YamlError> {
    let string = || Scalar::Text(text.to_owned());
    let found = match tag {
        STR => return Ok(string()),
        BINARY => return binary(text),
        "" => return Ok(look(text).unwrap_or_else(string)),
        NULL | BOOL | INT | FLOAT => look(text),
        TIMESTAMP if is_timestamp(text) => return Ok(string()),
        TIMESTAMP => look(text),
        _ => return Ok(string()),
    };
    let is = match &found {
        Some(Scalar::Null) => NULL,
        Some(Scalar::Bool(_)) => BOOL,
        Some(Scalar::Int(_) | Scalar::Uint(_)) => INT,
        Some(Scalar::Float(_)) => FLOAT,
        Some(Scalar::Text(_)) | None => STR,
    };
    match (tag, found) {
        (FLOAT, Some(Scalar::Int(i))) => Ok(Scalar::Float(i as f64)),
        (_, Some(scalar)) if is == tag => Ok(scalar),
        _ => Err(YamlError::Text(format!("cannot decode {} `{text}` as a {}", short(is), short(tag)))),
    }
}

fn short(tag: &str) -> String {
    tag.strip_prefix(LONG).map_or_else(|| tag.to_owned(), |t| format!("!!{t}"))
}

fn binary(text: &str) -> Result<Scalar, YamlError> {
    let encoded: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let bytes = STANDARD.decode(encoded);
    let bytes = bytes.map_err(|_| YamlError::Text("!!binary value contains invalid base64 data".to_owned()))?;
    // As JSON shows bytes that are no text.
    let shown = bytes.utf8_chunks().map(|chunk| {
        let wrong = "\u{fffd}".repeat(chunk.invalid().len());
        chunk.valid().to_owned() + &wrong
    });
    Ok(Scalar::Text(shown.collect()))
}

/// Whether a plain scalar looks like text alone.
pub(super) fn is_text(text: &str) -> bool {
    look(text).is_none() && !is_timestamp(text)
}

/// What a plain scalar looks like, if it is not text.
fn look(text: &str) -> Option<Scalar> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Scalar::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Some(Scalar::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Some(Scalar::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" => return Some(Scalar::Float(f64::NAN)),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(Scalar::Float(f64::INFINITY)),
        "-.inf" | "-.Inf" | "-.INF" => return Some(Scalar::Float(f64::NEG_INFINITY)),
        _ => {}
    }
    match text.as_bytes().first()? {
        b'.' => float(&without_separators(text)?),
        b'0'..=b'9' | b'+' | b'-' => {
            let digits = text.replace('_', "");
            int(&digits).or_else(|| float(&digits)).or_else(|| binary_int(&digits))
        }
        _ => None,
    }
}

/// An integer in the notations of Go: decimal, or with one of its prefixes.
fn int(text: &str) -> Option<Scalar> {
    let (signed, negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, true, &text[1..]),
        b'+' => (true, false, &text[1..]),
        _ => (false, false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', _, ..] => (16, &lower[2..]),
        [b'0', b'o', _, ..] => (8, &lower[2..]),
        [b'0', b'b', _, ..] => (2, &lower[2..]),
        [b'0'] => return Some(Scalar::Int(0)),
        [b'0', ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    let size = radix_digits(digits, radix)?;
    if negative {
        return 0i64.checked_sub_unsigned(size).map(Scalar::Int);
    }
    match i64::try_from(size) {
        Ok(i) => Some(Scalar::Int(i)),
        Err(_) => (!signed).then_some(Scalar::Uint(size)),
    }
}

/// Digits alone: Rust would take a sign.
fn radix_digits(digits: &str, radix: u32) -> Option<u64> {
    (digits.chars().all(|c| c.is_digit(radix))).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// `0b` with a sign behind it, which upstream's library lets through.
fn binary_int(text: &str) -> Option<Scalar> {
    let digits = text.strip_prefix("0b")?;
    let negative = digits.starts_with('-');
    let digits = digits.strip_prefix(['-', '+'])?;
    let size = i64::try_from(radix_digits(digits, 2)?).ok()?;
    Some(Scalar::Int(if negative { -size } else { size }))
}

/// Digits may be separated by one underscore each.
fn without_separators(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let separates = |at: usize| digit(at.checked_sub(1)) && digit(Some(at + 1));
    let all = text.match_indices('_').all(|(at, _)| separates(at));
    all.then(|| text.replace('_', ""))
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?` of what a double can hold.
fn float(text: &str) -> Option<Scalar> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.map(|e| e.strip_prefix(['-', '+']).unwrap_or(e));
    let shaped = digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|e| !e.is_empty() && digits(e));
    if !shaped {
        return None;
    }
    text.parse::<f64>().ok().filter(|x| x.is_finite()).map(Scalar::Float)
}

/// A date, or a date and a time of day as RFC 3339 has it or behind a space and without a zone.
fn is_timestamp(text: &str) -> bool {
    let Some((date, time)) = text.split_once(['T', 't', ' ']).map_or(Some((text, None)), |(d, t)| Some((d, Some(t))))
    else {
        return false;
    };
    is_date(date)
        && time.is_none_or(|time| {
            if text.contains(' ') {
                return is_time_of_day(time);
            }
            match time.strip_suffix('Z') {
                Some(time) => is_time_of_day(time),
                None => {
                    time.rfind(['+', '-']).is_some_and(|at| is_zone(&time[at + 1..]) && is_time_of_day(&time[..at]))
                }
            }
        })
}

/// One or two digits, or just as many as asked for, up to `most`.
fn number(text: &str, lengths: std::ops::RangeInclusive<usize>, most: i64) -> Option<i64> {
    let shaped = lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    shaped.then(|| text.parse::<i64>().ok()).flatten().filter(|n| *n <= most)
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let &[year, month, day] = &parts[..] else { return false };
    let numbers = (number(year, 4..=4, 9999), number(month, 1..=2, 12), number(day, 1..=2, 31));
    let (Some(year), Some(month), Some(day)) = numbers else { return false };
    let of = |n: i64| i8::try_from(n).unwrap_or_default();
    jiff::civil::Date::new(i16::try_from(year).unwrap_or_default(), of(month), of(day)).is_ok()
}

fn is_time_of_day(text: &str) -> bool {
    let (whole, fraction) = text.split_once(['.', ',']).map_or((text, None), |(w, f)| (w, Some(f)));
    let parts: Vec<&str> = whole.split(':').collect();
    let &[hour, minute, second] = &parts[..] else { return false };
    number(hour, 1..=2, 23).is_some()
        && number(minute, 1..=2, 59).is_some()
        && number(second, 1..=2, 59).is_some()
        && fraction.is_none_or(|f| !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit()))
}

fn is_zone(text: &str) -> bool {
    text.split_once(':').is_some_and(|(h, m)| number(h, 2..=2, 24).is_some() && number(m, 2..=2, 60).is_some())
}
