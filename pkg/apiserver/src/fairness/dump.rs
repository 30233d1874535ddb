//! `/debug/api_priority_and_fairness/dump_…`: levels, queues and requests as they are now, in upstream's columns.

use super::Fairness;
use super::level::{Detail, Inner, Level};
use super::queues::{Moment, Request, State};
use crate::request::Query;
use isopod_base::clock::Clock;
use std::fmt::Write as _;
use std::sync::Arc;

const BASE: &str = "/debug/api_priority_and_fairness/";
const LEVELS: [&str; 10] = [
    "PriorityLevelName",
    "ActiveQueues",
    "IsIdle",
    "IsQuiescing",
    "WaitingRequests",
    "ExecutingRequests",
    "DispatchedRequests",
    "RejectedRequests",
    "TimedoutRequests",
    "CancelledRequests",
];
const QUEUES: [&str; 9] = [
    "PriorityLevelName",
    "Index",
    "PendingRequests",
    "ExecutingRequests",
    "SeatsInUse",
    "NextDispatchR",
    "InitialSeatsSum",
    "MaxSeatsSum",
    "TotalWorkSum",
];
const REQUESTS: [&str; 10] = [
    "PriorityLevelName",
    "FlowSchemaName",
    "QueueIndex",
    "RequestIndexInQueue",
    "FlowDistingsher",
    "ArriveTime",
    "InitialSeats",
    "FinalSeats",
    "AdditionalLatency",
    "StartTime",
];
const DETAILS: [&str; 8] =
    ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];

/// The page of a path; `None`: there is none.
pub fn page(fairness: &Fairness, clock: &Clock, path: &str, query: &Query) -> Option<String> {
    let digest = fairness.digest.load();
    let levels = digest.levels.values();
    let rows: Vec<Vec<String>> = match path.strip_prefix(BASE)? {
        "dump_priority_levels" => {
            let head = LEVELS.map(str::to_owned).to_vec();
            std::iter::once(head).chain(levels.map(of_level)).collect()
        }
        "dump_queues" => {
            let head = QUEUES.map(str::to_owned).to_vec();
            std::iter::once(head).chain(levels.flat_map(of_queues)).collect()
        }
        "dump_requests" => {
            let details = query.get("includeRequestDetails").is_some_and(|v| !v.is_empty());
            let mut head = REQUESTS.map(str::to_owned).to_vec();
            if details {
                head.extend(DETAILS.map(str::to_owned));
            }
            std::iter::once(head).chain(levels.flat_map(|l| of_requests(l, clock, details))).collect()
        }
        _ => return None,
    };
    Some(table(&rows))
}

/// Columns that stand below one another; each cell but the last of a row ends in a comma.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count() + 2).max().unwrap_or(0).max(8);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            if i + 1 == row.len() {
                out.push_str(cell);
            } else {
                // Writing into a string does not fail.
                let _ = write!(out, "{:<width$}", format!("{cell},"), width = widths[i]);
            }
        }
        out.push('\n');
    }
    out
}

fn of_level(level: &Arc<Level>) -> Vec<String> {
    let inner = level.lock();
    let queues = &inner.queues;
    let active = queues.queues.iter().filter(|q| !q.waiting.is_empty()).count();
    vec![
        level.name.to_string(),
        active.to_string(),
        queues.is_idle().to_string(),
        inner.quiescing.to_string(),
        queues.waiting().to_string(),
        queues.executing().to_string(),
        queues.tally.dispatched.to_string(),
        queues.tally.rejected.to_string(),
        // Upstream counts these as cancelled.
        "0".to_owned(),
        queues.tally.cancelled.to_string(),
    ]
}

