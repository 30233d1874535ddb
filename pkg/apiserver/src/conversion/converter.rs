//! Converts the objects of one definition, by its webhook if it names one.

use crate::ApiServer;
use crate::callout::Callout;
use futures::future::BoxFuture;
use isopod_kinds::Kind;
use isopod_kinds::custom::{Failed, Fault, Versions, Webhook};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Upstream gives a webhook as long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The converters of the definitions, by the prefix of their objects.
#[derive(Default)]
pub struct Conversions(Mutex<HashMap<String, Arc<Converter>>>);

impl Conversions {
    /// The converter of a definition as `versions` has it.
    pub(super) fn of(&self, kind: &Kind, versions: &Arc<Versions>) -> Arc<Converter> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(&kind.storage.prefix).filter(|c| Arc::ptr_eq(&c.versions, versions)) {
            return known.clone();
        }
        let made = Arc::new(Converter::new(versions.clone()));
        all.insert(kind.storage.prefix.clone(), made.clone());
        made
    }

    /// Forgets those of definitions that are gone.
    pub fn retain(&self, kinds: &[Arc<Kind>]) {
        let prefixes: HashSet<&str> = kinds.iter().map(|k| k.storage.prefix.as_str()).collect();
        self.0.lock().retain(|prefix, _| prefixes.contains(prefix.as_str()));
    }
}

pub struct Converter {
    versions: Arc<Versions>,
    callout: Option<Result<Callout, String>>,
    /// Held while many objects are converted.
    pub turn: tokio::sync::Mutex<()>,
}

impl Converter {
    fn new(versions: Arc<Versions>) -> Self {
        let callout = versions.webhook.as_ref().map(|w| Callout::new(&w.client));
        Converter { versions, callout, turn: tokio::sync::Mutex::default() }
    }

    /// The objects in a version.
    pub async fn convert(&self, server: &ApiServer, objects: Vec<Value>, version: &str) -> Result<Vec<Value>, Failed> {
        for object in &objects {
            let from = self.versions.version_of(object);
            if !self.versions.has(from) {
                let group = &self.versions.group;
                let message = format!("request to convert CR from an invalid group/version: {group}/{from}");
                return Err(Failed { fault: Fault::Call, message });
            }
        }
        let mut objects = match (&self.versions.webhook, &self.callout) {
            (Some(webhook), Some(callout)) => self.ask(server, webhook, callout, objects, version).await?,
            _ => return Ok(objects.into_iter().map(|o| self.renamed(o, version)).collect()),
        };
        objects.iter_mut().for_each(|object| self.versions.prune(object, version));
        Ok(objects)
    }

    fn renamed(&self, mut object: Value, version: &str) -> Value {
        self.versions.rename(&mut object, version);
        object
    }

    /// Asks the webhook about those objects that are not of the version yet.
    async fn ask(
        &self,
        server: &ApiServer,
        webhook: &Webhook,
        callout: &Result<Callout, String>,
        mut objects: Vec<Value>,
        version: &str,
    ) -> Result<Vec<Value>, Failed> {
        let places: Vec<usize> = objects
            .iter()
            .enumerate()
            .filter(|(_, o)| self.versions.version_of(o) != version)
            .map(|(i, _)| i)
            .collect();
        let Some(first) = places.first() else { return Ok(objects) };
        let from = self.versions.version_of(&objects[*first]).to_owned();
        let asked: Vec<Value> = places.iter().map(|i| objects[*i].take()).collect();
        let began = Instant::now();
        let api_version = self.versions.api_version(version);
        let answered = call(server, webhook, callout, &asked, &api_version).await;
        let fault = answered.as_ref().err().map(|e| e.fault);
        server.metrics.conversion.observe(&webhook.definition, [&from, version], fault, began.elapsed());
        for (place, object) in places.into_iter().zip(answered?) {
            objects[place] = object;
        }
        Ok(objects)
    }
}

/// Boxed: to find the webhook's service, objects are read, which is what this is a part of.
fn call<'a>(
    server: &'a ApiServer,
    webhook: &'a Webhook,
    callout: &'a Result<Callout, String>,
    objects: &'a [Value],
    api_version: &'a str,
) -> BoxFuture<'a, Result<Vec<Value>, Failed>> {
    Box::pin(async move {
        let uid = uuid::Uuid::new_v4().to_string();
        let question = webhook.question(&uid, objects, api_version)?;
        let callout = callout.as_ref().map_err(|e| Failed { fault: Fault::Call, message: e.clone() })?;
        let review = callout.post(server, &question, TIMEOUT).await;
        let review = review.map_err(|why| webhook.unanswered(objects, &why))?;
        webhook.answer(&uid, objects, api_version, review)
    })
}
