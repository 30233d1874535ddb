//! One connection to a member of the cluster, kept as long as it serves: requests with limits, failover, and the token.
//!
//! Invariant: a request that may change something is sent again only when it has certainly not reached a member.

use super::EtcdOptions;
use super::endpoint::{DialError, Endpoint};
use super::error::{Verdict, Words, judge, unavailable};
use crate::pb::etcdserverpb as pb;
use http::{HeaderValue, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use isopod_base::errors::Chain;
use isopod_store::{Result, Revision, StoreError};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Response, Status};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A cluster that has been away for so long is not waited for any more: requests are tried once.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long such a try may take.
const BRIEF: Duration = Duration::from_secs(1);

/// May a request be sent again when nobody knows what became of it?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or the same once more.
    Safe,
    Never,
}

/// A connection, as the generated clients want it: every request bears the token.
#[derive(Clone)]
pub(super) struct Channel {
    sender: SendRequest<Body>,
    pub origin: Uri,
    token: Option<HeaderValue>,
    /// Tells this connection from later ones.
    number: u64,
}

impl Channel {
    /// The endpoint, for messages.
    pub fn place(&self) -> String {
        self.origin.to_string().trim_end_matches('/').to_owned()
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert("token", token.clone());
        }
        Box::pin(self.sender.send_request(request))
    }
}

/// A client of one of etcd's services on a channel, which takes answers of any size.
macro_rules! client {
    ($channel:expr, $service:ident :: $client:ident) => {{
        let channel: crate::remote::cluster::Channel = $channel;
        let origin = channel.origin.clone();
        crate::pb::etcdserverpb::$service::$client::with_origin(channel, origin).max_decoding_message_size(usize::MAX)
    }};
}
pub(super) use client;

#[derive(Default)]
struct State {
    live: Option<Channel>,
    /// The endpoint that is tried first.
    preferred: usize,
    connections: u64,
    /// Since when no member has served.
    away_since: Option<Instant>,
    /// The log says that it is away.
    said: bool,
    /// When the last round over all endpoints failed, and why.
    failed: Option<(Instant, StoreError)>,
    token: Option<HeaderValue>,
}

pub(super) struct Cluster {
    pub options: EtcdOptions,
    state: Mutex<State>,
    /// One caller dials at a time; the others use what it made.
    dialing: tokio::sync::Mutex<()>,
    pub closed: CancellationToken,
    compacted: AtomicI64,
}

impl Cluster {
    pub fn new(options: EtcdOptions) -> Self {
        Cluster {
            options,
            state: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
            compacted: AtomicI64::new(0),
        }
    }

