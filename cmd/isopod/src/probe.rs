//! What a node needs of the kernel and of this machine, each thing tried as the node uses it: `check` tells of all, a server
//! refuses to start a node on the first that is missing.
//!
//! Invariants: nothing is guessed from names or versions; all happens in network namespaces and directories that are gone
//! afterwards. A start waits for few of them, side by side: a change of nftables alone takes the kernel some milliseconds.

use anyhow::{Context, bail};
use isopod_proxy::Proxy;
use isopod_runtime::network::PodNetwork;
use isopod_sys::netlink::{Bridge, NetNs, RouteSocket, Veth};
use isopod_sys::nft::{
    Batch, Chain, ChainKind, Cmp, Expr, Fib, Hook, Meta, NftSocket, Rule, Set, Table, Type, Verdict,
};
use isopod_sys::{conntrack, mount};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// One thing that is tried.
pub struct Probe {
    pub name: &'static str,
    /// Tries it, given a directory to work in, and says what works.
    pub attempt: fn(&Path) -> anyhow::Result<&'static str>,
    /// What to do when it fails.
    pub remedy: &'static str,
    /// A server tries it at each start. What is not tried then is part of something that is.
    pub at_start: bool,
}

/// In this order: what fails first is the likely cause of what fails after it.
pub const NODE: &[Probe] = &[
    Probe {
        name: "overlay file system",
        attempt: overlay,
        remedy: "use a kernel with CONFIG_OVERLAY_FS (`modprobe overlay`) and a --data-dir on a file system that it takes \
                 as an upper layer, such as ext4 or xfs",
        at_start: true,
    },
    Probe {
        name: "bridge and veth",
        attempt: links,
        remedy: "use a kernel with CONFIG_BRIDGE and CONFIG_VETH (`modprobe bridge`, `modprobe veth`)",
        at_start: true,
    },
    Probe {
        name: "nftables",
        attempt: nftables,
        remedy: "use a kernel with CONFIG_NF_TABLES and what the line above names, or load it",
        at_start: false,
    },
    Probe {
        name: "pod and service tables",
        attempt: tables,
        remedy: "use a kernel, 5.10 or newer, whose nftables can do what the line above says",
        at_start: true,
    },
    Probe {
        name: "connection tracking",
        attempt: tracking,
        remedy: "use a kernel with CONFIG_NF_CT_NETLINK (`modprobe nf_conntrack_netlink`)",
        at_start: true,
    },
];

/// Fails, with what to do, when something that a server tries at its start does not work.
pub fn require(probes: &[Probe], place: &Path) -> anyhow::Result<()> {
    let tried: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            probes.iter().filter(|p| p.at_start).map(|p| (p, scope.spawn(move || (p.attempt)(place)))).collect();
        running.into_iter().map(|(p, attempt)| (p, attempt.join())).collect()
    });
    for (probe, ended) in tried {
        let works = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        works.with_context(|| {
            format!(
                "this machine cannot run a node: {} does not work; {} (`isopod check` tells more; --disable-agent runs no \
                 node)",
                probe.name, probe.remedy
            )
        })?;
    }
    Ok(())
}

/// What the directory of a probe is called, before the number of its process.
const LAYERS: &str = ".isopod-probe-";

/// Mounts layers as a container's root has them, and writes through them.
fn overlay(place: &Path) -> anyhow::Result<&'static str> {
    clear_of_the_dead(place);
    let dir = place.join(format!("{LAYERS}{}", std::process::id()));
    let (lower, upper, work, merged) = (dir.join("lower"), dir.join("upper"), dir.join("work"), dir.join("merged"));
    let attempt = || -> anyhow::Result<()> {
        for d in [&lower, &upper, &work, &merged] {
            fs::create_dir_all(d).with_context(|| format!("cannot make {}", d.display()))?;
        }
        fs::write(lower.join("file"), "lower")?;
        mount::overlay(&[lower.display().to_string()], &upper, &work, &merged).context("cannot mount it")?;
        fs::write(merged.join("file"), "upper").context("cannot write to it")?;
        if fs::read_to_string(lower.join("file"))? != "lower" || fs::read_to_string(upper.join("file"))? != "upper" {
            bail!("a write did not go to the upper layer");
        }
        Ok(())
    };
    let done = attempt();
    let cleared = mount::detach(&merged).and_then(|()| mount::remove_tree(&dir));
    done?;
    cleared.with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok("mounts and takes writes")
}

