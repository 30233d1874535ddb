//! The scalar types with a form of their own: times, durations, quantities. Each function gives the canonical text, or
//! the error that Go's parser gives.

use isopod_api::quantity::Quantity;
use jiff::Timestamp;
use jiff::civil::DateTime;

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// `metav1.Time`: whole seconds, UTC.
pub fn time(text: &str) -> Result<String, String> {
    if is_plain(text) {
        return Ok(text.to_owned());
    }
    rfc3339(text, RFC3339).map(isopod_api::time::format)
}

/// Is this a time as [`time`] writes it? Most are: the server wrote them. The last days of months are looked at closely.
fn is_plain(text: &str) -> bool {
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2, b'Z'] = text.as_bytes()
    else {
        return false;
    };
    let within = |tens: u8, ones: u8, range: std::ops::Range<u8>| {
        tens.is_ascii_digit() && ones.is_ascii_digit() && range.contains(&((tens - b'0') * 10 + ones - b'0'))
    };
    within(y1, y2, 0..100)
        && within(y3, y4, 0..100)
        && within(m1, m2, 1..13)
        && within(d1, d2, 1..29)
        && within(h1, h2, 0..24)
        && within(n1, n2, 0..60)
        && within(s1, s2, 0..60)
}

/// `metav1.MicroTime`: microseconds, UTC.
pub fn micro_time(text: &str) -> Result<String, String> {
    rfc3339(text, RFC3339_MICRO).map(isopod_api::time::format_micro)
}

/// `resource.Quantity` in its canonical form.
pub fn quantity(text: &str) -> Result<String, String> {
    text.trim().parse::<Quantity>().map(|q| q.to_string()).map_err(|e| e.to_string())
}

/// Reads RFC 3339 element by element, as Go's `time.Parse` does, for its error texts.
fn rfc3339(text: &str, layout: &'static str) -> Result<Timestamp, String> {
    let fail = |rest: &str, element: &str| {
        Err(format!(
            "parsing time {} as {}: cannot parse {} as {}",
            go_quote(text),
            go_quote(layout),
            go_quote(rest),
            go_quote(element)
        ))
    };
    let mut rest = text;
    let mut numbers = [0i64; 6];
    let elements = [("2006", 4, "-"), ("01", 2, "-"), ("02", 2, "T"), ("15", 2, ":"), ("04", 2, ":"), ("05", 2, "")];
    for (i, (element, width, separator)) in elements.into_iter().enumerate() {
        // Go takes an hour of one digit.
        let width =
            if element == "15" && rest.as_bytes().get(1).is_some_and(|c| !c.is_ascii_digit()) { 1 } else { width };
        match rest.get(..width).filter(|n| n.bytes().all(|c| c.is_ascii_digit())) {
            Some(digits) => numbers[i] = digits.parse().unwrap_or(0),
            None => return fail(rest, element),
        }
        rest = &rest[width..];
        match rest.strip_prefix(separator) {
            Some(tail) => rest = tail,
            None => return fail(rest, separator),
        }
    }
    let mut nanos = 0i64;
    if let Some(tail) = rest.strip_prefix(['.', ',']) {
        let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        if end == 0 {
            return fail(rest, "Z07:00");
        }
        let digits: String = tail.chars().take(end.min(9)).collect();
        nanos = format!("{digits:0<9}").parse().unwrap_or(0);
        rest = &tail[end..];
    } else if layout == RFC3339_MICRO {
        return fail(rest, ".000000");
    }
    let offset = match rest {
        "Z" => 0,
        zone => match zone_offset(zone) {
            Some(o) => o,
            None if zone.starts_with('Z') => {
                return Err(format!("parsing time {}: extra text: {}", go_quote(text), go_quote(&zone[1..])));
            }
            None => return fail(zone, "Z07:00"),
        },
    };
    instant(numbers, nanos, offset).map_err(|part| format!("parsing time {}: {part} out of range", go_quote(text)))
}

/// `+01:30` in seconds.
fn zone_offset(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (h, m) = zone.get(1..)?.split_once(':')?;
    let two = |s: &str| (s.len() == 2 && s.bytes().all(|c| c.is_ascii_digit())).then(|| s.parse::<i64>().unwrap_or(0));
    Some(sign * (two(h)? * 3600 + two(m)? * 60))
}

