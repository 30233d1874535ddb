//! One client: a connection that is made again whenever it is lost, and what it asks for.

use crate::convert;
use crate::record::Recorder;
use crate::wishes::Wishes;
use etcd_client::{Client, CompactionOptions, ConnectOptions, Error, LeaseGrantOptions};
use isopod_history::{Answer, Outcome, Refusal, Request};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After this long a client gives up: the outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

pub struct Connection {
    endpoints: Vec<String>,
    /// The next endpoint to try.
    next: usize,
    client: Option<Client>,
}

impl Connection {
    pub fn new(endpoints: Vec<String>, first: usize) -> Self {
        Connection { endpoints, next: first, client: None }
    }

    /// A connection to one server: the crate's own balancing over several would hide which one was asked.
    pub async fn client(&mut self) -> Option<Client> {
        if let Some(client) = &self.client {
            return Some(client.clone());
        }
        let endpoint = &self.endpoints[self.next % self.endpoints.len()];
        self.next += 1;
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(1))
            .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2))
            .with_keep_alive_while_idle(true);
        let connecting = Client::connect([endpoint], Some(options));
        match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(Ok(client)) => {
                self.client = Some(client.clone());
                Some(client)
            }
            _ => {
                tokio::time::sleep(PAUSE).await;
                None
            }
        }
    }

    pub fn lose(&mut self) {
        self.client = None;
    }

    /// `None`: it was not sent.
    pub async fn ask(&mut self, request: &Request) -> Option<Outcome> {
        let client = self.client().await?;
        let outcome = match tokio::time::timeout(PATIENCE, send(client, request)).await {
            Ok(Ok(answer)) => Outcome::Answered(answer),
            Ok(Err(e)) => refused(&e),
            Err(_) => Outcome::Unknown,
        };
        if outcome == Outcome::Unknown {
            self.lose();
        }
        Some(outcome)
    }
}

async fn send(mut client: Client, request: &Request) -> Result<Answer, Error> {
    match request {
        Request::Get(get) => {
            let (key, options) = convert::get(get);
            client.get(key, Some(options)).await.map(|r| convert::get_answer(&r))
        }
        Request::Txn(txn) => client.txn(convert::txn(txn)).await.map(|r| convert::txn_answer(&r)),
        Request::Grant { lease, ttl, .. } => {
            let seconds = (ttl / 1_000_000_000) as i64;
            let options = LeaseGrantOptions::new().with_id(*lease);
            let granted = client.lease_grant(seconds, Some(options)).await?;
            Ok(Answer::Done { revision: convert::revision(granted.header()) })
        }
        Request::Revoke { lease } => {
            let revoked = client.lease_revoke(*lease).await?;
            Ok(Answer::Done { revision: convert::revision(revoked.header()) })
        }
        Request::KeepAlive { lease } => {
            let (mut keeper, mut answers) = client.lease_keep_alive(*lease).await?;
            // The crate keeps the first answer to itself.
            keeper.keep_alive().await?;
            let answer = answers.message().await?;
            Ok(Answer::Done { revision: answer.map_or(0, |a| convert::revision(a.header())) })
        }
        Request::Compact { revision } => {
            let compacted = client.compact(*revision, None::<CompactionOptions>).await?;
            Ok(Answer::Done { revision: convert::revision(compacted.header()) })
        }
    }
}

/// Did the server say that nothing was done?
fn refused(error: &Error) -> Outcome {
    let status = match error {
        Error::GRpcStatus(status) => status,
        // The crate's own word.
        Error::LeaseKeepAliveError(text) if text == "lease not found" => {
            return Outcome::Refused(Refusal::LeaseNotFound);
        }
        _ => return Outcome::Unknown,
    };
    let text = status.message();
    // By their numbers in gRPC: what a server says of the request, and not of its own state.
    // InvalidArgument, NotFound, AlreadyExists, PermissionDenied, ResourceExhausted, FailedPrecondition, OutOfRange.
    if ![3, 5, 6, 7, 8, 9, 11].contains(&(status.code() as i32)) {
        return Outcome::Unknown;
    }
    let known = [
        ("has been compacted", Refusal::Compacted),
        ("is a future revision", Refusal::Future),
        ("lease not found", Refusal::LeaseNotFound),
        ("lease already exists", Refusal::LeaseExists),
    ];
    let found = known.into_iter().find(|(part, _)| text.contains(part)).map(|(_, refusal)| refusal);
    Outcome::Refused(found.unwrap_or_else(|| Refusal::Other(text.to_owned())))
}

pub async fn run(
    mut wishes: Wishes,
    mut connection: Connection,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    rate: u32,
) {
    let pause = Duration::from_secs(1) / rate.max(1);
    while !stop.is_cancelled() {
        let turn = tokio::time::Instant::now() + pause;
        let newest = recorder.newest.load(Ordering::SeqCst);
        let witnessed = recorder.witnessed.load(Ordering::SeqCst);
        let request = wishes.request(newest, witnessed);
        if let Some(outcome) = recorder.operation(wishes.client, request, &mut connection).await {
            wishes.hear(&outcome);
        }
        tokio::time::sleep_until(turn).await;
    }
}
