//! A pod that runs or is to run: volumes, sandbox, files, then the plan's kills and starts.

use super::start::Started;
use super::{Next, Worker};
use crate::plan::{self, Plan, ProbeResults};
use crate::pod::PodExt;
use crate::status::{self, Verdict};
use crate::volumes::{self, Paths, SetUp};
use crate::{container_config, network};
use isopod_base::errors::Chain;
use isopod_runtime::SandboxState;
use jiff::Timestamp;
use std::path::Path;
use std::time::Duration;

impl Worker {
    pub(super) async fn run_pod(&mut self) -> Next {
        if let Some(next) = self.check_deadline().await {
            return next;
        }
        let mut next = match self.work().await {
            Ok(next) => next,
            Err(Stopped::Retry) => self.retry(),
            Err(Stopped::Ends) => return self.end(false).await,
            // A grace period runs; its end wakes us.
            Err(Stopped::Waits) => Next::Wait(None),
        };
        next = next
            .sooner(self.active_until())
            .sooner(self.tokens.next_refresh())
            .sooner(self.certificates.next_refresh());
        self.sync_probes();
        self.collect_garbage().await;
        match self.report(false).await {
            Ok(_) => next,
            Err(e) => {
                tracing::warn!(pod = %self.pod.display(), error = %Chain(&e), "cannot write the pod's status");
                let again = self.retry();
                match again {
                    Next::Wait(at) => next.sooner(at),
                    Next::Done => next,
                }
            }
        }
    }

    /// When `activeDeadlineSeconds` ends.
    fn active_until(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec().active_deadline_seconds?;
        let start = self.status.start_time.as_ref().map_or_else(|| self.now(), |t| t.0);
        Some(start + Duration::from_secs(seconds.max(0) as u64))
    }

