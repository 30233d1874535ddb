//! Puts rows into nftables: the fixed chains and maps, one chain for each class, rows as elements.
//!
//! ```text
//! prerouting, output ─▶ services ─▶ (front → class chain) ─▶ group of the front, random index ─▶ (group . index → endpoint)
//! postrouting ─▶ masquerade what is marked, or was sent back to its sender
//! input, forward, output (filter) ─▶ (front → reject or drop)
//! ```
//! A front is address . protocol . port; the address 0.0.0.0 means any of this node's.

use crate::config::{Network, ProxyConfig};
use crate::state::{Changes, Class, Front, Key, Masquerade, Refusal, State, Value};
use isopod_sys::nft::{
    Batch, Chain, ChainKind, Ct, Data, Element, Expr, Fib, Hook, Meta, Reg, Rule, Set, Table, Type, Verdict,
};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const SERVICES: &str = "services";
const INSIDE: &str = "inside";
const GROUPS: &str = "groups";
const INSIDE_GROUPS: &str = "inside-groups";
const ENDPOINTS: &str = "endpoints";
const STICKY: &str = "sticky";
const STICKY_ENDPOINTS: &str = "sticky-endpoints";
const HAIRPIN: &str = "hairpin";
const REFUSED: &str = "refused";
const CLUSTER_IPS: &str = "cluster-ips";

