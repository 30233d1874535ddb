//! API priority and fairness (KEP-1040): who may use how much of the server at a time, and who waits. Flow schemas sort the
//! requests into priority levels; each level has a share of the server's seats, and within it flows get even turns.
//!
//! Where to start: [`admit`] is what the chain calls; [`queues`] is the state machine of one level, [`limits`] shares the
//! seats out, [`digest`] makes of the stored objects what is asked for each request, [`follow`] keeps that up to date.
//!
//! Invariants: a level's lock is held for moments, never across an await; a request that finds a seat allocates nothing but
//! its own record; a seat goes back with the value that stands for it, however its request ends.

mod demand;
mod digest;
mod drops;
mod dump;
mod follow;
mod in_flight;
mod keep;
mod level;
mod limits;
mod page;
mod queues;
mod schema;
mod seats;
mod shard;
mod stats;
mod watches;
mod work;

pub use dump::page as dump;
pub use follow::{ensure, start};
pub use in_flight::InFlight;
pub use page::write as metrics;

use crate::ApiServer;
use crate::request::{Query, RequestInfo};
use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::Response;
use digest::{Digest, Flow, Maker};
use http::{HeaderName, HeaderValue, StatusCode, header};
use isopod_api::{Status, UserInfo};
use level::{Detail, Seat};
use parking_lot::Mutex;
use queues::Arrival;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use watches::{Registration, Watches};

/// Nobody waits for a seat longer than this, whatever its deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What the chain asks for every request.
pub struct Fairness {
    digest: ArcSwap<Digest>,
    maker: Maker,
    watches: Arc<Watches>,
}

impl Fairness {
    /// `seats`: how many requests may run at a time. Until the stored objects are read, the mandatory ones are in force.
    pub fn new(seats: usize) -> Self {
        let idle = Arc::new(Notify::new());
        let maker = Maker { total: u32::try_from(seats).unwrap_or(u32::MAX), idle, began: Instant::now() };
        let digest = maker.digest(&Digest::default(), &[], &[]);
        Fairness { digest: ArcSwap::from_pointee(digest), maker, watches: Arc::default() }
    }
}

/// Requests that run or wait, as `apiserver_current_inflight_requests` tells them: reads, and what changes something.
#[derive(Default)]
pub struct Gauges {
    pub executing: [AtomicI64; 2],
    pub waiting: [AtomicI64; 2],
}

/// Counts a request for as long as it lives.
struct Counted {
    server: Arc<ApiServer>,
    waiting: bool,
    mutating: bool,
}

impl Counted {
    fn new(server: &Arc<ApiServer>, waiting: bool, mutating: bool) -> Self {
        let counted = Counted { server: server.clone(), waiting, mutating };
        counted.gauge().fetch_add(1, Ordering::Relaxed);
        counted
    }

