//! Which moment of its schedule a cron job is at.

use super::schedule::Schedule;
use isopod_api::time;
use isopod_client::views::CronJob;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Clocks differ a little: better a moment late than once more.
const PADDING: Duration = Duration::from_millis(100);
/// From so many missed moments on, something is wrong with the clock, or nobody cared for long.
const MANY: i64 = 100;

/// A moment that has passed and not been served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    pub at: Timestamp,
    pub missed_many: bool,
}

#[derive(Debug, PartialEq)]
struct Recent {
    /// From where moments count: the last one served, or the creation.
    since: Timestamp,
    at: Option<Timestamp>,
    missed: i64,
}

const NO_SENSE: &str = "time difference between two schedules is less than 1 second";

/// The last moment up to now. `limited`: the starting deadline counts.
fn recent(cron: &CronJob, schedule: &Schedule, now: Timestamp, limited: bool) -> Result<Recent, String> {
    let parse = |text: &str| time::parse(text).unwrap_or(now);
    let mut since =
        cron.status.last_schedule_time.as_deref().map_or_else(|| parse(&cron.metadata.creation_timestamp), parse);
    if let Some(seconds) = cron.spec.starting_deadline_seconds.filter(|_| limited) {
        since = since.max(now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(since));
    }
    let Some(first) = schedule.next(since) else { return Err(NO_SENSE.into()) };
    let second = schedule.next(first).ok_or(NO_SENSE)?;
    if now < first {
        return Ok(Recent { since, at: None, missed: 0 });
    }
    if now < second {
        return Ok(Recent { since, at: Some(first), missed: 0 });
    }
    let period = second.as_second() - first.as_second();
    if period < 1 {
        return Err(NO_SENSE.into());
    }
    let missed = (now.as_second() - first.as_second()) / period + 1;
    // An irregular schedule may have more moments than that: the search begins one period early.
    let mut at = None;
    let mut next = schedule.next(first + SignedDuration::from_secs((missed - 2) * period));
    while let Some(t) = next.filter(|t| *t <= now) {
        at = Some(t);
        next = schedule.next(t);
    }
    Ok(Recent { since, at, missed })
}

/// The moment to start a job for.
pub fn due(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Result<Option<Due>, String> {
    let recent = recent(cron, schedule, now, true)?;
    Ok(recent.at.map(|at| Due { at, missed_many: recent.missed > MANY }))
}

/// How long until the next moment.
pub fn wait(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let from = match recent(cron, schedule, now, false) {
        Ok(Recent { at: Some(at), .. }) => at,
        Ok(Recent { since, missed: 0, .. }) => since,
        _ => now,
    };
    let next = schedule.next(from)?;
    let left = next.duration_since(now);
    Some(if left.is_positive() { left.unsigned_abs() + PADDING } else { PADDING })
}

/// Whether it is too late to start the job.
pub fn is_too_late(cron: &CronJob, at: Timestamp, now: Timestamp) -> bool {
    let deadline = cron.spec.starting_deadline_seconds.and_then(|s| at.checked_add(SignedDuration::from_secs(s)).ok());
    deadline.is_some_and(|d| d < now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn moments() {
        let now: Timestamp = "2026-01-01T12:00:30Z".parse().unwrap();
        let created = "2026-01-01T10:59:00Z";
        for (schedule, deadline, last, want, wait_for) in [
            ("0 * * * *", Value::Null, Value::Null, Some("2026-01-01T12:00:00Z"), 3570),
            ("0 13 * * *", Value::Null, Value::Null, None, 3570),
            ("0 * * * *", Value::Null, json!("2026-01-01T12:00:00Z"), None, 3570),
            ("0 * * * *", json!(10), Value::Null, None, 3570),
            ("* * * * *", Value::Null, json!("2026-01-01T11:58:00Z"), Some("2026-01-01T12:00:00Z"), 30),
            ("30 6-16/4 * * 1-5", Value::Null, json!("2025-12-31T06:30:00Z"), Some("2026-01-01T10:30:00Z"), 8970),
        ] {
            let cron = json!({"metadata": {"creationTimestamp": created}, "status": {"lastScheduleTime": last},
                "spec": {"schedule": schedule, "startingDeadlineSeconds": deadline}});
            let cron: CronJob = serde_json::from_str(&cron.to_string()).unwrap();
            let parsed = Schedule::parse(schedule, Some("UTC")).unwrap();
            let got = due(&cron, &parsed, now).unwrap();
            assert_eq!(got.map(|d| d.at.to_string()).as_deref(), want, "{schedule} {last}");
            assert_eq!(wait(&cron, &parsed, now).map(|w| w.as_secs()), Some(wait_for), "{schedule} {last}");
        }
    }

    #[test]
    fn many_missed_moments_are_told() {
        let cron = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}});
        let cron: CronJob = serde_json::from_str(&cron.to_string()).unwrap();
        let schedule = Schedule::parse("* * * * *", Some("UTC")).unwrap();
        for (now, many) in [("2026-01-01T00:50:00Z", false), ("2026-01-01T02:00:00Z", true)] {
            assert_eq!(due(&cron, &schedule, now.parse().unwrap()).unwrap().unwrap().missed_many, many);
        }
        let never = Schedule::parse("0 0 31 2 *", Some("UTC")).unwrap();
        assert!(due(&cron, &never, "2026-01-01T02:00:00Z".parse().unwrap()).is_err());
    }
}