/// Chains that are not maps.
const DISPATCH: &str = "dispatch";
const NODE: &str = "node-addresses";
const CHECK: &str = "check";
const REJECT: &str = "reject";

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
        let rows: Vec<(Key, Value)> = state.rows().collect();
        for part in PARTS {
            b.add_elements(&self.table, part.set, rows.iter().filter_map(|(k, v)| (part.element)(k, v)));
        }
        b
    }

    /// Only what changed.
    pub fn update(&mut self, state: &State, changes: &Changes) -> Batch {
        let mut b = Batch::new();
        let changes = changes.against(state);
        self.add_classes(state, &mut b);
        for part in PARTS {
            let element = |key: &Key, value: &Option<Value>| value.as_ref().and_then(|v| (part.element)(key, v));
            let each = |(key, before, after): &(Key, Option<Value>, Option<Value>)| {
                let (before, after) = (element(key, before), element(key, after));
                (before != after).then_some((before, after))
            };
            let gone = changes.iter().filter_map(each).filter_map(|(before, _)| before);
            b.delete_elements(&self.table, part.set, gone);
            let new = changes.iter().filter_map(each).filter_map(|(_, after)| after);
            b.add_elements(&self.table, part.set, new);
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
        let front = [Type::Ipv4, Type::Protocol, Type::Port];
        let endpoint = [Type::Ipv4, Type::Port];
        for set in [
            Set::verdicts(SERVICES, &front),
            Set::verdicts(INSIDE, &front),
            Set::verdicts(REFUSED, &front),
            Set::map(GROUPS, &front, &[Type::Number]),
            Set::map(INSIDE_GROUPS, &front, &[Type::Number]),
            Set::map(ENDPOINTS, &[Type::Number, Type::Number], &endpoint),
            Set::new(STICKY_ENDPOINTS, &[Type::Number, Type::Ipv4, Type::Port]),
            Set::new(HAIRPIN, &[Type::Ipv4, Type::Ipv4]),
            Set::new(CLUSTER_IPS, &[Type::Ipv4]),
            Set {
                dynamic: Some((Duration::from_secs(10_800), STICKY_SIZE)),
                ..Set::map(STICKY, &[Type::Ipv4, Type::Number], &endpoint)
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
            let vmap = |rule: Rule, map: &str| load_front(rule, any).expr(Expr::VerdictMap { map: map.into(), key: 0 });
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
        let refused = || Expr::VerdictMap { map: REFUSED.into(), key: 0 };
        b.add_rule(t, CHECK, &load_front(Rule::new(), false).expr(refused()));
        b.add_rule(t, CHECK, &load_front(Rule::new().local(Fib::Destination), true).expr(refused()));
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

/// Loads the packet's front into slots 0 to 2.
fn load_front(rule: Rule, any_address: bool) -> Rule {
    let rule = if any_address { rule.expr(Expr::Load { to: 0, value: vec![0; 4] }) } else { rule.destination(0) };
    rule.protocol(1).destination_port(2)
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
    let groups = if class.inside { INSIDE_GROUPS } else { GROUPS };
    // Slot 3: the client; 4: the group; 5: the index; 6 and 7: the endpoint.
    const CLIENT: Reg = 3;
    const GROUP: Reg = 4;
    let begin = || {
        load_front(Rule::new(), class.any_address).source(CLIENT).expr(Expr::Map {
            map: groups.into(),
            key: 0,
            to: GROUP,
        })
    };
    let timeout = Duration::from_secs(class.affinity.into());
    let remember = |data| Expr::Update { set: STICKY.into(), key: CLIENT, data: Some(data), timeout };
    if class.affinity > 0 {
        // The endpoint that the client had, in 5 and 6, if the group still has it: 4 to 6 are the key.
        let kept = begin()
            .expr(Expr::Map { map: STICKY.into(), key: CLIENT, to: 5 })
            .expr(Expr::InSet { set: STICKY_ENDPOINTS.into(), key: GROUP, invert: false })
            .expr(remember(5))
            .expr(Expr::Dnat { address: 5, port: Some(6) });
        rules.push(kept);
    }
    let mut pick = begin();
    pick = match class.endpoints {
        0 | 1 => pick.expr(Expr::Load { to: 5, value: vec![0; 4] }),
        modulus => pick.expr(Expr::Random { modulus, to: 5 }),
    };
    pick = pick.expr(Expr::Map { map: ENDPOINTS.into(), key: GROUP, to: 6 });
    if class.affinity > 0 {
        // An update keeps the value of an entry that is there, so a stale one goes first.
        pick = pick.expr(Expr::Forget { set: STICKY.into(), key: CLIENT, data: Some(6) }).expr(remember(6));
    }
    rules.push(pick.expr(Expr::Dnat { address: 6, port: Some(7) }));
    rules
}

/// A set and the element that a row is in it.
struct Part {
    set: &'static str,
    element: fn(&Key, &Value) -> Option<Element>,
}

/// In the order in which elements may be added: none refers to a later one.
const PARTS: [Part; 9] = [
    Part { set: ENDPOINTS, element: endpoint_element },
    Part {
        set: STICKY_ENDPOINTS,
        element: |key, _| match key {
            Key::Sticky(group, a) => Some(Element::key([&group.to_ne_bytes()[..], &address(*a)].concat())),
            _ => None,
        },
    },
    Part { set: GROUPS, element: |key, value| group_element(key, value, false) },
    Part { set: INSIDE_GROUPS, element: |key, value| group_element(key, value, true) },
    Part { set: SERVICES, element: |key, value| target_element(key, value, false) },
    Part { set: INSIDE, element: |key, value| target_element(key, value, true) },
    Part {
        set: HAIRPIN,
        element: |key, _| match key {
            Key::Hairpin(ip) => Some(Element::key([ip.octets(), ip.octets()].concat())),
            _ => None,
        },
    },
    Part { set: REFUSED, element: refused_element },
    Part {
        set: CLUSTER_IPS,
        element: |key, _| match key {
            Key::ClusterIp(ip) => Some(Element::key(ip.octets().to_vec())),
            _ => None,
        },
    },
];

fn endpoint_element(key: &Key, value: &Value) -> Option<Element> {
    let (Key::Endpoint(group, index), Value::Address(a)) = (key, value) else { return None };
    let key = [group.to_ne_bytes(), index.to_ne_bytes()].concat();
    Some(Element { key, data: Data::Bytes(address(*a)) })
}

fn split_target(key: &Key, value: &Value) -> Option<(Front, bool, Class, u32)> {
    match (key, value) {
        (Key::Service(front), Value::Target(class, group)) => Some((*front, false, *class, *group)),
        (Key::Inside(front), Value::Target(class, group)) => Some((*front, true, *class, *group)),
        _ => None,
    }
}

fn group_element(key: &Key, value: &Value, inside: bool) -> Option<Element> {
    let (f, _, _, group) = split_target(key, value).filter(|(_, i, ..)| *i == inside)?;
    Some(Element { key: front(f), data: Data::Bytes(group.to_ne_bytes().to_vec()) })
}

fn target_element(key: &Key, value: &Value, inside: bool) -> Option<Element> {
    let (f, _, class, _) = split_target(key, value).filter(|(_, i, ..)| *i == inside)?;
    Some(Element { key: front(f), data: Data::Verdict(Verdict::Goto(chain_name(&class))) })
}

fn refused_element(key: &Key, value: &Value) -> Option<Element> {
    let (Key::Refused(f), Value::Refusal(refusal)) = (key, value) else { return None };
    let verdict = match refusal {
        Refusal::Reject => Verdict::Goto(REJECT.into()),
        Refusal::Drop => Verdict::Drop,
    };
    Some(Element { key: front(*f), data: Data::Verdict(verdict) })
}

fn front(f: Front) -> Vec<u8> {
    [&f.ip.octets()[..], &[f.protocol as u8, 0, 0, 0], &f.port.to_be_bytes(), &[0, 0]].concat()
}

fn address(a: SocketAddrV4) -> Vec<u8> {
    [&a.ip().octets()[..], &a.port().to_be_bytes(), &[0, 0]].concat()
}