fn of_queues(level: &Arc<Level>) -> Vec<Vec<String>> {
    let inner = level.lock();
    let row = |(i, queue): (usize, &super::queues::Queue)| {
        let (seats, widths, work) = inner.queues.queue_sums(i);
        vec![
            level.name.to_string(),
            i.to_string(),
            queue.waiting.len().to_string(),
            queue.executing.to_string(),
            queue.seats_in_use.to_string(),
            queue.next.to_string(),
            seats.to_string(),
            widths.to_string(),
            work.to_string(),
        ]
    };
    inner.queues.queues.iter().enumerate().map(row).collect()
}

fn of_requests(level: &Arc<Level>, clock: &Clock, details: bool) -> Vec<Vec<String>> {
    let inner = level.lock();
    let mut all: Vec<(i64, i64, Vec<String>)> = Vec::new();
    for (id, request) in inner.queues.requests().filter(|(_, r)| r.state != State::Lingering) {
        let queue = request.queue.map_or(-1, |q| q as i64);
        let place = place(&inner, id, request);
        let mut row = of_request(level, clock, &inner, request, queue, place);
        if details {
            row.extend(about(&request.detail));
        }
        all.push((queue, place, row));
    }
    all.sort_by_key(|(queue, place, _)| (*queue, if *place < 0 { i64::MAX } else { *place }));
    all.into_iter().map(|(.., row)| row).collect()
}

/// Its place in its queue; -1: it runs.
fn place(inner: &Inner, id: usize, request: &Request<Detail>) -> i64 {
    let waiting = request.queue.map(|q| &inner.queues.queues[q].waiting);
    waiting.and_then(|w| w.iter().position(|i| *i == id)).map_or(-1, |p| p as i64)
}

fn of_request(
    level: &Level,
    clock: &Clock,
    inner: &Inner,
    request: &Request<Detail>,
    queue: i64,
    place: i64,
) -> Vec<String> {
    let at = |moment: Moment| (clock.now() - level.since(moment)).to_string();
    let started = match request.state {
        State::Waiting => "0001-01-01T00:00:00Z".to_owned(),
        _ => at(request.started),
    };
    vec![
        level.name.to_string(),
        inner.queues.flows[request.flow].schema.to_string(),
        queue.to_string(),
        place.to_string(),
        request.detail.flow().to_owned(),
        at(request.arrived),
        request.work.seats.to_string(),
        request.work.final_seats.to_string(),
        go_duration(request.work.lingering),
        started,
    ]
}

fn about(detail: &Detail) -> [String; 8] {
    let info = &detail.info;
    let version = match info.group.as_str() {
        "" => info.version.clone(),
        group => format!("{group}/{}", info.version),
    };
    let text = |s: &String| s.clone();
    let (verb, path, namespace) = (text(&info.verb), text(&info.path), text(&info.namespace));
    let rest = (text(&info.name), version, text(&info.resource), text(&info.subresource));
    [detail.user.to_string(), verb, path, namespace, rest.0, rest.1, rest.2, rest.3]
}

/// As Go writes short times.
fn go_duration(d: std::time::Duration) -> String {
    match d.as_nanos() {
        0 => "0s".to_owned(),
        n if n < 1_000_000_000 => format!("{}ms", n as f64 / 1e6),
        n => format!("{}s", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_one_another() {
        let rows: Vec<Vec<String>> =
            [["Name", "N", "Last"], ["a-long-name", "1", "x"]].map(|r| r.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(table(&rows), "Name,        N,      Last\na-long-name, 1,      x\n");
    }

    #[test]
    fn new_fairness_has_two_levels() {
        let fairness = Fairness::new(600);
        let of = |path: &str| page(&fairness, &Clock::system(), path, &Query::default());
        let levels = of("/debug/api_priority_and_fairness/dump_priority_levels").unwrap();
        assert!(levels.lines().nth(1).unwrap().starts_with("catch-all,"), "{levels}");
        assert_eq!(of("/debug/api_priority_and_fairness/dump_queues").unwrap().lines().count(), 1);
        assert_eq!(of("/debug/api_priority_and_fairness/dump"), None);
    }
}
