//! Rows in the pages of a database, without SQLite (<https://sqlite.org/fileformat2.html>, 1.5 to 2.1).
//!
//! What is parsed here may be damaged: everything is bounded, and what does not fit is left out.

use super::pages::{Page, Pages, USABLE, number};
use crate::Result;

/// A column's value; our tables have no other types.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Number(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row of some table, with its number where the table has row numbers.
#[derive(Debug)]
pub(crate) struct Record {
    pub row: Option<i64>,
    pub values: Vec<Value>,
}

const INDEX_INNER: u8 = 2;
const TABLE_INNER: u8 = 5;
const INDEX_LEAF: u8 = 10;
const TABLE_LEAF: u8 = 13;
/// No value in a store is longer; a damaged length must not make us allocate.
const LONGEST: usize = 1 << 30;

struct Header {
    kind: u8,
    start: usize,
    cells: usize,
}

fn header(number_: u32, page: &Page) -> Option<Header> {
    // The first page begins with the file's header.
    let start = if number_ == 1 { 100 } else { 0 };
    let kind = page[start];
    let length = match kind {
        INDEX_INNER | TABLE_INNER => 12,
        INDEX_LEAF | TABLE_LEAF => 8,
        _ => return None,
    };
    let cells = usize::from(u16::from_be_bytes([page[start + 3], page[start + 4]]));
    Some(Header { kind, start: start + length, cells }).filter(|h| h.start + 2 * h.cells <= USABLE)
}

/// Where the cells of a page begin.
fn cells(page: &Page, header: &Header) -> impl Iterator<Item = usize> {
    let pointers = page[header.start..header.start + 2 * header.cells].to_vec();
    (0..header.cells).map(move |i| usize::from(u16::from_be_bytes([pointers[2 * i], pointers[2 * i + 1]])))
}

/// The pages below an inner page.
pub(crate) fn children(number_: u32, page: &Page) -> Vec<u32> {
    let Some(header) = header(number_, page).filter(|h| matches!(h.kind, INDEX_INNER | TABLE_INNER)) else {
        return Vec::new();
    };
    let last = number(page, header.start - 4);
    cells(page, &header).map(|at| number(page, at)).chain([last]).collect()
}

/// The pages below an inner page of a table, each with the greatest row number that is there; for the last one it is not told.
pub(crate) fn bounded_children(number_: u32, page: &Page) -> Vec<(u32, Option<i64>)> {
    let Some(header) = header(number_, page).filter(|h| h.kind == TABLE_INNER) else { return Vec::new() };
    let last = number(page, header.start - 4);
    let bounded = cells(page, &header).map(|at| (number(page, at), varint(&page[..USABLE], &mut (at + 4))));
    bounded.chain([(last, None)]).collect()
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut value: u64 = 0;
    for i in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if i == 8 {
            return Some((value << 8 | u64::from(byte)) as i64);
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(value as i64)
}

/// Every row on a page that can be read, with its rest on other pages.
pub(crate) fn records(pages: &Pages, number_: u32, page: &Page) -> Result<Vec<Record>> {
    let Some(header) = header(number_, page).filter(|h| h.kind != TABLE_INNER) else { return Ok(Vec::new()) };
    let read = cells(page, &header).map(|at| record(pages, &page[..USABLE], header.kind, at));
    read.filter_map(Result::transpose).collect()
}

fn record(pages: &Pages, page: &[u8], kind: u8, mut at: usize) -> Result<Option<Record>> {
    at += if kind == INDEX_INNER { 4 } else { 0 };
    let Some(length) = varint(page, &mut at).and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= LONGEST) else {
        return Ok(None);
    };
    let row = if kind == TABLE_LEAF { varint(page, &mut at) } else { None };
    let Some(content) = payload(pages, page, kind, at, length)? else { return Ok(None) };
    Ok(values(&content).map(|values| Record { row, values }))
}

/// A row's bytes, the first of them on `page` and the rest on a chain of pages.
fn payload(pages: &Pages, page: &[u8], kind: u8, at: usize, length: usize) -> Result<Option<Vec<u8>>> {
    let most = if kind == TABLE_LEAF { USABLE - 35 } else { (USABLE - 12) * 64 / 255 - 23 };
    let least = (USABLE - 12) * 32 / 255 - 23;
    let local = match length {
        n if n <= most => n,
        n => Some(least + (n - least) % (USABLE - 4)).filter(|n| *n <= most).unwrap_or(least),
    };
    let Some(here) = page.get(at..at + local) else { return Ok(None) };
    let mut content = here.to_vec();
    let mut next = if local < length { number(page, at + local) } else { 0 };
    while content.len() < length {
        if next == 0 || next > pages.count || pages.outdated.contains(&next) {
            return Ok(None);
        }
        let Some(page) = pages.page(next)? else { return Ok(None) };
        next = number(&page[..], 0);
        content.extend(&page[4..4 + (USABLE - 4).min(length - content.len())]);
    }
    Ok(Some(content))
}

fn values(content: &[u8]) -> Option<Vec<Value>> {
    let mut at = 0;
    let header = usize::try_from(varint(content, &mut at)?).ok().filter(|n| *n <= content.len())?;
    let mut body = header;
    let mut values = Vec::new();
    while at < header {
        let kind = varint(content, &mut at)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind as usize,
            5 => 6,
            6 => 8,
            n if n >= 12 => usize::try_from((n - 12) / 2).ok()?,
            _ => return None,
        };
        let bytes = content.get(body..body.checked_add(length)?)?;
        body += length;
        values.push(match kind {
            0 => Value::Null,
            8 => Value::Number(0),
            9 => Value::Number(1),
            1..=6 => Value::Number(signed(bytes)),
            n if n % 2 == 0 => Value::Blob(bytes.to_vec()),
            _ => Value::Text(String::from_utf8(bytes.to_vec()).ok()?),
        });
    }
    Some(values)
}

fn signed(bytes: &[u8]) -> i64 {
    let first = if bytes.first().is_some_and(|b| b & 0x80 != 0) { -1 } else { 0 };
    bytes.iter().fold(first, |n, b| n << 8 | i64::from(*b))
}
