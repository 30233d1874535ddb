//! Leader election among candidates on one lease, with an API server that can be cut off from one of them.

#![allow(clippy::unwrap_used)]

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use isopod_api::UserInfo;
use isopod_base::clock::Clock;
use isopod_client::election::{Election, Timing};
use isopod_client::in_process;
use kube::client::Body;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const TIMING: Timing = Timing {
    // Longer than what the lease says in whole seconds, which is what the others wait for.
    lease_duration: Duration::from_millis(1500),
    renew_deadline: Duration::from_millis(800),
    retry_period: Duration::from_millis(100),
};

/// One lease, written by compare-and-swap.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<(u64, Option<Value>)>>);

impl Server {
    fn lease(&self) -> Value {
        self.0.lock().unwrap().1.clone().unwrap_or_default()
    }

    fn client(&self, cut: Arc<AtomicBool>) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, cut) = (server.clone(), cut.clone());
            async move {
                if cut.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(server.answer(request).await)
            }
        });
        in_process(service, UserInfo::new("system:test", &[]))
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let method = request.method().clone();
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let mut state = self.0.lock().unwrap();
        let refuse = |code: u16, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}))
        };
        let (code, body) = match (method, &state.1) {
            (Method::GET, None) => refuse(404, "NotFound"),
            (Method::GET, Some(lease)) => (200, lease.clone()),
            (Method::POST, Some(_)) => refuse(409, "AlreadyExists"),
            (_, present) => {
                let mut lease: Value = serde_json::from_slice(&bytes).unwrap();
                let newest = present.as_ref().map(|l| l["metadata"]["resourceVersion"].clone());
                match newest.is_some_and(|newest| newest != lease["metadata"]["resourceVersion"]) {
                    true => refuse(409, "Conflict"),
                    false => {
                        state.0 += 1;
                        lease["metadata"]["resourceVersion"] = json!(state.0.to_string());
                        state.1 = Some(lease.clone());
                        (200, lease)
                    }
                }
            }
        };
        Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
    }
}

/// How many work, and how often anybody began.
#[derive(Default)]
struct Work {
    now: AtomicUsize,
    most: AtomicUsize,
    turns: AtomicUsize,
}

struct Candidate {
    election: Election,
    cut: Arc<AtomicBool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn candidate(server: &Server, host: &str, work: &Arc<Work>) -> Candidate {
    let cut = Arc::new(AtomicBool::new(false));
    let election = Election::new(server.client(cut.clone()), Clock::system(), "kube-scheduler", host, TIMING);
    let (stop, work) = (CancellationToken::new(), work.clone());
    let (token, elected) = (stop.clone(), election.clone());
    let task = tokio::spawn(async move {
        let works = |turn: CancellationToken| {
            let work = work.clone();
            async move {
                let now = work.now.fetch_add(1, Ordering::SeqCst) + 1;
                work.most.fetch_max(now, Ordering::SeqCst);
                work.turns.fetch_add(1, Ordering::SeqCst);
                turn.cancelled().await;
                work.now.fetch_sub(1, Ordering::SeqCst);
            }
        };
        elected.lead(token, works).await;
    });
    Candidate { election, cut, stop, task }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn one_works_and_the_next_takes_over() {
    let (server, work) = (Server::default(), Arc::new(Work::default()));
    let holder = || server.lease()["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
    let a = candidate(&server, "a", &work);
    until("a leads", || holder() == a.election.identity()).await;
    let b = candidate(&server, "b", &work);
    // Longer than a lease lives that is not renewed.
    tokio::time::sleep(TIMING.lease_duration * 2).await;
    assert_eq!((holder(), work.turns.load(Ordering::SeqCst)), (a.election.identity().to_owned(), 1), "it is renewed");

    a.cut.store(true, Ordering::SeqCst);
    until("b leads", || holder() == b.election.identity()).await;
    until("b works", || work.turns.load(Ordering::SeqCst) == 2).await;
    assert_eq!(server.lease()["spec"]["leaseTransitions"], 1);
    a.cut.store(false, Ordering::SeqCst);

    // One that is stopped gives the lease back: nobody waits until it expires.
    let began = tokio::time::Instant::now();
    b.stop.cancel();
    b.task.await.unwrap();
    until("a leads again", || holder() == a.election.identity()).await;
    assert!(began.elapsed() < TIMING.lease_duration, "{:?}", began.elapsed());
    a.stop.cancel();
    a.task.await.unwrap();
    assert_eq!(holder(), "");
    assert_eq!((work.now.load(Ordering::SeqCst), work.most.load(Ordering::SeqCst)), (0, 1), "never two at once");
}
