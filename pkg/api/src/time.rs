//! `metav1.Time` (whole seconds, UTC, `2006-01-02T15:04:05Z`) and `metav1.MicroTime`.

use jiff::Timestamp;

/// `metav1.Time` of now.
pub fn now() -> String {
    format(Timestamp::now())
}

/// Formats as `metav1.Time`: whole seconds, cut off, UTC.
pub fn format(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Formats as `metav1.MicroTime`: six digits of a second, UTC.
pub fn format_micro(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Parses RFC 3339 with any offset and any number of fraction digits.
pub fn parse(s: &str) -> Option<Timestamp> {
    s.parse().ok()
}
