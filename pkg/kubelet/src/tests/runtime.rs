//! A runtime in a map: containers run when started and end when a test says so.

use async_trait::async_trait;
use isopod_runtime::*;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

#[derive(Default)]
struct State {
    next: u64,
    clock: i64,
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, ContainerStatus>,
    images: BTreeMap<String, ImageStatus>,
    calls: Vec<String>,
    /// Exit codes that `exec_sync` gives by its first word.
    exec: BTreeMap<String, i32>,
}

pub struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Whether pods can have a network.
    pub network: watch::Sender<bool>,
    clock: isopod_base::clock::Clock,
}

impl FakeRuntime {
    pub fn new(clock: isopod_base::clock::Clock) -> Arc<Self> {
        let (events, network) = (broadcast::Sender::new(64), watch::Sender::new(true));
        Arc::new(FakeRuntime { state: Mutex::default(), events, network, clock })
    }

    pub fn image(&self, name: &str) {
        let status = ImageStatus {
            id: format!("sha256:{name}"),
            repo_tags: vec![name.to_owned()],
            repo_digests: vec![format!("{name}@sha256:0")],
            size: 1,
            ..Default::default()
        };
        self.state.lock().images.insert(name.to_owned(), status);
    }

    pub fn exec_answers(&self, command: &str, code: i32) {
        self.state.lock().exec.insert(command.to_owned(), code);
    }

    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub fn container_named(&self, name: &str) -> ContainerStatus {
        let state = self.state.lock();
        let mine = state.containers.values().filter(|c| c.config.name == name);
        mine.max_by_key(|c| c.created_at).unwrap_or_else(|| panic!("no container {name}")).clone()
    }

    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    /// Ends the newest container of this name.
    pub fn exit(&self, name: &str, code: i32) {
        let id = self.container_named(name).id;
        self.end(&id, code);
    }

    fn end(&self, id: &str, code: i32) {
        let now = self.now();
        let mut state = self.state.lock();
        let Some(c) = state.containers.get_mut(id).filter(|c| c.state == ContainerState::Running) else { return };
        c.state = ContainerState::Exited;
        c.exit_code = code;
        c.finished_at = now;
        let event = RuntimeEvent::ContainerExited {
            sandbox_id: c.sandbox_id.clone(),
            container_id: c.id.clone(),
            pod_uid: c.config.labels["io.kubernetes.pod.uid"].clone(),
        };
        drop(state);
        let _ = self.events.send(event);
    }

    fn now(&self) -> i64 {
        self.clock.now().as_nanosecond() as i64
    }

