//! nftables over netlink, without the `nft` program: tables, chains, sets and maps, rules, and atomic batches of them
//! (`linux/netfilter/nf_tables.h`).
//!
//! Everything that one [`Batch`] says happens at one moment or not at all. The kernel takes a batch as one datagram, so a
//! large one needs a large socket buffer, never a second transaction; elements are split into messages because one
//! attribute holds at most 64 KiB.
//!
//! Registers are sixteen slots of four bytes. A value of several fields (a concatenation) lies in consecutive slots, each
//! field padded to four bytes; so do the keys of sets. Packet fields and addresses are in network order, marks, numbers of
//! `numgen` and `jhash`, and connection-tracking states in the machine's.

mod batch;
mod expr;
mod set;

pub use batch::{Batch, Chain, ChainKind, Hook, NftError, NftSocket, Table};
pub use expr::{Cmp, Ct, Expr, Fib, Meta, Rule, Verdict};
pub use set::{Data, Element, Set, SetKind, SetRef, Type};

/// The number of a 4-byte register slot, 0–15.
pub type Reg = u8;

/// The kernel's number of a slot (`NFT_REG32_00` is 8).
fn register(r: Reg) -> u32 {
    8 + u32::from(r)
}
