//! Checksums of rows: a row that anything but this store has changed is found when it is read.
//!
//! A row of `log` has two in one number, over all but its value and over its value: who reads keys alone need not read the
//! values. `newest` has none: everything in it is said again by the row that it points to, and compared with that.

use crc32fast::Hasher;

/// What a checksum is of: no row of one table passes for one of another.
#[derive(Clone, Copy)]
pub(crate) enum Table {
    Meta = 1,
    Log,
    Lease,
    Ephemeral,
    Class,
    Setting,
}

/// The checksum of a row with these numbers and these bytes.
pub(crate) fn row<const N: usize>(table: Table, numbers: [i64; N], parts: &[&[u8]]) -> i64 {
    i64::from(sum(table, numbers, parts))
}

fn sum<const N: usize>(table: Table, numbers: [i64; N], parts: &[&[u8]]) -> u32 {
    let mut crc = Hasher::new_with_initial(table as u32);
    for number in numbers {
        crc.update(&number.to_le_bytes());
    }
    for part in parts {
        crc.update(&(part.len() as u64).to_le_bytes());
        crc.update(part);
    }
    crc.finalize()
}

/// The columns of a row of `log` before its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub id: i64,
    pub prev: i64,
    pub kind: i64,
    pub created: i64,
    pub version: i64,
    pub lease: i64,
}

impl Head {
    fn sum(&self, key: &[u8]) -> u32 {
        let mut numbers = [0u8; 48];
        let all = [self.id, self.prev, self.kind, self.created, self.version, self.lease];
        for (bytes, number) in numbers.chunks_exact_mut(8).zip(all) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        let mut crc = Hasher::new_with_initial(Table::Log as u32);
        crc.update(&numbers);
        crc.update(key);
        crc.finalize()
    }

    pub fn row_sum(&self, key: &[u8], value: &[u8]) -> i64 {
        let head = self.sum(key);
        (u64::from(of_value(head, value)) << 32 | u64::from(head)) as i64
    }

    /// Is this the row that `sum` was made of? Its value is not looked at.
    pub fn is_proved(&self, key: &[u8], sum: i64) -> bool {
        self.sum(key) == sum as u32
    }
}

/// Is this the value of the row that `sum` was made of?
pub(crate) fn is_value_proved(value: &[u8], sum: i64) -> bool {
    of_value(sum as u32, value) == (sum as u64 >> 32) as u32
}

/// It goes on from the row's own, so that no value passes for that of another row.
fn of_value(head: u32, value: &[u8]) -> u32 {
    let mut crc = Hasher::new_with_initial(head);
    crc.update(value);
    crc.finalize()
}
