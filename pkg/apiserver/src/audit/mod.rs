//! Auditing: who asked for what, when, and what came of it, recorded as a policy says and kept in a log or sent to a webhook.
//!
//! [`Trail`] follows one request through the chain; [`Policy`] says how much of it is recorded; [`Sink`]s take the events.
//!
//! Invariants: without a policy a request pays for nothing of this; bodies are looked at only at the levels that record them;
//! what is recorded of an answer was in it.

mod answer;
mod batch;
mod event;
mod latency;
mod log;
mod policy;
mod rotation;
mod settings;
mod trail;
mod truncate;
mod webhook;

pub use answer::Shown;
pub use event::Level;
pub use latency::{Layer, apart};
pub use settings::{AuditError, Batching, Log, Mode, Settings, Truncation, Webhook};
pub use trail::{Ends, Trail};

use async_trait::async_trait;
use event::Event;
use futures::future::join_all;
use policy::Policy;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Takes events.
#[async_trait]
trait Sink: Send + Sync {
    /// False: not all of them were kept.
    async fn take(&self, events: Vec<Arc<Event>>) -> bool;

    /// Returns when what was taken is where it belongs.
    async fn close(&self) {}
}

/// The policy, and where events go.
pub struct Audit {
    policy: Policy,
    sinks: Vec<Box<dyn Sink>>,
    /// Last events of answers that end while nobody waits for them.
    ending: TaskTracker,
    /// No further end is waited for.
    closing: CancellationToken,
    pub(crate) counters: Counters,
}

impl Audit {
    /// `None`: nothing is to be recorded. Reads the policy and opens the log.
    pub fn open(settings: &Settings) -> Result<Option<Arc<Self>>, AuditError> {
        settings.open().map(|audit| audit.map(Arc::new))
    }

    /// Hands events to every sink. False: one could not keep them and insists.
    async fn record(&self, event: Arc<Event>) -> bool {
        self.counters.events.inc();
        join_all(self.sinks.iter().map(|s| s.take(vec![event.clone()]))).await.into_iter().all(|kept| kept)
    }

    /// Sends what is still on its way.
    pub async fn close(&self) {
        self.closing.cancel();
        self.ending.close();
        self.ending.wait().await;
        join_all(self.sinks.iter().map(|s| s.close())).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    level: &'static str,
}

/// `apiserver_audit_*`.
#[derive(Clone, Default)]
pub struct Counters {
    events: Counter,
    errors: Family<PluginLabels, Counter>,
    levels: Family<LevelLabels, Counter>,
    rejected: Counter,
}

impl Counters {
    pub fn register(&self, registry: &mut Registry) {
        let help = "Counter of audit events generated and sent to the audit backend";
        registry.register("apiserver_audit_event", help, self.events.clone());
        let help = "Counter of audit events that failed to be audited properly, by the plugin affected";
        registry.register("apiserver_audit_error", help, self.errors.clone());
        let help = "Counter of policy levels for audit events (1 per request)";
        registry.register("apiserver_audit_level", help, self.levels.clone());
        let help = "Counter of apiserver requests rejected due to an error in audit logging backend";
        registry.register("apiserver_audit_requests_rejected", help, self.rejected.clone());
    }

    /// Events that a plugin could not keep: counted, and told to the server's own log.
    fn failed(&self, plugin: &'static str, why: &str, events: &[Arc<Event>]) {
        self.errors.get_or_create(&PluginLabels { plugin }).inc_by(events.len() as u64);
        for event in events {
            tracing::error!(plugin, why, event = event.legacy_line(), "an audit event was not recorded");
        }
    }
}
