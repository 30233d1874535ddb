//! Writes bbolt files: the format of etcd's snapshots (version 2, pages of 4 KiB), sorted entries in, one pass, in little
//! memory.
//!
//! Layout: two meta pages, the freelist (empty), then each bucket's pages as they fill, leaves before the branches above
//! them, and last the page that names the buckets. Numbers are little-endian. A page is as long as its content needs: what
//! does not fit into 4 KiB goes on in the following, overflow, pages.

use std::io::{self, Seek, SeekFrom, Write};

const PAGE: usize = 4096;
const HEADER: usize = 16;
/// Of an element's description, in leaves and in branches.
const ELEMENT: usize = 16;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;
/// Marks a leaf's element as a bucket.
const BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

pub(crate) struct BoltWriter<W> {
    out: W,
    next_page: u64,
    /// Name and root page.
    buckets: Vec<(Vec<u8>, u64)>,
    leaf: Leaf,
    /// First key and page of each finished leaf of the open bucket.
    children: Vec<(Vec<u8>, u64)>,
}

#[derive(Default)]
struct Leaf {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl<W: Write + Seek> BoltWriter<W> {
    pub fn new(mut out: W) -> io::Result<Self> {
        // The meta pages are written last: without them the file is none.
        out.seek(SeekFrom::Start(2 * PAGE as u64))?;
        let mut writer =
            BoltWriter { out, next_page: 2, buckets: Vec::new(), leaf: Leaf::default(), children: Vec::new() };
        writer.page(FREELIST, 0, &[])?;
        Ok(writer)
    }

    /// The next entry of the open bucket: keys ascend.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let size = ELEMENT + key.len() + value.len();
        if !self.leaf.entries.is_empty() && HEADER + self.leaf.bytes + size > PAGE {
            self.finish_leaf()?;
        }
        self.leaf.bytes += size;
        self.leaf.entries.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Ends the open bucket under its name. A bucket may be empty.
    pub fn end_bucket(&mut self, name: &str) -> io::Result<()> {
        if !self.leaf.entries.is_empty() || self.children.is_empty() {
            self.finish_leaf()?;
        }
        let root = self.branches()?;
        self.buckets.push((name.as_bytes().to_vec(), root));
        Ok(())
    }

