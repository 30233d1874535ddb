//! The rows that this node's table has, whom they belong to, and what changed.
//!
//! A row is a key and a value: an element of one of the table's maps. Several owners may claim one key (two services with
//! one external IP): the first one has it, and when it goes the next one gets it. That keeps traffic where it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    /// As the API spells it; empty means TCP.
    pub fn parse(s: &str) -> Option<Self> {
        match s {
            "" | "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

/// Where clients send to. The address 0.0.0.0 stands for every address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    pub ip: Ipv4Addr,
    pub protocol: Protocol,
    pub port: u16,
}

/// Whose source address is replaced by the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// What does not come from a pod: cluster IPs.
    Outsiders,
    /// Everything: external traffic to endpoints anywhere in the cluster.
    All,
    /// Nothing: external traffic to endpoints on this node.
    Nothing,
    /// What comes from 127.0.0.0/8: host ports.
    Loopback,
}

/// What is the same for all fronts that share a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    pub masquerade: Masquerade,
    /// At least one.
    pub endpoints: u32,
    /// Seconds for which a client keeps its endpoint, 0 without affinity.
    pub affinity: u32,
    /// The front is at every address of the node.
    pub any_address: bool,
    /// Taken by clients on this node and in the cluster only.
    pub inside: bool,
}

/// Names a list of endpoints.
pub type Group = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Value: [`Value::Target`].
    Service(Front),
    /// Goes before `Service` for clients on this node and in the cluster. Value: [`Value::Target`].
    Inside(Front),
    /// The endpoint with this index, from 0. Value: [`Value::Address`].
    Endpoint(Group, u32),
    /// An endpoint that clients may keep.
    Sticky(Group, SocketAddrV4),
    /// An endpoint on this node, which may reach itself.
    Hairpin(Ipv4Addr),
    /// Value: [`Value::Refusal`].
    Refused(Front),
    ClusterIp(Ipv4Addr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    None,
    Target(Class, Group),
    Address(SocketAddrV4),
    Refusal(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Nobody serves it: tell the client.
    Reject,
    /// Somebody does, not on this node, and only this node counts.
    Drop,
}

pub type Row = (Key, Value);

/// Which of a service port's endpoint lists a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Cluster,
    Local,
}

struct Cell {
    value: Value,
    owner: Arc<str>,
    /// Others that claim the key.
    waiting: Vec<(Arc<str>, Value)>,
}

/// All rows.
#[derive(Default)]
pub struct State {
    rows: BTreeMap<Key, Cell>,
    owned: HashMap<Arc<str>, Vec<Row>>,
    groups: HashMap<Arc<str>, BTreeMap<(Protocol, u16, Scope), Group>>,
    udp_groups: HashSet<Group>,
    next_group: Group,
    classes: BTreeMap<Class, usize>,
}

/// Rows that changed, each with what it was at first.
#[derive(Default)]
pub struct Changes(BTreeMap<Key, Option<Value>>);

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn note(&mut self, key: Key, before: Option<Value>) {
        self.0.entry(key).or_insert(before);
    }

    /// What is to be done so that `state` holds: (key, before, after), without rows that are as they were.
    pub fn against(&self, state: &State) -> Vec<(Key, Option<Value>, Option<Value>)> {
        let all = self.0.iter().map(|(key, before)| (*key, *before, state.get(key)));
        all.filter(|(_, before, after)| before != after).collect()
    }
}

/// What turns `from` into `to`.
pub fn diff(from: &State, to: &State) -> Changes {
    let mut changes = Changes::default();
    for (key, value) in from.rows() {
        if to.get(&key) != Some(value) {
            changes.note(key, Some(value));
        }
    }
    for (key, _) in to.rows() {
        if from.get(&key).is_none() {
            changes.note(key, None);
        }
    }
    changes
}

