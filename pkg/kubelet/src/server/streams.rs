//! `/exec`, `/attach`, `/portForward` and `/run`: the runtime's streams joined to a client's.

use super::{Endpoints, Refused, logs};
use crate::kubelet::Kubelet;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use isopod_base::errors::Chain;
use isopod_runtime::{ContainerState, SandboxState, Streams, TerminalSize};
use isopod_streaming::exit::Outcome;
use isopod_streaming::{ForwardedPort, Options, RemoteCommand, port_forward as forward, remote_command};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

type Params = Path<HashMap<String, String>>;
type Pairs = Vec<(String, String)>;

fn param<'a>(params: &'a HashMap<String, String>, name: &str) -> &'a str {
    params.get(name).map_or("", String::as_str)
}

/// The kubelet's names and the API's.
fn stream_options(pairs: &Pairs) -> Options {
    let on =
        |names: [&str; 2]| pairs.iter().any(|(k, v)| names.contains(&k.as_str()) && matches!(v.as_str(), "1" | "true"));
    Options {
        stdin: on(["input", "stdin"]),
        stdout: on(["output", "stdout"]),
        stderr: on(["error", "stderr"]),
        tty: on(["tty", "tty"]),
    }
}

fn command(pairs: &Pairs) -> Vec<String> {
    pairs.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect()
}

/// The id of the running container that the path names.
async fn running(kubelet: &Kubelet, params: &HashMap<String, String>) -> Result<String, Refused> {
    let pod = kubelet.find_pod(param(params, "namespace"), param(params, "pod"))?;
    let name = param(params, "container");
    kubelet.find_container(&pod, name)?;
    let state = logs::pod_state(&*kubelet.shared.runtime, &pod).await?;
    match state.latest(name) {
        Some(c) if c.state == ContainerState::Running => Ok(c.id.clone()),
        _ => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({name:?})"))),
    }
}

fn refused(r: isopod_streaming::Refusal) -> Response {
    r.response()
}

pub async fn exec(
    State(state): State<Endpoints>,
    Path(params): Params,
    Query(pairs): Query<Pairs>,
    mut request: Request,
) -> Result<Response, Refused> {
    let id = running(&state.kubelet, &params).await?;
    let command = command(&pairs);
    if command.is_empty() {
        return Err(Refused(StatusCode::BAD_REQUEST, "you must specify at least 1 command".into()));
    }
    let runtime = state.kubelet.shared.runtime.clone();
    Ok(session(&mut request, stream_options(&pairs), move |streams| async move {
        match runtime.exec(&id, command, streams).await {
            Ok(code) => Outcome::Exited(code),
            Err(e) => Outcome::Failed(format!("error executing command in container: {}", Chain(&e))),
        }
    }))
}

pub async fn attach(
    State(state): State<Endpoints>,
    Path(params): Params,
    Query(pairs): Query<Pairs>,
    mut request: Request,
) -> Result<Response, Refused> {
    let id = running(&state.kubelet, &params).await?;
    let runtime = state.kubelet.shared.runtime.clone();
    Ok(session(&mut request, stream_options(&pairs), move |streams| async move {
        match runtime.attach(&id, streams).await {
            Ok(()) => Outcome::Exited(0),
            Err(e) => Outcome::Failed(format!("error attaching to container: {}", Chain(&e))),
        }
    }))
}

/// Answers the upgrade and runs `work` on the streams in a task of its own, which ends with the client.
fn session<F, Fut>(request: &mut Request, options: Options, work: F) -> Response
where
    F: FnOnce(Streams) -> Fut + Send + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let (response, pending) = match remote_command::accept(request, options) {
        Ok(a) => a,
        Err(r) => return refused(r),
    };
    tokio::spawn(async move {
        let session = match pending.ready().await {
            Ok(s) => s,
            Err(e) => return tracing::debug!(error = %Chain(&e), "no streams came of an upgrade"),
        };
        let RemoteCommand { stdin, stdout, stderr, resize, tty, closed, finish } = session;
        let streams = Streams { stdin, stdout, stderr, tty, resize: resize.map(sizes) };
        let outcome = tokio::select! {
            o = work(streams) => o,
            // Who asked is gone: nobody needs the answer.
            () = closed.cancelled() => return,
        };
        finish.finish(&outcome).await;
    });
    response
}

