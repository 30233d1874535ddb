//! What configuration objects say, ready for use. It is made anew when they change, not for each request.

use super::Request;
use crate::cache::entry::Entry;
use isopod_api::Status;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// What was made of each object of one resource of `admissionregistration.k8s.io`, in the order of their names.
pub struct Configured<T> {
    resource: &'static str,
    make: fn(&Value) -> Vec<T>,
    known: Mutex<Known<T>>,
}

struct Known<T> {
    /// From these objects …
    entries: Vec<Arc<Entry>>,
    /// … came these.
    made: Arc<Vec<T>>,
}

impl<T> Configured<T> {
    pub fn new(resource: &'static str, make: fn(&Value) -> Vec<T>) -> Self {
        let known = Known { entries: Vec::new(), made: Arc::new(Vec::new()) };
        Configured { resource, make, known: Mutex::new(known) }
    }

    /// As they were committed when admission began, or later.
    pub async fn get(&self, request: &Request<'_>) -> Result<Arc<Vec<T>>, Status> {
        let server = request.server;
        let kind = server.registry.load().resource("admissionregistration.k8s.io", self.resource).cloned();
        let Some(kind) = kind else { return Ok(Arc::new(Vec::new())) };
        let cache = server.hub.cache_at(&kind, &request.intent.moment).await?;
        let snapshot = cache.snapshot();
        let mut known = self.known.lock();
        let same = snapshot.entries.len() == known.entries.len()
            && snapshot.entries.values().zip(&known.entries).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            let entries: Vec<Arc<Entry>> = snapshot.entries.values().cloned().collect();
            known.made = Arc::new(entries.iter().flat_map(|e| (self.make)(&e.value())).collect());
            known.entries = entries;
        }
        Ok(known.made.clone())
    }
}
