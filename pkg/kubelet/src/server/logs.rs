//! `/containerLogs`: a container's log, whole, from its tail, or as it grows.

use super::{Endpoints, Refused};
use crate::log_file::{Formatter, Options, tail_offset};
use crate::pod::PodExt;
use crate::state::PodState;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use isopod_runtime::{ContainerState, ContainerStatus, Runtime, RuntimeEvent};
use isopod_sys::file_watch::DirectoryWatch;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};

const BLOCK: usize = 64 * 1024;

type Pairs = Vec<(String, String)>;

fn number(name: &str, text: &str) -> Result<u64, Refused> {
    let bad = || {
        Refused(StatusCode::BAD_REQUEST, format!("invalid value {text:?} of {name}: it must be a number, not negative"))
    };
    text.parse().map_err(|_| bad())
}

pub(crate) fn options(pairs: &Pairs, now: Timestamp) -> Result<Options, Refused> {
    let mut o = Options::default();
    for (name, value) in pairs {
        let on = matches!(value.as_str(), "true" | "1");
        match name.as_str() {
            "follow" => o.follow = on,
            "previous" => o.previous = on,
            "timestamps" => o.timestamps = on,
            "tailLines" | "tail" if value != "all" => o.tail = Some(number(name, value)?),
            "limitBytes" => o.limit_bytes = Some(number(name, value)?),
            "sinceSeconds" => o.since = Some(now - SignedDuration::from_secs(number(name, value)? as i64)),
            "sinceTime" => {
                let bad = || {
                    Refused(
                        StatusCode::BAD_REQUEST,
                        format!("invalid value {value:?} of sinceTime: it must be an RFC 3339 time"),
                    )
                };
                o.since = Some(value.parse().map_err(|_| bad())?);
            }
            "stream" if value != "All" => o.stream = Some(value.clone()),
            _ => {}
        }
    }
    Ok(o)
}

pub async fn container_logs(
    State(state): State<Endpoints>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(pairs): Query<Pairs>,
) -> Result<Response, Refused> {
    let kubelet = &state.kubelet;
    let options = options(&pairs, kubelet.shared.clock.now())?;
    let pod = kubelet.find_pod(&namespace, &pod)?;
    kubelet.find_container(&pod, &container)?;
    let found = choose(&*kubelet.shared.runtime, &pod, &container, options.previous).await?;
    let (tx, mut rx) = mpsc::channel::<io::Result<Bytes>>(4);
    let runtime = kubelet.shared.runtime.clone();
    tokio::spawn(async move {
        if let Err(e) = stream(runtime, found, options, &tx).await {
            let _ = tx.send(Err(e)).await;
        }
    });
    let body = Body::from_stream(futures::stream::poll_fn(move |cx| rx.poll_recv(cx)));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The containers of a pod, by name and newest first.
pub async fn pod_state(runtime: &dyn Runtime, pod: &Pod) -> Result<PodState, Refused> {
    let failed = |e: isopod_runtime::RuntimeError| {
        Refused(StatusCode::INTERNAL_SERVER_ERROR, isopod_base::errors::Chain(&e).to_string())
    };
    let sandboxes = runtime.sandboxes().await.map_err(failed)?;
    let sandboxes: Vec<_> = sandboxes.into_iter().filter(|s| s.config.id.uid == pod.uid()).collect();
    let containers = runtime.containers().await.map_err(failed)?;
    let mine = |c: &ContainerStatus| sandboxes.iter().any(|s| s.id == c.sandbox_id);
    let containers = containers.into_iter().filter(mine).collect();
    Ok(PodState::new(sandboxes, containers))
}

async fn choose(runtime: &dyn Runtime, pod: &Pod, name: &str, previous: bool) -> Result<ContainerStatus, Refused> {
    let state = pod_state(runtime, pod).await?;
    let mut mine = state.containers.into_iter().filter(|c| c.config.name == name);
    let bad = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let pod_name = pod.pod_name();
    if previous {
        mine.next();
        return mine
            .next()
            .ok_or_else(|| bad(format!("previous terminated container {name:?} in pod {pod_name:?} not found")));
    }
    mine.next().ok_or_else(|| {
        let all =
            pod.stat().container_statuses.iter().flatten().chain(pod.stat().init_container_statuses.iter().flatten());
        let waiting =
            all.into_iter().find(|s| s.name == name).and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
        match waiting {
            Some(why) => bad(format!("container {name:?} in pod {pod_name:?} is waiting to start: {why}")),
            None => bad(format!("container {name:?} in pod {pod_name:?} is not available")),
        }
    })
}

struct Source {
    path: PathBuf,
    file: std::fs::File,
    rest: Vec<u8>,
}

impl Source {
    fn open(path: &std::path::Path) -> io::Result<Self> {
        Ok(Source { path: path.to_path_buf(), file: std::fs::File::open(path)?, rest: Vec::new() })
    }

    /// The next full lines, formatted; empty when there are none now.
    fn read(&mut self, formatter: &mut Formatter) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut block = vec![0; BLOCK];
        let n = self.file.read(&mut block)?;
        self.rest.extend_from_slice(&block[..n]);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            formatter.line(&line[..end], &mut out);
            if formatter.is_done() {
                break;
            }
        }
        // Nothing to show of a full block is not the end.
        if n == BLOCK && out.is_empty() && !formatter.is_done() { self.read(formatter) } else { Ok(out) }
    }

    /// The file was moved aside and a new one stands in its place.
    fn is_rotated(&self) -> bool {
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(mine), Ok(there)) => mine.ino() != there.ino(),
            _ => false,
        }
    }
}

