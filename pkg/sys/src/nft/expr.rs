//! Expressions: what a rule does, one after the other, until one says no or gives a verdict.

use super::set::SetRef;
use super::{Reg, register};
use crate::netlink::Writer;
use std::time::Duration;

/// Where a packet goes from here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
}

impl Verdict {
    /// Writes `NFTA_DATA_VERDICT` and what is in it.
    pub(super) fn write(&self, w: &mut Writer) {
        let (code, chain) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5i32, None),
        };
        w.nest(2, |w| {
            w.be32(1, code as u32);
            if let Some(chain) = chain {
                w.str(2, chain);
            }
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Properties of a packet that are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// The packet's class for queues; forwarding overwrites it.
    Priority = 2,
    Mark = 3,
    /// Interface names, sixteen bytes padded with NULs.
    InName = 6,
    OutName = 7,
    L4Proto = 16,
}

/// Properties of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    /// A bit each: invalid 1, established 2, related 4, new 8.
    State = 0,
    Direction = 1,
    /// Bits of `IPS_*`: source NAT 16, destination NAT 32.
    Status = 2,
    Mark = 3,
}

/// Which address [`Expr::Fib`] looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fib {
    Source = 1,
    Destination = 2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the network header.
    Network {
        offset: u32,
        len: u32,
        to: Reg,
    },
    /// Loads bytes of the transport header.
    Transport {
        offset: u32,
        len: u32,
        to: Reg,
    },
    Meta {
        key: Meta,
        to: Reg,
    },
    SetMeta {
        key: Meta,
        from: Reg,
    },
    Ct {
        key: Ct,
        to: Reg,
    },
    /// Loads the type of an address as routing sees it: local is 2 (`RTN_LOCAL`).
    Fib {
        of: Fib,
        to: Reg,
    },
    Cmp {
        op: Cmp,
        reg: Reg,
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`
    Bitwise {
        from: Reg,
        to: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Load {
        to: Reg,
        value: Vec<u8>,
    },
    /// Goes on when the key is in the set (or is not, when `invert`).
    InSet {
        set: SetRef,
        key: Reg,
        invert: bool,
    },
    /// Loads what the map has for the key; ends the rule when it has nothing.
    Map {
        map: SetRef,
        key: Reg,
        to: Reg,
    },
    /// Takes the verdict that the map has for the key; goes on when it has none.
    VerdictMap {
        map: SetRef,
        key: Reg,
    },
    /// Adds the key to a dynamic set, or refreshes its timeout. With `data` the set is a map.
    Update {
        set: String,
        key: Reg,
        data: Option<Reg>,
        timeout: Duration,
    },
    /// Takes the key out of a dynamic set, if it is there. A map wants `data`, too.
    Forget {
        set: String,
        key: Reg,
        data: Option<Reg>,
    },
    /// `offset` and a random number below `modulus`.
    Random {
        modulus: u32,
        offset: u32,
        to: Reg,
    },
    /// Numbers below `modulus` in turn.
    RoundRobin {
        modulus: u32,
        to: Reg,
    },
    /// Jenkins' hash of `len` bytes of the register, below `modulus`.
    Hash {
        from: Reg,
        len: u32,
        modulus: u32,
        seed: u32,
        to: Reg,
    },
    /// Rewrites the destination (IPv4): address and port from these slots.
    Dnat {
        address: Reg,
        port: Option<Reg>,
    },
    Snat {
        address: Reg,
    },
    /// Rewrites the source to the address of the outgoing interface, with a port chosen at random.
    Masquerade,
    /// Rewrites the destination to this machine, port from the slot.
    Redirect {
        port: Reg,
    },
    /// ICMP port unreachable.
    RejectUnreachable,
    /// TCP reset.
    RejectReset,
    Counter,
    Verdict(Verdict),
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Expr::Network { .. } | Expr::Transport { .. } => "payload",
            Expr::Meta { .. } | Expr::SetMeta { .. } => "meta",
            Expr::Ct { .. } => "ct",
            Expr::Fib { .. } => "fib",
            Expr::Cmp { .. } => "cmp",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Load { .. } | Expr::Verdict(_) => "immediate",
            Expr::InSet { .. } | Expr::Map { .. } | Expr::VerdictMap { .. } => "lookup",
            Expr::Update { .. } | Expr::Forget { .. } => "dynset",
            Expr::Random { .. } | Expr::RoundRobin { .. } => "numgen",
            Expr::Hash { .. } => "hash",
            Expr::Dnat { .. } | Expr::Snat { .. } => "nat",
            Expr::Masquerade => "masq",
            Expr::Redirect { .. } => "redir",
            Expr::RejectUnreachable | Expr::RejectReset => "reject",
            Expr::Counter => "counter",
        }
    }

    /// Writes one `NFTA_LIST_ELEM`.
    pub(super) fn write(&self, w: &mut Writer) {
        w.nest(1, |w| {
            w.str(1, self.name());
            w.nest(2, |w| self.write_data(w));
        });
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            Expr::Network { offset, len, to } => write_payload(w, 1, *offset, *len, *to),
            Expr::Transport { offset, len, to } => write_payload(w, 2, *offset, *len, *to),
            Expr::Meta { key, to } => numbers(w, &[(1, register(*to)), (2, *key as u32)]),
            Expr::SetMeta { key, from } => numbers(w, &[(2, *key as u32), (3, register(*from))]),
            Expr::Ct { key, to } => numbers(w, &[(1, register(*to)), (2, *key as u32)]),
            // The result asked for is the address type (3).
            Expr::Fib { of, to } => numbers(w, &[(1, register(*to)), (2, 3), (3, *of as u32)]),
            Expr::Cmp { op, reg, value } => {
                numbers(w, &[(1, register(*reg)), (2, *op as u32)]);
                w.nest(3, |w| w.attr(1, value));
            }
            Expr::Bitwise { from, to, mask, xor } => write_bitwise(w, *from, *to, mask, xor),
            Expr::Load { to, value } => {
                w.be32(1, register(*to));
                w.nest(2, |w| w.attr(1, value));
            }
            Expr::Verdict(verdict) => {
                // `NFT_REG_VERDICT`
                w.be32(1, 0);
                w.nest(2, |w| verdict.write(w));
            }
            Expr::InSet { set, key, invert } => {
                write_set(w, set);
                numbers(w, &[(2, register(*key)), (5, u32::from(*invert))]);
            }
            Expr::Map { map, key, to } => {
                write_set(w, map);
                numbers(w, &[(2, register(*key)), (3, register(*to))]);
            }
            Expr::VerdictMap { map, key } => {
                write_set(w, map);
                numbers(w, &[(2, register(*key)), (3, 0)]);
            }
            Expr::Update { set, key, data, timeout } => {
                // `NFT_DYNSET_OP_UPDATE`
                write_dynset(w, set, 1, *key, *data);
                w.be64(6, timeout.as_millis() as u64);
            }
            // `NFT_DYNSET_OP_DELETE`
            Expr::Forget { set, key, data } => write_dynset(w, set, 2, *key, *data),
            Expr::RoundRobin { modulus, to } => numbers(w, &[(1, register(*to)), (2, *modulus), (3, 0), (4, 0)]),
            Expr::Random { modulus, offset, to } => {
                numbers(w, &[(1, register(*to)), (2, *modulus), (3, 1), (4, *offset)]);
            }
            Expr::Hash { from, len, modulus, seed, to } => {
                let all =
                    [(1, register(*from)), (2, register(*to)), (3, *len), (4, *modulus), (5, *seed), (6, 0), (7, 0)];
                numbers(w, &all);
            }
            Expr::Dnat { address, port } => write_nat(w, 1, *address, *port),
            Expr::Snat { address } => write_nat(w, 0, *address, None),
            // `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two clients never race for one port.
            Expr::Masquerade => w.be32(1, 1 << 4),
            // `NF_NAT_RANGE_PROTO_SPECIFIED`
            Expr::Redirect { port } => numbers(w, &[(1, register(*port)), (3, 2)]),
            // Code 3 of ICMP's "destination unreachable" is the port.
            Expr::RejectUnreachable => {
                w.be32(1, 0);
                w.attr(2, &[3]);
            }
            Expr::RejectReset => {
                w.be32(1, 1);
                w.attr(2, &[0]);
            }
            Expr::Counter => {}
        }
    }
}

