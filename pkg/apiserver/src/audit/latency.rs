//! How long a request was where, for the annotations of one that took long (`apiserver/pkg/endpoints/request/webhook_duration.go`).
//!
//! Upstream tells also how long it decoded and transformed objects. Here they go out as the bytes that are stored.

use isopod_schema::scalar::duration_text;
use std::cell::Cell;
use std::time::Duration;

/// A request that took no longer is not annotated.
const THRESHOLD: Duration = Duration::from_millis(500);

/// Where a request spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Authentication,
    Impersonation,
    Authorization,
    /// Waiting for a seat of a priority level.
    Queue,
    MutatingWebhook,
    ValidatingWebhook,
    Storage,
    /// Writing an answer of many parts, and waiting for who reads it.
    Serialization,
}

impl Layer {
    const COUNT: usize = Layer::Serialization as usize + 1;
    const KEYS: [&str; Self::COUNT] = [
        "authentication",
        "impersonation",
        "authorization",
        "apf-queue-wait",
        "mutating-webhook",
        "validating-webhook",
        "etcd",
        "serialize-response-object",
    ];

    /// Whether it is no time of the server's own: it waits for others.
    pub fn is_elsewhere(self) -> bool {
        matches!(self, Layer::Queue | Layer::MutatingWebhook | Layer::ValidatingWebhook)
    }

    /// Adds to what the request of this task has spent elsewhere.
    pub fn count_elsewhere(self, took: Duration) {
        if !self.is_elsewhere() {
            return;
        }
        // What no request has asked for is nobody's time.
        let _ = ELSEWHERE.try_with(|spent| {
            let mut times = spent.get();
            times.add(self, took);
            spent.set(times);
        });
    }

    /// Whether of several times only the longest counts: they overlap.
    fn overlaps(self) -> bool {
        matches!(self, Layer::Authorization | Layer::Queue | Layer::ValidatingWebhook)
    }
}

tokio::task_local! {
    /// What a request has spent elsewhere: known without an audit policy too, and without an allocation.
    static ELSEWHERE: Cell<Latencies>;
}

/// Runs the handler of a request. Returns also how long it has waited for others: webhooks, and a seat.
pub async fn apart<T>(handler: impl Future<Output = T>) -> (T, Duration) {
    let handled = async {
        let done = handler.await;
        (done, ELSEWHERE.with(|spent| spent.get().0.iter().sum()))
    };
    ELSEWHERE.scope(Cell::default(), handled).await
}

/// The times of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latencies([Duration; Layer::COUNT]);

impl Latencies {
    pub fn add(&mut self, layer: Layer, took: Duration) {
        let so_far = &mut self.0[layer as usize];
        *so_far = if layer.overlaps() { took.max(*so_far) } else { *so_far + took };
    }

    /// What a request that took `total` is annotated with.
    pub fn annotations(&self, total: Duration) -> Vec<(String, String)> {
        if total <= THRESHOLD {
            return Vec::new();
        }
        let all = Layer::KEYS.into_iter().zip(self.0).chain([("total", total)]);
        let key = |name: &str| format!("apiserver.latency.k8s.io/{name}");
        all.filter(|(_, took)| !took.is_zero()).map(|(name, took)| (key(name), shown(took))).collect()
    }
}

fn shown(took: Duration) -> String {
    duration_text(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_elsewhere_is_told_apart() {
        let ms = Duration::from_millis;
        let (done, elsewhere) = apart(async {
            for (layer, took) in [
                (Layer::Queue, ms(10)),
                (Layer::Storage, ms(500)),
                (Layer::MutatingWebhook, ms(20)),
                (Layer::MutatingWebhook, ms(20)),
                (Layer::ValidatingWebhook, ms(5)),
                (Layer::ValidatingWebhook, ms(7)),
            ] {
                layer.count_elsewhere(took);
            }
            "done"
        })
        .await;
        assert_eq!((done, elsewhere), ("done", ms(57)));
        Layer::Queue.count_elsewhere(ms(1));
    }

    #[test]
    fn only_slow_requests_are_annotated() {
        let ms = Duration::from_millis;
        let mut latencies = Latencies::default();
        for (layer, took) in [
            (Layer::Authorization, ms(3)),
            (Layer::Authorization, ms(1)),
            (Layer::ValidatingWebhook, ms(20)),
            (Layer::ValidatingWebhook, ms(300)),
            (Layer::MutatingWebhook, ms(20)),
            (Layer::MutatingWebhook, ms(300)),
            (Layer::Storage, Duration::from_micros(1500)),
        ] {
            latencies.add(layer, took);
        }
        assert!(latencies.annotations(ms(500)).is_empty());
        let told: Vec<String> =
            latencies.annotations(ms(1501)).iter().map(|(key, value)| format!("{key}={value}")).collect();
        let wanted =
            ["authorization=3ms", "mutating-webhook=320ms", "validating-webhook=300ms", "etcd=1.5ms", "total=1.501s"];
        assert_eq!(told, wanted.map(|w| format!("apiserver.latency.k8s.io/{w}")));
    }
}
