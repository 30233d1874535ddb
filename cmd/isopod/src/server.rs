//! `isopod server`: starts the parts in order, says what has become true, and stops them in order.
//!
//! Invariant: keys and kubeconfig are written only by a server that has everything it needs for itself (data directory,
//! datastore, ports, pod network): one that is refused leaves those of a running server as they are.

use crate::admin_config::{AdminConfig, Held};
use crate::args::ServerArgs;
use crate::endpoint::Endpoint;
use crate::paths::Paths;
use crate::wire::{self, Cluster, Settings};
use crate::{SHIM, node};
use anyhow::{Context, bail};
use isopod_pki::{ServerNames, ServerPki};
use isopod_runtime::Registries;
use isopod_sys::own_code;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// `flags`: how it was started, as `/flagz` shows it.
pub async fn run(args: Box<ServerArgs>, flags: BTreeMap<String, String>) -> anyhow::Result<()> {
    let start = Instant::now();
    isopod_base::logging::init(&args.log_level, args.log_json)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = settings(*args, flags)?;
    // The datastore may not be there yet.
    let claimed = tokio::select! {
        claimed = wire::claim(&settings) => claimed?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let (pki, held) = match write_keys(&settings) {
        Ok(done) => done,
        Err(e) => {
            claimed.give_back().await;
            return Err(e);
        }
    };
    let cluster = Box::pin(wire::start(settings, pki, held, claimed)).await?;
    let ended = tokio::select! {
        r = work(&cluster, start) => r,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let stopped = cluster.shutdown().await;
    ended?;
    stopped
}

/// How long after the start its last echoes are over: informers have listed, controllers have looked at everything once.
const SETTLED: Duration = Duration::from_secs(10);

/// Says what becomes true and then waits for a part that the others cannot do without to end, which is an error.
async fn work(cluster: &Cluster, start: Instant) -> anyhow::Result<()> {
    let narrated = async {
        narrate(cluster, start).await?;
        // A start runs through most of the program once; afterwards little of it is needed again and again.
        tokio::time::sleep(SETTLED).await;
        if let Err(e) = own_code::unmap_unused() {
            tracing::debug!(error = %e, "cannot unmap the code of the start");
        }
        std::future::pending().await
    };
    tokio::select! {
        r = narrated => r,
        failure = cluster.failed() => Err(failure.into()),
    }
}

/// Everything that is decided before anything is started.
fn settings(args: ServerArgs, flags: BTreeMap<String, String>) -> anyhow::Result<Settings> {
    if !args.disable_agent && !is_root() {
        bail!("a node needs root: run it with sudo, or run only the API server with --disable-agent");
    }
    let paths = Paths::new(&args.data.data_dir)?;
    let host_name = node::host_name()?;
    let node_name = match &args.node_name {
        Some(name) => name.clone(),
        None => node::node_name(&host_name)?,
    };
    let node_ip = match args.node_ip {
        Some(ip) => ip,
        None => node::address()?,
    };
    let advertise = args.advertise_address.unwrap_or(node_ip);
    let service_ip = nth_address(&args.service_cidr, 1)?;
    let cluster_dns = match args.cluster_dns {
        Some(ip) => ip,
        None => nth_address(&args.service_cidr, 10)?,
    };
    if !args.disable_agent {
        Registries::load(&args.private_registry).context("mend the file, or name another with --private-registry")?;
    }
    let datastore = Endpoint::parse(&args.datastore.datastore_endpoint)?;
    let shim = SHIM;
    Ok(Settings {
        args,
        flags,
        datastore,
        paths,
        host_name,
        node_name,
        node_ip,
        advertise,
        service_ip,
        cluster_dns,
        shim,
    })
}

/// Loads or makes the keys and writes the kubeconfig, whose claim it returns.
fn write_keys(settings: &Settings) -> anyhow::Result<(ServerPki, Held)> {
    let args = &settings.args;
    let mut names = ServerNames {
        dns: vec![settings.node_name.clone()],
        ips: vec![settings.service_ip, settings.advertise, settings.node_ip],
        cluster_domain: args.cluster_domain.clone(),
    };
    for san in &args.tls_san {
        match san.parse() {
            Ok(ip) => names.ips.push(ip),
            Err(_) => names.dns.push(san.clone()),
        }
    }
    let pki = ServerPki::load_or_create(&settings.paths.tls(), &names)?;
    let server = format!("https://{}:{}", reach(args.bind_address), args.https_listen_port);
    let file = AdminConfig { path: &args.write_kubeconfig, mode: args.write_kubeconfig_mode, server: &server };
    let held = file.write(&settings.paths, &pki)?;
    Ok((pki, held))
}

/// Where the administrator on this machine finds the server.
fn reach(bind: IpAddr) -> String {
    match bind {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".into(),
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".into(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().nth(1)) == Some("0")
}

fn nth_address(cidr: &str, n: u32) -> anyhow::Result<IpAddr> {
    let base: Ipv4Addr = cidr.split('/').next().unwrap_or("").parse().context("invalid --service-cidr")?;
    Ok(Ipv4Addr::from(u32::from(base) + n).into())
}

/// Says what has become true, as it does.
async fn narrate(cluster: &Cluster, start: Instant) -> anyhow::Result<()> {
    let took = || format!("{:.2} s", start.elapsed().as_secs_f64());
    let args = &cluster.settings.args;
    println!(
        "Isopod {}: Kubernetes v1.37, data in {}",
        env!("CARGO_PKG_VERSION"),
        cluster.settings.paths.data.display()
    );
    cluster.api_ready().await?;
    println!("API ready    https://{}:{} ({})", cluster.settings.advertise, args.https_listen_port, took());
    println!("Kubeconfig   {}", args.write_kubeconfig.display());
    if !args.disable_agent {
        cluster.node_ready().await?;
        println!("Node ready   {} ({})", cluster.settings.node_name, took());
    }
    println!("\nNext, in another terminal:");
    println!("  export KUBECONFIG={}", args.write_kubeconfig.display());
    println!("  kubectl get nodes");
    println!("  kubectl apply -f manifests/examples/web.yaml");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_addresses() {
        assert_eq!(nth_address("10.43.0.0/16", 1).unwrap().to_string(), "10.43.0.1");
        assert_eq!(nth_address("10.43.0.0/16", 10).unwrap().to_string(), "10.43.0.10");
    }
}
