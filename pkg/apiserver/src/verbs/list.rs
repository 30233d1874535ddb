//! LIST: which revision is read (KEP-2523, "resourceVersion parameter" in the API concepts), and pages of it. The cache
//! answers wherever its content is that of the wanted revision; the store's history answers the rest.

use super::Call;
use super::token::Continue;
use crate::ApiServer;
use crate::cache::entry::{Entry, Filter};
use crate::cache::resource::{Cache, Snapshot};
use crate::cache::{store_status, too_large};
use crate::conversion;
use crate::encode::body::{self, List};
use crate::encode::negotiate::Media;
use crate::metrics::Storage;
use crate::objects;
use crate::options::{ListOptions, Match};
use axum::response::Response;
use isopod_api::Status;
use isopod_kinds::Kind;
use isopod_store::{KeyRange, KeyValue, RangeRequest, Revision, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
/// How many keys one read of the history asks for at least.
const BATCH: usize = 500;

pub async fn list(server: &ApiServer, call: &Call) -> Result<Response, Status> {
    let form = call.list_form()?;
    let options = ListOptions::parse(&call.query, false)?;
    let filter = call.filter()?;
    if form.media == Media::Protobuf {
        server.hub.keep_messages();
    }
    objects::check_namespace(&call.kind, &filter.namespace, "")?;
    let list = read(server, call, &filter, &options).await?;
    Ok(body::list(&call.kind, list, &form, call.now).await)
}

/// Reads what the options ask for.
async fn read(server: &ApiServer, call: &Call, filter: &Filter, options: &ListOptions) -> Result<List, Status> {
    let kind = &call.stored_kind(server);
    let newest = options.continue_token.is_empty() && options.resource_version.is_none();
    // Looked at before the content: what comes in between must not count as seen.
    let at_hand = server.hub.revision();
    let (cache, revision) = match newest {
        true => server.hub.fresh_cache(kind).await?,
        false => (server.hub.cache(kind).await?, at_hand),
    };
    let page = Page { server, cache: &cache, kind: Seen::new(kind, &call.kind), filter, limit: options.limit };
    if !options.continue_token.is_empty() {
        if options.resource_version.is_some_and(|v| v != 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token = Continue::decode(&options.continue_token)?;
        // A negative revision means: the rest of the list, as it is now.
        if token.revision < 0 {
            let (cache, revision) = server.hub.fresh_cache(kind).await?;
            return Page { cache: &cache, ..page }.of_snapshot(&cache.snapshot(), revision, &token.start).await;
        }
        return page.at(token.revision, &token.start).await.map_err(|e| match e.code {
            410 => outdated(token),
            _ => e,
        });
    }
    match (options.resource_version, options.version_match) {
        (None, _) => page.of_snapshot(&cache.snapshot(), revision, "").await,
        // What is at hand is sent whole: from its cache, which has no Events, upstream has never kept a limit.
        (Some(0), _) if kind.storage.gvk.kind == "Event" => page.of_snapshot(&cache.snapshot(), revision, "").await,
        (Some(0), _) => Page { limit: 0, ..page }.of_snapshot(&cache.snapshot(), revision, "").await,
        (Some(revision), Some(Match::Exact)) => page.at(revision, "").await,
        // Without a match, a limit has always meant the exact revision.
        (Some(revision), None) if options.limit > 0 => page.at(revision, "").await,
        (Some(revision), _) => {
            server.hub.wait_for_client(revision).await?;
            let (cache, revision) = server.hub.fresh_cache(kind).await?;
            Page { cache: &cache, ..page }.of_snapshot(&cache.snapshot(), revision, "").await
        }
    }
}

/// The revision of a token is compacted away: the client may go on at its key with what is there now.
fn outdated(token: Continue) -> Status {
    let mut status = Status::expired(TOO_OLD);
    status.continue_token = Continue { revision: -1, start: token.start }.encode();
    status
}

/// The kind that is cached, and the version that is wanted of it.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    stored: &'a Arc<Kind>,
    wanted: &'a Arc<Kind>,
    converts: bool,
}

impl<'a> Seen<'a> {
    pub fn new(stored: &'a Arc<Kind>, wanted: &'a Arc<Kind>) -> Self {
        Seen { stored, wanted, converts: conversion::converts(stored) }
    }

    /// What changes are to be told of: one that leaves the filter when it is converted is left out then.
    pub fn of_changes(&self, filter: &Filter) -> Filter {
        if self.converts { filter.of_names() } else { filter.clone() }
    }

    /// Whether an entry may match: before it is converted, only its name tells.
    fn may_match(&self, filter: &Filter, entry: &Entry) -> bool {
        if self.converts { filter.matches_name(self.stored, entry) } else { filter.matches(self.stored, entry) }
    }

    /// Those of many entries that match, in the wanted version.
    pub async fn select<'e>(
        &self,
        server: &ApiServer,
        filter: &Filter,
        entries: impl Iterator<Item = &'e Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let entries = entries.filter(|e| self.may_match(filter, e)).cloned().collect();
        self.matching(server, filter, entries).await
    }

    /// Those entries that match of those that may, in the wanted version.
    async fn matching(
        &self,
        server: &ApiServer,
        filter: &Filter,
        entries: Vec<Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        if !self.converts {
            return Ok(entries);
        }
        let mut seen = server.views(self.wanted, entries).await?;
        seen.retain(|e| filter.matches(self.wanted, e));
        Ok(seen)
    }
}

struct Page<'a> {
    server: &'a ApiServer,
    cache: &'a Arc<Cache>,
    kind: Seen<'a>,
    filter: &'a Filter,
    limit: usize,
}

