//! Events as an `EventList` to a server that a kubeconfig names.

use super::event::Event;
use super::{Counters, Sink};
use crate::remote::Remote;
use async_trait::async_trait;
use rand::Rng;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// How often a list is sent before it is given up, and how the time between grows: upstream's.
const ATTEMPTS: u32 = 5;
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct WebhookSink {
    pub remote: Remote,
    pub backoff: Duration,
    pub counters: Counters,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Metadata,
    items: Vec<&'a Event>,
}

#[derive(Serialize)]
struct Metadata {}

#[async_trait]
impl Sink for WebhookSink {
    async fn take(&self, events: Vec<Arc<Event>>) -> bool {
        let items = events.iter().map(Arc::as_ref).collect();
        let list = EventList { kind: "EventList", api_version: "audit.k8s.io/v1", metadata: Metadata {}, items };
        let body = serde_json::to_vec(&list).expect("events always encode into memory");
        let mut pause = self.backoff.as_secs_f64();
        for attempt in 1.. {
            let why = match self.remote.post(body.clone().into(), TIMEOUT).await {
                Ok((200..=299, _)) => break,
                Ok((code, _)) => format!("the webhook answered {code}"),
                Err(e) => isopod_base::errors::Chain(&e).to_string(),
            };
            if attempt >= ATTEMPTS {
                self.counters.failed("webhook", &why, &events);
                return false;
            }
            let jitter = 1.0 + JITTER * rand::rng().random::<f64>();
            tokio::time::sleep(Duration::from_secs_f64(pause * jitter)).await;
            pause *= FACTOR;
        }
        true
    }
}
