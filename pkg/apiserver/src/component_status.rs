//! Component statuses (deprecated in v1.19): no objects, but what the datastore, the controller manager and the scheduler say when
//! they are asked for. One that does not run in this process is probed where upstream's listens on this machine.

use crate::ApiServer;
use crate::cache::entry::Entry;
use crate::encode::body::{self, List};
use crate::subresources::any_certificate;
use crate::verbs::Call;
use axum::response::Response;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use isopod_api::{Gvr, Status};
use isopod_base::errors::Chain;
use isopod_kinds::Kind;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a component may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// More of an answer is not shown.
const MAX_ANSWER: usize = 10 << 10;

const DATASTORE: &str = "etcd-0";
const CONTROLLER_MANAGER: (&str, u16) = ("controller-manager", 10257);
const SCHEDULER: (&str, u16) = ("scheduler", 10259);

/// The components of this process; `None`: there is no such one.
#[derive(Clone, Default)]
pub struct Components {
    pub controller_manager: Option<Running>,
    pub scheduler: Option<Running>,
}

/// Whether a part of this process is running now.
#[derive(Clone, Default)]
pub struct Running(Arc<AtomicUsize>);

/// The part runs as long as this lives.
pub struct Run(Arc<AtomicUsize>);

impl Running {
    pub fn begin(&self) -> Run {
        self.0.fetch_add(1, Ordering::AcqRel);
        Run(self.0.clone())
    }

    fn verdict(&self) -> Verdict {
        match self.0.load(Ordering::Acquire) {
            0 => Verdict::failure("it has ended and is being started again"),
            _ => Verdict::healthy("ok"),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The condition `Healthy`.
struct Verdict {
    status: &'static str,
    message: String,
    error: String,
}

impl Verdict {
    fn healthy(message: impl Into<String>) -> Self {
        Verdict { status: "True", message: message.into(), error: String::new() }
    }

    fn failure(message: impl Into<String>) -> Self {
        Verdict { status: "False", message: message.into(), error: String::new() }
    }

    fn object(&self, kind: &Kind, name: &str) -> Value {
        let mut condition = json!({"type": "Healthy", "status": self.status});
        for (key, text) in [("message", &self.message), ("error", &self.error)] {
            if !text.is_empty() {
                condition[key] = text.as_str().into();
            }
        }
        json!({"apiVersion": kind.gvk.api_version(), "kind": kind.gvk.kind, "metadata": {"name": name},
            "conditions": [condition]})
    }
}

/// Is a read of this kind a question?
pub fn is_asked_for(kind: &Kind) -> bool {
    kind.gvk.group.is_empty() && kind.gvk.kind == "ComponentStatus"
}

pub async fn list(server: &ApiServer, call: &Call) -> Result<Response, Status> {
    let form = call.list_form()?;
    let filter = call.filter()?;
    let all = tokio::join!(
        ask(server, &call.kind, CONTROLLER_MANAGER.0),
        ask(server, &call.kind, DATASTORE),
        ask(server, &call.kind, SCHEDULER.0),
    );
    let entries = [all.0, all.1, all.2].into_iter().flatten();
    let entries = entries.filter(|e| filter.matches(&call.kind, e)).map(Arc::new).collect();
    Ok(body::list(&call.kind, List { entries, ..List::default() }, &form, call.now).await)
}

pub async fn get(server: &ApiServer, call: &Call) -> Result<Response, Status> {
    let form = call.object_form()?;
    let name = &call.info.name;
    // Upstream names the resource so here.
    let resource = || Gvr { resource: "componentstatus".to_owned(), ..call.kind.gvr() };
    let entry = ask(server, &call.kind, name).await.ok_or_else(|| Status::not_found(&resource(), name))?;
    Ok(call.show(200, &entry, &form))
}

/// `None`: there is no such component.
async fn ask(server: &ApiServer, kind: &Kind, name: &str) -> Option<Entry> {
    let components = &server.config.components;
    let verdict = match name {
        DATASTORE => datastore(server).await,
        name if name == CONTROLLER_MANAGER.0 => component(&components.controller_manager, CONTROLLER_MANAGER.1).await,
        name if name == SCHEDULER.0 => component(&components.scheduler, SCHEDULER.1).await,
        _ => return None,
    };
    Some(Entry::made(name, &verdict.object(kind, name)))
}

async fn datastore(server: &ApiServer) -> Verdict {
    let error = match tokio::time::timeout(PATIENCE, server.config.store.revisions()).await {
        Ok(Ok(_)) => return Verdict::healthy("ok"),
        Ok(Err(e)) => Chain(&e).to_string(),
        Err(_) => "context deadline exceeded".to_owned(),
    };
    Verdict { error, ..Verdict::failure("") }
}

async fn component(here: &Option<Running>, port: u16) -> Verdict {
    match here {
        Some(running) => running.verdict(),
        None => probe(port).await,
    }
}

/// Asks who listens on a port of this machine, whose certificate nobody can check, for `/healthz`.
async fn probe(port: u16) -> Verdict {
    let url = format!("https://127.0.0.1:{port}/healthz");
    let failing = |why: String| Verdict::failure(format!("Get {url:?}: {why}"));
    match tokio::time::timeout(PATIENCE, healthz(port)).await {
        Ok(Ok((200..=399, text))) => Verdict::healthy(text),
        Ok(Ok((code, _))) => Verdict::failure(format!("HTTP probe failed with statuscode: {code}")),
        Ok(Err(why)) => failing(why),
        Err(_) => failing("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()),
    }
}

/// Code and text of the answer, or in Go's words why there is none.
async fn healthz(port: u16) -> Result<(u16, String), String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|e| {
        let why = match e.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            _ => e.to_string(),
        };
        format!("dial tcp 127.0.0.1:{port}: connect: {why}")
    })?;
    let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
    let connector = tokio_rustls::TlsConnector::from(any_certificate::config());
    let stream = connector.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let request =
        Request::get("/healthz").header(header::HOST, format!("127.0.0.1:{port}")).body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
    let code = answer.status().as_u16();
    let text = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
    Ok((code, String::from_utf8_lossy(&text.to_bytes()).into_owned()))
}