fn numbers(w: &mut Writer, all: &[(u16, u32)]) {
    for (kind, value) in all {
        w.be32(*kind, *value);
    }
}

/// Names the set of a lookup: by name, and by id when it is anonymous.
fn write_set(w: &mut Writer, set: &SetRef) {
    w.str(1, &set.name);
    if let Some(id) = set.id {
        w.be32(4, id);
    }
}

fn write_bitwise(w: &mut Writer, from: Reg, to: Reg, mask: &[u8], xor: &[u8]) {
    numbers(w, &[(1, register(from)), (2, register(to)), (3, mask.len() as u32)]);
    w.nest(4, |w| w.attr(1, mask));
    w.nest(5, |w| w.attr(1, xor));
}

fn write_dynset(w: &mut Writer, set: &str, operation: u32, key: Reg, data: Option<Reg>) {
    w.str(1, set);
    numbers(w, &[(3, operation), (4, register(key))]);
    if let Some(data) = data {
        w.be32(5, register(data));
    }
}

fn write_payload(w: &mut Writer, base: u32, offset: u32, len: u32, to: Reg) {
    numbers(w, &[(1, register(to)), (2, base), (3, offset), (4, len)]);
}

fn write_nat(w: &mut Writer, kind: u32, address: Reg, port: Option<Reg>) {
    numbers(w, &[(1, kind), (2, libc::NFPROTO_IPV4 as u32), (3, register(address))]);
    let mut flags = 1;
    if let Some(port) = port {
        w.be32(5, register(port));
        flags |= 2;
    }
    // `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`
    w.be32(7, flags);
}