    /// The history before this revision is gone. Of what others compacted it is known when somebody met it.
    pub fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::Acquire)
    }

    pub fn note_compacted(&self, revision: Revision) {
        self.compacted.fetch_max(revision, Ordering::AcqRel);
    }

    fn live(&self) -> Option<Channel> {
        let mut state = self.state.lock();
        if state.live.as_ref().is_some_and(|c| c.sender.is_closed()) {
            state.live = None;
        }
        let mut channel = state.live.clone()?;
        channel.token = state.token.clone();
        Some(channel)
    }

    /// A connection to a member, made now if there is none.
    pub async fn channel(&self) -> Result<Channel> {
        if self.closed.is_cancelled() {
            return Err(StoreError::Closed);
        }
        if let Some(channel) = self.live() {
            return Ok(channel);
        }
        let asked = Instant::now();
        let _turn = self.dialing.lock().await;
        if let Some(channel) = self.live() {
            return Ok(channel);
        }
        // Who dialled while this one waited has found nobody: that is this one's answer too.
        if let Some((_, error)) = self.state.lock().failed.clone().filter(|(at, _)| *at >= asked) {
            return Err(error);
        }
        match self.dial().await {
            Ok(channel) => Ok(channel),
            Err(error) => {
                let mut state = self.state.lock();
                state.failed = Some((Instant::now(), error.clone()));
                state.away_since.get_or_insert_with(Instant::now);
                Err(error)
            }
        }
    }

    /// Tries every endpoint once.
    async fn dial(&self) -> Result<Channel> {
        let first = self.state.lock().preferred;
        let mut why = Vec::new();
        for step in 0..self.options.endpoints.len() {
            let index = (first + step) % self.options.endpoints.len();
            match self.options.endpoints[index].dial(self.options.tls.as_ref()).await {
                Ok(sender) => match self.enter(index, sender).await {
                    Ok(channel) => return Ok(channel),
                    Err(e @ StoreError::Unavailable { .. }) => why.push(Chain(&e).to_string()),
                    Err(refused) => return Err(refused),
                },
                Err(e @ DialError::NoTls(_)) => {
                    return Err(StoreError::Backend {
                        context: "cannot use the datastore".into(),
                        source: Arc::new(e),
                    });
                }
                Err(e) => why.push(Chain(&e).to_string()),
            }
        }
        Err(unavailable("etcd cannot be reached", Words(why.join("; "))))
    }

    /// Logs in if there is a user, and makes the connection the one that is used.
    async fn enter(&self, index: usize, sender: SendRequest<Body>) -> Result<Channel> {
        let number = {
            let mut state = self.state.lock();
            state.connections += 1;
            state.connections
        };
        let mut channel = Channel { sender, origin: self.options.endpoints[index].origin(), token: None, number };
        channel.token.clone_from(&self.state.lock().token);
        if channel.token.is_none() {
            channel.token = self.log_in(channel.clone()).await?;
        }
        let mut state = self.state.lock();
        state.preferred = index;
        state.token.clone_from(&channel.token);
        state.live = Some(channel.clone());
        Ok(channel)
    }

    /// A token for the user; `None`: there is no user, or etcd asks for none.
    async fn log_in(&self, channel: Channel) -> Result<Option<HeaderValue>> {
        let Some(user) = &self.options.user else { return Ok(None) };
        let request = pb::AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
        let mut client = client!(channel, auth_client::AuthClient);
        let asked = tokio::time::timeout(BRIEF * 3, client.authenticate(request)).await;
        let status = match asked {
            Ok(Ok(answer)) => {
                let token = HeaderValue::from_str(&answer.into_inner().token).ok();
                return token.map(Some).ok_or_else(|| super::error::backend("cannot log in to etcd", "odd token"));
            }
            Ok(Err(status)) => status,
            Err(_) => return Err(unavailable("etcd does not let in", Words("no answer in time".into()))),
        };
        if status.message().contains("authentication is not enabled") {
            return Ok(None);
        }
        let text = status.message().to_owned();
        Err(match judge(status) {
            Verdict::Away | Verdict::NotSent => unavailable("etcd does not let in", Words(text)),
            _ => super::error::backend(format!("etcd does not let user {:?} in", user.name), text),
        })
    }

    /// The token is not taken any more: the next request logs in again.
    pub fn forget_token(&self, channel: &Channel) {
        let mut state = self.state.lock();
        if state.token == channel.token {
            state.token = None;
            state.live = None;
        }
    }

    /// This connection does not serve: the next request goes to another endpoint.
    pub fn abandon(&self, channel: &Channel) {
        let mut state = self.state.lock();
        if state.live.as_ref().is_some_and(|c| c.number == channel.number) {
            state.live = None;
            state.preferred = (state.preferred + 1) % self.options.endpoints.len();
        }
        state.away_since.get_or_insert_with(Instant::now);
    }

    pub fn served(&self) {
        let mut state = self.state.lock();
        state.failed = None;
        let since = state.away_since.take();
        if std::mem::take(&mut state.said) {
            let seconds = since.map_or(0, |since| since.elapsed().as_secs());
            tracing::warn!(seconds, "the datastore answers again");
        }
    }

    /// Away for so long that nobody waits for it.
    pub fn is_long_away(&self) -> bool {
        self.state.lock().away_since.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    /// Once for each time that it is away: who runs this server has to know.
    fn report(&self, failure: &StoreError) {
        if self.is_long_away() && !std::mem::replace(&mut self.state.lock().said, true) {
            tracing::error!(error = %Chain(failure), "the datastore is away");
        }
    }

    /// Asks a member, within the limit of a request. `what` is for messages.
    pub async fn call<T, F, Fut>(&self, what: &str, repeat: Repeat, ask: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.options.request_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            // It waited for a connection.
            let late = || {
                let late = unavailable(what, Words("no answer in time".into()));
                if repeat == Repeat::Never { late.not_done() } else { late }
            };
            let channel = match tokio::time::timeout(remaining, self.channel()).await {
                Ok(Ok(channel)) => Ok(channel),
                Ok(Err(e @ StoreError::Unavailable { .. })) => Err(e),
                Ok(Err(e)) => return Err(e),
                Err(_) => return Err(late()),
            };
            let failure = match channel {
                Ok(channel) => match self.attempt(what, channel, deadline, repeat, &ask).await {
                    Ok(answer) => return Ok(answer),
                    Err(Failed::ForGood(e)) => return Err(e),
                    Err(Failed::Again(e)) => e,
                },
                Err(e) => e,
            };
            self.report(&failure);
            if self.is_long_away() || Instant::now() + pause >= deadline {
                // What must not be repeated comes here only when it was not sent.
                return Err(if repeat == Repeat::Never { failure.not_done() } else { failure });
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.closed.cancelled() => return Err(StoreError::Closed),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt<T, F, Fut>(
        &self,
        what: &str,
        channel: Channel,
        deadline: Instant,
        repeat: Repeat,
        ask: &F,
    ) -> Result<T, Failed>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let whole = deadline.saturating_duration_since(Instant::now());
        let limit = match repeat {
            _ if self.is_long_away() => whole.min(BRIEF),
            // Room for another member.
            Repeat::Safe => whole.min(self.options.request_timeout / 2),
            Repeat::Never => whole,
        };
        let answered = tokio::select! {
            answered = tokio::time::timeout(limit, ask(channel.clone())) => answered,
            () = self.closed.cancelled() => return Err(Failed::ForGood(StoreError::Closed)),
        };
        let (error, sent) = match answered {
            Ok(Ok(answer)) => {
                self.served();
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) => {
                let away = |status: Status| unavailable(format!("{what} at {}", channel.place()), status);
                match judge(status.clone()) {
                    Verdict::Refused(e) => {
                        self.served();
                        return Err(Failed::ForGood(e));
                    }
                    Verdict::Token => {
                        self.forget_token(&channel);
                        return Err(Failed::Again(away(status)));
                    }
                    Verdict::NotSent => (away(status), false),
                    Verdict::Away => (away(status), true),
                }
            }
            Err(_) => {
                let words = format!("no answer within {} s", limit.as_secs_f32());
                (unavailable(format!("{what} at {}", channel.place()), Words(words)), true)
            }
        };
        self.abandon(&channel);
        match sent && repeat == Repeat::Never {
            true => Err(Failed::ForGood(error)),
            false => Err(Failed::Again(error)),
        }
    }

    /// Asks one endpoint in particular, on a connection of its own and without a limit.
    pub async fn call_at<T, F, Fut>(&self, what: &str, endpoint: &Endpoint, ask: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let away = |e: DialError| unavailable(what, e);
        let sender = endpoint.dial(self.options.tls.as_ref()).await.map_err(away)?;
        let mut channel = Channel { sender, origin: endpoint.origin(), token: None, number: 0 };
        channel.token = self.log_in(channel.clone()).await?;
        match ask(channel).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(match judge(status.clone()) {
                Verdict::Refused(e) => e,
                _ => unavailable(format!("{what} at {endpoint}"), status),
            }),
        }
    }
}

enum Failed {
    ForGood(StoreError),
    Again(StoreError),
}
