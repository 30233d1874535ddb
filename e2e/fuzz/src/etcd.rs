//! etcd's API over gRPC: any message to any method is answered, and the connection goes on.

use crate::parts;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::BodyExt;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isopod_etcd::{Config, Listener, Service};
use isopod_store::memory::MemoryStore;
use isopod_store::{Options, Store};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A server serves so many inputs: its memory keeps what they write.
const INPUTS: usize = 500;
/// So many calls of one input are made.
const CALLS: usize = 6;
/// Methods whose answers may go on: they are read for a moment.
const STREAMS: [&str; 5] = ["Watch", "LeaseKeepAlive", "Snapshot", "Observe", "ServerReflectionInfo"];
/// Methods that wait for others.
const WAITING: [&str; 3] = ["Lock", "Campaign", "health.v1.Health/Watch"];
const MOMENT: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    client: SendRequest<Body>,
    inputs: usize,
    runtime: Runtime,
    _stop: DropGuard,
    _directory: tempfile::TempDir,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime of one thread needs nothing");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let stop = CancellationToken::new();
        let client = runtime.block_on(async {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Options::default()));
            let config = Config { temporary_files: directory.path().to_owned(), ..Config::default() };
            let service = Service::new(store, config).await.expect("an empty store tells its alarms and users");
            let socket = directory.path().join("etcd");
            let listener = UnixListener::bind(&socket).expect("the directory is new");
            tokio::spawn(isopod_etcd::serve(service, vec![Listener::Unix(listener, None)], stop.clone()));
            let stream = UnixStream::connect(&socket).await.expect("it listens");
            let (client, connection) =
                handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            client
        });
        World { client, inputs: 0, runtime, _stop: stop.drop_guard(), _directory: directory }
    }

    /// The status and trailers of a call; `None`: it goes on.
    async fn call(client: &mut SendRequest<Body>, request: Request<Body>, patience: Duration) -> Option<HeaderMap> {
        let answered = async {
            client.ready().await.expect("the connection goes on");
            let response = client.send_request(request).await.expect("a request is answered");
            let mut headers = response.headers().clone();
            // A stream that the server ends early is no failure: its trailers are.
            let rest = response.into_body().collect().await;
            headers.extend(rest.ok().and_then(|r| r.trailers().cloned()).unwrap_or_default());
            headers
        };
        tokio::time::timeout(patience, answered).await.ok()
    }
}

/// The path of a method and, in the next lines, its message.
fn parsed(text: &[u8]) -> Option<(Uri, Vec<u8>)> {
    let end = text.iter().position(|c| *c == b'\n')?;
    let path = std::str::from_utf8(&text[..end]).ok().filter(|p| p.starts_with('/'))?;
    let uri = format!("http://etcd{path}").parse().ok()?;
    let message = &text[end + 1..];
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    Some((uri, framed))
}

/// A few calls, one after another.
pub fn calls(data: &[u8]) {
    let all: Vec<_> = parts(data).into_iter().take(CALLS).filter_map(parsed).collect();
    if all.is_empty() {
        return;
    }
    WORLD.with_borrow_mut(|slot| {
        if slot.as_ref().is_some_and(|w| w.inputs >= INPUTS) {
            *slot = None;
        }
        let world = slot.get_or_insert_with(World::new);
        world.inputs += 1;
        let World { client, runtime, .. } = world;
        runtime.block_on(async {
            for (uri, framed) in all {
                let method = uri.path().to_owned();
                let waits = STREAMS.iter().chain(&WAITING).any(|s| method.ends_with(s));
                let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
                let request = request.body(Body::from(Bytes::from(framed))).expect("the request is well formed");
                let answer = World::call(client, request, if waits { MOMENT } else { PATIENCE }).await;
                match answer {
                    Some(headers) => {
                        let is_grpc =
                            headers.get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
                        assert!(!is_grpc || waits || headers.contains_key("grpc-status"), "{method}: {headers:?}");
                    }
                    None => assert!(waits, "{method} is not answered"),
                }
            }
        });
    });
}
