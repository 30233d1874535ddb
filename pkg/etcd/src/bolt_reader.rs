//! Reads bbolt files, as etcd's snapshots and databases are: every entry of a bucket, in order, a page at a time. See `bolt.rs`
//! for the layout.
//!
//! Invariant: whatever the bytes are, reading ends, with an error where they are no such file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const BUCKET: u32 = 0x01;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Of the fields of a meta page, and where its checksum stands among them.
const META: usize = 64;
const META_SUM: usize = 56;
/// No tree of a file is deeper.
const DEPTH: usize = 64;
/// No page with what overflows it is longer.
const LONGEST: u64 = 1 << 30;

pub(crate) struct BoltReader {
    file: File,
    page_size: u64,
    /// The bucket of buckets.
    root: u64,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("it is no whole bbolt file: {what}"))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> io::Result<u64> {
    let found = bytes.get(at..at + N).ok_or_else(|| broken("a page ends early"))?;
    let mut n = [0; 8];
    n[..N].copy_from_slice(found);
    Ok(u64::from_le_bytes(n))
}

/// Page size, root and transaction, if this is a meta page's content.
fn meta(content: &[u8]) -> Option<(u64, u64, u64)> {
    let n = |at| number::<8>(content, at).ok();
    let small = |at| number::<4>(content, at).ok();
    let sum = content[..META_SUM].iter();
    let sum = sum.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let is_one = small(0)? == u64::from(MAGIC) && small(4)? == u64::from(VERSION) && n(META_SUM)? == sum;
    let size = small(8)?;
    (is_one && size.is_power_of_two() && (512..=1 << 16).contains(&size)).then_some((size, n(16)?, n(48)?))
}

impl BoltReader {
    pub fn open(file: File) -> io::Result<Self> {
        let mut found = None;
        // The second meta page stands one page further, and how long a page is stands in it.
        for offset in std::iter::once(0).chain((9..=16).map(|shift| 1u64 << shift)) {
            let mut content = [0; META];
            match file.read_exact_at(&mut content, offset + HEADER as u64) {
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => break,
                other => other?,
            }
            let newer = meta(&content).filter(|(size, _, txn)| {
                (offset == 0 || offset == *size) && found.is_none_or(|(_, _, other)| other < *txn)
            });
            found = newer.or(found);
        }
        let (page_size, root, _) = found.ok_or_else(|| broken("it has no valid meta page"))?;
        Ok(BoltReader { file, page_size, root })
    }

    /// Gives each entry of a bucket to `each`, until it says that it is enough. A bucket that is not there has none.
    pub fn bucket(&self, name: &str, each: &mut dyn FnMut(&[u8], &[u8]) -> io::Result<bool>) -> io::Result<()> {
        let mut bucket = None;
        self.walk(self.root, DEPTH, &mut |flags, key, value| {
            if flags & BUCKET != 0 && key == name.as_bytes() {
                bucket = Some(value.to_vec());
            }
            Ok(bucket.is_none())
        })?;
        let Some(bucket) = bucket else { return Ok(()) };
        match number::<8>(&bucket, 0)? {
            // A small bucket stands where its page's number would.
            0 => leaf(bucket.get(HEADER..).unwrap_or_default(), &mut |_, k, v| each(k, v)).map(drop),
            root => self.walk(root, DEPTH, &mut |_, k, v| each(k, v)).map(drop),
        }
    }