    fn gauge(&self) -> &AtomicI64 {
        let gauges = &self.server.gauges;
        let which = if self.waiting { &gauges.waiting } else { &gauges.executing };
        &which[usize::from(self.mutating)]
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge().fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which flow schema and priority level a request went by, for the headers of its response.
#[derive(Debug)]
pub struct Mark {
    schema: HeaderValue,
    level: HeaderValue,
}

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

impl Mark {
    fn new(schema: &str, level: &str) -> Self {
        let value = |uid: &str| HeaderValue::from_str(uid).unwrap_or_else(|_| HeaderValue::from_static(""));
        Mark { schema: value(schema), level: value(level) }
    }

    /// The uids, not the names: those might tell a client what is thought of it.
    pub fn write(&self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(SCHEMA_UID, self.schema.clone());
        headers.insert(LEVEL_UID, self.level.clone());
    }
}

/// A request that comes to be admitted.
pub struct Incoming<'a> {
    pub info: &'a Arc<RequestInfo>,
    pub query: &'a Query,
    pub user: &'a UserInfo,
    pub arrived: Instant,
    /// How long it may take; `None`: as long as it likes.
    pub timeout: Option<Duration>,
}

/// What an admitted request holds while it runs.
pub enum Passage {
    /// Nothing: it is not counted, or it is a watch, which takes its seat along.
    Free,
    Watch(Beginning),
    Seat(#[allow(dead_code, reason = "kept for what its end does")] (Seat, Held)),
    Permit(#[allow(dead_code, reason = "kept for what its end does")] (OwnedSemaphorePermit, Held)),
}

/// What an answer holds, among its extensions, until it is sent.
#[derive(Clone)]
pub struct Seated(#[allow(dead_code, reason = "kept for what its end does")] Arc<Passage>);

impl Passage {
    /// The request is answered; its seat goes with the answer.
    pub fn go_with(self, answer: &mut Response) {
        if let Passage::Seat(_) | Passage::Permit(_) = self {
            answer.extensions_mut().insert(Seated(Arc::new(self)));
        }
    }
}

/// Opaque: counts a running request.
pub struct Held(#[allow(dead_code, reason = "kept for what its end does")] Counted);

/// What a watch holds: a seat until what was there at its start is sent, and its registration to its end.
#[derive(Clone)]
pub struct Beginning(
    Arc<Mutex<Option<(Seat, Held)>>>,
    #[allow(dead_code, reason = "kept for its end")] Arc<Registration>,
);

impl Beginning {
    /// The watch has begun: from here on it waits for events.
    pub fn over(&self) {
        self.0.lock().take();
    }
}

/// 429: the server, or what the request's flow may use of it, is busy.
pub struct Rejection(i64);

impl Rejection {
    /// What the response comes to, for who keeps a record of it.
    pub fn status(&self) -> Status {
        Status::too_many_requests("Too many requests, please try again later.", i32::try_from(self.0).unwrap_or(1))
    }

    pub fn response(&self) -> Response {
        let mut response = Response::new(Body::from("Too many requests, please try again later.\n"));
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        headers.insert(header::RETRY_AFTER, self.0.into());
        response
    }
}

/// Waits until the request may run, or refuses it. `mark` is set as soon as it is known where the request belongs.
pub async fn admit(
    server: &Arc<ApiServer>,
    request: Incoming<'_>,
    mark: &std::sync::OnceLock<Arc<Mark>>,
) -> Result<Passage, Rejection> {
    let info = request.info;
    let watch = info.verb == "watch";
    let mutating = !matches!(info.verb.as_str(), "get" | "list" | "watch");
    let Some(fairness) = &server.fairness else {
        if info.is_long_running() {
            return Ok(Passage::Free);
        }
        return match server.in_flight.enter(mutating, request.user) {
            in_flight::Entered::Permit(permit) => {
                Ok(Passage::Permit((permit, Held(Counted::new(server, false, mutating)))))
            }
            in_flight::Entered::Free => Ok(Passage::Free),
            in_flight::Entered::Full => Err(Rejection(1)),
        };
    };
    if info.is_long_running() && !watch {
        return Ok(Passage::Free);
    }
    let digest = fairness.digest.load_full();
    let flow = digest.flows.iter().find(|f| f.schema.matches(info, request.user)).or(digest.flows.last());
    // The digest has always the mandatory schemas.
    let Some(flow) = flow else { return Ok(Passage::Free) };
    let _ = mark.set(flow.mark.clone());
    let seat = wait_for_seat(server, fairness, flow, &request, mutating).await?;
    let held = Held(Counted::new(server, false, mutating));
    Ok(match watch {
        true => {
            let registered = Arc::new(fairness.watches.register(info));
            Passage::Watch(Beginning(Arc::new(Mutex::new(Some((seat, held)))), registered))
        }
        false => Passage::Seat((seat, held)),
    })
}

async fn wait_for_seat(
    server: &Arc<ApiServer>,
    fairness: &Fairness,
    flow: &Flow,
    request: &Incoming<'_>,
    mutating: bool,
) -> Result<Seat, Rejection> {
    let Incoming { info, query, user, .. } = request;
    let by = if flow.shards { flow.schema.distinguisher } else { schema::Distinguisher::None };
    let hash = if flow.shards { shard::flow_hash(&flow.schema.name, flow.schema.flow(info, user)) } else { 0 };
    let (work, woken) = work::estimate(server, &fairness.watches, info, query, flow.widest);
    let arrival = Arrival { hash, flow: flow.slot, work, watch: info.verb == "watch" };
    let started = flow.level.start(arrival, woken, Detail::new(info, &user.name, by));
    let (seat, turn) = started.map_err(Rejection)?;
    let Some(turn) = turn else { return Ok(seat) };
    let _counted = Counted::new(server, true, mutating);
    // A quarter of the time that the request has may go by in the queue.
    let patience = request.timeout.unwrap_or(server.config.request_timeout) / 4;
    let until = tokio::time::Instant::from_std(request.arrived + patience.min(LONGEST_WAIT));
    match tokio::time::timeout_at(until, turn).await {
        Ok(_) => Ok(seat),
        Err(_) => seat.give_up().map_err(Rejection),
    }
}