/// Wakes when there may be more to read of a log that is followed.
struct Growth {
    files: DirectoryWatch,
    events: broadcast::Receiver<RuntimeEvent>,
    container: String,
}

impl Growth {
    fn of(runtime: &dyn Runtime, container: &ContainerStatus) -> io::Result<Self> {
        let directory = container.log_path.parent().ok_or(io::ErrorKind::NotFound)?;
        let files = DirectoryWatch::open(directory).map_err(|e| {
            let why = format!("cannot follow {}: {e}; is fs.inotify.max_user_instances too low?", directory.display());
            io::Error::new(e.kind(), why)
        })?;
        Ok(Growth { files, events: runtime.subscribe(), container: container.id.clone() })
    }

    /// Returns when the log may have grown, was moved or made, or its container ended. False: nobody reads any more.
    async fn wait(&mut self, tx: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<bool> {
        loop {
            tokio::select! {
                changed = self.files.changed() => return changed.map(|()| true),
                event = self.events.recv() => match event {
                    Ok(RuntimeEvent::ContainerExited { container_id, .. }) if container_id == self.container => return Ok(true),
                    Ok(RuntimeEvent::SandboxExited { .. } | RuntimeEvent::Lagged) => return Ok(true),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return Ok(true),
                    // The runtime is shutting down, and so is this server.
                    Err(broadcast::error::RecvError::Closed) => return Ok(false),
                },
                () = tx.closed() => return Ok(false),
            }
        }
    }
}

async fn stream(
    runtime: Arc<dyn Runtime>,
    container: ContainerStatus,
    options: Options,
    tx: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    // Before the first look, so that nothing is missed between a look and the wait after it.
    let mut growth = options.follow.then(|| Growth::of(&*runtime, &container)).transpose()?;
    let opened = match &mut growth {
        Some(growth) => wait_for(&*runtime, &container, growth, tx).await,
        None => Source::open(&container.log_path),
    };
    let mut source = match opened {
        // It has not written anything.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        r => r?,
    };
    if let Some(lines) = options.tail {
        let offset = tail_offset(&mut source.file, lines)?;
        source.file.seek(SeekFrom::Start(offset))?;
    }
    let mut formatter = Formatter::new(options);
    let mut ended = false;
    while !formatter.is_done() {
        let out = source.read(&mut formatter)?;
        if !out.is_empty() {
            if tx.send(Ok(out.into())).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let Some(growth) = growth.as_mut().filter(|_| !ended) else { return Ok(()) };
        if source.is_rotated() {
            // The old file is complete only now: what was written between the last look and the rotation comes first.
            let rest = source.read(&mut formatter)?;
            if rest.is_empty() {
                source = Source::open(&container.log_path)?;
            } else if tx.send(Ok(rest.into())).await.is_err() {
                return Ok(());
            }
            continue;
        }
        // Once more after its end: what it wrote last.
        ended = !is_running(&*runtime, &container.id).await;
        if !ended && !growth.wait(tx).await? {
            return Ok(());
        }
    }
    Ok(())
}

async fn is_running(runtime: &dyn Runtime, id: &str) -> bool {
    runtime.container(id).await.is_ok_and(|c| matches!(c.state, ContainerState::Running | ContainerState::Created))
}

/// The log, as soon as there is one; `NotFound` when the container ended, or the client went, before.
async fn wait_for(
    runtime: &dyn Runtime,
    c: &ContainerStatus,
    growth: &mut Growth,
    tx: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<Source> {
    loop {
        match Source::open(&c.log_path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_running(runtime, &c.id).await => {
                if !growth.wait(tx).await? {
                    return Err(e);
                }
            }
            r => return r,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_bad_ones_named() {
        let now = Timestamp::from_second(100).unwrap();
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Pairs>();
        let o = options(&pairs(&[("follow", "true"), ("tailLines", "5"), ("sinceSeconds", "40")]), now).unwrap();
        assert_eq!((o.follow, o.tail, o.since), (true, Some(5), Some(Timestamp::from_second(60).unwrap())));
        assert_eq!(options(&pairs(&[("tailLines", "-1")]), now).unwrap_err().0, StatusCode::BAD_REQUEST);
        assert!(options(&pairs(&[("sinceTime", "yesterday")]), now).unwrap_err().1.contains("sinceTime"));
    }
}
