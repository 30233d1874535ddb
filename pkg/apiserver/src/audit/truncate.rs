//! Events that are too large lose their bodies; what is too large even so is not recorded.

use super::event::{Event, Level};
use super::settings::Truncation;
use super::{Counters, Sink};
use async_trait::async_trait;
use std::sync::Arc;

pub struct Truncated {
    pub inner: Box<dyn Sink>,
    pub limits: Truncation,
    pub counters: Counters,
}

fn size(event: &Event) -> usize {
    event.json_line().len()
}

fn without_bodies(event: &Event) -> Event {
    let mut event = Event { request_object: None, response_object: None, ..event.clone() };
    event.annotations.insert("audit.k8s.io/truncated".into(), "true".into());
    event
}

#[async_trait]
impl Sink for Truncated {
    async fn take(&self, events: Vec<Arc<Event>>) -> bool {
        let (mut batch, mut sum, mut all) = (Vec::new(), 0, true);
        for mut event in events {
            let mut bytes = size(&event);
            if bytes > self.limits.max_event_size && event.level >= Level::Request {
                event = Arc::new(without_bodies(&event));
                bytes = size(&event);
            }
            if bytes > self.limits.max_event_size {
                self.counters.failed("truncate", "event is too large even after truncating", &[event]);
                continue;
            }
            if !batch.is_empty() && sum + bytes > self.limits.max_batch_size {
                all &= self.inner.take(std::mem::take(&mut batch)).await;
                sum = 0;
            }
            sum += bytes;
            batch.push(event);
        }
        if !batch.is_empty() {
            all &= self.inner.take(batch).await;
        }
        all
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use serde_json::value::RawValue;

    struct Kept(Arc<Mutex<Vec<Vec<Arc<Event>>>>>);

    #[async_trait]
    impl Sink for Kept {
        async fn take(&self, events: Vec<Arc<Event>>) -> bool {
            self.0.lock().push(events);
            true
        }
    }

    #[tokio::test]
    async fn large_events_lose_their_bodies_and_larger_ones_are_dropped() {
        let kept = Arc::new(Mutex::default());
        let small = size(&Event::default());
        let limits = Truncation { enabled: true, max_event_size: small + 100, max_batch_size: 2 * small + 150 };
        let sink = Truncated { inner: Box::new(Kept(kept.clone())), limits, counters: Counters::default() };
        let body = RawValue::from_string(format!("{:?}", "x".repeat(200))).unwrap();
        let with_body = Event { level: Level::Request, request_object: Some(body), ..Default::default() };
        let too_large = Event { user_agent: "x".repeat(200), level: Level::Request, ..Default::default() };
        let events = vec![Event::default(), with_body, too_large, Event::default()];
        assert!(sink.take(events.into_iter().map(Arc::new).collect()).await);
        let kept = kept.lock();
        assert_eq!(kept.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert!(kept[0][1].request_object.is_none() && kept[0][1].annotations["audit.k8s.io/truncated"] == "true");
        assert_eq!(sink.counters.errors.get_or_create(&super::super::PluginLabels { plugin: "truncate" }).get(), 1);
    }
}
