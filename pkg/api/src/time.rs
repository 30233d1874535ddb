//! `metav1.Time` (whole seconds, UTC, `2006-01-02T15:04:05Z`) and `metav1.MicroTime`.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;

const WHOLE: &str = "%Y-%m-%dT%H:%M:%SZ";

/// `metav1.Time` of now.
pub fn now() -> String {
    format(Timestamp::now())
}

/// Formats as `metav1.Time`: whole seconds, cut off, UTC. Every object that is written has some of these.
pub fn format(t: Timestamp) -> String {
    let at = Offset::UTC.to_datetime(t);
    let Ok(year @ 0..=9999) = u16::try_from(at.year()) else { return t.strftime(WHOLE).to_string() };
    let (century, year) = ((year / 100) as u8, (year % 100) as u8);
    let of_day = [(at.hour(), ":"), (at.minute(), ":"), (at.second(), "Z")].map(|(n, after)| (n as u8, after));
    let days = [(century, ""), (year, "-"), (at.month() as u8, "-"), (at.day() as u8, "T")];
    let mut text = String::with_capacity("2006-01-02T15:04:05Z".len());
    for (n, after) in days.into_iter().chain(of_day) {
        text.push(char::from(b'0' + n / 10));
        text.push(char::from(b'0' + n % 10));
        text.push_str(after);
    }
    text
}

/// Formats as `metav1.MicroTime`: six digits of a second, UTC.
pub fn format_micro(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The day, in UTC: `2006-01-02`, as labels have it. Such texts are in order when their days are.
pub fn format_date(t: Timestamp) -> String {
    t.strftime("%Y-%m-%d").to_string()
}

/// Reads what [`format_date`] writes, and nothing else.
pub fn parse_date(s: &str) -> Option<Date> {
    let digits = |i: usize, b: u8| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() };
    let shaped = s.len() == 10 && s.bytes().enumerate().all(|(i, b)| digits(i, b));
    Date::strptime("%Y-%m-%d", s).ok().filter(|_| shaped)
}

/// Parses RFC 3339 with any offset and any number of fraction digits.
pub fn parse(s: &str) -> Option<Timestamp> {
    s.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds() {
        for text in
            ["2026-02-03T23:59:59.9-01:00", "1969-12-31T23:59:59.5Z", "0001-01-01T00:00:00Z", "9999-12-30T00:00:00Z"]
        {
            let t = parse(text).unwrap();
            assert_eq!(format(t), t.strftime(WHOLE).to_string());
        }
        let mut t = parse("1960-01-01T00:00:00Z").unwrap();
        for _ in 0..10_000 {
            assert_eq!(format(t), t.strftime(WHOLE).to_string());
            t += jiff::SignedDuration::from_secs(345_678);
        }
        assert_eq!(format(Timestamp::MIN), Timestamp::MIN.strftime(WHOLE).to_string());
    }

    #[test]
    fn days() {
        let t = parse("2026-02-03T23:59:59.9-01:00").unwrap();
        assert_eq!(format_date(t), "2026-02-04");
        assert_eq!(parse_date("2026-02-04"), Some(jiff::civil::date(2026, 2, 4)));
        for no in ["", "2026-2-4", "2026-02-30", "+202-01-01", "2026-01-01T", "20260101"] {
            assert_eq!(parse_date(no), None, "{no}");
        }
    }
}
