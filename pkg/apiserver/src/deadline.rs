//! How long a request may take: `--request-timeout`, or less where the request says so; and the requests whose connection is
//! to end, so that clients spread over all servers.

use crate::request::{Query, RequestInfo};
use isopod_api::Status;
use isopod_schema::scalar;
use rand::Rng;
use std::time::Duration;

/// `None`: as long as it likes. `most`: what the server allows.
pub fn of(info: &RequestInfo, query: &Query, most: Duration) -> Result<Option<Duration>, Status> {
    if info.is_long_running() {
        return Ok(None);
    }
    let Some(text) = query.get("timeout").filter(|t| !t.is_empty()) else { return Ok(Some(most)) };
    let nanos = scalar::duration_nanos(text)
        .map_err(|why| Status::bad_request(format!("invalid timeout specified in the request URL - {why}")))?;
    // Nothing, and less than nothing, mean that the client does not mind.
    let asked = u64::try_from(nanos).ok().filter(|n| *n > 0).map(Duration::from_nanos);
    Ok(Some(asked.map_or(most, |asked| asked.min(most))))
}

/// 504: it took longer.
pub fn passed() -> Status {
    Status::timeout("request did not complete within requested timeout - context deadline exceeded", 0)
}

/// Whether this request's connection is to be closed.
pub fn goes_away(chance: f64) -> bool {
    chance > 0.0 && rand::rng().random_bool(chance.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn check(uri: &str) -> Result<Option<Duration>, String> {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let query = Query::parse(Some(query));
        let info = RequestInfo::parse(&Method::GET, path, &query).unwrap();
        of(&info, &query, Duration::from_secs(60)).map_err(|e| e.message)
    }

    #[test]
    fn a_request_may_ask_for_less_time() {
        let seconds = |n| Ok(Some(Duration::from_secs(n)));
        assert_eq!(check("/api/v1/pods"), seconds(60));
        assert_eq!(check("/api/v1/pods?timeout=1.5s"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(check("/api/v1/pods?timeout=1h"), seconds(60));
        assert_eq!(check("/api/v1/pods?timeout=0"), seconds(60));
        assert_eq!(check("/api/v1/pods?timeout=-5s"), seconds(60));
        assert_eq!(check("/api/v1/pods?watch=1&timeout=5s"), Ok(None));
    }

    #[test]
    fn what_is_no_duration_is_refused_in_gos_words() {
        let wrong = |text: &str| check(&format!("/api/v1/pods?timeout={text}")).unwrap_err();
        let says = |why: &str| format!("invalid timeout specified in the request URL - time: {why}");
        assert_eq!(wrong("x"), says("invalid duration \"x\""));
        assert_eq!(wrong("30"), says("missing unit in duration \"30\""));
        assert_eq!(wrong("3d"), says("unknown unit \"d\" in duration \"3d\""));
    }
}
