//! `isopod server`: starts the parts in order, says what has become true, and stops them in order.

use crate::args::ServerArgs;
use crate::paths::Paths;
use crate::wire::{self, Cluster, Settings};
use crate::{SHIM, node};
use anyhow::{Context, bail};
use isopod_pki::{ServerNames, ServerPki, kubeconfig, write_atomic};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub async fn run(args: Box<ServerArgs>) -> anyhow::Result<()> {
    let start = Instant::now();
    isopod_base::logging::init(&args.log_level, args.log_json)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = settings(*args)?;
    let listener = listen(SocketAddr::new(settings.args.bind_address, settings.args.https_listen_port)).await?;
    let cluster = wire::start(settings, listener).await?;
    let narrated = tokio::select! {
        r = narrate(&cluster, start) => r,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if narrated.is_ok() && !cluster.stopping() {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = cluster.failed() => {}
        }
    }
    let ended = cluster.shutdown().await;
    narrated?;
    ended
}

/// Everything that is decided before anything is started.
fn settings(args: ServerArgs) -> anyhow::Result<Settings> {
    if !args.disable_agent && !is_root() {
        bail!("a node needs root: run it with sudo, or run only the API server with --disable-agent");
    }
    let paths = Paths::new(&args.data.data_dir)?;
    let node_name = match &args.node_name {
        Some(name) => name.clone(),
        None => node::host_name()?,
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
    let mut names = ServerNames {
        dns: vec![node_name.clone()],
        ips: vec![service_ip, advertise, node_ip],
        cluster_domain: args.cluster_domain.clone(),
    };
    for san in &args.tls_san {
        match san.parse() {
            Ok(ip) => names.ips.push(ip),
            Err(_) => names.dns.push(san.clone()),
        }
    }
    let pki = ServerPki::load_or_create(&paths.tls(), &names)?;
    let server = format!("https://{}:{}", reach(args.bind_address), args.https_listen_port);
    let text = kubeconfig("isopod", &server, &pki.server_ca.cert_pem, &pki.admin);
    write_atomic(&args.write_kubeconfig, text.as_bytes(), args.write_kubeconfig_mode)
        .context("cannot write the kubeconfig; choose another place with --write-kubeconfig")?;
    Ok(Settings { args, paths, pki, node_name, node_ip, advertise, cluster_dns, shim: SHIM })
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

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                "the port is in use; stop what listens there (`ss -ltnp`) or choose another with --https-listen-port"
            }
            std::io::ErrorKind::PermissionDenied => "not permitted; choose a port above 1023 with --https-listen-port",
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; choose another with --bind-address"
            }
            _ => return anyhow::Error::new(e).context(format!("cannot listen on {address}")),
        };
        anyhow::anyhow!("cannot listen on {address}: {why}")
    })
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

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let err = listen(first.local_addr().unwrap()).await.unwrap_err().to_string();
        assert!(err.contains("in use") && err.contains("--https-listen-port"), "{err}");
    }
}
