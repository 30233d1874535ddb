//! Gives every node its range of pod addresses out of the cluster's.
//!
//! Watches nodes; writes `spec.podCIDR` and `spec.podCIDRs` of nodes that have none. Invariants: no two nodes have the same
//! range; a range that a node has is never changed; ranges that overlap the services' are not given out.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::Node;
use isopod_client::{Informer, Patch};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

/// The length of a node's IPv6 range.
const MASK_V6: u8 = 64;

/// A range of addresses, either family, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cidr {
    first: u128,
    prefix: u8,
    bits: u8,
}

impl Cidr {
    fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Cidr { cidr: text.to_owned(), why: why.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(|| wrong("it has no /length"))?;
        let address: IpAddr = address.parse().map_err(|_| wrong("it is no IP address"))?;
        let (first, bits) = match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
            IpAddr::V6(a) => (u128::from(a), 128),
        };
        let prefix: u8 =
            prefix.parse().ok().filter(|p| *p <= bits).ok_or_else(|| wrong("its length is out of range"))?;
        Ok(Cidr { first: first & !low_mask(bits - prefix), prefix, bits })
    }

    /// How many addresses, less one.
    fn span(self) -> u128 {
        low_mask(self.bits - self.prefix)
    }

    fn overlaps(self, other: Cidr) -> bool {
        self.bits == other.bits && self.first <= other.first + other.span() && other.first <= self.first + self.span()
    }
}

fn low_mask(bits: u8) -> u128 {
    if bits >= 128 { u128::MAX } else { (1 << bits) - 1 }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits == 32 {
            write!(f, "{}/{}", Ipv4Addr::from(self.first as u32), self.prefix)
        } else {
            write!(f, "{}/{}", Ipv6Addr::from(self.first), self.prefix)
        }
    }
}

/// One range of the cluster and what of it is taken.
struct Pool {
    range: Cidr,
    mask: u8,
    taken: BTreeSet<u128>,
    services: Option<Cidr>,
}

impl Pool {
    fn new(range: Cidr, mask_v4: u8, services: Option<Cidr>) -> Result<Self, Error> {
        let mask = if range.bits == 32 { mask_v4 } else { MASK_V6 };
        if mask < range.prefix || mask > range.bits {
            let why = format!("a node's range of length {mask} does not fit into it");
            return Err(Error::Cidr { cidr: range.to_string(), why });
        }
        Ok(Pool { range, mask, taken: BTreeSet::new(), services })
    }

    fn step(&self) -> u128 {
        low_mask(self.range.bits - self.mask) + 1
    }

    /// Marks the parts of the pool that a node's range covers.
    fn take(&mut self, range: Cidr) {
        if !range.overlaps(self.range) {
            return;
        }
        let step = self.step();
        let mut at = range.first.max(self.range.first) & !(step - 1);
        let last = (range.first + range.span()).min(self.range.first + self.range.span());
        while at <= last {
            self.taken.insert(at);
            at += step;
        }
    }

    fn give_back(&mut self, range: Cidr) {
        self.taken.remove(&range.first);
    }

    /// The first free range.
    fn next(&mut self) -> Result<Cidr, Error> {
        let (step, end) = (self.step(), self.range.first + self.range.span());
        let mut at = self.range.first;
        while at <= end {
            let candidate = Cidr { first: at, prefix: self.mask, bits: self.range.bits };
            if !self.taken.contains(&at) && !self.services.is_some_and(|s| s.overlaps(candidate)) {
                self.taken.insert(at);
                return Ok(candidate);
            }
            at += step;
        }
        Err(Error::RangeFull(self.range.to_string()))
    }
}

struct NodeIpam {
    context: Context,
    nodes: Informer<Node>,
    state: Mutex<State>,
}

struct State {
    pools: Vec<Pool>,
    /// What each node has, so that it comes back when the node goes.
    given: BTreeMap<String, Vec<Cidr>>,
}

pub async fn run(context: Context) {
    let Some(ranges) = context.options.cluster_cidr.clone() else { return context.stop.cancelled().await };
    let options = context.options.clone();
    let services: Vec<Cidr> = options.service_cidr.split(',').filter_map(|s| Cidr::parse(s).ok()).collect();
    let pools: Result<Vec<Pool>, Error> = ranges
        .split(',')
        .map(|text| {
            let range = Cidr::parse(text)?;
            let overlapping = services.iter().copied().find(|s| s.overlaps(range));
            Pool::new(range, options.node_cidr_mask_size, overlapping)
        })
        .collect();
    let pools = match pools {
        Ok(pools) => pools,
        Err(e) => {
            tracing::error!(error = %e, "nodes get no pod ranges: correct --cluster-cidr");
            return context.stop.cancelled().await;
        }
    };
    let nodes = context.informer::<Node>(Node::resource());
    nodes.synced().await;
    let mut state = State { pools, given: BTreeMap::new() };
    // What nodes have must be known before anything is given out.
    for node in nodes.list() {
        state.note(&node);
    }
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&nodes, &queue);
    let controller = Arc::new(NodeIpam { context: context.clone(), nodes, state: Mutex::new(state) });
    context.work(controller, queue, 1).await;
}

