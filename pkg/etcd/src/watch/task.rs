//! One watch: carries what the store tells to the stream, in the form that its client asked for.

use super::Out;
use super::progress::Share;
use crate::convert;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::mvccpb;
use crate::service::{REQUEST_OVERHEAD, Service};
use crate::status;
use isopod_store::{Event, EventKind, KeyRange, Revision, StoreError, Watch, WatchMessage, WatchRequest};
use prost::Message as _;
use rand::Rng;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Events of several transactions go in one answer up to about this size.
const BATCH_BYTES: usize = 256 << 10;

pub(super) struct Options {
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    no_put: bool,
    no_delete: bool,
}

impl Options {
    pub fn new(request: &pb::WatchCreateRequest) -> Self {
        let filtered = |f: FilterType| request.filters.contains(&(f as i32));
        Options {
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            no_put: filtered(FilterType::Noput),
            no_delete: filtered(FilterType::Nodelete),
        }
    }

    fn wants(&self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

/// Why a watch ended.
enum End {
    /// The client is gone, or the server stops: nobody is told.
    Silent,
    Cancelled,
    Compacted(Revision),
    Failed(Status),
}

pub(super) struct Task {
    service: Service,
    out: Out,
    id: i64,
    range: KeyRange,
    /// The first revision that was asked for.
    start: Revision,
    /// The first revision that has not been delivered.
    next: Revision,
    options: Options,
    shares: mpsc::UnboundedReceiver<Share>,
    /// Rounds that wait for the store's word.
    pending: Vec<Share>,
    /// The client is to be told of progress by the clock.
    due: bool,
    /// Nothing was sent since the clock struck.
    quiet: bool,
}

impl Task {
    pub fn new(
        service: Service,
        out: Out,
        id: i64,
        range: KeyRange,
        start: Revision,
        options: Options,
        shares: mpsc::UnboundedReceiver<Share>,
    ) -> Self {
        Task {
            service,
            out,
            id,
            range,
            start,
            next: start,
            options,
            shares,
            pending: Vec::new(),
            due: false,
            quiet: true,
        }
    }

    pub async fn run(mut self, cancel: CancellationToken) {
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => End::Cancelled,
            end = self.follow() => end,
        };
        let answer = pb::WatchResponse { watch_id: self.id, canceled: true, ..Default::default() };
        match end {
            End::Silent => {}
            End::Cancelled => self.say(answer).await,
            End::Compacted(compact_revision) => {
                // etcd tells no other revision.
                let header = Some(self.service.header(0));
                let _ = self.out.send(Ok(pb::WatchResponse { header, compact_revision, ..answer })).await;
            }
            End::Failed(status) => {
                let _ = self.out.send(Err(status)).await;
            }
        }
        self.shares.close();
        while let Ok(share) = self.shares.try_recv() {
            self.pending.push(share);
        }
        for share in self.pending {
            share.leave(&self.service, &self.out).await;
        }
    }

    async fn say(&self, answer: pb::WatchResponse) {
        if let Ok(header) = self.service.newest().await {
            let _ = self.out.send(Ok(pb::WatchResponse { header, ..answer })).await;
        }
    }

    /// Watches, and again where the store ended the watch for falling behind.
    async fn follow(&mut self) -> End {
        loop {
            let request = WatchRequest { range: self.range.clone(), start: self.next };
            let error = match self.service.store.watch(request).await {
                Ok(watch) => match self.deliver(watch).await {
                    Ok(()) => return End::Silent,
                    Err(e) => e,
                },
                Err(e) => e,
            };
            match error {
                StoreError::WatchOverrun => {}
                StoreError::Compacted { compacted, .. } => return End::Compacted(compacted),
                StoreError::Closed => return End::Failed(status::stopped()),
                other => return End::Failed(status::of(other)),
            }
        }
    }

    /// `Ok`: the client is gone.
    async fn deliver(&mut self, mut watch: Watch) -> Result<(), StoreError> {
        if self.due || !self.pending.is_empty() {
            (watch.request_progress)();
        }
        let mut clock = Clock::start(&self.service, self.options.progress_notify);
        loop {
            tokio::select! {
                message = watch.receiver.recv() => {
                    // Without a word the channel ends when the store does.
                    let Some(message) = message else { return Err(StoreError::Closed) };
                    if !self.message(message?, &mut watch).await? {
                        return Ok(());
                    }
                    // A wish that found the channel full was put aside: events went first.
                    if !self.pending.is_empty() && watch.receiver.is_empty() {
                        (watch.request_progress)();
                    }
                }
                Some(share) = self.shares.recv() => {
                    self.pending.push(share);
                    (watch.request_progress)();
                }
                () = clock.strikes() => {
                    if std::mem::replace(&mut self.quiet, true) {
                        self.due = true;
                        (watch.request_progress)();
                    }
                }
            }
        }
    }

    /// Sends a message, and the ones that wait behind it as long as they are events. False: the client is gone.
    async fn message(&mut self, first: WatchMessage, watch: &mut Watch) -> Result<bool, StoreError> {
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut message = first;
        loop {
            match message {
                WatchMessage::Events(rev, list) => {
                    for event in list.iter().filter(|e| self.options.wants(e)) {
                        let event = convert::event(event, self.options.prev_kv);
                        bytes += event.encoded_len();
                        events.push(event);
                    }
                    self.next = rev + 1;
                }
                WatchMessage::Progress(rev) => {
                    return Ok(self.send(std::mem::take(&mut events)).await && self.progress(rev).await);
                }
            }
            if bytes >= BATCH_BYTES {
                return Ok(self.send(events).await);
            }
            match watch.receiver.try_recv() {
                Ok(Ok(next)) => message = next,
                Ok(Err(e)) => {
                    return if self.send(events).await { Err(e) } else { Ok(false) };
                }
                Err(_) => return Ok(self.send(events).await),
            }
        }
    }

    /// Everything before `self.next`.
    async fn send(&mut self, events: Vec<mvccpb::Event>) -> bool {
        if events.is_empty() {
            return true;
        }
        self.quiet = false;
        let header = Some(self.service.header(self.next - 1));
        let whole = pb::WatchResponse { header, watch_id: self.id, events, ..Default::default() };
        if !self.options.fragment {
            return self.out.send(Ok(whole)).await.is_ok();
        }
        for part in fragments(whole, self.service.config.max_request_bytes + REQUEST_OVERHEAD) {
            if self.out.send(Ok(part)).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn progress(&mut self, rev: Revision) -> bool {
        if rev + 1 < self.start {
            // There is none before the watch begins. The stream's round ends without an answer, as in etcd.
            self.due = false;
            self.pending.clear();
            return true;
        }
        self.next = self.next.max(rev + 1);
        if std::mem::take(&mut self.due) {
            let header = Some(self.service.header(rev));
            let answer = pb::WatchResponse { header, watch_id: self.id, ..Default::default() };
            if self.out.send(Ok(answer)).await.is_err() {
                return false;
            }
        }
        for share in std::mem::take(&mut self.pending) {
            share.give(rev, &self.service, &self.out).await;
        }
        true
    }
}

/// When to think of progress. Spread a little: watches begin together when a client restarts.
struct Clock(Option<tokio::time::Interval>);

impl Clock {
    fn start(service: &Service, wanted: bool) -> Self {
        let interval = service.config.watch_progress_notify_interval;
        let spread = interval.mul_f64(rand::rng().random_range(0.0..0.1));
        let period = (interval + spread).max(Duration::from_millis(100));
        Clock(wanted.then(|| tokio::time::interval_at(Instant::now() + period, period)))
    }

    async fn strikes(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Splits an answer between events so that each part is smaller than `max`, where a single event lets it.
fn fragments(whole: pb::WatchResponse, max: usize) -> Vec<pb::WatchResponse> {
    if whole.events.len() < 2 || whole.encoded_len() < max {
        return vec![whole];
    }
    let empty = pb::WatchResponse { events: Vec::new(), ..whole.clone() };
    let head = empty.encoded_len();
    let mut parts: Vec<pb::WatchResponse> = Vec::new();
    let mut bytes = usize::MAX;
    for event in whole.events {
        // A tag and a length come before each event.
        let size = event.encoded_len() + 11;
        if bytes.saturating_add(size) >= max {
            parts.push(pb::WatchResponse { fragment: true, ..empty.clone() });
            bytes = head;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.events.push(event);
        }
    }
    if let Some(last) = parts.last_mut() {
        last.fragment = false;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(sizes: &[usize]) -> pb::WatchResponse {
        let event = |n: &usize| mvccpb::Event {
            kv: Some(mvccpb::KeyValue { value: vec![b'x'; *n].into(), ..Default::default() }),
            ..Default::default()
        };
        pb::WatchResponse { watch_id: 7, events: sizes.iter().map(event).collect(), ..Default::default() }
    }

    #[test]
    fn answers_are_split_between_events() {
        let shape = |sizes: &[usize]| -> Vec<(usize, bool)> {
            fragments(answer(sizes), 100).iter().map(|p| (p.events.len(), p.fragment)).collect()
        };
        assert_eq!(shape(&[10, 10]), [(2, false)]);
        assert_eq!(shape(&[200]), [(1, false)], "one event is not split");
        assert_eq!(shape(&[40, 40, 40]), [(1, true), (1, true), (1, false)]);
        assert_eq!(shape(&[10, 10, 200, 10]), [(2, true), (1, true), (1, false)]);
        let parts = fragments(answer(&[20; 50]), 100);
        assert!(parts.iter().all(|p| p.encoded_len() < 100 && p.watch_id == 7));
        assert_eq!(parts.iter().map(|p| p.events.len()).sum::<usize>(), 50);
    }
}
