//! A watch that outlives connections: it goes on at the next revision, on whichever member serves.
//!
//! Each watch has a stream of its own. On a shared one etcd answers the wish for progress only when every watch of the stream
//! has caught up, so that one that reads history would silence the others.
//!
//! Invariants:
//! - Every event comes once and in order: what is at `next` or later has not been delivered, everything before it has.
//! - A reader that is slow holds nobody up: its stream is given up, and opened again when it has read.

use super::cluster::{Channel, Cluster, client};
use super::error::{Verdict, Words, is_about_the_token, judge, unavailable};
use super::messages;
use super::revisions::Revisions;
use crate::pb::etcdserverpb as pb;
use isopod_base::errors::Chain;
use isopod_store::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

/// Messages that wait for the reader.
const BUFFER: usize = 256;
/// A reader may keep the stream waiting for so long.
const SLOW: Duration = Duration::from_secs(1);
/// How long a stream may take to be opened.
const OPENING: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// etcd does not answer a wish for progress while the watch reads history: it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

type Reader = mpsc::Sender<Result<WatchMessage>>;

/// A stream with one watch on it.
struct Stream {
    answers: Streaming<pb::WatchResponse>,
    requests: mpsc::Sender<pb::WatchRequest>,
    channel: Channel,
    /// The member's revision when the watch was made.
    revision: Revision,
    cluster_id: u64,
}

/// What the task that keeps a watch knows.
struct Keeper {
    cluster: Arc<Cluster>,
    revisions: Arc<Revisions>,
    range: KeyRange,
    next: Revision,
    cluster_id: u64,
    /// A revision that the history certainly has.
    proven: Revision,
    reader: Reader,
    wishes: mpsc::UnboundedReceiver<()>,
    /// Progress is wished for and not said yet.
    wished: bool,
    /// How often etcd was asked since the newest wish.
    asked: u32,
}

/// Why the keeper reads a stream no longer.
enum End {
    /// Nobody listens.
    Dropped,
    /// Open another one.
    Broken,
    Failed(StoreError),
}

pub(super) async fn start(cluster: Arc<Cluster>, revisions: Arc<Revisions>, req: WatchRequest) -> Result<Watch> {
    let stream = first(&cluster, &req).await?;
    let next = if req.start > 0 { req.start } else { stream.revision + 1 };
    let (reader, receiver) = mpsc::channel(BUFFER);
    let (wish, wishes) = mpsc::unbounded_channel();
    let keeper = Keeper {
        cluster,
        revisions,
        range: req.range,
        next,
        cluster_id: stream.cluster_id,
        proven: stream.revision,
        reader,
        wishes,
        wished: false,
        asked: 0,
    };
    tokio::spawn(keeper.run(stream));
    let request_progress = Arc::new(move || {
        let _ = wish.send(());
    });
    Ok(Watch { receiver, request_progress })
}