impl State {
    pub fn get(&self, key: &Key) -> Option<Value> {
        self.rows.get(key).map(|c| c.value)
    }

    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.rows.iter().map(|(k, c)| (*k, c.value))
    }

    pub fn classes(&self) -> impl Iterator<Item = Class> + '_ {
        self.classes.keys().copied()
    }

    pub fn has_class(&self, class: &Class) -> bool {
        self.classes.contains_key(class)
    }

    /// The endpoints of a group, by index.
    pub fn endpoints(&self, group: Group) -> impl Iterator<Item = SocketAddrV4> + '_ {
        self.rows.range(Key::Endpoint(group, 0)..=Key::Endpoint(group, u32::MAX)).filter_map(|(_, c)| match c.value {
            Value::Address(a) => Some(a),
            _ => None,
        })
    }

    /// Whether rows of this key concern UDP.
    pub fn is_udp(&self, key: &Key) -> bool {
        match key {
            Key::Service(f) | Key::Inside(f) | Key::Refused(f) => f.protocol == Protocol::Udp,
            Key::Endpoint(group, _) => self.udp_groups.contains(group),
            _ => false,
        }
    }

    /// The number of an owner's list of endpoints: the same as long as the owner has rows.
    pub fn group(&mut self, owner: &str, protocol: Protocol, port: u16, scope: Scope) -> Group {
        let owner = self.groups.get_key_value(owner).map_or_else(|| owner.into(), |(k, _)| k.clone());
        let next = &mut self.next_group;
        let groups = self.groups.entry(owner).or_default();
        let group = *groups.entry((protocol, port, scope)).or_insert_with(|| {
            *next += 1;
            *next
        });
        if protocol == Protocol::Udp {
            self.udp_groups.insert(group);
        }
        group
    }

    /// Makes `rows` all that `owner` has; notes in `changes` what that changes. No rows: the owner is gone.
    pub fn set(&mut self, owner: &str, rows: Vec<Row>, changes: &mut Changes) {
        let owner: Arc<str> = self.owned.get_key_value(owner).map_or_else(|| owner.into(), |(k, _)| k.clone());
        let old = self.owned.remove(&owner).unwrap_or_default();
        let new: HashMap<Key, Value> = rows.iter().copied().collect();
        for (key, value) in &old {
            if new.get(key) != Some(value) {
                self.unclaim(key, &owner, changes);
            }
        }
        let kept: HashMap<Key, Value> = old.into_iter().collect();
        for (key, value) in &rows {
            if kept.get(key) != Some(value) {
                self.claim(*key, *value, &owner, changes);
            }
        }
        if rows.is_empty() {
            for group in self.groups.remove(&owner).unwrap_or_default().into_values() {
                self.udp_groups.remove(&group);
            }
        } else {
            self.owned.insert(owner, rows);
        }
    }

    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.owned.keys().map(|k| &**k)
    }

    fn claim(&mut self, key: Key, value: Value, owner: &Arc<str>, changes: &mut Changes) {
        match self.rows.get_mut(&key) {
            None => {
                changes.note(key, None);
                self.rows.insert(key, Cell { value, owner: owner.clone(), waiting: Vec::new() });
                self.count(value, true);
            }
            // One owner may name a key twice (a service that lists an IP twice).
            Some(cell) if cell.owner == *owner => {}
            Some(cell) => cell.waiting.push((owner.clone(), value)),
        }
    }

    fn unclaim(&mut self, key: &Key, owner: &Arc<str>, changes: &mut Changes) {
        let Some(cell) = self.rows.get_mut(key) else { return };
        if cell.owner != *owner {
            cell.waiting.retain(|(o, _)| o != owner);
            return;
        }
        let before = cell.value;
        changes.note(*key, Some(before));
        if cell.waiting.is_empty() {
            self.rows.remove(key);
        } else {
            let (owner, value) = cell.waiting.remove(0);
            (cell.owner, cell.value) = (owner, value);
            self.count(value, true);
        }
        self.count(before, false);
    }

    fn count(&mut self, value: Value, up: bool) {
        let Value::Target(class, _) = value else { return };
        let n = self.classes.entry(class).or_default();
        if up {
            *n += 1;
        } else {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.classes.remove(&class);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hairpin(n: u8) -> Row {
        (Key::Hairpin(Ipv4Addr::new(10, 0, 0, n)), Value::None)
    }

    fn refused(refusal: Refusal) -> Row {
        let front = Front { ip: Ipv4Addr::LOCALHOST, protocol: Protocol::Tcp, port: 1 };
        (Key::Refused(front), Value::Refusal(refusal))
    }

    #[test]
    fn a_key_goes_to_the_next_owner_when_the_first_leaves() {
        let mut s = State::default();
        let mut c = Changes::default();
        s.set("a", vec![refused(Refusal::Drop), hairpin(1)], &mut c);
        s.set("b", vec![refused(Refusal::Reject), hairpin(1)], &mut c);
        assert_eq!(s.get(&refused(Refusal::Drop).0), Some(Value::Refusal(Refusal::Drop)));
        let mut c = Changes::default();
        s.set("a", vec![], &mut c);
        let (key, reject) = refused(Refusal::Reject);
        assert_eq!(c.against(&s), [(key, Some(Value::Refusal(Refusal::Drop)), Some(reject))]);
        let mut c = Changes::default();
        s.set("b", vec![], &mut c);
        assert_eq!(c.against(&s).len(), 2);
        assert_eq!(s.rows().count(), 0);
    }

    #[test]
    fn changes_that_cancel_are_none() {
        let mut s = State::default();
        let mut c = Changes::default();
        s.set("a", vec![hairpin(1)], &mut c);
        s.set("a", vec![hairpin(2)], &mut c);
        s.set("a", vec![], &mut c);
        assert!(!c.is_empty() && c.against(&s).is_empty());
    }

    #[test]
    fn groups_are_stable_while_the_owner_has_rows_and_never_reused() {
        let mut s = State::default();
        let one = s.group("a", Protocol::Udp, 53, Scope::Cluster);
        assert_ne!(one, s.group("a", Protocol::Udp, 53, Scope::Local));
        assert_ne!(one, s.group("a", Protocol::Tcp, 53, Scope::Cluster));
        s.set("a", vec![hairpin(1)], &mut Changes::default());
        assert_eq!(one, s.group("a", Protocol::Udp, 53, Scope::Cluster));
        assert!(s.is_udp(&Key::Endpoint(one, 0)));
        s.set("a", vec![], &mut Changes::default());
        assert!(!s.is_udp(&Key::Endpoint(one, 0)));
        assert_ne!(one, s.group("a", Protocol::Udp, 53, Scope::Cluster));
    }
}
