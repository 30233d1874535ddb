//! A Rust program as people write them with `kube`: typed and dynamic clients, a reflector that starts with a streaming list,
//! server-side apply, an operator with a finalizer, logs, exec and port-forward. Each step fails with what it saw.

mod operator;
mod pods;
mod reading;
mod writing;

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::future::Future;
use std::time::{Duration, Instant};

/// What every step is given.
struct World {
    client: Client,
    namespace: String,
    image: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kubeconfig, namespace, image] = &args[..] else {
        bail!("usage: isopod-e2e-kube KUBECONFIG NAMESPACE IMAGE")
    };
    // Two crates may each bring a provider: say which.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let world = World { client: Client::try_from(config)?, namespace: namespace.clone(), image: image.clone() };
    step("discovery", reading::discovery(&world)).await?;
    step("pages and errors", reading::pages(&world)).await?;
    step("reflector", reading::reflector(&world)).await?;
    step("apply", writing::apply(&world)).await?;
    step("patches", writing::patches(&world)).await?;
    step("subresources", writing::subresources(&world)).await?;
    step("operator", Box::pin(operator::operator(&world))).await?;
    step("pods", Box::pin(pods::pods(&world))).await
}

async fn step(name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let started = Instant::now();
    let done = tokio::time::timeout(Duration::from_secs(60), work).await.context("it takes too long");
    done.and_then(|result| result).with_context(|| name.to_owned())?;
    println!("ok {name} ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// Fails with a text where something is not as it should be.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { bail!(what()) }
}
