//! Starting one container: back-off, image, environment, creation, postStart.

use super::Worker;
use crate::backoff::go_duration;
use crate::container_config::{self, Inputs};
use crate::credentials;
use crate::env::{self, Environment};
use crate::hooks;
use crate::images::Image;
use crate::plan::{Kill, KillReason};
use crate::pod::PodExt;
use crate::status::Waiting;
use crate::volumes::Paths;
use isopod_base::errors::Chain;
use isopod_runtime::{ContainerState, ImageStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// After this a container that could not be created is tried again.
const CREATE_RETRY: Duration = Duration::from_secs(10);
/// How long a first look at the services may take.
const SERVICES_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    Yes,
    /// Not now; an event or this time says when.
    Later(Option<Timestamp>),
}

/// A try that failed, as the status and an event say it.
struct Failed {
    reason: &'static str,
    message: String,
}

impl Worker {
    pub(super) async fn start(&mut self, name: &str, paths: &Paths) -> Started {
        let pod = self.pod.clone();
        let Some(c) = pod.container(name) else { return Started::Later(None) };
        // It is being stopped first.
        if self.state.latest(name).is_some_and(|l| l.state == ContainerState::Running) {
            return Started::Later(None);
        }
        if let Some(until) = self.backs_off(&c) {
            return Started::Later(Some(until));
        }
        let (image, volumes) = match self.all_images(&c).await {
            Ok(images) => images,
            Err(later) => return later,
        };
        match self.create_and_start(&c, &image, &volumes, paths).await {
            Ok(()) => {
                self.waiting.remove(&c.name);
                Started::Yes
            }
            Err(f) => {
                self.waiting.insert(c.name.clone(), Waiting { reason: f.reason.into(), message: f.message });
                Started::Later(Some(self.now() + CREATE_RETRY))
            }
        }
    }

    /// The container's image, and the ids of those that its volumes show, by volume.
    async fn all_images(&mut self, c: &Container) -> Result<(ImageStatus, HashMap<String, String>), Started> {
        let image = self.image(c).await?;
        let mut volumes = HashMap::new();
        let pod = self.pod.clone();
        for v in pod.spec().volumes.iter().flatten() {
            let mounted = c.volume_mounts.iter().flatten().any(|m| m.name == v.name);
            let Some(source) = v.image.as_ref().filter(|_| mounted) else { continue };
            // Its pull is a container's in all but its name.
            let wanted = Container {
                name: c.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Default::default()
            };
            volumes.insert(v.name.clone(), self.image(&wanted).await?.id);
        }
        self.fetched.retain(|(name, _), _| *name != c.name);
        Ok((image, volumes))
    }

    /// One image. Once there it counts as fetched until all of the container's are, whatever its policy.
    async fn image(&mut self, c: &Container) -> Result<ImageStatus, Started> {
        let key = (c.name.clone(), c.image.clone().unwrap_or_default());
        if let Some(image) = self.fetched.get(&key) {
            return Ok(image.clone());
        }
        let auth = self.registry_auth(c).await;
        let pod = self.pod.clone();
        match self.images.ensure(&pod, c, auth).await {
            Image::Ready(image) => {
                self.fetched.insert(key, image.clone());
                Ok(image)
            }
            Image::Pulling => Err(Started::Later(None)),
            Image::Failed(waiting, again) => {
                self.waiting.insert(c.name.clone(), waiting);
                Err(Started::Later(again))
            }
        }
    }

    /// When a container that ended may start again, if it must wait. Each end counts once.
    fn backs_off(&mut self, c: &Container) -> Option<Timestamp> {
        let now = self.now();
        let latest = self.state.latest(&c.name)?;
        let at = |nanos: i64| Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(now);
        let (id, since) = match latest.state {
            ContainerState::Exited => (latest.id.clone(), at(latest.finished_at)),
            // It was made and could not be started.
            ContainerState::Created => (latest.id.clone(), at(latest.created_at)),
            _ => return None,
        };
        if self.counted.get(&c.name) == Some(&id) {
            return None;
        }
        if let Some((until, delay)) = self.backoff.waits(&c.name, since, now) {
            let (name, pod) = (&c.name, self.pod.display());
            if self.first_time(format!("BackOff {id}")) {
                let message = format!("Back-off restarting failed container {name} in pod {pod}");
                self.shared.recorder.warning(&self.pod.container_reference(name), "BackOff", message);
            }
            let message = format!("back-off {} restarting failed container={name} pod={pod}", go_duration(delay));
            self.waiting.insert(name.clone(), Waiting { reason: "CrashLoopBackOff".into(), message });
            return Some(until);
        }
        self.backoff.failed(&c.name, since, now);
        self.counted.insert(c.name.clone(), id);
        None
    }