fn instant(n: [i64; 6], nanos: i64, offset: i64) -> Result<Timestamp, &'static str> {
    let small = |v: i64| i8::try_from(v).unwrap_or(i8::MAX);
    for (value, most, part) in
        [(n[1], 12, "month"), (n[2], 31, "day"), (n[3], 23, "hour"), (n[4], 59, "minute"), (n[5], 59, "second")]
    {
        if value > most {
            return Err(part);
        }
    }
    if n[1] == 0 {
        return Err("month");
    }
    let year = i16::try_from(n[0]).unwrap_or(9999);
    let civil = DateTime::new(year, small(n[1]), small(n[2]), small(n[3]), small(n[4]), small(n[5]), nanos as i32)
        .map_err(|_| "day")?;
    let utc = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| "day")?.timestamp();
    Timestamp::from_nanosecond(utc.as_nanosecond() - i128::from(offset) * 1_000_000_000).map_err(|_| "day")
}

/// `strconv.Quote`, near enough for error texts: printable characters stay.
pub(crate) fn go_quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Nanoseconds of a Go duration (`1h2m3.5s`).
pub fn duration_nanos(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", go_quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {}", go_quote(text))),
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            u => return Err(format!("time: unknown unit {} in duration {}", go_quote(u), go_quote(text))),
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let places = fraction.len().min(18) as u32;
        let fraction: i128 =
            fraction.get(..places as usize).filter(|f| !f.is_empty()).map_or(0, |f| f.parse().unwrap_or(0));
        let part = whole.checked_mul(scale).ok_or_else(invalid)?;
        let part = part.checked_add(fraction * scale / 10i128.pow(places)).ok_or_else(invalid)?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = after;
    }
    Ok(if negative { -total as i64 } else { total as i64 })
}

/// Go's `time.Duration.String`.
pub fn duration_text(nanos: i64) -> String {
    let n = i128::from(nanos).unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let decimal = |value: u128, unit: u128| {
        let (whole, fraction) = (value / unit, value % unit);
        let places = unit.ilog10() as usize;
        let digits = format!("{fraction:0places$}");
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() || places == 0 { whole.to_string() } else { format!("{whole}.{digits}") }
    };
    match n {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", decimal(n, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(n, 1_000_000)),
        _ => {
            let minutes = n / 60_000_000_000;
            let seconds = decimal(n % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// `metav1.Duration` in its canonical form.
pub fn duration(text: &str) -> Result<String, String> {
    duration_nanos(text).map(duration_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, want) in [
            ("2024-02-29T01:02:03Z", "2024-02-29T01:02:03Z"),
            ("2024-02-29T01:02:03.987654321Z", "2024-02-29T01:02:03Z"),
            ("2024-02-29T01:02:03+02:00", "2024-02-28T23:02:03Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(time(text).unwrap(), want);
        }
        assert_eq!(micro_time("2024-02-29T01:02:03.9876543Z").unwrap(), "2024-02-29T01:02:03.987654Z");
        for (text, want) in [
            ("foo", r#"parsing time "foo" as "2006-01-02T15:04:05Z07:00": cannot parse "foo" as "2006""#),
            ("2024-13-01T00:00:00Z", r#"parsing time "2024-13-01T00:00:00Z": month out of range"#),
            ("2023-02-29T00:00:00Z", r#"parsing time "2023-02-29T00:00:00Z": day out of range"#),
            ("2024-01-01", r#"parsing time "2024-01-01" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#),
            (
                "2024-01-01T00:00:00",
                r#"parsing time "2024-01-01T00:00:00" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "Z07:00""#,
            ),
        ] {
            assert_eq!(time(text).unwrap_err(), want);
        }
    }

    proptest::proptest! {
        #[test]
        fn plain_times_need_no_reading(text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9][Z+]") {
            let read = rfc3339(&text, RFC3339).map(isopod_api::time::format);
            if is_plain(&text) {
                proptest::prop_assert_eq!(read.as_deref(), Ok(&*text));
            }
            let last_day = text[8..10].parse::<u8>().unwrap() > 28;
            proptest::prop_assert_eq!(read.is_ok() && !last_day, is_plain(&text));
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("90s", "1m30s"),
            ("1.5h", "1h30m0s"),
            ("-2ms", "-2ms"),
            ("1h2m3.5s", "1h2m3.5s"),
            ("0", "0s"),
            ("1500us", "1.5ms"),
            ("36h", "36h0m0s"),
        ] {
            assert_eq!(duration(text).unwrap(), want, "{text}");
        }
        assert_eq!(duration("").unwrap_err(), r#"time: invalid duration """#);
        assert!(duration("170141183460469231731687303715884105.999us").is_err());
        assert_eq!(duration("1").unwrap_err(), r#"time: missing unit in duration "1""#);
        assert_eq!(duration("1x").unwrap_err(), r#"time: unknown unit "x" in duration "1x""#);
    }

    #[test]
    fn quantities() {
        assert_eq!(quantity("0.5").unwrap(), "500m");
        assert_eq!(quantity(" 1024Mi ").unwrap(), "1Gi");
        assert!(quantity("1nn").unwrap_err().starts_with("unable to parse quantity's suffix"));
    }
}
