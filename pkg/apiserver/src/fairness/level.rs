//! A priority level that runs: its queues under a lock that is held for moments only, and those who wait for a seat.

use super::demand::Demand;
use super::drops::Drops;
use super::limits::Limits;
use super::queues::{Arrival, Discipline, Id, Moment, Queues, Refused, State};
use super::schema::Distinguisher;
use super::stats::FlowStats;
use crate::request::RequestInfo;
use isopod_kinds::access::Access;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// What is kept with a request.
#[derive(Debug)]
pub struct Detail {
    pub info: Arc<RequestInfo>,
    pub user: Box<str>,
    pub by: Distinguisher,
    /// Told when the request may begin.
    waker: Option<oneshot::Sender<()>>,
}

impl Detail {
    pub fn new(info: &Arc<RequestInfo>, user: &str, by: Distinguisher) -> Self {
        Detail { info: info.clone(), user: user.into(), by, waker: None }
    }

    pub fn flow(&self) -> &str {
        match self.by {
            Distinguisher::None => "",
            Distinguisher::User => &self.user,
            Distinguisher::Namespace => &self.info.namespace,
        }
    }
}

/// What can change of a level.
pub struct Inner {
    pub queues: Queues<Detail>,
    pub spec: Value,
    pub limits: Limits,
    pub demand: Demand,
    pub target: f64,
    /// No object describes it any more: it goes when its last request has ended.
    pub quiescing: bool,
    drops: Drops,
    /// When seats come free by themselves, and somebody wakes those who wait for them.
    timer: Option<Moment>,
}

/// See the module.
pub struct Level {
    pub name: Arc<str>,
    began: Instant,
    /// Told when a level that is not wanted has become idle.
    idle: Arc<Notify>,
    inner: Mutex<Inner>,
}

/// What a level's spec says about those who find no seat; `None`: the spec is broken.
pub fn discipline(name: &str, spec: &Value) -> Option<Discipline> {
    let exempt = spec.text("type") == "Exempt";
    if exempt != (name == isopod_kinds::bootstrap::fairness::EXEMPT) {
        return None;
    }
    if exempt {
        return Some(Discipline::Exempt);
    }
    let response = spec.at("limited.limitResponse");
    if response.text("type") != "Queue" {
        return spec.has("limited").then_some(Discipline::Reject);
    }
    let number = |field: &str| usize::try_from(response.at("queuing").int(field)?).ok().filter(|n| *n > 0);
    Some(Discipline::Queue {
        queues: number("queues")?,
        hand: number("handSize")?,
        length: number("queueLengthLimit")?,
    })
}

impl Level {
    pub fn new(name: &str, spec: Value, discipline: Discipline, idle: Arc<Notify>, began: Instant) -> Arc<Self> {
        let inner = Inner {
            queues: Queues::new(discipline, 0, began.elapsed()),
            spec,
            limits: Limits::default(),
            demand: Demand::default(),
            target: 0.0,
            quiescing: false,
            drops: Drops::default(),
            timer: None,
        };
        Arc::new(Level { name: name.into(), began, idle, inner: Mutex::new(inner) })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// When a moment of the level's clock was, in a clock of the world's, such as `Instant::now()` and the time of day.
    pub fn since(&self, moment: Moment) -> Duration {
        self.now().saturating_sub(moment)
    }

    /// Changes what may run from now on.
    pub fn configure(self: &Arc<Self>, discipline: Option<Discipline>, limit: u32) {
        let mut inner = self.lock();
        let discipline = discipline.or_else(|| discipline_of(self, &inner)).unwrap_or(Discipline::Reject);
        inner.queues.configure(discipline, limit, self.now());
        self.settle(inner);
    }

    /// Where the numbers of a flow schema are counted.
    pub fn slot(&self, schema: &str) -> usize {
        let mut inner = self.lock();
        let flows = &mut inner.queues.flows;
        flows.iter().position(|f| *f.schema == *schema).unwrap_or_else(|| {
            flows.push(FlowStats::new(schema.into()));
            flows.len() - 1
        })
    }

    /// Takes a request in. What is returned with its seat tells when it may begin; `None`: now. Refused, it is told to come
    /// again after so many seconds.
    pub fn start(
        self: &Arc<Self>,
        arrival: Arrival,
        woken: Option<usize>,
        detail: Detail,
    ) -> Result<(Seat, Option<oneshot::Receiver<()>>), i64> {
        let mut inner = self.lock();
        if let Some(woken) = woken {
            inner.queues.flows[arrival.flow].watchers.observe(woken as f64);
        }
        let started = inner.queues.start(self.now(), arrival, detail);
        let taken = match started {
            Err(Refused::ConcurrencyLimit | Refused::QueueFull) => Err(inner.drops.record(self.second())),
            Ok((id, State::Waiting)) => {
                let (waker, woken) = oneshot::channel();
                if let Some(detail) = inner.queues.detail(id) {
                    detail.waker = Some(waker);
                }
                Ok((Seat { level: self.clone(), id }, Some(woken)))
            }
            Ok((id, _)) => Ok((Seat { level: self.clone(), id }, None)),
        };
        self.settle(inner);
        taken
    }

    fn second(&self) -> i64 {
        // Refusals before the first second count as those of it.
        self.now().as_secs() as i64 + 1
    }

    /// Wakes those who may begin, and sees to it that seats which come free by themselves are given to somebody.
    fn settle(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        for id in inner.queues.take_started() {
            if let Some(waker) = inner.queues.detail(id).and_then(|d| d.waker.take()) {
                // One that has gone meanwhile gives its seat back itself.
                let _ = waker.send(());
            }
        }
        if inner.quiescing && inner.queues.is_idle() {
            self.idle.notify_one();
        }
        let due = inner.queues.next_release().filter(|_| inner.queues.waiting() > 0);
        let Some(due) = due.filter(|due| inner.timer.is_none_or(|t| *due < t)) else { return };
        inner.timer = Some(due);
        drop(inner);
        let level = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(due.saturating_sub(level.now())).await;
            let mut inner = level.lock();
            inner.timer = None;
            inner.queues.advance(level.now());
            level.settle(inner);
        });
    }
}

fn discipline_of(level: &Level, inner: &Inner) -> Option<Discipline> {
    discipline(&level.name, &inner.spec)
}

/// A request's place, waiting or running; given back with this value.
pub struct Seat {
    level: Arc<Level>,
    id: Id,
}

impl Seat {
    /// It has waited too long: counted as refused, unless it has just begun.
    pub fn give_up(self) -> Result<Seat, i64> {
        let mut inner = self.level.lock();
        if inner.queues.request(self.id).is_some_and(|r| r.state == State::Executing) {
            drop(inner);
            return Ok(self);
        }
        let again = inner.drops.record(self.level.second());
        drop(inner);
        Err(again)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.level.lock();
        inner.queues.end(self.level.now(), self.id);
        self.level.settle(inner);
    }
}