    async fn check_deadline(&mut self) -> Option<Next> {
        if self.active_until().is_none_or(|at| self.now() < at) {
            return None;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.shared.recorder.normal(&self.pod.reference(), "DeadlineExceeded", message);
        self.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message: message.into() });
        Some(self.end(false).await)
    }

    fn sync_probes(&mut self) {
        let running: Vec<_> = self.state.running().collect();
        let shown = |id: &str| {
            let id = status::container_id(id);
            let old = self.pod.stat();
            let all = old.container_statuses.iter().flatten().chain(old.init_container_statuses.iter().flatten());
            let found = all.into_iter().find(|s| s.container_id.as_deref() == Some(&id));
            // What was ready before we came is ready until a probe says otherwise.
            found.map_or_else(ProbeResults::default, |s| ProbeResults {
                startup: s.started.filter(|s| *s),
                readiness: Some(s.ready).filter(|r| *r),
                liveness: None,
            })
        };
        let ip = if self.pod.host_network() {
            self.shared.host_ips().first().map(ToString::to_string)
        } else {
            self.state.sandbox().and_then(|s| s.ips.first()).map(ToString::to_string)
        };
        self.probes.sync(&self.pod, &running, &ip.unwrap_or_default(), &shown);
    }

    async fn work(&mut self) -> Result<Next, Stopped> {
        let paths = self.set_up_volumes().await?;
        let probes = |id: &str| self.probes.results(id);
        let plan = plan::plan(&self.pod, &self.state, &probes);
        if plan.kill_pod && plan.create_sandbox.is_none() {
            self.finished = true;
            return Err(Stopped::Ends);
        }
        if let Some(attempt) = plan.create_sandbox {
            self.new_sandbox(&plan, attempt).await?;
        }
        self.write_files()?;
        for kill in &plan.kill {
            self.kill_one(kill);
        }
        self.drop_failed_kills();
        let mut next = self.resize(&plan.resize).await;
        let resized = next == Next::Wait(None);
        for name in plan.start_ephemeral.iter().chain(&plan.start_init).chain(&plan.start) {
            match self.start(name, &paths).await {
                Started::Yes => {}
                Started::Later(at) => next = next.sooner(at),
            }
            if self.interrupted() {
                return Ok(Next::Wait(Some(self.now())));
            }
        }
        if resized {
            self.failures = 0;
        }
        Ok(next)
    }

    /// The pod was deleted or changed meanwhile.
    pub(super) fn interrupted(&self) -> bool {
        self.api.has_changed().unwrap_or(true) && self.api.borrow().as_ref().is_none_or(|p| p.is_deleted())
    }

    async fn set_up_volumes(&mut self) -> Result<Paths, Stopped> {
        let pod = self.pod.clone();
        let node = self.shared.node.get("", &self.shared.cfg.node_name);
        let mut cx = SetUp {
            pod_dir: self.shared.cfg.pod_dir(pod.uid()),
            mounter: self.shared.mounter.clone(),
            addresses: self.addresses(),
            node: self.shared.allocatable,
            now: self.now(),
            objects: &mut self.objects,
            tokens: &mut self.tokens,
            certificates: &mut self.certificates,
            node_uid: node.map(|n| n.metadata.uid.clone()).unwrap_or_default(),
        };
        match volumes::set_up(&pod, &mut cx).await {
            Ok(paths) => Ok(paths),
            Err((volume, e)) => {
                let message = format!("MountVolume.SetUp failed for volume {volume:?} : {}", Chain(&e));
                self.warn_once("FailedMount", message);
                Err(Stopped::Retry)
            }
        }
    }

    async fn new_sandbox(&mut self, plan: &Plan, attempt: u32) -> Result<(), Stopped> {
        if plan.kill_pod {
            self.drop_failed_kills();
            if !self.kill_all() {
                return Err(Stopped::Waits);
            }
            self.shared.recorder.normal(
                &self.pod.reference(),
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
            for s in self.state.sandboxes.iter().map(|s| s.id.clone()).collect::<Vec<_>>() {
                if let Err(e) = self.shared.runtime.stop_sandbox(&s).await {
                    self.warn_once("FailedKillPod", format!("error killing pod: {}", Chain(&e)));
                    return Err(Stopped::Retry);
                }
            }
        }
        let config = container_config::sandbox(&self.pod, attempt, &self.shared.cfg);
        let made = async {
            let id = self.shared.runtime.run_sandbox(config).await?;
            let status = self.shared.runtime.sandbox(&id).await?;
            Ok::<_, isopod_runtime::RuntimeError>(status)
        };
        match made.await {
            Ok(status) => {
                self.known.sandboxes.push(status.id.clone());
                for s in &mut self.state.sandboxes {
                    s.state = SandboxState::NotReady;
                }
                self.state.sandboxes.insert(0, status);
                Ok(())
            }
            Err(e) => {
                self.warn_once("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {}", Chain(&e)));
                Err(Stopped::Retry)
            }
        }
    }

    /// `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of the pod.
    fn write_files(&mut self) -> Result<(), Stopped> {
        let cfg = &self.shared.cfg;
        let dir = cfg.pod_dir(self.pod.uid());
        let host_hosts = self.pod.host_network().then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let hosts = network::hosts_file(&self.pod, &self.pod_ips(), &cfg.cluster_domain, host_hosts.as_deref());
        let host_dns = network::parse_resolv_conf(&std::fs::read_to_string(&cfg.resolv_conf).unwrap_or_default());
        let (dns, cut) = network::dns(&self.pod, &host_dns, &cfg.cluster_dns, &cfg.cluster_domain);
        let mut hostname = network::sandbox_hostname(&self.pod, &cfg.cluster_domain);
        if hostname.is_empty() {
            hostname = cfg.node_name.clone();
        }
        let files =
            [("etc-hosts", hosts), ("resolv.conf", network::resolv_conf(&dns)), ("hostname", format!("{hostname}\n"))];
        for (name, text) in files {
            if let Err(e) = write_if_changed(&dir.join(name), &text) {
                let message = format!("error making pod data directories: {e}");
                self.warn_once("Failed", message);
                return Err(Stopped::Retry);
            }
        }
        if let Some(cut) = cut {
            self.warn_once("DNSConfigForming", cut);
        }
        Ok(())
    }
}

/// Writes in place: containers have the file itself mounted.
fn write_if_changed(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, text)
}

/// Why the work ended early.
enum Stopped {
    Retry,
    Waits,
    Ends,
}
