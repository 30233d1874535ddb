//! A pod that runs: its logs, a command in it, a port of it, its end.

use crate::{World, ensure};
use anyhow::{Context, Result};
use futures::AsyncBufReadExt;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, DeleteParams, EvictParams, LogParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub async fn pods(world: &World) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), &world.namespace);
    let script = "echo started; while true; do echo hello | nc -l -p 8080; done";
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "shell"}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": world.image, "command": ["sh", "-c", script]}]}}))?;
    pods.create(&PostParams::default(), &pod).await?;
    let running = await_condition(pods.clone(), "shell", conditions::is_pod_running());
    tokio::time::timeout(Duration::from_secs(40), running).await.context("the pod does not run")??;

    let lines = pods.log_stream("shell", &LogParams { follow: true, ..LogParams::default() }).await?.lines();
    let first = std::pin::pin!(lines).try_next().await?;
    ensure(first.as_deref() == Some("started"), || format!("the log begins with {first:?}"))?;

    let mut attached = pods.exec("shell", ["cat"], &AttachParams::default().stdin(true).stderr(false)).await?;
    let mut stdin = attached.stdin().context("stdin was asked for")?;
    let mut stdout = attached.stdout().context("stdout was asked for")?;
    stdin.write_all(b"through the shell").await?;
    stdin.shutdown().await?;
    drop(stdin);
    let mut said = String::new();
    stdout.read_to_string(&mut said).await?;
    ensure(said == "through the shell", || format!("cat says {said:?}"))?;
    let status = attached.take_status().context("a status was asked for")?.await;
    ensure(status.as_ref().and_then(|s| s.status.as_deref()) == Some("Success"), || format!("{status:?}"))?;
    attached.join().await?;

    let failing = pods.exec("shell", ["sh", "-c", "exit 3"], &AttachParams::default()).await;
    let status = failing?.take_status().context("a status was asked for")?.await;
    let told = status.as_ref().is_some_and(|s| s.reason.as_deref() == Some("NonZeroExitCode"));
    ensure(told, || format!("a command that fails: {status:?}"))?;

    let mut forwarded = pods.portforward("shell", &[8080]).await?;
    let mut port = forwarded.take_stream(8080).context("the port was asked for")?;
    let mut said = [0; 5];
    port.read_exact(&mut said).await?;
    ensure(&said == b"hello", || format!("the port says {:?}", String::from_utf8_lossy(&said)))?;
    drop(port);

    pods.evict("shell", &EvictParams { delete_options: Some(DeleteParams::default()), ..EvictParams::default() })
        .await?;
    let uid = pod_uid(&pods).await?;
    if let Some(uid) = uid {
        let gone = await_condition(pods.clone(), "shell", conditions::is_deleted(&uid));
        tokio::time::timeout(Duration::from_secs(30), gone).await.context("the pod does not end")??;
    }
    Ok(())
}

/// `None`: it is gone already.
async fn pod_uid(pods: &Api<Pod>) -> Result<Option<String>> {
    Ok(pods.get_opt("shell").await?.and_then(|p| p.metadata.uid))
}