/// Removes what processes have left that were killed while they tried it.
fn clear_of_the_dead(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.strip_prefix(LAYERS)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let cleared = mount::detach(&entry.path().join("merged")).and_then(|()| mount::remove_tree(&entry.path()));
            if let Err(e) = cleared {
                tracing::warn!(path = %entry.path().display(), error = %e, "cannot remove what a killed server has left");
            }
        }
    }
}

/// A pod's interface at the node's bridge.
fn links(_: &Path) -> anyhow::Result<&'static str> {
    let (ns, peer) = (NetNs::create()?, NetNs::create()?);
    let mut socket = RouteSocket::open_in(&ns)?;
    socket.add_bridge(&Bridge { name: "probe0", mac: [2, 0, 0, 0, 0, 1], mtu: 1500 })?;
    let bridge = socket.link("probe0")?.context("the bridge that was just made is not there")?;
    socket.add_veth(&Veth {
        name: "probe1",
        master: bridge.index,
        mtu: 1500,
        peer_name: "eth0",
        peer_mac: [2, 0, 0, 0, 0, 2],
        peer_netns: peer.as_fd(),
    })?;
    let port = socket.link("probe1")?.context("the link that was just made is not there")?;
    socket.set_hairpin(port.index)?;
    Ok("work")
}

/// Something that nftables may lack, and the rule that needs it.
struct Feature {
    name: &'static str,
    option: &'static str,
    chain: (ChainKind, Hook),
    rule: fn() -> Rule,
}

const FEATURES: &[Feature] = &[
    Feature {
        name: "address translation",
        option: "CONFIG_NFT_NAT (nft_chain_nat)",
        chain: (ChainKind::Nat, Hook::Prerouting),
        rule: || {
            Rule::new()
                .expr(Expr::Load { to: 0, value: vec![127, 0, 0, 1] })
                .expr(Expr::Load { to: 1, value: vec![0, 1, 0, 0] })
                .expr(Expr::Dnat { address: 0, port: Some(1) })
        },
    },
    Feature {
        name: "masquerading",
        option: "CONFIG_NFT_MASQ (nft_masq)",
        chain: (ChainKind::Nat, Hook::Postrouting),
        rule: || Rule::new().expr(Expr::Masquerade),
    },
    Feature {
        name: "route lookups (fib)",
        option: "CONFIG_NFT_FIB_IPV4 (nft_fib_ipv4)",
        chain: (ChainKind::Nat, Hook::Prerouting),
        rule: || Rule::new().local(Fib::Destination).verdict(Verdict::Accept),
    },
    Feature {
        name: "random numbers (numgen)",
        option: "CONFIG_NFT_NUMGEN (nft_numgen)",
        chain: (ChainKind::Nat, Hook::Prerouting),
        rule: || Rule::new().expr(Expr::Random { modulus: 2, offset: 0, to: 0 }),
    },
    Feature {
        name: "connection states (ct)",
        option: "CONFIG_NFT_CT (nft_ct)",
        chain: (ChainKind::Filter, Hook::Forward),
        rule: || Rule::new().new_connection(),
    },
    Feature {
        name: "rejects",
        option: "CONFIG_NFT_REJECT_IPV4 (nft_reject_ipv4)",
        chain: (ChainKind::Filter, Hook::Forward),
        rule: || Rule::new().expr(Expr::RejectUnreachable),
    },
    Feature {
        name: "interface names and marks (meta)",
        option: "CONFIG_NF_TABLES",
        chain: (ChainKind::Filter, Hook::Forward),
        rule: || {
            Rule::new()
                .expr(Expr::Meta { key: Meta::InName, to: 0 })
                .expr(Expr::Cmp { op: Cmp::Ne, reg: 0, value: vec![0; 16] })
                .mark(1)
        },
    },
    Feature {
        name: "sets that rules add to (dynset)",
        option: "CONFIG_NF_TABLES, 5.6 or newer",
        chain: (ChainKind::Nat, Hook::Prerouting),
        rule: || {
            let timeout = Duration::from_secs(10);
            Rule::new().source(0).protocol(1).expr(Expr::Update { set: "seen".into(), key: 0, data: None, timeout })
        },
    },
];

