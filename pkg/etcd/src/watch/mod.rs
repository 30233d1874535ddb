//! The service `Watch`: many watches on one stream.
//!
//! One task reads what the client asks for, one task runs each watch, all write to one queue. A full queue holds up the watch
//! that fills it, not the store: a watch that the store ends for falling behind reads on from history.

mod progress;
mod task;

use crate::auth::Credentials;
use crate::convert;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::service::Service;
use crate::status;
use futures::stream::{BoxStream, StreamExt};
use isopod_store::KeyRange;
use progress::{Round, Share};
use std::collections::HashMap;
use task::{Options, Task};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// "No watch": of answers that are about none, or about all.
const NO_WATCH: i64 = -1;
/// Answers that wait for the connection.
const QUEUE: usize = 16;

pub(crate) type Out = mpsc::Sender<Result<pb::WatchResponse, Status>>;

#[tonic::async_trait]
impl pb::watch_server::Watch for Service {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (out, mut answers) = mpsc::channel(QUEUE);
        let shown = Credentials::of(&request);
        let session = Session { service: self.clone(), shown, out, watches: HashMap::new(), next_id: 0 };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(futures::stream::poll_fn(move |cx| answers.poll_recv(cx)).boxed()))
    }
}

struct Running {
    cancel: CancellationToken,
    progress: mpsc::UnboundedSender<Share>,
}

/// One stream. Its watches are there until the client cancels them.
struct Session {
    service: Service,
    shown: Credentials,
    out: Out,
    watches: HashMap<i64, Running>,
    next_id: i64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.watches.values().for_each(|w| w.cancel.cancel());
    }
}

impl Session {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        let (out, stop) = (self.out.clone(), self.service.stop.clone());
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                () = out.closed() => return,
                () = stop.cancelled() => {
                    let _ = out.send(Err(status::stopped())).await;
                    return;
                }
            };
            let handled = match request {
                Ok(Some(request)) => self.handle(request).await,
                // The client asks for nothing more: its watches go on.
                Ok(None) => {
                    tokio::select! {
                        () = out.closed() => {}
                        () = stop.cancelled() => {}
                    }
                    return;
                }
                Err(_) => return,
            };
            if let Err(e) = handled {
                let _ = out.send(Err(e)).await;
                return;
            }
        }
    }

    async fn handle(&mut self, request: pb::WatchRequest) -> Result<(), Status> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(r)) => self.create(r).await,
            Some(RequestUnion::CancelRequest(r)) => self.cancel(r.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress().await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn say(&self, response: pb::WatchResponse) -> Result<(), Status> {
        let header = self.service.newest().await?;
        // A client that went away is noticed by the caller.
        let _ = self.out.send(Ok(pb::WatchResponse { header, ..response })).await;
        Ok(())
    }

    async fn refuse(&self, reason: &str) -> Result<(), Status> {
        let cancel_reason = reason.to_owned();
        self.say(pb::WatchResponse {
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason,
            ..Default::default()
        })
        .await
    }

    async fn create(&mut self, mut request: pb::WatchCreateRequest) -> Result<(), Status> {
        if request.key.is_empty() {
            // The smallest key there is.
            request.key = b"\0".as_slice().into();
        }
        if request.start_revision < 0 {
            return self.refuse(status::compacted().message()).await;
        }
        let range = convert::key_range(request.key.clone(), request.range_end.clone());
        if let Err(e) = self.service.caller(&self.shown).await.and_then(|c| c.check_read(&range)) {
            return match e.code() {
                // The store does not answer.
                Code::Unavailable => Err(e),
                code => self.refuse(&format!("rpc error: code = {code:?} desc = {}", e.message())).await,
            };
        }
        let open = request.range_end[..] == b"\0"[..];
        if !request.range_end.is_empty() && !open && request.range_end <= request.key {
            return self.refuse("mvcc: watcher range is empty").await;
        }
        let Some(id) = self.choose_id(request.watch_id) else {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream").await;
        };
        // Taken before the client hears of the watch: what it writes then is seen.
        let newest = self.service.revision().await?;
        let options = Options::new(&request);
        let range: KeyRange = convert::key_range(request.key, request.range_end);
        let next = if request.start_revision > 0 { request.start_revision } else { newest + 1 };
        // The revision after which the watch begins, and not one that was reached meanwhile: who loses the watch before its
        // first event goes on from here.
        let header = Some(self.service.header(newest));
        let created = pb::WatchResponse { header, watch_id: id, created: true, ..Default::default() };
        let _ = self.out.send(Ok(created)).await;
        let (progress, shares) = mpsc::unbounded_channel();
        let cancel = CancellationToken::new();
        let task = Task::new(self.service.clone(), self.out.clone(), id, range, next, options, shares);
        tokio::spawn(task.run(cancel.clone()));
        self.watches.insert(id, Running { cancel, progress });
        Ok(())
    }

    /// `None`: the client's choice is taken. 0 is no choice.
    fn choose_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.watches.contains_key(&wanted)).then_some(wanted);
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// The watch itself says that it has ended: after its last event. One that was ended by a compaction keeps its id until
    /// now, as in etcd.
    async fn cancel(&mut self, id: i64) -> Result<(), Status> {
        if let Some(watch) = self.watches.remove(&id) {
            if watch.progress.is_closed() {
                return self.say(pb::WatchResponse { watch_id: id, canceled: true, ..Default::default() }).await;
            }
            watch.cancel.cancel();
            // Its place is free when it is gone.
            watch.progress.closed().await;
        }
        Ok(())
    }

    /// One answer for all watches, once the slowest has come to where the store was.
    async fn progress(&mut self) {
        let running = || self.watches.values().filter(|w| !w.progress.is_closed());
        let round = Round::new(running().count());
        for watch in running() {
            if let Err(unsent) = watch.progress.send(Share::new(&round)) {
                unsent.0.leave(&self.service, &self.out).await;
            }
        }
    }
}
