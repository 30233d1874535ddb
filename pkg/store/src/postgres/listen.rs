//! Hears of what other servers commit. A connection that is lost is made again, and what was missed meanwhile is asked for.

use super::connect::{Attempts, CONNECT, STATEMENT, Server, in_time};
use super::writer::{Asked, Progress, Request};
use crate::Revision;
use isopod_base::errors::Chain;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, Row};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// A connection that has been silent for so long is asked for the revision: nothing else tells that a network is cut.
const SILENCE: Duration = Duration::from_secs(15);

/// Wakes the writer. It does not keep a dropped store alive.
#[derive(Clone)]
pub(crate) struct Waker {
    pub requests: Weak<UnboundedSender<Asked>>,
    pub progress: Arc<Progress>,
}

impl Waker {
    /// False: the store was dropped or closed.
    pub fn wake(&self) -> bool {
        let Some(requests) = self.requests.upgrade() else { return false };
        if self.progress.follows.swap(true, Ordering::SeqCst) {
            return !requests.is_closed();
        }
        requests.send((Instant::now(), Request::Follow)).is_ok()
    }
}

/// Runs until the store is closed or dropped.
pub(crate) async fn run(server: Arc<Server>, waker: Waker) {
    let mut state = State { attempts: Attempts::since(Instant::now()), away: false };
    while waker.wake() {
        match hear(&server, &waker, &mut state).await {
            Ok(()) => return,
            Err(e) => {
                if !std::mem::replace(&mut state.away, true) {
                    tracing::warn!(error = %Chain(&e), "Postgres at {} is away: it is tried again until it is back", server.name);
                }
                tokio::time::sleep(state.attempts.endless_pause()).await;
            }
        }
    }
}

struct State {
    attempts: Attempts,
    /// It has been said that nobody answers.
    away: bool,
}

/// Ends when the connection does, or, without an error, with the store.
async fn hear(server: &Server, waker: &Waker, state: &mut State) -> sqlx::Result<()> {
    let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    // Whether it takes long is said here, if at all.
    let pool = pool.acquire_timeout(CONNECT).acquire_slow_threshold(CONNECT * 2).connect_lazy_with(server.options());
    let mut listener = in_time(CONNECT, PgListener::connect_with(&pool)).await?;
    listener.eager_reconnect(false);
    in_time(STATEMENT, listener.listen(&server.schema)).await?;
    state.attempts = Attempts::since(Instant::now());
    if std::mem::take(&mut state.away) {
        tracing::info!("Postgres at {} is back", server.name);
    }
    // What was committed before it listened.
    if !waker.wake() {
        return Ok(());
    }
    let look = format!("SELECT revision FROM \"{}\".meta", server.schema);
    loop {
        match tokio::time::timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(news))) => {
                let revision = news.payload().parse().unwrap_or(i64::MAX);
                // One's own commits come back too.
                if revision > *waker.progress.published.borrow() && !waker.wake() {
                    return Ok(());
                }
            }
            Ok(Ok(None)) => return Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into())),
            Ok(Err(e)) => return Err(e),
            Err(_) => {
                let newest: Revision =
                    in_time(STATEMENT, listener.fetch_one(AssertSqlSafe(look.clone()))).await?.try_get(0)?;
                let gone = waker.requests.upgrade().is_none_or(|requests| requests.is_closed());
                if gone || (*waker.progress.published.borrow() != newest && !waker.wake()) {
                    return Ok(());
                }
            }
        }
    }
}
