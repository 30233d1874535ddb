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
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
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
    let idle = state.kubelet.shared.cfg.streaming_idle_timeout;
    Ok(session(&mut request, stream_options(&pairs), idle, move |streams| async move {
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
    let idle = state.kubelet.shared.cfg.streaming_idle_timeout;
    Ok(session(&mut request, stream_options(&pairs), idle, move |streams| async move {
        match runtime.attach(&id, streams).await {
            Ok(()) => Outcome::Exited(0),
            Err(e) => Outcome::Failed(format!("error attaching to container: {}", Chain(&e))),
        }
    }))
}

/// Answers the upgrade and runs `work` on the streams in a task of its own, which ends with the client.
fn session<F, Fut>(request: &mut Request, options: Options, idle: Duration, work: F) -> Response
where
    F: FnOnce(Streams) -> Fut + Send + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let (response, pending) = match remote_command::accept(request, options) {
        Ok(a) => a,
        Err(r) => return refused(r),
    };
    tokio::spawn(async move {
        let session = match pending.ready(idle).await {
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
        let mut session = match pending.ready(kubelet.shared.cfg.streaming_idle_timeout).await {
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
    match kubelet.shared.runtime.port_forward(sandbox, p.port).await {
        Ok(pod) => {
            let given_up = p.given_up.clone();
            let _ = given_up.run_until_cancelled(carry(pod, &mut p)).await;
        }
        Err(e) => {
            let message = format!("error forwarding port {} to pod {sandbox}, uid : {}", p.port, Chain(&e));
            let _ = p.error.write_all(message.as_bytes()).await;
        }
    }
    let _ = p.error.shutdown().await;
}

/// Carries one connection until both sides have ended it. How it ends is between the pod and who is behind the client: that a
/// download was broken off is no failure of the forwarding.
async fn carry(mut pod: TcpStream, p: &mut ForwardedPort) {
    let (mut from_pod, mut to_pod) = pod.split();
    let up = async {
        // A pod that takes no more may have more to say.
        let _ = tokio::io::copy(&mut p.from_client, &mut to_pod).await;
        let _ = to_pod.shutdown().await;
        Ok(())
    };
    let down = async {
        let said = tokio::io::copy(&mut from_pod, &mut p.to_client).await;
        let _ = p.to_client.shutdown().await;
        said.map(drop)
    };
    let _: io::Result<((), ())> = tokio::try_join!(up, down);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    /// A forwarded port, and the client's ends of its streams: what it sends and what it gets.
    fn forwarded() -> (ForwardedPort, DuplexStream, DuplexStream) {
        let ((to, from_client), (to_client, from)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let error = Box::new(tokio::io::sink());
        let (from_client, to_client) = (Box::new(from_client), Box::new(to_client));
        (ForwardedPort { port: 80, from_client, to_client, error, given_up: CancellationToken::new() }, to, from)
    }

    async fn pod() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    /// As a server that refuses a long upload: it answers and hangs up, while more comes.
    #[tokio::test]
    async fn a_pod_that_hangs_up_has_said_all_that_it_said() {
        let (mut p, mut to, mut from) = forwarded();
        let (ours, mut theirs) = pod().await;
        theirs.write_all(&[7; 100_000]).await.unwrap();
        drop(theirs);
        let carrying = tokio::spawn(async move { carry(ours, &mut p).await });
        // Until nobody takes it any more.
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(200), to.write_all(&[1; 64])).await {}
        let mut said = Vec::new();
        from.read_to_end(&mut said).await.unwrap();
        assert_eq!(said.len(), 100_000);
        drop(to);
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn a_download_that_is_broken_off_ends_at_the_pod_too() {
        let (mut p, _to, from) = forwarded();
        let (ours, mut theirs) = pod().await;
        drop(from);
        let carrying = tokio::spawn(async move { carry(ours, &mut p).await });
        while theirs.write_all(&[7; 1000]).await.is_ok() {}
        carrying.await.unwrap();
    }
}
