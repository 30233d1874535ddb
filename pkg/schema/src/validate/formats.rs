//! `format` of strings in custom resources: what upstream's registry knows. An unknown format accepts everything.

use regex::Regex;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Formats of strings that upstream's validators know, without their dashes.
const KNOWN: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "k8slongname",
    "k8sshortname",
];

/// Whether the format of a string is one that validators know.
pub(super) fn is_known(format: &str) -> bool {
    KNOWN.contains(&format.replace('-', "").as_str())
}

/// Whether `text` has the format.
pub(super) fn accepts(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "datetime" => crate::scalar::time(text).is_ok(),
        "date" => text.len() == 10 && crate::scalar::time(&format!("{text}T00:00:00Z")).is_ok(),
        "duration" => duration_nanos(text).is_some(),
        "byte" => crate::json::decode_base64(text).is_ok(),
        "email" => matched("^[^@\\s<>]+@[^@\\s<>]+$", text),
        "uri" => uri(text),
        "hostname" => text.len() <= 255 && matched(HOSTNAME, text),
        "mac" => matched(
            "^(?:[0-9A-Fa-f]{2}[:-]){5}(?:(?:[0-9A-Fa-f]{2}[:-]){2})?[0-9A-Fa-f]{2}$|^[0-9A-Fa-f]{4}(?:\\.[0-9A-Fa-f]{4}){2,3}$",
            text,
        ),
        "uuid" => matched(UUID, text),
        "uuid3" => matched("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$", text),
        "uuid4" => matched("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$", text),
        "uuid5" => matched("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$", text),
        "bsonobjectid" => matched("^[0-9a-fA-F]{24}$", text),
        "hexcolor" => matched("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$", text),
        "ssn" => matched("^\\d{3}[- ]?\\d{2}[- ]?\\d{4}$", text),
        "rgbcolor" => matched(RGB, text),
        "k8sshortname" => text.len() <= 63 && matched("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", text),
        "k8slongname" => {
            text.len() <= 253 && matched("^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", text)
        }
        "isbn10" => isbn(text, 10),
        "isbn13" => isbn(text, 13),
        "isbn" => isbn(text, 10) || isbn(text, 13),
        _ => true,
    }
}

const UUID: &str = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
const HOSTNAME: &str = "^([a-zA-Z0-9\\p{L}]([a-zA-Z0-9\\-\\p{L}]{0,61}[a-zA-Z0-9\\p{L}])?)(\\.[a-zA-Z0-9\\p{L}]([a-zA-Z0-9\\-\\p{L}]{0,61}[a-zA-Z0-9\\p{L}])?)*\\.?$";
const RGB: &str = "^rgb\\(\\s*(25[0-5]|2[0-4]\\d|1?\\d?\\d)\\s*,\\s*(25[0-5]|2[0-4]\\d|1?\\d?\\d)\\s*,\\s*(25[0-5]|2[0-4]\\d|1?\\d?\\d)\\s*\\)$";

fn matched(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).is_ok_and(|r| r.is_match(text))
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match (address.parse::<Ipv4Addr>(), address.parse::<Ipv6Addr>()) {
        (Ok(_), _) => 32,
        (_, Ok(_)) => 128,
        _ => return false,
    };
    bits.parse::<u8>().is_ok_and(|b| b <= most)
}

/// The nanoseconds of Go's durations, and of Scala's (`22 ns`, `1 day`).
pub fn duration_nanos(text: &str) -> Option<i64> {
    // Of each unit the last name stands for whatever begins with it.
    const UNITS: [(i64, &[&str]); 8] = [
        (1, &["ns", "nano"]),
        (1_000, &["us", "\u{b5}s", "micro"]),
        (1_000_000, &["ms", "milli"]),
        (1_000_000_000, &["s", "sec"]),
        (60_000_000_000, &["m", "min"]),
        (3_600_000_000_000, &["h", "hr", "hour"]),
        (86_400_000_000_000, &["d", "day"]),
        (604_800_000_000_000, &["w", "wk", "week"]),
    ];
    static PART: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("(\\d+)\\s*([A-Za-z\u{b5}]+)").ok());
    if let Ok(nanos) = crate::scalar::duration_nanos(text) {
        return Some(nanos);
    }
    let mut total: Option<i64> = None;
    for part in PART.as_ref()?.captures_iter(text) {
        let (count, unit) = (part[1].parse::<i64>().ok()?, part[2].to_lowercase());
        let is_named =
            |names: &&[&str]| names.contains(&unit.as_str()) || names.last().is_some_and(|n| unit.starts_with(n));
        for (nanos, _) in UNITS.iter().filter(|(_, names)| is_named(names)) {
            total = Some(total.unwrap_or_default().wrapping_add(count.wrapping_mul(*nanos)));
        }
    }
    total
}

/// `url.ParseRequestURI`: an absolute URI or an absolute path.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    text.starts_with('/') || matched("^[A-Za-z][A-Za-z0-9+.-]*:.+", text)
}

fn isbn(text: &str, length: usize) -> bool {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !matches!(c, '-' | ' '))
        .map(|c| if matches!(c, 'X' | 'x') { 10 } else { c.to_digit(10).unwrap_or(99) })
        .collect();
    if digits.len() != length || digits.iter().any(|d| *d > 10) {
        return false;
    }
    let weighted = |i: usize| if length == 10 { 10 - i as u32 } else { 1 + 2 * (i as u32 % 2) };
    let sum: u32 = digits.iter().enumerate().map(|(i, d)| d * weighted(i)).sum();
    sum.is_multiple_of(if length == 10 { 11 } else { 10 })
}

#[cfg(test)]
mod tests {
    use super::accepts;

    #[test]
    fn durations() {
        let all = ["1h30m", "22 ns", "1 day", "2 weeks 1 Hour", "1 fortnight", "5"].map(super::duration_nanos);
        let day = 86_400_000_000_000;
        assert_eq!(all, [Some(5_400_000_000_000), Some(22), Some(day), Some(14 * day + day / 24), None, None]);
    }

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "fd00::1", "fd00::g"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("date-time", "2024-01-01T00:00:00Z", "2024-01-01"),
            ("date", "2024-02-29", "2023-02-29"),
            ("duration", "1h30m", "1 fortnight"),
            ("duration", "22 ns", "22"),
            ("byte", "aGk=", "aGk"),
            ("email", "a@b.c", "a.b.c"),
            ("uri", "https://a/b", "a b"),
            ("uuid", "00000000-0000-4000-8000-000000000000", "0"),
            ("hexcolor", "#ffF", "#ff"),
            ("rgbcolor", "rgb(1, 2, 255)", "rgb(1,2,256)"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("hostname", "a-b.example", "-a"),
            ("k8s-short-name", "a-b", "a.b"),
        ] {
            assert!(accepts(format, good), "{format}: {good}");
            assert!(!accepts(format, bad), "{format}: {bad}");
        }
        assert!(accepts("password", "anything") && accepts("unheard-of", "x"));
    }
}