fn sizes(mut from: mpsc::Receiver<remote_command::TerminalSize>) -> mpsc::Receiver<TerminalSize> {
    let (tx, rx) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(s) = from.recv().await {
            if tx.send(TerminalSize { width: s.width, height: s.height }).await.is_err() {
                return;
            }
        }
    });
    rx
}

/// Runs a command without streams and answers what it wrote.
pub async fn run(
    State(state): State<Endpoints>,
    Path(params): Params,
    Query(pairs): Query<Pairs>,
) -> Result<Response, Refused> {
    let id = running(&state.kubelet, &params).await?;
    let cmd = pairs.iter().find(|(k, _)| k == "cmd").map(|(_, v)| v.split_whitespace().map(str::to_owned).collect());
    let cmd: Vec<String> = cmd.unwrap_or_else(|| command(&pairs));
    match state.kubelet.shared.runtime.exec_sync(&id, cmd, None).await {
        Ok(out) => Ok([out.stdout, out.stderr].concat().into_response()),
        Err(e) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, Chain(&e).to_string())),
    }
}

pub async fn port_forward(
    State(state): State<Endpoints>,
    Path(params): Params,
    Query(pairs): Query<Pairs>,
    mut request: Request,
) -> Result<Response, Refused> {
    let kubelet = state.kubelet.clone();
    let pod = kubelet.find_pod(param(&params, "namespace"), param(&params, "pod"))?;
    let sandbox = logs::pod_state(&*kubelet.shared.runtime, &pod).await?;
    let sandbox = sandbox.sandbox().filter(|s| s.state == SandboxState::Ready).map(|s| s.id.clone());
    let missing = || Refused(StatusCode::INTERNAL_SERVER_ERROR, "the pod's sandbox is not running".into());
    let sandbox = sandbox.ok_or_else(missing)?;
    let mut ports = Vec::new();
    for (_, v) in pairs.iter().filter(|(k, _)| k == "port" || k == "ports") {
        for p in v.split(',') {
            let bad = || Refused(StatusCode::BAD_REQUEST, format!("port {p:?} must be > 0 and at most 65535"));
            ports.push(p.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(bad)?);
        }
    }
    let (response, pending) = match forward::accept(&mut request, ports) {
        Ok(a) => a,
        Err(r) => return Ok(refused(r)),
    };
    tokio::spawn(async move {
        let mut session = match pending.ready().await {
            Ok(s) => s,
            Err(e) => return tracing::debug!(error = %e, "a port-forward was not upgraded"),
        };
        while let Some(port) = session.next().await {
            let (kubelet, sandbox, closed) = (kubelet.clone(), sandbox.clone(), session.closed.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = join(kubelet, &sandbox, port) => {}
                    () = closed.cancelled() => {}
                }
            });
        }
    });
    Ok(response)
}

async fn join(kubelet: Arc<Kubelet>, sandbox: &str, mut p: ForwardedPort) {
    let failed = match kubelet.shared.runtime.port_forward(sandbox, p.port).await {
        Ok(mut pod) => {
            let (mut from_pod, mut to_pod) = pod.split();
            let up = async {
                let r = tokio::io::copy(&mut p.from_client, &mut to_pod).await;
                let _ = to_pod.shutdown().await;
                r.map(drop)
            };
            let down = async {
                let r = tokio::io::copy(&mut from_pod, &mut p.to_client).await;
                let _ = p.to_client.shutdown().await;
                r.map(drop)
            };
            tokio::try_join!(up, down).err().map(|e| e.to_string())
        }
        Err(e) => Some(Chain(&e).to_string()),
    };
    if let Some(why) = failed {
        let message = format!("error forwarding port {} to pod {sandbox}: {why}", p.port);
        let _ = p.error.write_all(message.as_bytes()).await;
    }
    let _ = p.error.shutdown().await;
}