impl Page<'_> {
    /// The prefix that continue tokens are relative to: that of the namespace, or of the resource.
    fn base(&self) -> String {
        match (self.kind.stored.namespaced, self.filter.namespace.as_str()) {
            (true, namespace) if !namespace.is_empty() => format!("{namespace}/"),
            _ => String::new(),
        }
    }

    fn counts_remaining(&self) -> bool {
        self.filter.labels.is_everything() && self.filter.fields.is_everything()
    }

    /// From cached content that stands for `revision` or newer.
    async fn of_snapshot(&self, snapshot: &Snapshot, revision: Revision, start: &str) -> Result<List, Status> {
        let revision = revision.max(snapshot.revision);
        self.of_entries(snapshot, revision, start).await
    }

    async fn of_entries(&self, snapshot: &Snapshot, revision: Revision, start: &str) -> Result<List, Status> {
        let (base, prefix) = (self.base(), self.filter.key_prefix(self.kind.stored));
        let from: Arc<str> = if start.is_empty() { prefix.as_str().into() } else { format!("{base}{start}").into() };
        let mut list = List { revision, ..Default::default() };
        let rest = snapshot.entries.range(from..).take_while(|(k, _)| k.starts_with(prefix.as_str()));
        let may_match = |(_, e): &(&Arc<str>, &Arc<Entry>)| self.kind.may_match(self.filter, e);
        let fetched = AtomicUsize::new(0);
        let mut rest = rest.inspect(|_| {
            fetched.fetch_add(1, Ordering::Relaxed);
        });
        let read = || fetched.load(Ordering::Relaxed);
        if self.limit == 0 {
            list.entries = self.kind.select(self.server, self.filter, rest.map(|(_, e)| e)).await?;
            self.count(Storage::Cache, read(), &list);
            return Ok(list);
        }
        // One more than is wanted tells that there is more.
        let wanted = self.limit.saturating_add(1);
        while list.entries.len() < wanted {
            let lacking = wanted - list.entries.len();
            let some: Vec<Arc<Entry>> = rest.by_ref().filter(may_match).take(lacking).map(|(_, e)| e.clone()).collect();
            if some.is_empty() {
                self.count(Storage::Cache, read(), &list);
                return Ok(list);
            }
            list.entries.extend(self.kind.matching(self.server, self.filter, some).await?);
        }
        list.entries.truncate(self.limit);
        // What is only counted is not read.
        let read = read();
        let remaining = self.counts_remaining().then(|| rest.count() as u64 + 1);
        self.more(&mut list, &base, remaining);
        self.count(Storage::Cache, read, &list);
        Ok(list)
    }

    fn count(&self, from: Storage, fetched: usize, list: &List) {
        self.server.hub.metrics.listed(self.kind.stored, from, fetched, list.entries.len());
    }

    fn more(&self, list: &mut List, base: &str, remaining: Option<u64>) {
        let Some(last) = list.entries.last() else { return };
        let relative = last.key.strip_prefix(base).unwrap_or(&last.key);
        list.continue_token = Continue::after(relative, list.revision).encode();
        list.remaining = remaining;
    }

    /// At exactly this revision.
    async fn at(&self, revision: Revision, start: &str) -> Result<List, Status> {
        let (cache, newest) = self.server.hub.fresh_cache(&self.cache.kind).await?;
        if revision > newest {
            return Err(too_large(revision, newest));
        }
        let snapshot = cache.snapshot();
        // Nothing has changed since: the content is that of the revision.
        if snapshot.revision <= revision {
            return self.of_entries(&snapshot, revision, start).await;
        }
        self.of_history(revision, start).await
    }

    async fn of_history(&self, revision: Revision, start: &str) -> Result<List, Status> {
        let (base, prefix) =
            (self.base(), format!("{}{}", self.cache.kind.storage.keys, self.filter.key_prefix(self.kind.stored)));
        let mut range = KeyRange::prefix(prefix.clone());
        if !start.is_empty() {
            range.start = format!("{}{base}{start}", self.cache.kind.storage.keys).into();
        }
        let (mut list, mut fetched) = (List { revision, ..Default::default() }, 0);
        loop {
            let mut request = RangeRequest::new(range.clone());
            request.revision = revision;
            request.limit = if self.limit == 0 { 0 } else { (self.limit + 1).max(BATCH) };
            let read = self.server.config.store.range(request);
            let read = self.server.hub.datastore.asked("list", &self.cache.kind, read).await.map_err(|e| match e {
                StoreError::Compacted { .. } => {
                    Status::expired("The resourceVersion for the provided list is too old.")
                }
                e => store_status(e),
            })?;
            fetched += read.kvs.len();
            let entries = read.kvs.iter().filter_map(|kv| self.cache.entry(&kv.key, &kv.value, kv.mod_revision));
            let entries = entries.filter(|e| self.kind.may_match(self.filter, e)).collect();
            for entry in self.kind.matching(self.server, self.filter, entries).await? {
                if self.limit > 0 && list.entries.len() == self.limit {
                    let after = |kv: &&KeyValue| {
                        kv.key.strip_prefix(self.cache.kind.storage.keys.as_bytes()) < Some(entry.key.as_bytes())
                    };
                    let before = read.kvs.iter().take_while(after).count() as u64;
                    let remaining = self.counts_remaining().then(|| read.count - before);
                    self.more(&mut list, &base, remaining);
                    self.count(Storage::History, fetched, &list);
                    return Ok(list);
                }
                list.entries.push(entry);
            }
            match read.kvs.last() {
                Some(last) if read.more => range.start = [&last.key[..], b"\0"].concat().into(),
                _ => {
                    self.count(Storage::History, fetched, &list);
                    return Ok(list);
                }
            }
        }
    }
}