/// Opens the watch, with another try where a member does not serve.
async fn first(cluster: &Arc<Cluster>, req: &WatchRequest) -> Result<Stream> {
    let deadline = tokio::time::Instant::now() + cluster.options.request_timeout;
    loop {
        let error = match open(cluster, &req.range, req.start).await {
            Err(e @ StoreError::Unavailable { .. }) => e,
            other => return other,
        };
        if tokio::time::Instant::now() + ASK_AGAIN >= deadline || cluster.is_long_away() {
            return Err(error);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn open(cluster: &Arc<Cluster>, range: &KeyRange, start: Revision) -> Result<Stream> {
    let channel = tokio::time::timeout(OPENING, cluster.channel());
    let channel = channel.await.map_err(|_| unavailable("cannot watch", Words("no connection in time".into())))??;
    let opened = tokio::time::timeout(OPENING, create(channel.clone(), range, start)).await;
    let failure = match opened {
        Ok(Ok(stream)) => {
            cluster.served();
            return not_compacted(cluster, stream, range, start).await;
        }
        Ok(Err(status)) => match judge(status.clone()) {
            Verdict::Refused(e) => return Err(e),
            Verdict::Token => {
                cluster.forget_token(&channel);
                return Err(unavailable("cannot watch", status));
            }
            Verdict::Away | Verdict::NotSent => unavailable(format!("cannot watch at {}", channel.place()), status),
        },
        Err(_) => unavailable(format!("cannot watch at {}", channel.place()), Words("no answer in time".into())),
    };
    cluster.abandon(&channel);
    Err(failure)
}

/// Opens the stream and waits for the watch to be made.
async fn create(channel: Channel, range: &KeyRange, start: Revision) -> Result<Stream, Status> {
    let (requests, mut sent) = mpsc::channel(4);
    let create = pb::WatchCreateRequest {
        key: range.start.clone(),
        range_end: range.end.clone(),
        start_revision: start,
        prev_kv: true,
        ..Default::default()
    };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let _ = requests.try_send(pb::WatchRequest { request_union: Some(create) });
    let mut request = Request::new(futures::stream::poll_fn(move |cx| sent.poll_recv(cx)));
    // A member that loses the others ends the stream.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let mut client = client!(channel.clone(), watch_client::WatchClient);
    let mut answers = client.watch(request).await?.into_inner();
    let ended = || Status::unavailable("the stream ended");
    let made = answers.message().await?.ok_or_else(ended)?;
    if made.canceled {
        return Err(refusal(&made));
    }
    let cluster_id = made.header.as_ref().map_or(0, |h| h.cluster_id);
    Ok(Stream { answers, requests, channel, revision: messages::revision(&made.header), cluster_id })
}

/// A watch that etcd ends, as the status that it would be elsewhere.
fn refusal(answer: &pb::WatchResponse) -> Status {
    if answer.compact_revision > 0 {
        return crate::status::compacted();
    }
    match answer.cancel_reason.as_str() {
        reason if is_about_the_token(reason) => Status::unauthenticated(reason),
        reason if reason.contains("permission denied") => Status::permission_denied(reason),
        "" => Status::unavailable("etcd ended the watch"),
        reason => Status::unavailable(reason),
    }
}

/// etcd says only later on the stream that the history before a watch is gone. Who asks shall know at once.
async fn not_compacted(
    cluster: &Arc<Cluster>,
    mut stream: Stream,
    range: &KeyRange,
    start: Revision,
) -> Result<Stream> {
    if start == 0 || start > stream.revision {
        return Ok(stream);
    }
    let request = pb::RangeRequest {
        key: range.start.clone(),
        revision: start,
        count_only: true,
        serializable: true,
        ..Default::default()
    };
    let mut reader = client!(stream.channel.clone(), kv_client::KvClient);
    let compacted = match tokio::time::timeout(OPENING, reader.range(request)).await {
        Ok(Err(status)) => matches!(judge(status), Verdict::Refused(StoreError::Compacted { .. })),
        _ => false,
    };
    if !compacted {
        return Ok(stream);
    }
    let mut known = 0;
    while let Ok(Ok(Some(answer))) = tokio::time::timeout(SLOW, stream.answers.message()).await {
        if answer.canceled {
            known = answer.compact_revision;
            break;
        }
    }
    cluster.note_compacted(known);
    Err(StoreError::Compacted { requested: start, compacted: known })
}

/// Finds out how far the history is compacted: a watch from the beginning is told, unless it gets to the end.
pub(super) async fn learn_compacted(cluster: &Arc<Cluster>) -> Result<()> {
    let channel = cluster.channel().await?;
    let range = KeyRange::key(cluster.options.probe_key.clone());
    let failed = |status| unavailable("cannot watch", status);
    let mut stream = tokio::time::timeout(OPENING, create(channel, &range, 1))
        .await
        .map_err(|_| unavailable("cannot watch", Words("no answer in time".into())))?
        .map_err(failed)?;
    let asking = async {
        loop {
            let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
            let _ = stream.requests.try_send(pb::WatchRequest { request_union: Some(progress) });
            match tokio::time::timeout(ASK_AGAIN, stream.answers.message()).await {
                Ok(Ok(Some(answer))) if answer.canceled => return Ok(answer.compact_revision),
                Ok(Ok(Some(answer))) if answer.events.is_empty() => return Ok(0),
                Ok(Ok(Some(_))) | Err(_) => {}
                Ok(Ok(None)) => return Err(failed(Status::unavailable("the stream ended"))),
                Ok(Err(status)) => return Err(failed(status)),
            }
        }
    };
    // Not to know it harms nobody.
    if let Ok(known) = tokio::time::timeout(OPENING, asking).await {
        cluster.note_compacted(known?);
    }
    Ok(())
}

impl Keeper {
    async fn run(mut self, first: Stream) {
        let mut stream = first;
        loop {
            let end = self.read(&mut stream).await;
            match end {
                End::Dropped => return,
                End::Failed(e) => return self.fail(e).await,
                End::Broken => drop(stream),
            }
            stream = match self.again().await {
                Ok(stream) => stream,
                Err(End::Failed(e)) => return self.fail(e).await,
                Err(_) => return,
            };
        }
    }

    async fn fail(&self, error: StoreError) {
        let _ = self.reader.send(Err(error)).await;
    }

    /// Reads a stream to its end.
    async fn read(&mut self, stream: &mut Stream) -> End {
        let mut ask_at = self.wished.then(tokio::time::Instant::now);
        loop {
            let asking = async move {
                match ask_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = stream.answers.message() => {
                    let answer = match answer {
                        Ok(Some(answer)) => answer,
                        Ok(None) => return End::Broken,
                        Err(status) => return self.broken(&stream.channel, status),
                    };
                    match self.take(answer, &stream.channel).await {
                        Ok(()) => {}
                        Err(end) => return end,
                    }
                    if !self.wished {
                        ask_at = None;
                    }
                }
                Some(()) = self.wishes.recv() => {
                    while self.wishes.try_recv().is_ok() {}
                    (self.wished, self.asked) = (true, 0);
                    ask_at = Some(tokio::time::Instant::now());
                }
                () = asking => match self.ask(stream).await {
                    Ok(()) => ask_at = self.wished.then(|| tokio::time::Instant::now() + ASK_AGAIN),
                    Err(end) => return end,
                },
                () = self.reader.closed() => return End::Dropped,
                () = self.cluster.closed.cancelled() => return End::Failed(StoreError::Closed),
            }
        }
    }

    /// Asks for progress. etcd says nothing of a watch that begins after its newest revision: that one has seen all.
    async fn ask(&mut self, stream: &Stream) -> Result<(), End> {
        self.asked += 1;
        if self.asked > 1
            && let Ok(Ok(newest)) = tokio::time::timeout(SLOW, self.revisions.newest(&self.cluster)).await
            && newest < self.next
        {
            self.wished = false;
            return self.say(WatchMessage::Progress(newest)).await;
        }
        let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        // A full queue has the same wish in it.
        let _ = stream.requests.try_send(pb::WatchRequest { request_union: Some(progress) });
        Ok(())
    }

    fn broken(&self, channel: &Channel, status: Status) -> End {
        match judge(status.clone()) {
            Verdict::Refused(e) => return End::Failed(e),
            Verdict::Token => self.cluster.forget_token(channel),
            Verdict::Away | Verdict::NotSent => {
                tracing::debug!(error = %Chain(&status), "a watch at etcd broke; opening it again");
                self.cluster.abandon(channel);
            }
        }
        End::Broken
    }

    async fn take(&mut self, answer: pb::WatchResponse, channel: &Channel) -> Result<(), End> {
        if answer.canceled {
            if answer.compact_revision > 0 {
                self.cluster.note_compacted(answer.compact_revision);
                let (requested, compacted) = (self.next, answer.compact_revision);
                return Err(End::Failed(StoreError::Compacted { requested, compacted }));
            }
            return Err(self.broken(channel, refusal(&answer)));
        }
        let revision = messages::revision(&answer.header);
        if answer.events.is_empty() && !answer.created {
            // One from before the watch has caught up says nothing.
            if revision + 1 >= self.next {
                // An answer to what was asked before the newest wish leaves that open.
                self.wished &= self.asked == 0;
                self.say(WatchMessage::Progress(revision)).await?;
                self.next = revision + 1;
                self.proven = self.proven.max(revision);
            }
            return Ok(());
        }
        let events: Vec<Event> = answer.events.into_iter().filter_map(messages::event).collect();
        for transaction in events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
            let revision = transaction[0].kv.mod_revision;
            if revision >= self.next {
                self.say(WatchMessage::Events(revision, transaction.into())).await?;
                self.next = revision + 1;
                self.proven = self.proven.max(revision);
            }
        }
        Ok(())
    }

    /// Hands a message to the reader. One that keeps the stream waiting loses it; the message is not lost.
    async fn say(&self, message: WatchMessage) -> Result<(), End> {
        match tokio::time::timeout(SLOW, self.reader.reserve()).await {
            Ok(Ok(place)) => {
                place.send(Ok(message));
                Ok(())
            }
            Ok(Err(_)) => Err(End::Dropped),
            Err(_) => Err(End::Broken),
        }
    }

    /// Opens the watch again where it was, when the reader has room.
    async fn again(&mut self) -> Result<Stream, End> {
        let closed = self.cluster.closed.clone();
        let reader = self.reader.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                places = reader.reserve_many(BUFFER / 2) => drop(places.map_err(|_| End::Dropped)?),
                () = closed.cancelled() => return Err(End::Failed(StoreError::Closed)),
            }
            let error = match self.reopen().await {
                Ok(stream) => return Ok(stream),
                Err(e @ StoreError::Unavailable { .. }) => e,
                Err(e) => return Err(End::Failed(e)),
            };
            tracing::debug!(error = %Chain(&error), "cannot open a watch at etcd again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = reader.closed() => return Err(End::Dropped),
                () = closed.cancelled() => return Err(End::Failed(StoreError::Closed)),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The history must be the one that was watched: a cluster that was restored from a backup has another.
    async fn reopen(&self) -> Result<Stream> {
        let stream = open(&self.cluster, &self.range, self.next).await?;
        if stream.cluster_id != self.cluster_id {
            let compacted = self.next.max(stream.revision);
            return Err(StoreError::Compacted { requested: self.next, compacted });
        }
        // A member may be behind; the cluster may not.
        if stream.revision < self.proven {
            let newest = self.revisions.newest(&self.cluster).await?;
            if newest < self.proven {
                return Err(StoreError::FutureRevision { requested: self.next, newest });
            }
        }
        Ok(stream)
    }
}
