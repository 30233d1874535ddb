//! The rows that this node's table has, whom they belong to, and what changed.
//!
//! A row is a key and a value: what the table knows about one front, endpoint or address. Several owners may claim one key
//! (two services with one external IP): the first one has it, whatever it says, and when it goes the next one gets it. That
//! keeps traffic where it is. A front and its endpoints are one row, so they always belong to one owner.

use std::collections::{BTreeMap, HashMap};
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

/// One of the endpoints that a front sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddrV4,
    /// The name that clients keep it by, from [`State::number`]; 0 without affinity.
    pub number: u32,
}

/// Where a front sends to: `class.endpoints` endpoints, all fronts of one service port share the list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub class: Class,
    pub endpoints: Arc<[Endpoint]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Value: [`Value::Target`].
    Service(Front),
    /// Goes before `Service` for clients on this node and in the cluster. Value: [`Value::Target`].
    Inside(Front),
    /// The endpoint with this number, which clients may keep. Value: [`Value::Address`].
    Kept(Protocol, u32),
    /// An endpoint on this node, which may reach itself.
    Hairpin(Ipv4Addr),
    /// Value: [`Value::Refusal`].
    Refused(Front),
    ClusterIp(Ipv4Addr),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    None,
    Target(Target),
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
    owned: HashMap<Arc<str>, Vec<Key>>,
    numbers: HashMap<Arc<str>, BTreeMap<(Protocol, u16, SocketAddrV4), u32>>,
    last_number: u32,
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
        let all = self.0.iter().map(|(key, before)| (*key, before.clone(), state.get(key).cloned()));
        all.filter(|(_, before, after)| before != after).collect()
    }
}