impl State {
    /// Takes note of a node's own ranges.
    fn note(&mut self, node: &Node) {
        let ranges: Vec<Cidr> = ranges_of(node).iter().filter_map(|r| Cidr::parse(r).ok()).collect();
        if ranges.is_empty() || self.given.get(&node.metadata.name) == Some(&ranges) {
            return;
        }
        self.release(&node.metadata.name);
        for range in &ranges {
            self.pools.iter_mut().for_each(|p| p.take(*range));
        }
        self.given.insert(node.metadata.name.clone(), ranges);
    }

    fn release(&mut self, node: &str) {
        for range in self.given.remove(node).unwrap_or_default() {
            self.pools.iter_mut().for_each(|p| p.give_back(range));
        }
    }

    /// What a node without ranges gets: the same again when it asks again.
    fn give(&mut self, node: &str) -> Result<Vec<Cidr>, Error> {
        if let Some(given) = self.given.get(node) {
            return Ok(given.clone());
        }
        let ranges = self.pools.iter_mut().map(Pool::next).collect::<Result<Vec<_>, _>>()?;
        self.given.insert(node.to_owned(), ranges.clone());
        Ok(ranges)
    }
}

fn ranges_of(node: &Node) -> Vec<String> {
    if node.spec.pod_cidrs.is_empty() {
        Some(node.spec.pod_cidr.clone()).filter(|c| !c.is_empty()).into_iter().collect()
    } else {
        node.spec.pod_cidrs.clone()
    }
}

#[async_trait]
impl Controller for NodeIpam {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(node) = self.nodes.get("", &key.name) else {
            self.state.lock().release(&key.name);
            return Ok(None);
        };
        if !ranges_of(&node).is_empty() {
            self.state.lock().note(&node);
            return Ok(None);
        }
        let given = self.state.lock().give(&key.name);
        let ranges: Vec<String> = match given {
            Ok(ranges) => ranges.iter().map(ToString::to_string).collect(),
            Err(e) => {
                let about = ObjectRef::new("v1", "Node", &node.metadata);
                let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
                self.context.recorder.event(&about, Kind::Normal, "CIDRNotAvailable", text);
                return Err(e);
            }
        };
        let patch = Patch::Merge(json!({"spec": {"podCIDR": ranges[0], "podCIDRs": ranges}}));
        let op = Op::patch(Node::resource(), "", &key.name, patch).if_uid(&node.metadata.uid);
        self.context.apply(&op).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(ranges: &[&str], services: Option<&str>) -> State {
        let services = services.map(|s| Cidr::parse(s).unwrap());
        let pool = |r: &&str| Pool::new(Cidr::parse(r).unwrap(), 24, services).unwrap();
        State { pools: ranges.iter().map(pool).collect(), given: BTreeMap::new() }
    }

    fn give(s: &mut State, node: &str) -> String {
        match s.give(node) {
            Ok(ranges) => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn ranges_are_given_once_and_come_back() {
        let mut s = state(&["10.42.0.0/22"], None);
        let has: Node =
            serde_json::from_value(json!({"metadata": {"name": "old"}, "spec": {"podCIDR": "10.42.1.0/24"}})).unwrap();
        s.note(&has);
        assert_eq!(give(&mut s, "a"), "10.42.0.0/24");
        assert_eq!(give(&mut s, "a"), "10.42.0.0/24", "the same again");
        assert_eq!(give(&mut s, "b"), "10.42.2.0/24", "10.42.1.0/24 is taken");
        assert_eq!(give(&mut s, "c"), "10.42.3.0/24");
        assert_eq!(give(&mut s, "d"), "no free pod range is left in 10.42.0.0/22");
        s.release("old");
        assert_eq!(give(&mut s, "d"), "10.42.1.0/24");
    }

    #[test]
    fn both_families_and_what_services_use() {
        let mut s = state(&["10.42.0.0/16", "fd00:42::/56"], Some("10.42.0.0/23"));
        assert_eq!(give(&mut s, "a"), "10.42.2.0/24,fd00:42::/64");
        assert_eq!(give(&mut s, "b"), "10.42.3.0/24,fd00:42:0:1::/64");
        // A larger range of an older setting covers several.
        let has: Node =
            serde_json::from_value(json!({"metadata": {"name": "old"}, "spec": {"podCIDRs": ["10.42.4.0/23"]}}))
                .unwrap();
        s.note(&has);
        assert_eq!(give(&mut s, "c"), "10.42.6.0/24,fd00:42:0:2::/64");
    }

    #[test]
    fn wrong_ranges_are_named() {
        for (text, want) in [
            ("10.42.0.0", r#"the cluster range "10.42.0.0" is no range: it has no /length"#),
            ("10.42.0.0/40", r#"the cluster range "10.42.0.0/40" is no range: its length is out of range"#),
        ] {
            assert_eq!(Cidr::parse(text).unwrap_err().to_string(), want);
        }
        assert!(Pool::new(Cidr::parse("10.42.0.0/28").unwrap(), 24, None).is_err());
    }
}
