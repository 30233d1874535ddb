//! The pod network's own nftables table: masquerading, and what must not cross the bridge.

use super::Cidr;
use isopod_sys::nft::{Batch, Chain, ChainKind, Cmp, Expr, Hook, Meta, Rule, Table, Verdict};
use std::net::Ipv4Addr;

const MULTICAST: (Ipv4Addr, u8) = (Ipv4Addr::new(224, 0, 0, 0), 4);
const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);
const ICMP: u8 = 1;
const ICMP_REDIRECT: u8 = 5;

fn table(prefix: &str) -> Table {
    Table(format!("{prefix}-pods"))
}

/// Replaces the table by one for this network.
pub(super) fn batch(prefix: &str, bridge: &str, pods: Cidr, cluster: Cidr) -> Batch {
    let t = table(prefix);
    let mut b = Batch::new();
    b.replace_table(&t);
    // 100 is where source NAT happens, -300 is before connection tracking has seen the packet.
    b.add_chain(&t, &Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, 100));
    b.add_chain(&t, &Chain::base("prerouting", ChainKind::Filter, Hook::Prerouting, -300));
    b.add_chain(&t, &Chain::base("output", ChainKind::Filter, Hook::Output, 0));
    let masquerade = Rule::new()
        .source(0)
        .network(0, (pods.net, pods.prefix), true)
        .destination(1)
        .network(1, (cluster.net, cluster.prefix), false)
        .network(1, MULTICAST, false)
        .expr(Expr::Meta { key: Meta::OutName, to: 4 })
        .expr(Expr::Cmp { op: Cmp::Ne, reg: 4, value: link_name(bridge) })
        .expr(Expr::Masquerade);
    b.add_rule(&t, "postrouting", &masquerade);
    // The bridge routes to 127.0.0.0/8 for the node's own sake: nobody else may use it (CVE-2020-8558).
    let no_loopback = Rule::new()
        .expr(Expr::Meta { key: Meta::InName, to: 0 })
        .equals(0, &link_name(bridge))
        .destination(4)
        .network(4, LOOPBACK, true)
        .verdict(Verdict::Drop);
    b.add_rule(&t, "prerouting", &no_loopback);
    // Pods shall not learn shorter ways past the node.
    let no_redirects = Rule::new()
        .expr(Expr::Meta { key: Meta::OutName, to: 0 })
        .equals(0, &link_name(bridge))
        .protocol(4)
        .equals(4, &[ICMP])
        .expr(Expr::Transport { offset: 0, len: 1, to: 4 })
        .equals(4, &[ICMP_REDIRECT])
        .verdict(Verdict::Drop);
    b.add_rule(&t, "output", &no_redirects);
    b
}

pub(super) fn removal(prefix: &str) -> Batch {
    let mut b = Batch::new();
    b.remove_table(&table(prefix));
    b
}

/// A name as registers hold it.
fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}