    /// Writes what stands above the buckets, and gives the file back.
    pub fn finish(mut self) -> io::Result<W> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let entries: Vec<(Vec<u8>, Vec<u8>)> =
            buckets.into_iter().map(|(name, root)| (name, [root, 0].map(u64::to_le_bytes).concat())).collect();
        let root = self.leaf_page(&entries, BUCKET)?;
        self.out.seek(SeekFrom::Start(0))?;
        for id in 0..2u64 {
            let mut page = header(id, META, 0, 0);
            page.extend(meta(root, self.next_page, id));
            page.resize(PAGE, 0);
            self.out.write_all(&page)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn finish_leaf(&mut self) -> io::Result<()> {
        let leaf = std::mem::take(&mut self.leaf);
        let page = self.leaf_page(&leaf.entries, 0)?;
        let first = leaf.entries.into_iter().next().map(|(k, _)| k).unwrap_or_default();
        self.children.push((first, page));
        Ok(())
    }

    fn leaf_page(&mut self, entries: &[(Vec<u8>, Vec<u8>)], flags: u32) -> io::Result<u64> {
        let mut elements = Vec::new();
        let mut data: Vec<u8> = Vec::new();
        for (i, (key, value)) in entries.iter().enumerate() {
            // From where this element is described to where its key begins.
            let position = (entries.len() - i) * ELEMENT + data.len();
            for n in [flags, position as u32, key.len() as u32, value.len() as u32] {
                elements.extend(n.to_le_bytes());
            }
            data.extend(key);
            data.extend(value);
        }
        elements.extend(data);
        self.page(LEAF, entries.len(), &elements)
    }

    /// Levels of branches until one page is above all; its number.
    fn branches(&mut self) -> io::Result<u64> {
        let mut level = std::mem::take(&mut self.children);
        while level.len() > 1 {
            let mut above = Vec::new();
            let mut from = 0;
            while from < level.len() {
                let to = fitting(&level, from);
                above.push((level[from].0.clone(), self.branch_page(&level[from..to])?));
                from = to;
            }
            level = above;
        }
        level.pop().map(|(_, page)| page).ok_or_else(|| io::Error::other("a bucket has at least one page"))
    }

    fn branch_page(&mut self, children: &[(Vec<u8>, u64)]) -> io::Result<u64> {
        let mut elements = Vec::new();
        let mut data: Vec<u8> = Vec::new();
        for (i, (key, page)) in children.iter().enumerate() {
            let position = (children.len() - i) * ELEMENT + data.len();
            elements.extend((position as u32).to_le_bytes());
            elements.extend((key.len() as u32).to_le_bytes());
            elements.extend(page.to_le_bytes());
            data.extend(key);
        }
        elements.extend(data);
        self.page(BRANCH, children.len(), &elements)
    }

    fn page(&mut self, flags: u16, count: usize, content: &[u8]) -> io::Result<u64> {
        let id = self.next_page;
        let pages = (HEADER + content.len()).div_ceil(PAGE);
        let mut page = header(id, flags, count as u16, pages as u32 - 1);
        page.extend(content);
        page.resize(pages * PAGE, 0);
        self.out.write_all(&page)?;
        self.next_page += pages as u64;
        Ok(id)
    }
}

/// The end of the children that fit into one page, at least two, so that levels shrink.
fn fitting(level: &[(Vec<u8>, u64)], from: usize) -> usize {
    let mut bytes = HEADER;
    let mut to = from;
    while to < level.len() && (to < from + 2 || bytes + ELEMENT + level[to].0.len() <= PAGE) {
        bytes += ELEMENT + level[to].0.len();
        to += 1;
    }
    to
}

fn header(id: u64, flags: u16, count: u16, overflow: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(PAGE);
    out.extend(id.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(overflow.to_le_bytes());
    out
}

/// Of the two, the one with the higher transaction counts.
fn meta(root: u64, pages: u64, transaction: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for n in [MAGIC, VERSION, PAGE as u32, 0] {
        out.extend(n.to_le_bytes());
    }
    // The root bucket's page and sequence, the freelist's page, the number of pages.
    for n in [root, 0, 2, pages, transaction] {
        out.extend(n.to_le_bytes());
    }
    // FNV-1a, 64 bits.
    let sum = out.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    out.extend(sum.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    type Entries = Vec<(Vec<u8>, Vec<u8>)>;

    fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
        let mut n = [0; 8];
        n[..N].copy_from_slice(&bytes[at..at + N]);
        u64::from_le_bytes(n)
    }

    /// Every entry below a page, left to right, as bbolt's cursor finds them.
    fn walk(file: &[u8], page: u64, out: &mut Entries) -> usize {
        let start = page as usize * PAGE;
        assert_eq!(number::<8>(file, start), page, "a page knows its number");
        let (flags, count) = (number::<2>(file, start + 8) as u16, number::<2>(file, start + 10) as usize);
        let mut depth = 1;
        for i in 0..count {
            let e = start + HEADER + i * ELEMENT;
            if flags == LEAF {
                let key = e + number::<4>(file, e + 4) as usize;
                let value = key + number::<4>(file, e + 8) as usize;
                let end = value + number::<4>(file, e + 12) as usize;
                out.push((file[key..value].to_vec(), file[value..end].to_vec()));
            } else {
                assert_eq!(flags, BRANCH);
                let key = e + number::<4>(file, e) as usize;
                let first = file[key..key + number::<4>(file, e + 4) as usize].to_vec();
                let from = out.len();
                depth = 1 + walk(file, number::<8>(file, e + 8), out);
                assert_eq!(out[from].0, first, "a branch knows the first key below it");
            }
        }
        depth
    }

    #[test]
    fn what_is_written_is_found() {
        let mut bolt = BoltWriter::new(Cursor::new(Vec::new())).unwrap();
        let entries: Entries = (0..40_000u32)
            .map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; if i % 5_000 == 7 { 20_000 } else { i as usize % 40 }]))
            .collect();
        for (k, v) in &entries {
            bolt.put(k, v).unwrap();
        }
        bolt.end_bucket("many").unwrap();
        bolt.end_bucket("empty").unwrap();
        bolt.put(b"k", b"v").unwrap();
        bolt.end_bucket("another").unwrap();
        let file = bolt.finish().unwrap().into_inner();
        // The second meta page has the higher transaction.
        let meta = PAGE + HEADER;
        assert_eq!(number::<4>(&file, meta), u64::from(MAGIC));
        assert_eq!(file.len() as u64, number::<8>(&file, meta + 40) * PAGE as u64, "no page is missing");
        let mut buckets = Entries::new();
        walk(&file, number::<8>(&file, meta + 16), &mut buckets);
        let names: Vec<&[u8]> = buckets.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, [&b"another"[..], b"empty", b"many"]);
        let mut found = Entries::new();
        let depth = walk(&file, number::<8>(&buckets[2].1, 0), &mut found);
        assert!(found == entries && depth > 2, "{} of {}, {depth} levels", found.len(), entries.len());
        let mut none = Entries::new();
        walk(&file, number::<8>(&buckets[1].1, 0), &mut none);
        assert!(none.is_empty());
    }
}