/// A rule: expressions in order. The shorthands below are those that several tables need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule(pub Vec<Expr>);

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn expr(mut self, expr: Expr) -> Self {
        self.0.push(expr);
        self
    }

    /// Loads the source address (IPv4).
    pub fn source(self, to: Reg) -> Self {
        self.expr(Expr::Network { offset: 12, len: 4, to })
    }

    /// Loads the destination address (IPv4).
    pub fn destination(self, to: Reg) -> Self {
        self.expr(Expr::Network { offset: 16, len: 4, to })
    }

    pub fn protocol(self, to: Reg) -> Self {
        self.expr(Expr::Meta { key: Meta::L4Proto, to })
    }

    /// Loads the destination port: TCP, UDP and SCTP have it at the same place.
    pub fn destination_port(self, to: Reg) -> Self {
        self.expr(Expr::Transport { offset: 2, len: 2, to })
    }

    pub fn equals(self, reg: Reg, value: &[u8]) -> Self {
        self.expr(Expr::Cmp { op: Cmp::Eq, reg, value: value.to_vec() })
    }

    pub fn differs(self, reg: Reg, value: &[u8]) -> Self {
        self.expr(Expr::Cmp { op: Cmp::Ne, reg, value: value.to_vec() })
    }

    /// Goes on when the loaded address is within (or, when `inside` is false, outside) the network. Overwrites slot 15.
    pub fn network(self, reg: Reg, (net, prefix): (std::net::Ipv4Addr, u8), inside: bool) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let value = (net.to_bits() & mask).to_be_bytes();
        let masked = self.expr(Expr::Bitwise { from: reg, to: 15, mask: mask.to_be_bytes().to_vec(), xor: vec![0; 4] });
        if inside { masked.equals(15, &value) } else { masked.differs(15, &value) }
    }

    /// Goes on for packets that open a connection. Overwrites slot 15.
    pub fn new_connection(self) -> Self {
        self.ct_bits(Ct::State, 8)
    }

    /// Goes on when one of `bits` is set. Overwrites slot 15.
    pub fn ct_bits(self, key: Ct, bits: u32) -> Self {
        self.expr(Expr::Ct { key, to: 15 }).any_bit(15, bits)
    }

    /// Goes on when the slot has one of `bits` (machine's order). Overwrites slot 15.
    pub fn any_bit(self, reg: Reg, bits: u32) -> Self {
        let mask = bits.to_ne_bytes().to_vec();
        self.expr(Expr::Bitwise { from: reg, to: 15, mask, xor: vec![0; 4] }).differs(15, &[0; 4])
    }

    /// Goes on when the address is one of this machine's. Overwrites slot 15.
    pub fn local(self, of: Fib) -> Self {
        self.expr(Expr::Fib { of, to: 15 }).equals(15, &2u32.to_ne_bytes())
    }

    /// Sets `bit` in the packet's mark. Overwrites slot 15.
    pub fn mark(self, bit: u32) -> Self {
        // (mark & !bit) ^ bit
        self.expr(Expr::Meta { key: Meta::Mark, to: 15 })
            .expr(Expr::Bitwise {
                from: 15,
                to: 15,
                mask: (!bit).to_ne_bytes().to_vec(),
                xor: bit.to_ne_bytes().to_vec(),
            })
            .expr(Expr::SetMeta { key: Meta::Mark, from: 15 })
    }

    pub fn verdict(self, verdict: Verdict) -> Self {
        self.expr(Expr::Verdict(verdict))
    }
}