    /// True: `each` wants more.
    fn walk(&self, id: u64, depth: usize, each: &mut Each<'_>) -> io::Result<bool> {
        let page = self.page(id)?;
        match number::<2>(&page, 8)? as u16 {
            LEAF => leaf(&page, each),
            BRANCH if depth > 0 => {
                for i in 0..number::<2>(&page, 10)? as usize {
                    if !self.walk(number::<8>(&page, HEADER + i * ELEMENT + 8)?, depth - 1, each)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Err(broken("a page has a wrong kind")),
        }
    }

    fn page(&self, id: u64) -> io::Result<Vec<u8>> {
        let start = id.checked_mul(self.page_size).ok_or_else(|| broken("a page's number is wrong"))?;
        let read = |length: u64| {
            let mut page = vec![0; length as usize];
            let all = self.file.read_exact_at(&mut page, start);
            all.map(|()| page).map_err(|_| broken("a page is missing"))
        };
        let head = read(HEADER as u64)?;
        let length = (number::<4>(&head, 12)? + 1) * self.page_size;
        if number::<8>(&head, 0)? != id || length > LONGEST.min(self.file.metadata()?.len()) {
            return Err(broken("a page is not what it should be"));
        }
        read(length)
    }
}

type Each<'a> = dyn FnMut(u32, &[u8], &[u8]) -> io::Result<bool> + 'a;

fn leaf(page: &[u8], each: &mut Each<'_>) -> io::Result<bool> {
    for i in 0..number::<2>(page, 10)? as usize {
        let element = HEADER + i * ELEMENT;
        let part = |at: usize| number::<4>(page, element + at).map(|n| n as usize);
        let key = element + part(4)?;
        let value = key + part(8)?;
        let end = value + part(12)?;
        let (Some(k), Some(v)) = (page.get(key..value), page.get(value..end)) else {
            return Err(broken("an entry is longer than its page"));
        };
        if !each(part(0)? as u32, k, v)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bolt::BoltWriter;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn entries(reader: &BoltReader, bucket: &str) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        reader.bucket(bucket, &mut |k, v| {
            all.push((k.to_vec(), v.to_vec()));
            Ok(true)
        })?;
        Ok(all)
    }

    fn written(n: u32) -> Vec<u8> {
        let mut bolt = BoltWriter::new(io::Cursor::new(Vec::new())).unwrap();
        for i in 0..n {
            bolt.put(&i.to_be_bytes(), &vec![i as u8; if i % 500 == 7 { 20_000 } else { i as usize % 40 }]).unwrap();
        }
        bolt.end_bucket("many").unwrap();
        bolt.end_bucket("empty").unwrap();
        bolt.finish().unwrap().into_inner()
    }

    #[test]
    fn what_was_written_is_read() {
        let reader = BoltReader::open(file(&written(9_000))).unwrap();
        let all = entries(&reader, "many").unwrap();
        assert_eq!(all.len(), 9_000);
        assert!(all.iter().zip(0u32..).all(|((k, _), i)| *k == i.to_be_bytes()));
        assert_eq!(all[507].1, vec![251; 20_000]);
        assert!(entries(&reader, "empty").unwrap().is_empty() && entries(&reader, "none").unwrap().is_empty());
        let mut seen = 0;
        let stop = |_: &[u8], _: &[u8]| {
            seen += 1;
            Ok(seen < 5)
        };
        reader.bucket("many", &mut { stop }).unwrap();
        assert_eq!(seen, 5);
    }

    #[test]
    fn a_small_bucket_stands_in_its_name() {
        // A leaf of one entry in the place of a root page's number, as bbolt writes buckets of a few bytes.
        let mut bytes = written(1);
        let reader = BoltReader::open(file(&bytes)).unwrap();
        let root = (reader.root * reader.page_size) as usize;
        let mut page = bytes[root..root + HEADER].to_vec();
        page[10..12].copy_from_slice(&1u16.to_le_bytes());
        let mut inline = vec![0; 16];
        inline
            .extend([&0u64.to_le_bytes()[..], &LEAF.to_le_bytes(), &1u16.to_le_bytes(), &0u32.to_le_bytes()].concat());
        inline.extend([0u32, 16, 1, 2].map(u32::to_le_bytes).concat());
        inline.extend(b"kvv");
        page.extend([BUCKET, 16, 5, inline.len() as u32].map(u32::to_le_bytes).concat());
        page.extend(b"small");
        page.extend(&inline);
        bytes[root..root + page.len()].copy_from_slice(&page);
        let reader = BoltReader::open(file(&bytes)).unwrap();
        assert_eq!(entries(&reader, "small").unwrap(), [(b"k".to_vec(), b"vv".to_vec())]);
    }

    #[test]
    fn other_bytes_are_refused() {
        let whole = written(2_000);
        for cut in [0, 10, 80, 4096, 5000, whole.len() / 2] {
            let read = BoltReader::open(file(&whole[..cut])).and_then(|r| entries(&r, "many"));
            assert!(read.is_err(), "cut at {cut}");
        }
        assert!(BoltReader::open(file(&vec![0xa5; 20_000])).is_err());
        // Whatever is changed, it ends.
        for at in (0..whole.len()).step_by(97) {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _ = BoltReader::open(file(&changed)).and_then(|r| entries(&r, "many"));
        }
    }
}
