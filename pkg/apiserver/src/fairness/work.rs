//! How many seats a request takes: a list by the memory that it needs, a write by the watches that it wakes.

use super::queues::Work;
use super::watches::Watches;
use crate::ApiServer;
use crate::options::{ListOptions, Match};
use crate::request::{Query, RequestInfo};
use std::time::Duration;

const MOST_OF_LISTS: u32 = 100;
const MOST_OF_WRITES: u32 = 10;
const BYTES_PER_SEAT: i64 = 100_000;
/// A list from the cache is sent piece by piece.
const MOST_BYTES_FROM_CACHE: i64 = 1_000_000;
const WATCHES_PER_SEAT: usize = 10;
/// What a watch that is woken takes of a seat.
const EVENT: Duration = Duration::from_millis(5);

/// What is stored of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub objects: i64,
    pub bytes: i64,
}

/// What a request is expected to take, and how many watches it may wake. `widest`: the most seats that its level gives to one.
pub fn estimate(
    server: &ApiServer,
    watches: &Watches,
    info: &RequestInfo,
    query: &Query,
    widest: Option<u32>,
) -> (Work, Option<usize>) {
    match info.verb.as_str() {
        "list" | "watch" => {
            let most = widest.unwrap_or(MOST_OF_LISTS).min(MOST_OF_LISTS);
            (Work::seats(list(info, query, || stored(server, info), most)), None)
        }
        // The token of a service account changes no object.
        "create" if info.resource == "serviceaccounts" && info.subresource == "token" => (Work::seats(1), None),
        "create" | "update" | "patch" | "delete" => {
            let woken = watches.interested(info);
            (write(woken, widest.unwrap_or(MOST_OF_WRITES).min(MOST_OF_WRITES)), Some(woken))
        }
        _ => (Work::seats(1), None),
    }
}

fn stored(server: &ApiServer, info: &RequestInfo) -> Option<Stored> {
    let registry = server.registry.load();
    let cache = server.hub.running(registry.resource(&info.group, &info.resource)?)?;
    let (objects, bytes) = cache.size();
    Some(Stored { objects: objects as i64, bytes: bytes as i64 })
}

/// The seats of a list, or of a watch that begins with one.
fn list(info: &RequestInfo, query: &Query, stored: impl FnOnce() -> Option<Stored>, most: u32) -> u32 {
    let watch = info.verb == "watch";
    // A request whose options are wrong ends in its refusal.
    let Ok(options) = ListOptions::parse(query, watch) else { return most };
    if watch && options.send_initial_events != Some(true) && options.resource_version.unwrap_or(0) != 0 {
        return 1;
    }
    let Some(stored) = stored().filter(|s| s.objects > 0) else { return 1 };
    let average = stored.bytes / stored.objects;
    let limited = match options.limit as i64 {
        0 => stored.objects,
        limit => limit.min(stored.objects),
    };
    let from_cache = watch || is_from_cache(&options);
    let selects = ["fieldSelector", "labelSelector"].iter().any(|k| query.get(k).is_some_and(|v| !v.is_empty()));
    let objects = match (info.name.is_empty(), from_cache, selects) {
        (false, ..) => 1,
        (true, false, true) => limited.max(stored.objects / 2),
        _ => limited,
    };
    let bytes = objects.saturating_mul(average);
    let bytes = if from_cache { bytes.min(MOST_BYTES_FROM_CACHE) } else { bytes };
    let seats = bytes.unsigned_abs().div_ceil(BYTES_PER_SEAT.unsigned_abs());
    u32::try_from(seats).unwrap_or(u32::MAX).clamp(1, most.max(1))
}

/// Lists of a past revision, and the later pages of a list, are read from the datastore's history.
fn is_from_cache(options: &ListOptions) -> bool {
    match options.version_match {
        Some(Match::Exact) => false,
        Some(Match::NotOlderThan) => true,
        None => {
            let exact = options.limit > 0 && options.resource_version.is_some_and(|v| v != 0);
            options.continue_token.is_empty() && !exact
        }
    }
}

/// The work that a write sets going is kept as seats for a time after its answer; narrower and longer where it would take more
/// seats than one request may.
fn write(woken: usize, most: u32) -> Work {
    if woken < WATCHES_PER_SEAT {
        return Work::seats(1);
    }
    let seats = u32::try_from(woken.div_ceil(WATCHES_PER_SEAT)).unwrap_or(u32::MAX);
    let final_seats = seats.min(most.max(1));
    let lingering = EVENT.mul_f64(f64::from(seats) / f64::from(final_seats));
    Work { seats: 1, final_seats, lingering }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn seats(uri: &str, objects: i64, size: i64) -> u32 {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let query = Query::parse(Some(query));
        let info = RequestInfo::parse(&Method::GET, path, &query).unwrap();
        list(&info, &query, || Some(Stored { objects, bytes: objects * size }), 100)
    }

    #[test]
    fn lists_take_seats_by_their_size() {
        let check = |uri, objects, want| assert_eq!(seats(uri, objects, 1000), want, "{uri}");
        check("/api/v1/pods", 0, 1);
        check("/api/v1/pods", 100, 1);
        check("/api/v1/pods", 500, 5);
        // From the cache at most a megabyte is in memory at a time.
        check("/api/v1/pods", 100_000, 10);
        check("/api/v1/pods?limit=200", 100_000, 2);
        check("/api/v1/pods?limit=500&resourceVersion=7", 100_000, 5);
        check("/api/v1/pods?resourceVersion=7&resourceVersionMatch=Exact", 100_000, 100);
        check("/api/v1/pods?limit=200&resourceVersion=7&labelSelector=a%3Db", 2000, 10);
        check("/api/v1/pods?fieldSelector=metadata.name%3Dx", 100_000, 1);
        check("/api/v1/pods?resourceVersionMatch=Wrong", 100_000, 100);
        check("/api/v1/pods?watch=1&resourceVersion=7", 100_000, 1);
        check("/api/v1/pods?watch=1", 100_000, 10);
    }

    #[test]
    fn writes_linger_as_long_as_watches_are_woken() {
        assert_eq!(write(9, 10), Work::seats(1));
        assert_eq!(write(25, 10), Work { seats: 1, final_seats: 3, lingering: EVENT });
        assert_eq!(write(400, 10), Work { seats: 1, final_seats: 10, lingering: EVENT * 4 });
    }
}
