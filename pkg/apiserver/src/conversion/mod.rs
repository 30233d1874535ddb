//! Custom resources in the version that a request wants. What is stored and cached is in the version in which it was written;
//! an [`Entry`] in another version is made from it once, kept with it, and shared by all who read and watch that version.
//!
//! Invariants:
//! - Objects of built-in kinds, and of definitions with one version, are never touched here.
//! - No conversion holds up a cache or those who read another version: it is part of the request that needs it.
//! - Many objects are converted in few calls; of two lists that need the same the second waits for the first.

mod converter;
mod metrics;
mod undecodable;

pub use converter::Conversions;
pub use metrics::ConversionMetrics;

use crate::ApiServer;
use crate::cache::entry::Entry;
use crate::cache::resource::Change;
use converter::Converter;
use futures::{StreamExt, TryStreamExt};
use isopod_api::Status;
use isopod_kinds::Kind;
use isopod_kinds::custom::{Fault, Versions};
use serde_json::Value;
use std::sync::Arc;
use undecodable::Undecodable;

/// About as many bytes go into one call, and as many calls are made side by side, where many objects are converted.
const CALL_BYTES: usize = 1 << 20;
const CALLS: usize = 4;

/// The versions of a kind, where its objects may have to be converted.
fn several(kind: &Kind) -> Option<&Arc<Versions>> {
    kind.hooks.versions().filter(|v| v.several())
}

/// Whether objects of the kind may have to be converted one by one before anything but their names can be looked at.
pub fn converts(kind: &Kind) -> bool {
    several(kind).is_some()
}

impl ApiServer {
    /// The entry's object in the version of `kind`.
    pub(crate) async fn view(&self, kind: &Arc<Kind>, entry: &Arc<Entry>) -> Result<Arc<Entry>, Status> {
        self.seen(kind, entry).await.map_err(|e| e.of_object())
    }

    async fn seen(&self, kind: &Arc<Kind>, entry: &Arc<Entry>) -> Result<Arc<Entry>, Undecodable> {
        let Some(versions) = several(kind).filter(|_| !entry.is_of(kind)) else { return Ok(entry.clone()) };
        let cell = entry.view_cell(&kind.gvk.version);
        let make = || async {
            let converter = self.conversions.of(kind, versions);
            let made = converter.convert(self, vec![entry.unrevised()], &kind.gvk.version).await;
            let made = made.map_err(|e| Undecodable::new(kind, entry, e.message))?;
            made.first().and_then(|value| entry.converted(kind, value)).ok_or_else(|| no_object(kind, entry))
        };
        cell.get_or_try_init(make).await.cloned()
    }

    /// The entries' objects in the version of `kind`.
    pub(crate) async fn views(
        &self,
        kind: &Arc<Kind>,
        mut entries: Vec<Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let Some(versions) = several(kind) else { return Ok(entries) };
        let lacking = || entries.iter().filter(|e| !e.is_of(kind) && e.viewed(&kind.gvk.version).is_none());
        if lacking().nth(1).is_some() {
            let converter = self.conversions.of(kind, versions);
            let _turn = converter.turn.lock().await;
            let wanted: Vec<Arc<Entry>> = lacking().cloned().collect();
            self.convert_all(kind, &converter, wanted).await.map_err(|e| e.of_list(kind))?;
        }
        for entry in &mut entries {
            *entry = self.seen(kind, entry).await.map_err(|e| e.of_list(kind))?;
        }
        Ok(entries)
    }

    async fn convert_all(
        &self,
        kind: &Arc<Kind>,
        converter: &Converter,
        entries: Vec<Arc<Entry>>,
    ) -> Result<(), Undecodable> {
        let calls = portions(entries).into_iter().map(|portion| self.convert_portion(kind, converter, portion));
        futures::stream::iter(calls).buffer_unordered(CALLS).try_collect().await
    }

    async fn convert_portion(
        &self,
        kind: &Arc<Kind>,
        converter: &Converter,
        portion: Vec<Arc<Entry>>,
    ) -> Result<(), Undecodable> {
        let values = portion.iter().map(|e| e.unrevised()).collect();
        let made = match converter.convert(self, values, &kind.gvk.version).await {
            Ok(made) => made,
            Err(e) if e.fault == Fault::Call => return Err(Undecodable::new(kind, &portion[0], e.message)),
            // One by one, they tell which of them it is.
            Err(_) => {
                for entry in &portion {
                    self.seen(kind, entry).await?;
                }
                return Ok(());
            }
        };
        for (entry, value) in portion.iter().zip(&made) {
            let view = entry.converted(kind, value).ok_or_else(|| no_object(kind, entry))?;
            // Someone who needed this one alone may have been first.
            let _ = entry.view_cell(&kind.gvk.version).set(view);
        }
        Ok(())
    }

    /// A change as watchers of the version of `kind` see it.
    pub(crate) async fn change_view(&self, kind: &Arc<Kind>, change: &Arc<Change>) -> Result<Arc<Change>, Status> {
        let of_version = |e: &Option<Arc<Entry>>| e.as_ref().is_none_or(|e| e.is_of(kind));
        if !converts(kind) || of_version(&change.old) && of_version(&change.new) {
            return Ok(change.clone());
        }
        let make = || async {
            let both = change.old.iter().chain(&change.new).cloned().collect();
            let mut both = self.views(kind, both).await?.into_iter();
            let old = change.old.as_ref().and_then(|_| both.next());
            Ok(Arc::new(Change::new(change.revision, old, both.next())))
        };
        change.view_cell(&kind.gvk.version).get_or_try_init(make).await.cloned()
    }

    /// An object in another version of its kind, as it is stored or shown to others than its writer.
    pub(crate) async fn convert(&self, kind: &Kind, object: Value, version: &str) -> Result<Value, Status> {
        let Some(versions) = several(kind) else { return Ok(object) };
        let converter = self.conversions.of(kind, versions);
        let made = converter.convert(self, vec![object], version).await.map_err(|e| plain(e.message))?;
        made.into_iter().next().ok_or_else(|| Status::internal("the conversion of an object made none"))
    }
}

fn no_object(kind: &Kind, entry: &Entry) -> Undecodable {
    Undecodable::new(kind, entry, "what it was converted to is no object".to_owned())
}

/// An error that is no `Status` upstream.
fn plain(message: String) -> Status {
    let mut status = Status::new(500, "", message);
    status.details = None;
    status
}

/// What goes into one call each.
fn portions(entries: Vec<Arc<Entry>>) -> Vec<Vec<Arc<Entry>>> {
    let mut all: Vec<Vec<Arc<Entry>>> = Vec::new();
    let mut room = 0usize;
    for entry in entries {
        let size = entry.body.len();
        match all.last_mut().filter(|_| size <= room) {
            Some(portion) => portion.push(entry),
            None => {
                room = CALL_BYTES;
                all.push(vec![entry]);
            }
        }
        room = room.saturating_sub(size);
    }
    all
}
