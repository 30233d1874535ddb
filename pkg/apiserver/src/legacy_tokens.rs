//! Since when the last use of tokens in secrets is recorded (KEP-2799): the date in a ConfigMap of `kube-system`. Who deletes
//! tokens that nobody uses (the controller `legacy-serviceaccount-token-cleaner`) must know that a token without a date of its
//! last use was not used since then.

use crate::candidate::update::Edit;
use crate::pipeline::{self, Intent};
use crate::stages::Stage;
use crate::{ApiServer, objects};
use isopod_api::{Status, time};
use isopod_store::{KeyRange, Watch, WatchMessage, WatchRequest};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";
/// It is not created more often, lest servers of different releases fight about it.
const CREATION: SignedDuration = SignedDuration::from_mins(30);
const AGAIN: Duration = Duration::from_secs(1);

/// Sees to it that the date is there, then keeps it so until the server stops.
pub async fn start(server: &Arc<ApiServer>) {
    let mut created = None;
    if let Err(e) = settle(server, &mut created).await {
        tracing::warn!(error = %e, "cannot write the config map {NAMESPACE}/{NAME}: trying again");
    }
    tokio::spawn(keep(Arc::downgrade(server), created));
    server.stages.done(Stage::TokenTracking);
}

async fn keep(weak: Weak<ApiServer>, mut created: Option<Timestamp>) {
    while let Some(server) = weak.upgrade() {
        let (clock, stop) = (server.config.clock.clone(), server.stop.clone());
        // The watch begins before the look: nothing is missed between the two.
        let watch = watch(&server).await;
        let next = settle(&server, &mut created).await;
        drop(server);
        let (watch, wait) = match (watch, next) {
            (Some(watch), Ok(wait)) => (Some(watch), wait),
            _ => (None, Some(AGAIN)),
        };
        let changed = async {
            match watch {
                Some(watch) => changed(watch).await,
                None => std::future::pending().await,
            }
        };
        let due = async {
            match wait {
                Some(wait) => clock.sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = due => {}
            () = stop.cancelled() => return,
        }
    }
}

fn intent(server: &ApiServer) -> Option<Intent> {
    let kind = server.registry.load().resource("", "configmaps").cloned()?;
    Some(server.intent(&kind, NAMESPACE, NAME))
}

async fn watch(server: &ApiServer) -> Option<Watch> {
    let key = objects::key(&intent(server)?.kind, NAMESPACE, NAME);
    server.config.store.watch(WatchRequest { range: KeyRange::key(key), start: 0 }).await.ok()
}

/// Returns when the config map has changed, or cannot be watched any more.
async fn changed(mut watch: Watch) {
    while let Some(Ok(message)) = watch.receiver.recv().await {
        if matches!(message, WatchMessage::Events(_, events) if !events.is_empty()) {
            return;
        }
    }
}

/// Creates or corrects the config map. The answer: when to look again, if it may not be created yet.
async fn settle(server: &ApiServer, created: &mut Option<Timestamp>) -> Result<Option<Duration>, Status> {
    let Some(intent) = intent(server) else { return Ok(None) };
    let today = time::format_date(intent.now);
    let Some(current) = server.current(&intent.kind, NAMESPACE, NAME).await? else {
        if let Some(wait) = wait(*created, intent.now) {
            return Ok(Some(wait));
        }
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": {SINCE: today},
        });
        match pipeline::create(server, &intent, &object).await {
            Err(e) if e.reason != "AlreadyExists" => return Err(e),
            _ => *created = Some(intent.now),
        }
        return Ok(None);
    };
    if is_dated(&current.value(&intent.kind)) {
        return Ok(None);
    }
    let edit = Edit(|object: &mut Value| {
        if !is_dated(object) {
            object["data"][SINCE] = today.as_str().into();
        }
        Ok(())
    });
    match pipeline::update(server, &intent, &edit).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(None),
    }
}

fn is_dated(object: &Value) -> bool {
    object["data"][SINCE].as_str().is_some_and(|date| time::parse_date(date).is_some())
}

/// How long it may not be created yet.
fn wait(created: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let left = CREATION - now.duration_since(created?);
    left.is_positive().then(|| left.unsigned_abs())
}
