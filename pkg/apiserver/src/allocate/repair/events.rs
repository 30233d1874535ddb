//! Events about what was found. What is found again and again is one Event with a series, as of upstream's recorder.

use super::plan::Finding;
use crate::ApiServer;
use crate::candidate::update::Edit;
use crate::pipeline;
use isopod_api::{Status, time};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What was told of one finding.
struct Told {
    finding: Finding,
    name: String,
    count: u64,
}

/// So much is told of one look; upstream drops what is beyond, too.
const MOST: usize = 1000;

/// What was found last, by [`Finding::key`].
#[derive(Default)]
pub struct Teller(BTreeMap<String, Told>);

impl Teller {
    /// Tells what was found now.
    pub async fn tell(&mut self, server: &ApiServer, found: BTreeMap<String, Finding>) {
        let mut before = std::mem::take(&mut self.0);
        for (n, (key, finding)) in (0..).zip(found.into_iter().take(MOST)) {
            // No two of one object have the same name, however coarse the clock is.
            let now = server.config.clock.now() + SignedDuration::from_nanos(n);
            let told = match before.remove(&key) {
                Some(told) => Told { count: told.count + 1, ..told },
                None => {
                    tracing::warn!(reason = finding.reason, regarding = %finding.regarding["name"], "{}", finding.note);
                    Told { name: name(&finding, now), count: 1, finding }
                }
            };
            if let Err(e) = write(server, &told, now).await {
                tracing::debug!(error = %e, "cannot write an event");
            }
            self.0.insert(key, told);
        }
    }
}

fn name(finding: &Finding, now: Timestamp) -> String {
    format!("{}.{:x}", finding.regarding["name"].as_str().unwrap_or_default(), now.as_nanosecond())
}

fn namespace(finding: &Finding) -> &str {
    finding.regarding["namespace"].as_str().unwrap_or("default")
}

async fn write(server: &ApiServer, told: &Told, now: Timestamp) -> Result<(), Status> {
    let event = event(told, &server.config.hostname, now);
    let Some(intent) = server.own_intent(&event) else { return Ok(()) };
    if told.count > 1 {
        let series = json!({"count": told.count, "lastObservedTime": time::format_micro(now)});
        let edit = Edit(|event: &mut Value| {
            event["series"] = series.clone();
            Ok(())
        });
        match pipeline::update(server, &intent, &edit).await {
            // It has had its time.
            Err(e) if e.code == 404 => {}
            other => return other.map(drop),
        }
    }
    pipeline::create(server, &intent, &event).await.map(drop)
}

fn event(told: &Told, hostname: &str, now: Timestamp) -> Value {
    let Finding { regarding, controller, reason, action, note } = &told.finding;
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": told.name, "namespace": namespace(&told.finding)},
        "eventTime": time::format_micro(now), "reportingController": controller,
        "reportingInstance": format!("{controller}-{hostname}"),
        "action": action, "reason": reason, "regarding": regarding, "note": note, "type": "Warning",
    })
}
