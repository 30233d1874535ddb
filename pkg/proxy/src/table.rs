//! Puts rows into nftables: the fixed chains and maps, one chain for each class, rows as elements.
//!
//! ```text
//! prerouting, output ─▶ services ─▶ (front → class chain) ─▶ random index ─▶ (front . index → endpoint)
//! postrouting ─▶ masquerade what is marked, or was sent back to its sender
//! input, forward, output (filter) ─▶ (front → reject or drop)
//! ```
//! A front is address . protocol . port. Those at every address of the node have maps of their own, `node-…`, without the
//! address. Each front has its own copy of its endpoints: two look-ups and one batch of elements whatever else there is.
//!
//! Everything here is what `nft` could have said, so that `nft list ruleset` shows it and `nft -f` takes that back. The
//! price: a look-up's result is never part of another look-up's key, and constants are not either. With affinity that leaves
//! nowhere to keep what one look-up found for the next but the packet: the endpoint's number travels in its priority. Only a
//! connection's first packet comes here, and forwarding sets the priority anew.

use crate::config::{Network, ProxyConfig};
use crate::state::{Changes, Class, Front, Key, Masquerade, Refusal, State, Value};
use isopod_sys::nft::{
    Batch, Chain, ChainKind, Ct, Data, Element, Expr, Fib, Hook, Meta, Reg, Rule, Set, Table, Type, Verdict,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// A map by front, and its twin for fronts at every address of the node.
type Pair = [&'static str; 2];
const SERVICES: Pair = ["services", "node-services"];
const INSIDE: Pair = ["inside", "node-inside"];
const REFUSED: Pair = ["refused", "node-refused"];
const ENDPOINTS: Pair = ["endpoints", "node-endpoints"];
/// As `ENDPOINTS` with affinity: to the endpoint's number.
const STICKY_CHOICES: Pair = ["sticky-choices", "node-sticky-choices"];
/// From protocol and number to the endpoint.
const STICKY_ENDPOINTS: &str = "sticky-endpoints";
/// From a client and what it sent to, to the number of the endpoint that it keeps.
const STICKY: &str = "sticky";
const HAIRPIN: &str = "hairpin";
const CLUSTER_IPS: &str = "cluster-ips";

/// The maps that rows are in, in the order in which elements may be added: none refers to a later one.
const FILLED: [&str; 13] = [
    ENDPOINTS[0],
    ENDPOINTS[1],
    STICKY_ENDPOINTS,
    STICKY_CHOICES[0],
    STICKY_CHOICES[1],
    SERVICES[0],
    SERVICES[1],
    INSIDE[0],
    INSIDE[1],
    HAIRPIN,
    REFUSED[0],
    REFUSED[1],
    CLUSTER_IPS,
];

/// Elements by map and key.
type Elements = BTreeMap<(&'static str, Vec<u8>), Data>;

/// Where the indices of `INSIDE`'s endpoints begin: more than a service has endpoints.
const INSIDE_OFFSET: u32 = 1_000_000;

/// Chains that are not classes.
const DISPATCH: &str = "dispatch";
const NODE: &str = "node-addresses";
const CHECK: &str = "check";
const REJECT: &str = "refuse";

/// Most clients whose endpoint is remembered.
const STICKY_SIZE: u32 = 1 << 18;
const LOOPBACK: Network = (Ipv4Addr::new(127, 0, 0, 0), 8);
/// Of `enum ip_conntrack_status`: the destination was translated.
const IPS_DST_NAT: u32 = 1 << 5;

/// Knows the table's name and fixed parts, and which class chains it has written.
pub struct ServiceTable {
    table: Table,
    cluster_cidr: Network,
    service_cidr: Option<Network>,
    masquerade_bit: u32,
    classes: BTreeSet<Class>,
}

impl ServiceTable {
    pub fn new(config: &ProxyConfig) -> Self {
        ServiceTable {
            table: Table(format!("{}-proxy", config.table_prefix)),
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
            masquerade_bit: config.masquerade_bit,
            classes: BTreeSet::new(),
        }
    }

    /// Replaces whatever table there is by one with these rows.
    pub fn replace(&mut self, state: &State) -> Batch {
        let mut b = Batch::new();
        b.replace_table(&self.table);
        self.fixed(&mut b);
        self.classes.clear();
        self.add_classes(state, &mut b);
        let mut filled: BTreeMap<&str, Vec<Element>> = BTreeMap::new();
        for (key, value) in state.rows() {
            elements(&key, value, |map, element| filled.entry(map).or_default().push(element));
        }
        for map in FILLED {
            b.add_elements(&self.table, map, filled.remove(map).unwrap_or_default());
        }
        b
    }

    /// Only what changed.
    pub fn update(&mut self, state: &State, changes: &Changes) -> Batch {
        let mut b = Batch::new();
        self.add_classes(state, &mut b);
        let (mut gone, mut new) = (Elements::new(), Elements::new());
        for (key, before, after) in changes.against(state) {
            for (value, all) in [(before, &mut gone), (after, &mut new)] {
                if let Some(value) = value {
                    elements(&key, &value, |map, e| _ = all.insert((map, e.key), e.data));
                }
            }
        }
        // What stays as it is, of rows that changed elsewhere.
        gone.retain(|place, data| {
            let stays = new.get(place) == Some(data);
            if stays {
                new.remove(place);
            }
            !stays
        });
        for map in FILLED {
            let here = |all: &Elements| -> Vec<Element> {
                let all = all.iter().filter(|((m, _), _)| *m == map);
                all.map(|((_, key), data)| Element { key: key.clone(), data: data.clone() }).collect()
            };
            b.delete_elements(&self.table, map, here(&gone));
            b.add_elements(&self.table, map, here(&new));
        }
        self.classes.retain(|class| {
            let used = state.has_class(class);
            if !used {
                b.delete_chain(&self.table, &chain_name(class));
            }
            used
        });
        b
    }

    pub fn removal(&self) -> Batch {
        let mut b = Batch::new();
        b.remove_table(&self.table);
        b
    }

    fn add_classes(&mut self, state: &State, b: &mut Batch) {
        for class in state.classes() {
            if self.classes.insert(class) {
                let name = chain_name(&class);
                b.add_chain(&self.table, &Chain::regular(&name));
                for rule in class_rules(&class, self.cluster_cidr, self.masquerade_bit) {
                    b.add_rule(&self.table, &name, &rule);
                }
            }
        }
    }

    /// Everything that does not depend on services.
    fn fixed(&self, b: &mut Batch) {
        let t = &self.table;
        let named = [Type::Ipv4, Type::Protocol, Type::Port];
        let endpoint = [Type::Ipv4, Type::Port];
        for (i, front) in [&named[..], &named[1..]].into_iter().enumerate() {
            let choice = [front, &[Type::Index]].concat();
            for set in [
                Set::verdicts(SERVICES[i], front),
                Set::verdicts(INSIDE[i], front),
                Set::verdicts(REFUSED[i], front),
                Set::map(ENDPOINTS[i], &choice, &endpoint),
                Set::map(STICKY_CHOICES[i], &choice, &[Type::ClassId]),
            ] {
                b.add_set(t, &set);
            }
        }
        for set in [
            Set::map(STICKY_ENDPOINTS, &[Type::Protocol, Type::ClassId], &endpoint),
            Set::new(HAIRPIN, &[Type::Ipv4, Type::Ipv4]),
            Set::new(CLUSTER_IPS, &[Type::Ipv4]),
            Set {
                dynamic: Some((Duration::from_secs(10_800), STICKY_SIZE)),
                ..Set::map(STICKY, &[&[Type::Ipv4], &named[..]].concat(), &[Type::ClassId])
            },
        ] {
            b.add_set(t, &set);
        }
        for chain in [DISPATCH, NODE, CHECK, REJECT] {
            b.add_chain(t, &Chain::regular(chain));
        }
        b.add_rule(t, REJECT, &Rule::new().expr(Expr::RejectUnreachable));
        self.dispatch(b);
        self.checks(b);
        self.masquerade(b);
    }

    fn dispatch(&self, b: &mut Batch) {
        let t = &self.table;
        for (chain, any) in [(DISPATCH, false), (NODE, true)] {
            let vmap = |rule: Rule, pair: Pair| {
                load_front(rule, 0, any).0.expr(Expr::VerdictMap { map: of(pair, any).into(), key: 0 })
            };
            b.add_rule(t, chain, &vmap(Rule::new().source(4).network(4, self.cluster_cidr, true), INSIDE));
            b.add_rule(t, chain, &vmap(Rule::new().local(Fib::Source), INSIDE));
            b.add_rule(t, chain, &vmap(Rule::new(), SERVICES));
        }
        b.add_rule(t, DISPATCH, &Rule::new().local(Fib::Destination).verdict(Verdict::Goto(NODE.into())));
        for (name, hook) in [("nat-prerouting", Hook::Prerouting), ("nat-output", Hook::Output)] {
            // -100 is where destination NAT happens.
            b.add_chain(t, &Chain::base(name, ChainKind::Nat, hook, -100));
            b.add_rule(t, name, &Rule::new().verdict(Verdict::Jump(DISPATCH.into())));
        }
    }

    /// What no endpoint takes is answered where packets are filtered, after destination NAT had its chance.
    fn checks(&self, b: &mut Batch) {
        let t = &self.table;
        for (rule, any) in [(Rule::new(), false), (Rule::new().local(Fib::Destination), true)] {
            let refused = Expr::VerdictMap { map: of(REFUSED, any).into(), key: 0 };
            b.add_rule(t, CHECK, &load_front(rule, 0, any).0.expr(refused));
        }
        for (name, hook, leaves) in [
            ("filter-input", Hook::Input, false),
            ("filter-forward", Hook::Forward, true),
            ("filter-output", Hook::Output, true),
        ] {
            b.add_chain(t, &Chain::base(name, ChainKind::Filter, hook, 0));
            b.add_rule(t, name, &Rule::new().new_connection().verdict(Verdict::Jump(CHECK.into())));
            if leaves {
                let set = CLUSTER_IPS.into();
                let unknown_port =
                    Rule::new().new_connection().destination(0).expr(Expr::InSet { set, key: 0, invert: false });
                b.add_rule(t, name, &unknown_port.verdict(Verdict::Goto(REJECT.into())));
                if let Some(services) = self.service_cidr {
                    let unknown_ip = Rule::new().new_connection().destination(0).network(0, services, true);
                    b.add_rule(t, name, &unknown_ip.verdict(Verdict::Drop));
                }
            }
        }
    }

    fn masquerade(&self, b: &mut Batch) {
        let t = &self.table;
        let name = "nat-postrouting";
        b.add_chain(t, &Chain::base(name, ChainKind::Nat, Hook::Postrouting, 100));
        let bit = self.masquerade_bit;
        let cleared =
            Expr::Bitwise { from: 0, to: 0, mask: (!bit).to_ne_bytes().to_vec(), xor: 0u32.to_ne_bytes().to_vec() };
        let marked = Rule::new()
            .expr(Expr::Meta { key: Meta::Mark, to: 0 })
            .any_bit(0, bit)
            .expr(cleared)
            .expr(Expr::SetMeta { key: Meta::Mark, from: 0 })
            .expr(Expr::Masquerade);
        b.add_rule(t, name, &marked);
        let to_itself = Rule::new()
            .ct_bits(Ct::Status, IPS_DST_NAT)
            .source(0)
            .destination(1)
            .expr(Expr::InSet { set: HAIRPIN.into(), key: 0, invert: false })
            .expr(Expr::Masquerade);
        b.add_rule(t, name, &to_itself);
    }
}

fn of(pair: Pair, any_address: bool) -> &'static str {
    pair[usize::from(any_address)]
}

/// Loads the packet's front into slots from `at` on, and answers the slot after it.
fn load_front(rule: Rule, at: Reg, any_address: bool) -> (Rule, Reg) {
    let (rule, at) = if any_address { (rule, at) } else { (rule.destination(at), at + 1) };
    (rule.protocol(at).destination_port(at + 1), at + 2)
}

fn chain_name(class: &Class) -> String {
    let masquerade = match class.masquerade {
        Masquerade::Outsiders => "cluster",
        Masquerade::All => "external",
        Masquerade::Nothing => "local",
        Masquerade::Loopback => "host-port",
    };
    let inside = if class.inside { "inside-" } else { "" };
    let node = if class.any_address { "node-" } else { "" };
    let sticky = if class.affinity > 0 { format!("-sticky-{}", class.affinity) } else { String::new() };
    format!("{inside}{node}{masquerade}-{}{sticky}", class.endpoints)
}

fn class_rules(class: &Class, cluster: Network, bit: u32) -> Vec<Rule> {
    let mut rules = Vec::new();
    match class.masquerade {
        Masquerade::Nothing => {}
        Masquerade::All => rules.push(Rule::new().mark(bit)),
        Masquerade::Outsiders => rules.push(Rule::new().source(0).network(0, cluster, false).mark(bit)),
        Masquerade::Loopback => rules.push(Rule::new().source(0).network(0, LOOPBACK, true).mark(bit)),
    }
    let (rule, index) = load_front(Rule::new(), 0, class.any_address);
    let offset = if class.inside { INSIDE_OFFSET } else { 0 };
    let chosen = rule.expr(Expr::Random { modulus: class.endpoints.max(1), offset, to: index });
    let found = |map: &str| Expr::Map { map: map.into(), key: 0, to: 0 };
    let dnat = Expr::Dnat { address: 0, port: Some(1) };
    if class.affinity == 0 {
        rules.push(chosen.expr(found(of(ENDPOINTS, class.any_address))).expr(dnat));
        return rules;
    }
    // The slots 0 to 3 of a client: its address and what it sent to. The number goes by way of the priority.
    let client = |rule: Rule| load_front(rule.source(0), 1, false).0;
    let put = Expr::SetMeta { key: Meta::Priority, from: 0 };
    let get = |to| Expr::Meta { key: Meta::Priority, to };
    let timeout = Duration::from_secs(class.affinity.into());
    let remember =
        |rule| client(rule).expr(get(4)).expr(Expr::Update { set: STICKY.into(), key: 0, data: Some(4), timeout });
    let finish = |rule: Rule| rule.protocol(0).expr(get(1)).expr(found(STICKY_ENDPOINTS)).expr(dnat.clone());
    // The endpoint that the client had: the rule ends at the last look-up when the port no longer has it.
    rules.push(finish(remember(client(Rule::new()).expr(found(STICKY)).expr(put.clone()))));
    // An update keeps the value of an entry that is there, so a stale one goes first.
    let chosen = chosen.expr(found(of(STICKY_CHOICES, class.any_address))).expr(put);
    let forgotten = client(chosen).expr(get(4)).expr(Expr::Forget { set: STICKY.into(), key: 0, data: Some(4) });
    rules.push(finish(remember(forgotten)));
    rules
}

/// Names the elements that a row is, each with its map.
fn elements(key: &Key, value: &Value, mut add: impl FnMut(&'static str, Element)) {
    match (key, value) {
        (Key::Service(f) | Key::Inside(f), Value::Target(target)) => {
            let any = f.ip.is_unspecified();
            let inside = matches!(key, Key::Inside(_));
            let verdict = Verdict::Goto(chain_name(&target.class));
            let services = if inside { INSIDE } else { SERVICES };
            add(of(services, any), Element { key: front(*f), data: Data::Verdict(verdict) });
            let first = if inside { INSIDE_OFFSET } else { 0 };
            for (index, endpoint) in (first..).zip(&*target.endpoints) {
                let key = [&front(*f)[..], &index.to_ne_bytes()].concat();
                let (map, data) = match endpoint.number {
                    0 => (ENDPOINTS, address(endpoint.address)),
                    number => (STICKY_CHOICES, number.to_ne_bytes().to_vec()),
                };
                add(of(map, any), Element { key, data: Data::Bytes(data) });
            }
        }
        (Key::Kept(protocol, number), Value::Address(a)) => {
            let key = [[*protocol as u8, 0, 0, 0], number.to_ne_bytes()].concat();
            add(STICKY_ENDPOINTS, Element { key, data: Data::Bytes(address(*a)) });
        }
        (Key::Hairpin(ip), _) => add(HAIRPIN, Element::key([ip.octets(), ip.octets()].concat())),
        (Key::ClusterIp(ip), _) => add(CLUSTER_IPS, Element::key(ip.octets().to_vec())),
        (Key::Refused(f), Value::Refusal(refusal)) => {
            let verdict = match refusal {
                Refusal::Reject => Verdict::Goto(REJECT.into()),
                Refusal::Drop => Verdict::Drop,
            };
            let element = Element { key: front(*f), data: Data::Verdict(verdict) };
            add(of(REFUSED, f.ip.is_unspecified()), element);
        }
        _ => {}
    }
}

/// The front as its map's key.
fn front(f: Front) -> Vec<u8> {
    let port = [&[f.protocol as u8, 0, 0, 0], &f.port.to_be_bytes()[..], &[0, 0]].concat();
    if f.ip.is_unspecified() { port } else { [&f.ip.octets()[..], &port].concat() }
}

fn address(a: SocketAddrV4) -> Vec<u8> {
    [&a.ip().octets()[..], &a.port().to_be_bytes(), &[0, 0]].concat()
}