fn nftables(_: &Path) -> anyhow::Result<&'static str> {
    try_features(FEATURES)?;
    Ok("has all that the rules use")
}

/// Tries each alone, so that what is missing is named.
fn try_features(features: &[Feature]) -> anyhow::Result<()> {
    let ns = NetNs::create()?;
    for feature in features {
        let table = Table("isopod-probe".into());
        let mut batch = Batch::new();
        batch.replace_table(&table);
        let seen = Set::new("seen", &[Type::Ipv4, Type::Protocol]);
        batch.add_set(&table, &Set { dynamic: Some((Duration::from_secs(10), 16)), ..seen });
        batch.add_chain(&table, &Chain::base("probe", feature.chain.0, feature.chain.1, 0));
        batch.add_rule(&table, "probe", &(feature.rule)());
        ns.run(|| NftSocket::open()?.commit(batch))?
            .with_context(|| format!("no {}: {} is missing", feature.name, feature.option))?;
    }
    Ok(())
}

/// The very tables of a node.
fn tables(_: &Path) -> anyhow::Result<&'static str> {
    let attempt = || -> anyhow::Result<()> {
        let ns = NetNs::create()?;
        ns.run(PodNetwork::try_rules)?.context("the pod network's table")?;
        ns.run(Proxy::try_table)?.context("the service proxy's table")
    };
    match attempt() {
        Ok(()) => Ok("can be written"),
        // What is missing is the better answer, where it can be told.
        Err(e) => Err(try_features(FEATURES).err().unwrap_or(e)),
    }
}

fn tracking(_: &Path) -> anyhow::Result<&'static str> {
    NetNs::create()?.run(|| conntrack::delete_udp(|_| false))??;
    Ok("can be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let good = Probe { name: "good", attempt: |_| Ok("fine"), remedy: "nothing", at_start: true };
        let bad = Probe { name: "frobs", attempt: |_| bail!("no frob in here"), remedy: "load frob", at_start: true };
        require(&[good], Path::new("/")).unwrap();
        let text = format!("{:#}", require(&[bad], Path::new("/")).unwrap_err());
        for words in ["frobs", "load frob", "no frob in here", "isopod check", "--disable-agent"] {
            assert!(text.contains(words), "{text}");
        }
    }

    /// Needs root.
    #[test]
    fn a_rule_that_the_kernel_refuses_is_missing_by_name() {
        let broken = [Feature {
            name: "looking glasses",
            option: "CONFIG_GLASS",
            chain: (ChainKind::Filter, Hook::Forward),
            // Source NAT in a filter chain: refused by every kernel.
            rule: || Rule::new().expr(Expr::Masquerade),
        }];
        let text = format!("{:#}", try_features(&broken).unwrap_err());
        assert!(text.contains("looking glasses") && text.contains("CONFIG_GLASS"), "{text}");
    }

    /// Needs root.
    #[test]
    fn what_a_killed_server_has_mounted_goes_with_the_next() {
        let place = tempfile::tempdir().unwrap();
        let mut killed = std::process::Command::new("true").spawn().unwrap();
        killed.wait().unwrap();
        let left = place.path().join(format!("{LAYERS}{}", killed.id()));
        let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|d| left.join(d));
        for d in [&lower, &upper, &work, &merged] {
            fs::create_dir_all(d).unwrap();
        }
        mount::overlay(&[lower.display().to_string()], &upper, &work, &merged).unwrap();
        let alive = place.path().join(format!("{LAYERS}1"));
        fs::create_dir(&alive).unwrap();
        overlay(place.path()).unwrap();
        assert!(!left.exists() && alive.exists());
    }

    /// Needs root. The probes leave nothing, and pass where the project's own tests run.
    #[test]
    fn this_machine_can_run_a_node() {
        let place = std::env::temp_dir().join(format!("isopod-probes-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        require(NODE, &place).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        // A file system that cannot hold layers is told apart.
        let text = format!("{:#}", require(NODE, Path::new("/proc")).unwrap_err());
        assert!(text.contains("overlay") && text.contains("--data-dir"), "{text}");
        fs::remove_dir(place).unwrap();
    }
}