/// What turns `from` into `to`.
pub fn diff(from: &State, to: &State) -> Changes {
    let mut changes = Changes::default();
    for (key, value) in from.rows() {
        if to.get(&key) != Some(value) {
            changes.note(key, Some(value.clone()));
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
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.rows.get(key).map(|c| &c.value)
    }

    pub fn rows(&self) -> impl Iterator<Item = (Key, &Value)> {
        self.rows.iter().map(|(k, c)| (*k, &c.value))
    }

    pub fn classes(&self) -> impl Iterator<Item = Class> + '_ {
        self.classes.keys().copied()
    }

    pub fn has_class(&self, class: &Class) -> bool {
        self.classes.contains_key(class)
    }

    /// Where this key's front sends to.
    pub fn target(&self, key: &Key) -> Option<&Target> {
        match self.get(key) {
            Some(Value::Target(target)) => Some(target),
            _ => None,
        }
    }

    /// The name of an endpoint of the owner's port: the same as long as the owner has a [`Key::Kept`] row for it, and never
    /// another one's.
    pub fn number(&mut self, owner: &str, protocol: Protocol, port: u16, endpoint: SocketAddrV4) -> u32 {
        let owner = self.numbers.get_key_value(owner).map_or_else(|| owner.into(), |(k, _)| k.clone());
        let last = &mut self.last_number;
        *self.numbers.entry(owner).or_default().entry((protocol, port, endpoint)).or_insert_with(|| {
            *last += 1;
            *last
        })
    }

    /// Makes `rows` all that `owner` has; notes in `changes` what that changes. No rows: the owner is gone.
    pub fn set(&mut self, owner: &str, rows: Vec<Row>, changes: &mut Changes) {
        let owner: Arc<str> = self.owned.get_key_value(owner).map_or_else(|| owner.into(), |(k, _)| k.clone());
        let mut new: HashMap<Key, Value> = HashMap::with_capacity(rows.len());
        for (key, value) in rows {
            // One owner may name a key twice (a service that lists an IP twice): the first says what it is.
            new.entry(key).or_insert(value);
        }
        let old = self.owned.remove(&owner).unwrap_or_default();
        for key in old.iter().filter(|key| !new.contains_key(key)) {
            self.unclaim(key, &owner, changes);
        }
        if let Some(numbers) = self.numbers.get_mut(&owner) {
            numbers.retain(|(protocol, ..), number| new.contains_key(&Key::Kept(*protocol, *number)));
            if numbers.is_empty() {
                self.numbers.remove(&owner);
            }
        }
        if !new.is_empty() {
            self.owned.insert(owner.clone(), new.keys().copied().collect());
        }
        for (key, value) in new {
            self.claim(key, value, &owner, changes);
        }
    }

    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.owned.keys().map(|k| &**k)
    }

    fn claim(&mut self, key: Key, value: Value, owner: &Arc<str>, changes: &mut Changes) {
        let Some(cell) = self.rows.get_mut(&key) else {
            changes.note(key, None);
            self.count(&value, true);
            self.rows.insert(key, Cell { value, owner: owner.clone(), waiting: Vec::new() });
            return;
        };
        if cell.owner != *owner {
            match cell.waiting.iter_mut().find(|(o, _)| o == owner) {
                Some((_, waits)) => *waits = value,
                None => cell.waiting.push((owner.clone(), value)),
            }
        } else if cell.value != value {
            let before = std::mem::replace(&mut cell.value, value.clone());
            self.count(&value, true);
            self.count(&before, false);
            changes.note(key, Some(before));
        }
    }

    fn unclaim(&mut self, key: &Key, owner: &Arc<str>, changes: &mut Changes) {
        let Some(cell) = self.rows.get_mut(key) else { return };
        if cell.owner != *owner {
            cell.waiting.retain(|(o, _)| o != owner);
            return;
        }
        let before = if cell.waiting.is_empty() {
            self.rows.remove(key).map(|c| c.value)
        } else {
            let (owner, value) = cell.waiting.remove(0);
            cell.owner = owner;
            let before = std::mem::replace(&mut cell.value, value.clone());
            self.count(&value, true);
            Some(before)
        };
        if let Some(before) = &before {
            self.count(before, false);
        }
        changes.note(*key, before);
    }

    fn count(&mut self, value: &Value, up: bool) {
        let Value::Target(Target { class, .. }) = value else { return };
        let n = self.classes.entry(*class).or_default();
        if up {
            *n += 1;
        } else {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.classes.remove(class);
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
        s.set("b", vec![refused(Refusal::Drop), hairpin(1)], &mut c);
        let mut c = Changes::default();
        s.set("b", vec![refused(Refusal::Reject), hairpin(1)], &mut c);
        assert!(c.is_empty(), "who waits may change its mind");
        let (key, reject) = refused(Refusal::Reject);
        assert_eq!(s.get(&key), Some(&Value::Refusal(Refusal::Drop)));
        let mut c = Changes::default();
        s.set("a", vec![], &mut c);
        assert_eq!(c.against(&s), [(key, Some(Value::Refusal(Refusal::Drop)), Some(reject))]);
        let mut c = Changes::default();
        s.set("b", vec![], &mut c);
        assert_eq!(c.against(&s).len(), 2);
        assert_eq!(s.rows().count(), 0);
    }

    #[test]
    fn an_owner_that_says_something_else_keeps_its_key() {
        let mut s = State::default();
        let (key, drop) = refused(Refusal::Drop);
        s.set("a", vec![refused(Refusal::Reject)], &mut Changes::default());
        s.set("b", vec![refused(Refusal::Reject)], &mut Changes::default());
        let mut c = Changes::default();
        s.set("a", vec![(key, drop.clone())], &mut c);
        assert_eq!(s.get(&key), Some(&drop));
        assert_eq!(c.against(&s), [(key, Some(Value::Refusal(Refusal::Reject)), Some(drop))]);
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
    fn classes_are_known_while_a_front_is_in_them() {
        let front = Front { ip: Ipv4Addr::LOCALHOST, protocol: Protocol::Tcp, port: 1 };
        let target = |endpoints: u32| {
            let masquerade = Masquerade::All;
            let class = Class { masquerade, endpoints, affinity: 0, any_address: false, inside: false };
            let endpoint = Endpoint { address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2), number: 0 };
            (class, (Key::Service(front), Value::Target(Target { class, endpoints: vec![endpoint].into() })))
        };
        let ((one, one_row), (two, two_row)) = (target(1), target(2));
        let mut s = State::default();
        let mut c = Changes::default();
        s.set("a", vec![one_row.clone()], &mut c);
        s.set("b", vec![two_row], &mut c);
        assert!(s.has_class(&one) && !s.has_class(&two));
        s.set("a", vec![], &mut c);
        assert!(!s.has_class(&one) && s.has_class(&two));
        s.set("b", vec![one_row], &mut c);
        assert!(s.has_class(&one) && !s.has_class(&two));
        s.set("b", vec![], &mut c);
        assert_eq!(s.classes().count(), 0);
    }

    #[test]
    fn numbers_are_stable_while_the_endpoint_is_there_and_never_reused() {
        let mut s = State::default();
        let endpoint = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let kept = |n, port| (Key::Kept(Protocol::Udp, n), Value::Address(endpoint(port)));
        let one = s.number("a", Protocol::Udp, 53, endpoint(1));
        let two = s.number("a", Protocol::Udp, 53, endpoint(2));
        let others = [s.number("a", Protocol::Tcp, 53, endpoint(1)), s.number("b", Protocol::Udp, 53, endpoint(1))];
        assert!(one > 0 && one != two && !others.contains(&one) && !others.contains(&two));
        let mut c = Changes::default();
        s.set("a", vec![kept(one, 1), kept(two, 2)], &mut c);
        s.set("a", vec![kept(one, 1)], &mut c);
        assert_eq!(s.number("a", Protocol::Udp, 53, endpoint(1)), one);
        assert_ne!(s.number("a", Protocol::Udp, 53, endpoint(2)), two);
        s.set("a", vec![], &mut c);
        assert_ne!(s.number("a", Protocol::Udp, 53, endpoint(1)), one);
    }
}