    async fn registry_auth(&mut self, c: &Container) -> Vec<isopod_runtime::RegistryAuth> {
        let mut secrets = Vec::new();
        let mut missing = Vec::new();
        let pod = self.pod.clone();
        for r in pod.spec().image_pull_secrets.iter().flatten().filter(|r| !r.name.is_empty()) {
            match self.objects.secret(&r.name).await {
                Ok(Some(s)) => secrets.push(s),
                _ => missing.push(r.name.clone()),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.warn_once("FailedToRetrieveImagePullSecret", message);
        }
        credentials::lookup(c.image.as_deref().unwrap_or_default(), &secrets)
    }

    async fn create_and_start(
        &mut self,
        c: &Container,
        image: &ImageStatus,
        images: &HashMap<String, String>,
        paths: &Paths,
    ) -> Result<(), Failed> {
        let about = self.pod.container_reference(&c.name);
        let recorder = self.shared.recorder.clone();
        let fail = |reason, message: String| {
            recorder.warning(&about, "Failed", format!("Error: {message}"));
            Failed { reason, message }
        };
        let Some(sandbox) = self.state.sandbox().map(|s| s.id.clone()) else {
            return Err(fail("CreateContainerError", "the pod has no sandbox".into()));
        };
        let env = self.environment(c).await.map_err(|e| fail("CreateContainerConfigError", e))?;
        let config = container_config::container(Inputs {
            pod: &self.pod,
            container: c,
            attempt: self.next_attempt(&c.name),
            image,
            images,
            env,
            volumes: paths,
            cfg: &self.shared.cfg,
            mounter: &*self.shared.mounter,
            node_memory: self.shared.machine.memory,
            target: self.target(&c.name),
        });
        let config = config.map_err(|e| fail("CreateContainerConfigError", Chain(&e).to_string()))?;
        let runtime = self.shared.runtime.clone();
        let made = runtime.create_container(&sandbox, config).await;
        let id = made.map_err(|e| fail("CreateContainerError", Chain(&e).to_string()))?;
        self.known.containers.push(id.clone());
        recorder.normal(&about, "Created", "Container created");
        let started = runtime.start_container(&id).await;
        if let Ok(status) = runtime.container(&id).await {
            self.state.containers.insert(0, status);
        }
        started.map_err(|e| fail("RunContainerError", Chain(&e).to_string()))?;
        recorder.normal(&about, "Started", "Container started");
        self.post_start(c, &id).await
    }

    async fn post_start(&mut self, c: &Container, id: &str) -> Result<(), Failed> {
        let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let (shared, pod, ip) = (self.shared.clone(), self.pod.clone(), self.pod_ip());
        let run = hooks::run(&*shared.runtime, &shared.clock, &pod, c, id, &ip, hook);
        let mut api = self.api.clone();
        let deleted = async {
            // A hook that hangs must not hold up the end of its pod.
            while api.wait_for(|p| p.as_ref().is_none_or(|p| p.is_deleted())).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            r = run => r,
            () = deleted => return Ok(()),
        };
        let Err(why) = outcome else { return Ok(()) };
        tracing::info!(pod = %pod.display(), container = c.name, error = why, "postStart hook failed");
        shared.recorder.warning(&pod.container_reference(&c.name), "FailedPostStartHook", "PostStartHook failed");
        let kill = Kill {
            id: id.to_owned(),
            name: c.name.clone(),
            message: "FailedPostStartHook".into(),
            reason: KillReason::Other,
        };
        self.kill_one(&kill);
        Err(Failed { reason: "PostStartHookError", message: why })
    }

    /// One more than the newest; after a loss of the runtime's records, one more than the newest log.
    fn next_attempt(&self, name: &str) -> u32 {
        if let Some(latest) = self.state.latest(name) {
            return latest.config.attempt + 1;
        }
        let pod = &self.pod;
        let dir = self.shared.cfg.log_dir(pod.ns(), pod.pod_name(), pod.uid()).join(name);
        let logs = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let attempts = logs.filter_map(|e| e.file_name().to_str()?.split('.').next()?.parse::<u32>().ok());
        attempts.max().map_or(0, |n| n + 1)
    }

    /// The container whose processes an ephemeral container shares.
    fn target(&self, name: &str) -> Option<String> {
        let ephemeral = self.pod.spec().ephemeral_containers.iter().flatten().find(|e| e.name == name)?;
        let target = ephemeral.target_container_name.as_deref().filter(|t| !t.is_empty())?;
        self.state.latest(target).map(|c| c.id.clone())
    }

    async fn environment(&mut self, c: &Container) -> Result<Environment, String> {
        let mut objects = env::Objects::default();
        let (maps, secrets) = env::needed(c);
        for name in maps {
            let found = self.objects.config_map(&name).await.map_err(|e| Chain(&e).to_string())?;
            objects.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = self.objects.secret(&name).await.map_err(|e| Chain(&e).to_string())?;
            objects.secrets.insert(name, found);
        }
        if tokio::time::timeout(SERVICES_WAIT, self.shared.services.synced()).await.is_err() {
            return Err("services have not yet been read at least once, cannot construct envvars".into());
        }
        let mut services: Vec<Arc<_>> = self.shared.services.list_namespace(self.pod.ns());
        if self.pod.ns() != "default" {
            services.extend(self.shared.services.get("default", "kubernetes"));
        }
        let inputs = env::Inputs {
            objects: &objects,
            services: &services,
            addresses: &self.addresses(),
            node: self.shared.allocatable,
        };
        let built = env::build(&self.pod, c, &inputs).map_err(|e| e.to_string())?;
        for (source, keys) in &built.skipped {
            let (kind, from) = source.split_once(' ').unwrap_or(("", source));
            let message = format!(
                "Keys [{}] from the EnvFrom {kind} {from} were skipped since they are considered invalid environment variable names.",
                keys.join(", ")
            );
            self.warn_once("InvalidEnvironmentVariableNames", message);
        }
        Ok(built)
    }
}
