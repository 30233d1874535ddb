//! [`Runtime`] as the kubelet calls it.

use crate::image::{Image, ImageError, Reference, archive};
use crate::runtime::{IsopodRuntime, blocking, io_error};
use crate::types::*;
use async_trait::async_trait;
use isopod_base::errors::Chain;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn image_status(image: &Image) -> ImageStatus {
    let config = &image.config.config;
    let user = config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    ImageStatus {
        id: image.id.to_string(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size(),
        uid,
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        env: config.env.clone(),
        labels: config.labels.clone(),
        pinned: false,
    }
}

pub(crate) fn image_error(e: &ImageError) -> RuntimeError {
    io_error("manage images")(std::io::Error::other(Chain(e).to_string()))
}

#[async_trait]
impl Runtime for IsopodRuntime {
    fn version(&self) -> String {
        concat!("isopod://", env!("CARGO_PKG_VERSION")).into()
    }

    fn subscribe(&self) -> tokio::sync::broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    fn network_ready(&self) -> tokio::sync::watch::Receiver<bool> {
        match &self.config.network {
            Some(network) => network.ready(),
            // Every pod is on the host's network.
            None => tokio::sync::watch::Sender::new(true).subscribe(),
        }
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<String> {
        self.arc().make_sandbox(config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.arc().end_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.arc().delete_sandbox(id).await
    }

    async fn update_sandbox(&self, id: &str, resources: Resources) -> Result<()> {
        self.arc().limit_sandbox(id, resources).await
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.table.lock().sandboxes.values().map(IsopodRuntime::sandbox_status).collect())
    }

    async fn sandbox(&self, id: &str) -> Result<SandboxStatus> {
        Ok(IsopodRuntime::sandbox_status(&self.sandbox_entry(id)?))
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        self.arc().make_container(sandbox_id, config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.arc().launch_container(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.arc().halt_container(id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.arc().delete_container(id).await
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>> {
        let all: Vec<_> = self.table.lock().containers.values().cloned().collect();
        Ok(all.iter().map(|c| self.container_status(c)).collect())
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus> {
        Ok(self.container_status(&self.container_entry(id)?))
    }

    async fn update_container(
        &self,
        id: &str,
        resources: Resources,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        self.arc().limit_container(id, resources, annotations).await
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.arc().measure_container(id).await
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let (_, shim) = self.running(id)?;
        shim.call(&isopod_shim_protocol::Request::ReopenLog { id: id.to_owned() }).await.map(drop)
    }

    async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput> {
        self.run_exec_sync(id, cmd, timeout).await
    }

    async fn exec(&self, id: &str, cmd: Vec<String>, streams: Streams) -> Result<i32> {
        self.run_exec(id, cmd, streams).await
    }

    async fn attach(&self, id: &str, streams: Streams) -> Result<()> {
        self.join_streams(id, streams).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream> {
        self.connect_in_sandbox(sandbox_id, port).await
    }

    async fn images(&self) -> Result<Vec<ImageStatus>> {
        self.collect_leftovers();
        Ok(self.store.list().iter().map(image_status).collect())
    }

    async fn image_status(&self, image: &str) -> Result<Option<ImageStatus>> {
        Ok(self.store.find(image).as_ref().map(image_status))
    }

    async fn pull_image(&self, image: &str, auth: Vec<RegistryAuth>, progress: Option<ProgressFn>) -> Result<String> {
        let reference = Reference::parse(image)?;
        let failed = |e: ImageError| RuntimeError::Pull { image: reference.to_string(), why: Chain(&e).to_string() };
        self.puller.pull(&reference, &auth, progress).await.map(|id| id.to_string()).map_err(failed)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let Some(found) = self.store.find(image) else { return Ok(()) };
        let _alone = self.store.alone().await.map_err(|e| image_error(&e))?;
        let runtime = self.arc();
        let removed = blocking(move || {
            runtime.store.remove(&found.id)?;
            runtime.store.collect(&runtime.lowers_in_use())
        });
        removed.await?.map_err(|e| image_error(&e))
    }

    async fn image_fs(&self) -> Result<FsUsage> {
        let mountpoint = self.paths.images();
        let measured = mountpoint.clone();
        let usage = blocking(move || isopod_sys::mount::usage(&measured)).await?;
        let ([capacity, available, used], [inodes, inodes_free]) =
            usage.map_err(io_error("measure the image store"))?;
        Ok(FsUsage { mountpoint, capacity, available, used, inodes, inodes_free })
    }
}

impl IsopodRuntime {
    /// Removes the layers of images that another process took out of the index; images in use put it off.
    fn collect_leftovers(&self) {
        if !self.store.has_garbage() {
            return;
        }
        let runtime = self.arc();
        tokio::task::spawn_blocking(move || {
            let collect = || match runtime.store.try_alone()? {
                Some(_alone) => runtime.store.collect(&runtime.lowers_in_use()),
                None => Ok(()),
            };
            if let Err(e) = collect() {
                tracing::warn!(error = %Chain(&e), "cannot remove the layers of removed images");
            }
        });
    }

    /// Imports the images of an OCI or `docker save` archive; answers their ids.
    pub async fn import_images(self: &Arc<Self>, from: impl Read + Send + 'static) -> Result<Vec<String>> {
        let _in_use = self.store.in_use().await.map_err(|e| image_error(&e))?;
        let runtime = Arc::clone(self);
        let imported = blocking(move || {
            let scratch = runtime.paths.data.join(format!("import-{}", uuid::Uuid::new_v4().simple()));
            archive::import(&runtime.store, from, &scratch)
        });
        let ids = imported.await?.map_err(|e| image_error(&e))?;
        Ok(ids.iter().map(ToString::to_string).collect())
    }
}
