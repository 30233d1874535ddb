//! Timestamps and durations.

use super::Found;
use crate::cel::value::Val;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

pub fn call(name: &str, arguments: &[Val]) -> Found {
    Some(match (name, arguments) {
        ("timestamp", [Val::Timestamp(t)]) => Ok(Val::Timestamp(*t)),
        ("timestamp", [Val::Int(s)]) => {
            Timestamp::from_second(*s).map(Val::Timestamp).map_err(|_| "timestamp overflow".into())
        }
        ("timestamp", [Val::Text(t)]) => {
            let parsed = isopod_api::time::parse(t);
            parsed
                .map(Val::Timestamp)
                .ok_or_else(|| format!("type conversion error from 'string' to 'google.protobuf.Timestamp': {t}"))
        }
        ("duration", [Val::Duration(d)]) => Ok(Val::Duration(*d)),
        ("duration", [Val::Int(n)]) => Ok(Val::Duration(SignedDuration::from_nanos(*n))),
        ("duration", [Val::Text(t)]) => parse(t)
            .map(Val::Duration)
            .ok_or_else(|| format!("type conversion error from 'string' to 'google.protobuf.Duration': {t}")),
        _ => return None,
    })
}

/// Go's `time.ParseDuration`.
pub fn parse(text: &str) -> Option<SignedDuration> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos = 0i128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: &str = &rest[..digits];
        rest = &rest[digits..];
        const UNITS: [(&str, i128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (unit, factor) = UNITS.iter().find(|(u, _)| rest.starts_with(u))?;
        rest = &rest[unit.len()..];
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        // More is no duration, with any unit.
        let whole = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()? };
        nanos = nanos.checked_add(i128::from(whole) * factor)?;
        let mut scale = *factor;
        for digit in part.chars() {
            scale /= 10;
            nanos += i128::from(digit.to_digit(10)?) * scale;
        }
    }
    let nanos = i64::try_from(nanos).ok()?;
    Some(SignedDuration::from_nanos(if sign < 0.0 { -nanos } else { nanos }))
}

/// In seconds, as `string()` shows it.
pub fn display(d: &SignedDuration) -> String {
    let nanos = d.as_nanos();
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, part) = (nanos.abs() / 1_000_000_000, nanos.abs() % 1_000_000_000);
    if part == 0 {
        return format!("{sign}{whole}s");
    }
    let part = format!("{part:09}");
    format!("{sign}{whole}.{}s", part.trim_end_matches('0'))
}

/// A zone by name or by its offset (`+01:00`).
fn zone(arguments: &[Val]) -> Result<TimeZone, String> {
    let text = match arguments {
        [] => return Ok(TimeZone::UTC),
        [Val::Text(t)] => t,
        _ => return Err("no such overload".into()),
    };
    let Some((hours, minutes)) = text.split_once(':') else {
        return TimeZone::get(text).map_err(|_| format!("unknown time zone {text}"));
    };
    let wrong = || format!("unknown time zone {text}");
    let (h, m): (i16, i16) = (hours.parse().map_err(|_| wrong())?, minutes.parse().map_err(|_| wrong())?);
    let (h, m) = (i32::from(h), i32::from(m));
    let seconds = h * 3600 + if hours.starts_with('-') { -m } else { m } * 60;
    Offset::from_seconds(seconds).map(TimeZone::fixed).map_err(|_| wrong())
}

pub fn method(name: &str, target: &Val, arguments: &[Val]) -> Found {
    match target {
        Val::Duration(d) => {
            let nanos = d.as_nanos();
            let part = match (name, arguments.is_empty()) {
                ("getHours", true) => nanos / 3_600_000_000_000,
                ("getMinutes", true) => nanos / 60_000_000_000,
                ("getSeconds", true) => nanos / 1_000_000_000,
                ("getMilliseconds", true) => nanos / 1_000_000,
                _ => return None,
            };
            Some(i64::try_from(part).map(Val::Int).map_err(|_| "integer overflow".into()))
        }
        Val::Timestamp(t) => {
            let zoned = match zone(arguments) {
                Ok(zone) => t.to_zoned(zone),
                Err(e) => return Some(Err(e)),
            };
            let part = match name {
                "getFullYear" => i64::from(zoned.year()),
                "getMonth" => i64::from(zoned.month()) - 1,
                "getDate" => i64::from(zoned.day()),
                "getDayOfMonth" => i64::from(zoned.day()) - 1,
                "getDayOfWeek" => i64::from(zoned.weekday().to_sunday_zero_offset()),
                "getDayOfYear" => i64::from(zoned.day_of_year()) - 1,
                "getHours" => i64::from(zoned.hour()),
                "getMinutes" => i64::from(zoned.minute()),
                "getSeconds" => i64::from(zoned.second()),
                "getMilliseconds" => i64::from(zoned.millisecond()),
                _ => return None,
            };
            Some(Ok(Val::Int(part)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, shown) in [
            ("1h30m", "5400s"),
            ("1.5s", "1.5s"),
            ("-2ms", "-0.002s"),
            ("0", "0s"),
            (".5h", "1800s"),
            ("1us", "0.000001s"),
        ] {
            assert_eq!(parse(text).map(|d| display(&d)).as_deref(), Some(shown), "{text}");
        }
        let huge = "170141183460469231731687303715884105727h";
        for bad in ["", "1", "h", "1x", "1h-1m", ".", huge, "9223372036854775807s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(zone(&[Val::text("2147483647:-2147483648")]).is_err() && zone(&[Val::text("32767:-32768")]).is_err());
    }
}