    fn call(&self, text: String) {
        self.state.lock().calls.push(text);
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn version(&self) -> String {
        "isopod://test".into()
    }
    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
    fn network_ready(&self) -> tokio::sync::watch::Receiver<bool> {
        self.network.subscribe()
    }
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<String> {
        let now = self.now();
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("s{}", state.next);
        state.calls.push(format!("sandbox {}", config.id.name));
        let status = SandboxStatus {
            id: id.clone(),
            config,
            state: SandboxState::Ready,
            created_at: now,
            ips: vec!["10.42.0.5".parse().unwrap()],
            pid: 1,
        };
        state.sandboxes.insert(id.clone(), status);
        Ok(id)
    }
    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        if let Some(s) = self.state.lock().sandboxes.get_mut(id) {
            s.state = SandboxState::NotReady;
        }
        Ok(())
    }
    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.state.lock().sandboxes.remove(id);
        Ok(())
    }
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.state.lock().sandboxes.values().cloned().collect())
    }
    async fn sandbox(&self, id: &str) -> Result<SandboxStatus> {
        self.state.lock().sandboxes.get(id).cloned().ok_or_else(|| RuntimeError::NoSuchSandbox(id.into()))
    }
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let now = self.now();
        let mut state = self.state.lock();
        state.next += 1;
        state.clock += 1;
        let id = format!("c{}", state.next);
        state.calls.push(format!("create {}/{}", config.name, config.attempt));
        let log = state.sandboxes[sandbox_id].config.log_directory.join(&config.log_path);
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            mounts: config.mounts.clone(),
            config,
            state: ContainerState::Created,
            created_at: now + state.clock,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            signal: None,
            reason: String::new(),
            message: String::new(),
            pid: 1,
            uid: 0,
            log_path: log,
        };
        state.containers.insert(id.clone(), status);
        Ok(id)
    }
    async fn start_container(&self, id: &str) -> Result<()> {
        let now = self.now();
        let mut state = self.state.lock();
        let c = state.containers.get_mut(id).unwrap();
        c.state = ContainerState::Running;
        c.started_at = now;
        std::fs::create_dir_all(c.log_path.parent().unwrap()).unwrap();
        std::fs::write(&c.log_path, format!("2026-01-01T00:00:00Z stdout F hello from {}\n", c.config.name)).unwrap();
        Ok(())
    }
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let name = self.state.lock().containers.get(id).map(|c| c.config.name.clone()).unwrap_or_default();
        self.call(format!("stop {name} {}", grace.as_secs()));
        self.end(id, 143);
        Ok(())
    }
    async fn remove_container(&self, id: &str) -> Result<()> {
        self.state.lock().containers.remove(id);
        Ok(())
    }
    async fn containers(&self) -> Result<Vec<ContainerStatus>> {
        Ok(self.state.lock().containers.values().cloned().collect())
    }
    async fn container(&self, id: &str) -> Result<ContainerStatus> {
        self.state.lock().containers.get(id).cloned().ok_or_else(|| RuntimeError::NoSuchContainer(id.into()))
    }
    async fn update_container(
        &self,
        id: &str,
        resources: Resources,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let c = state.containers.get_mut(id).unwrap();
        (c.config.resources, c.config.annotations) = (resources, annotations);
        let text = format!("update {} {:?}", c.config.name, c.config.resources.cpu_shares);
        state.calls.push(text);
        Ok(())
    }
    async fn update_sandbox(&self, id: &str, resources: Resources) -> Result<()> {
        self.state.lock().sandboxes.get_mut(id).unwrap().config.resources = resources;
        Ok(())
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        Ok(ContainerStats { id: id.into(), cpu_usage: 5, ..Default::default() })
    }
    async fn reopen_log(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn exec_sync(&self, _: &str, cmd: Vec<String>, _: Option<Duration>) -> Result<ExecOutput> {
        self.call(format!("exec {}", cmd.join(" ")));
        let exit_code = self.state.lock().exec.get(&cmd[0]).copied().unwrap_or(0);
        Ok(ExecOutput { exit_code, ..Default::default() })
    }
    /// Copies stdin to stdout and exits with 7.
    async fn exec(&self, _: &str, _: Vec<String>, mut streams: Streams) -> Result<i32> {
        if let (Some(mut from), Some(mut to)) = (streams.stdin.take(), streams.stdout.take()) {
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        }
        Ok(7)
    }
    async fn attach(&self, _: &str, _: Streams) -> Result<()> {
        Ok(())
    }
    async fn port_forward(&self, id: &str, _: u16) -> Result<tokio::net::TcpStream> {
        Err(RuntimeError::NoSuchSandbox(id.into()))
    }
    async fn images(&self) -> Result<Vec<ImageStatus>> {
        Ok(self.state.lock().images.values().cloned().collect())
    }
    async fn image_status(&self, image: &str) -> Result<Option<ImageStatus>> {
        Ok(self.state.lock().images.get(image).cloned())
    }
    async fn pull_image(&self, image: &str, _: Vec<RegistryAuth>, _: Option<ProgressFn>) -> Result<String> {
        self.call(format!("pull {image}"));
        if image.contains("silent") {
            std::future::pending::<()>().await;
        }
        if image.contains("bad") {
            return Err(RuntimeError::Pull { image: image.into(), why: "manifest unknown".into() });
        }
        self.image(image);
        Ok(format!("sha256:{image}"))
    }
    async fn remove_image(&self, image: &str) -> Result<()> {
        self.state.lock().images.retain(|_, i| i.id != image);
        Ok(())
    }
    async fn image_fs(&self) -> Result<FsUsage> {
        Ok(FsUsage { capacity: 100, available: 50, ..Default::default() })
    }
}
