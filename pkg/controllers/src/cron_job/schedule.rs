//! Schedules in the dialect of robfig/cron: five fields, or a macro, in a time zone.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

/// The bit of a field that was `*` or `?`: then day of month and day of week must both match, else one of them.
const STAR: u64 = 1 << 63;
/// A schedule that names no moment in so many years names none.
const SEARCHED_YEARS: i16 = 5;

#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    Fields { minutes: u64, hours: u64, days: u64, months: u64, weekdays: u64, zone: TimeZone },
    Every(SignedDuration),
}

struct Bounds {
    min: u32,
    max: u32,
    /// Names of the numbers from `min` on.
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The zone of a name. The local one has none.
pub fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    match name.filter(|n| !n.is_empty()) {
        None => Ok(TimeZone::try_system().unwrap_or(TimeZone::UTC)),
        Some(name) => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}")),
    }
}

impl Schedule {
    /// The zone in `TZ=…` before the fields goes before `zone`.
    pub fn parse(text: &str, zone_name: Option<&str>) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let prefixed = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ="));
        let (zone, text) = match prefixed.map(|t| t.split_once(' ').unwrap_or((t, ""))) {
            Some((name, rest)) => {
                let zone = zone(Some(name)).map_err(|e| format!("provided bad location {name}: {e}"))?;
                (zone, rest.trim())
            }
            None => (zone(zone_name)?, text),
        };
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => match other.strip_prefix("@every ") {
                Some(duration) => return every(duration).map(Schedule::Every),
                None if other.starts_with('@') => return Err(format!("unrecognized descriptor: {other}")),
                None => other,
            },
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = parts[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
        };
        Ok(Schedule::Fields {
            minutes: field(minutes, &MINUTES)?,
            hours: field(hours, &HOURS)?,
            days: field(days, &DAYS)?,
            months: field(months, &MONTHS)?,
            weekdays: field(weekdays, &WEEKDAYS)?,
            zone,
        })
    }

    /// The first moment after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(period) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*period).ok(),
            Schedule::Fields { minutes, hours, days, months, weekdays, zone } => {
                let has = |field: &u64, value: i8| field & (1 << value) != 0;
                let minute = after.as_second().div_euclid(60) + 1;
                let mut t = Timestamp::from_second(minute * 60).ok()?;
                let last_year = zone.to_datetime(t).year() + SEARCHED_YEARS;
                loop {
                    let at = zone.to_datetime(t);
                    if at.year() > last_year {
                        return None;
                    }
                    let (day, weekday) = (has(days, at.day()), has(weekdays, at.weekday().to_sunday_zero_offset()));
                    let day_matches = if (days | weekdays) & STAR != 0 { day && weekday } else { day || weekday };
                    t = if !has(months, at.month()) {
                        let next = at.date().first_of_month().checked_add(1.month()).ok()?;
                        zone.to_timestamp(next.at(0, 0, 0, 0)).ok()?
                    } else if !day_matches {
                        zone.to_timestamp(at.date().tomorrow().ok()?.at(0, 0, 0, 0)).ok()?
                    } else if !has(hours, at.hour()) {
                        t + SignedDuration::from_mins(i64::from(60 - at.minute()))
                    } else if !has(minutes, at.minute()) {
                        t + SignedDuration::from_mins(1)
                    } else {
                        return Some(t);
                    };
                }
            }
        }
    }
}

/// A duration as Go writes it: `1h30m`. Whole seconds, and at least one.
fn every(text: &str) -> Result<SignedDuration, String> {
    let failed = || format!("failed to parse duration {text}: time: invalid duration {text:?}");
    let (mut rest, mut seconds) = (text, 0.0f64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(failed)?;
        let number: f64 = rest[..digits].parse().map_err(|_| failed())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        seconds += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(failed()),
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() {
        return Err(failed());
    }
    Ok(SignedDuration::from_secs((seconds as i64).max(1)))
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    text.split(',').filter(|part| !part.is_empty()).try_fold(0, |bits, part| Ok(bits | range(part, bounds)?))
}

fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let mut parts = text.split('/');
    let span = parts.next().unwrap_or_default();
    let (step_text, more) = (parts.next(), parts.next().is_some());
    let mut ends = span.split('-');
    let first = ends.next().unwrap_or_default();
    let (second, too_many) = (ends.next(), ends.next().is_some());
    let is_star = first == "*" || first == "?";
    let (start, mut end) = if is_star {
        (bounds.min, bounds.max)
    } else {
        let start = named(first, bounds)?;
        if too_many {
            return Err(format!("too many hyphens: {text}"));
        }
        (start, second.map_or(Ok(start), |s| named(s, bounds))?)
    };
    if more {
        return Err(format!("too many slashes: {text}"));
    }
    let step = step_text.map_or(Ok(1), number)?;
    // `N/step` goes on to the end.
    if step_text.is_some() && second.is_none() {
        end = bounds.max;
    }
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let star = if is_star && step == 1 { STAR } else { 0 };
    Ok((start..=end).step_by(step as usize).fold(star, |bits, n| bits | (1 << n)))
}

fn named(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|n| *n == lower) {
        Some(at) => Ok(bounds.min + at as u32),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) if n <= i64::from(u32::MAX) => Ok(n as u32),
        _ => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, zone: &str, after: &str) -> Option<String> {
        let after: Timestamp = after.parse().unwrap();
        Schedule::parse(schedule, Some(zone)).unwrap().next(after).map(|t| t.to_string())
    }

    #[test]
    fn the_next_moment() {
        for (schedule, zone, after, want) in [
            ("* * * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "UTC", "2026-01-01T00:00:59.5Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "UTC", "2026-01-01T00:01:00Z", "2026-01-01T00:15:00Z"),
            ("5/20 3 * * *", "UTC", "2026-01-01T03:06:00Z", "2026-01-01T03:25:00Z"),
            ("0 9-17/4 * * mon-fri", "UTC", "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
            ("0 0 1 Jan ?", "UTC", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            // Day of month or day of week.
            ("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            // A star with a step of its own does not bind both.
            ("0 0 */2 * 5", "UTC", "2026-01-01T01:00:00Z", "2026-01-02T00:00:00Z"),
            ("@weekly", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@hourly", "UTC", "2026-01-01T00:30:00Z", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", "UTC", "2026-01-01T00:00:00.5Z", "2026-01-01T01:30:00Z"),
            ("30 8 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T06:30:00Z"),
            ("TZ=Europe/Berlin 30 8 * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T07:30:00Z"),
            // 02:30 does not exist on the day that summer time begins.
            ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
        ] {
            assert_eq!(next(schedule, zone, after).as_deref(), Some(want), "{schedule} after {after}");
        }
        assert_eq!(next("59 23 31 2 *", "UTC", "2026-01-01T00:00:00Z"), None);
    }

    #[test]
    fn what_is_no_schedule() {
        for (schedule, want) in [
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("@never", "unrecognized descriptor: @never"),
            ("", "empty spec string"),
        ] {
            assert_eq!(Schedule::parse(schedule, Some("UTC")), Err(want.to_owned()), "{schedule}");
        }
        assert!(Schedule::parse("x * * * *", Some("UTC")).is_err());
        assert!(Schedule::parse("* * * * *", Some("Nowhere/Town")).is_err());
    }
}
