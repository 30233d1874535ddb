//! The VFS: SQLite's own one below, and around the files of a database what writes and proves checksums.
//!
//! Pages of the database file carry theirs in the bytes that SQLite leaves free at their end. Frames of the write-ahead log
//! have checksums of SQLite's, which it looks at after a crash only: here each page that is read from there is proved too, so
//! that damage is neither served nor carried over into the database. Files of any other sort are left to the VFS below.
//!
//! SQLite writes a frame's header and its page by two calls, a transaction of thirty frames by sixty. Frames are joined here and go
//! on in one call at the end of their transaction, and before whatever else needs them: nobody reads them earlier but the
//! connection that writes them. Invariant: the call that ends a transaction tells whether all its frames went on.
//!
//! A log that grows with each transaction makes each sync write where the file ends now, and which blocks it has: a block of the
//! file system more, or a transaction of its journal. So the file is lengthened with zeros, many frames at a time. To SQLite
//! these are what an earlier, longer round of the log leaves behind its end: frames with other salts.

use super::frames::{FRAME, FRAME_HEADER, FrameHeader, LOG_HEADER};
use super::{PAGE, RESERVED, is_whole, page_sum};
use rusqlite::Connection;
use rusqlite::ffi;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Mutex;

/// A page that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub page: u32,
    /// It was found in the write-ahead log, not in the database file.
    pub in_log: bool,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = if self.in_log { " in the write-ahead log" } else { "" };
        write!(f, "page {}{file} does not match its checksum", self.page)
    }
}

thread_local! {
    static FOUND: Cell<Option<Damage>> = const { Cell::new(None) };
}

/// The page that made SQLite answer `SQLITE_IOERR_DATA` on this thread last, told once.
pub fn take_damage() -> Option<Damage> {
    FOUND.take()
}

fn damaged(page: u32, in_log: bool) -> c_int {
    FOUND.set(Some(Damage { page, in_log }));
    ffi::SQLITE_IOERR_DATA
}

/// Leaves room for the checksums in a database that has no pages yet.
pub fn reserve_checksums(conn: &Connection) -> rusqlite::Result<()> {
    let mut bytes = RESERVED as c_int;
    // SAFETY: the handle lives as long as `conn`; this control reads and writes one int, which outlives the call.
    let code = unsafe {
        let bytes = (&raw mut bytes).cast::<c_void>();
        ffi::sqlite3_file_control(conn.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_RESERVE_BYTES, bytes)
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// The name of a VFS that keeps checksums over the VFS `below`; `None` is the default one. Made at the first call.
pub fn checked_vfs(below: Option<&str>) -> rusqlite::Result<&'static CStr> {
    static MADE: Mutex<BTreeMap<String, &'static CStr>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(name) = made.get(below.unwrap_or_default()) {
        return Ok(name);
    }
    let wanted = below.map(CString::new).transpose()?;
    // SAFETY: the argument is null or a C string; SQLite initializes itself here where nobody has.
    let inner = unsafe { ffi::sqlite3_vfs_find(wanted.as_ref().map_or(std::ptr::null(), |n| n.as_ptr())) };
    let missing = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_NOTFOUND), below.map(str::to_owned));
    if inner.is_null() {
        return Err(missing());
    }
    let name: &'static CStr =
        Box::leak(CString::new(format!("checksums-{}", below.unwrap_or("default")))?.into_boxed_c_str());
    // SAFETY: a VFS that was found stays registered, so `inner` is valid for the life of the process.
    let vfs = Box::leak(Box::new(unsafe { around(inner, name) }));
    // SAFETY: `vfs` lives for ever, as SQLite demands; 0: it does not become the default.
    match unsafe { ffi::sqlite3_vfs_register(vfs, 0) } {
        ffi::SQLITE_OK => {
            made.insert(below.unwrap_or_default().to_owned(), name);
            Ok(name)
        }
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// # Safety
/// `inner` is a VFS that lives as long as the result is used.
unsafe fn around(inner: *mut ffi::sqlite3_vfs, name: &'static CStr) -> ffi::sqlite3_vfs {
    // SAFETY: the caller's promise.
    let below = unsafe { &*inner };
    ffi::sqlite3_vfs {
        iVersion: below.iVersion.min(2),
        szOsFile: size_of::<File>() as c_int + below.szOsFile,
        mxPathname: below.mxPathname,
        pNext: std::ptr::null_mut(),
        zName: name.as_ptr(),
        pAppData: inner.cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        // Extensions are not loaded.
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(last_error),
        xCurrentTimeInt64: below.xCurrentTimeInt64.map(|_| current_time_64 as _),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Database,
    Log,
}

/// An open file of ours; the one of the VFS below lies behind it in the same memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    kind: Kind,
    /// Of a log: frames from this one on were overwritten by the transaction that this connection is writing, and get their
    /// checksums when it ends. No other connection reads them until then.
    unproved_from: Cell<i64>,
    /// The frame whose header was written last, its page is to follow; -1: none.
    written: Cell<i64>,
    /// That frame ends a transaction.
    commits: Cell<bool>,
    joined: RefCell<Joined>,
    /// Of a log: the file is known to be so long.
    length: Cell<i64>,
}

/// Bytes of a log that are not with the VFS below yet, and where they belong.
#[derive(Default)]
struct Joined {
    at: i64,
    bytes: Vec<u8>,
}

/// At most so many bytes are joined: SQLite's own VFS takes less than 128 KiB at a time.
const JOINED: usize = 31 * FRAME;
/// A log's length is a multiple of so many bytes, about 64 frames.
const LENGTHENED: i64 = 256 << 10;

impl Joined {
    fn takes(&self, amount: usize, offset: i64) -> bool {
        self.bytes.is_empty() || (self.at + self.bytes.len() as i64 == offset && self.bytes.len() + amount <= JOINED)
    }

    fn add(&mut self, bytes: &[u8], offset: i64) {
        if self.bytes.is_empty() {
            self.at = offset;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

/// # Safety
/// `file` was opened by [`open`] as a [`File`] and is not closed.
unsafe fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite gave `szOsFile` bytes, which is a `File` and the inner file behind it. `File` has the alignment of a
    // pointer, and so has its size.
    unsafe { file.cast::<File>().add(1).cast() }
}

/// Calls a method of the file below.
macro_rules! below {
    ($file:expr, $method:ident $(, $arg:expr)*) => {{
        // SAFETY: SQLite calls a file's methods only while it is open, and then the file below is open too, its methods are
        // set and they take the same arguments.
        unsafe {
            let file = inner($file);
            match (*(*file).pMethods).$method {
                Some(method) => method(file $(, $arg)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    }};
}

/// Hands on what was joined. Where that fails it is gone, and so is the transaction that is told of it.
fn hand_on(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open file of ours, which one thread at a time uses.
    let this = unsafe { &*file.cast::<File>() };
    let mut joined = this.joined.borrow_mut();
    if joined.bytes.is_empty() {
        return ffi::SQLITE_OK;
    }
    let end = joined.at + joined.bytes.len() as i64;
    let code = below!(file, xWrite, joined.bytes.as_ptr().cast(), joined.bytes.len() as c_int, joined.at);
    joined.bytes.clear();
    // Not with a header: what stood there before it may come back in a power cut until it is synced, and zeros would damage that.
    if code == ffi::SQLITE_OK && end > this.length.get().max(LOG_HEADER as i64) {
        this.length.set(lengthen(file, end));
    }
    code
}

/// Lengthens a log that was written to up to `end`, and returns how long it is. What cannot be done, as on a full disk, is left: the
/// log then grows with its frames.
fn lengthen(file: *mut ffi::sqlite3_file, end: i64) -> i64 {
    let mut length = end;
    if below!(file, xFileSize, &raw mut length) != ffi::SQLITE_OK || length > end {
        return length.max(end);
    }
    let zeros = [0u8; 16 << 10];
    let wanted = (end / LENGTHENED + 1) * LENGTHENED;
    while length < wanted {
        let amount = (wanted - length).min(zeros.len() as i64);
        if below!(file, xWrite, zeros.as_ptr().cast(), amount as c_int, length) != ffi::SQLITE_OK {
            break;
        }
        length += amount;
    }
    length
}

/// Calls a method of the file below, which is to know what was joined.
macro_rules! after_joined {
    ($($name:ident, $method:ident ( $($arg:ident: $type:ty),* );)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            match hand_on(file) {
                ffi::SQLITE_OK => below!(file, $method $(, $arg)*),
                code => code,
            }
        }
    )*};
}

after_joined! {
    truncate_below, xTruncate(size: i64);
    sync, xSync(flags: c_int);
    file_size, xFileSize(size: *mut i64);
}

/// Passes a method on as it is.
macro_rules! pass {
    ($($name:ident, $method:ident ( $($arg:ident: $type:ty),* );)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            below!(file, $method $(, $arg)*)
        }
    )*};
}

pass! {
    lock, xLock(level: c_int);
    unlock, xUnlock(level: c_int);
    file_control, xFileControl(op: c_int, arg: *mut c_void);
    check_reserved_lock, xCheckReservedLock(held: *mut c_int);
    sector_size, xSectorSize();
    device_characteristics, xDeviceCharacteristics();
    shm_map, xShmMap(region: c_int, size: c_int, extend: c_int, at: *mut *mut c_void);
    shm_lock, xShmLock(offset: c_int, n: c_int, flags: c_int);
    shm_unmap, xShmUnmap(delete: c_int);
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: an open file of ours.
    unsafe {
        (*file.cast::<File>()).length.set(0);
        truncate_below(file, size)
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let written = hand_on(file);
    let closed = below!(file, xClose);
    // SAFETY: `open` wrote it, and SQLite does not use a file after it closed it.
    unsafe { std::ptr::drop_in_place(&raw mut (*file.cast::<File>()).joined) };
    if written == ffi::SQLITE_OK { closed } else { written }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: as in `below!`.
    unsafe {
        let file = inner(file);
        if let Some(barrier) = (*(*file).pMethods).xShmBarrier {
            barrier(file);
        }
    }
}

/// Version 2: no `xFetch`, so that every page comes through `xRead`.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, buffer: *mut c_void, amount: c_int, offset: i64) -> c_int {
    let written = hand_on(file);
    if written != ffi::SQLITE_OK {
        return written;
    }
    let code = below!(file, xRead, buffer, amount, offset);
    // Anything but a whole page is a header, or a frame that SQLite proves itself.
    if amount as usize != PAGE || !(code == ffi::SQLITE_OK || code == ffi::SQLITE_IOERR_SHORT_READ) {
        return code;
    }
    // SAFETY: `buffer` has `amount` bytes, and the read has filled them: what a short one lacks with zeros.
    let page = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), PAGE) };
    // SAFETY: an open file of ours.
    let this = unsafe { &*file.cast::<File>() };
    match this.kind {
        Kind::Database => match page_at(offset) {
            Some(number) if !is_whole(number, page) => damaged(number, false),
            _ => code,
        },
        Kind::Log => match frame_at(offset) {
            Some(frame) if frame < this.unproved_from.get() => prove_frame(file, frame, page).unwrap_or(code),
            _ => code,
        },
    }
}

fn page_at(offset: i64) -> Option<u32> {
    let page = PAGE as i64;
    if offset % page == 0 { u32::try_from(offset / page + 1).ok() } else { None }
}

/// The frame, the first is 0, whose page lies at `offset`.
fn frame_at(offset: i64) -> Option<i64> {
    let from = offset - (LOG_HEADER + FRAME_HEADER) as i64;
    (from >= 0 && from % FRAME as i64 == 0).then_some(from / FRAME as i64)
}

/// The answer for a page of the log that does not fit; `None`: it fits.
fn prove_frame(file: *mut ffi::sqlite3_file, frame: i64, page: &[u8]) -> Option<c_int> {
    let start = LOG_HEADER as i64 + frame * FRAME as i64;
    let mut header = [0u8; FRAME_HEADER];
    // The checksum before this frame ends the header of the frame before, or that of the log.
    let mut before = [0u8; 8];
    let at = if frame == 0 { LOG_HEADER as i64 - 8 } else { start - FRAME as i64 + FRAME_HEADER as i64 - 8 };
    for (buffer, offset) in [(&mut header[..], start), (&mut before[..], at)] {
        let code = below!(file, xRead, buffer.as_mut_ptr().cast(), buffer.len() as c_int, offset);
        if code != ffi::SQLITE_OK {
            return Some(code);
        }
    }
    let header = FrameHeader::parse(&header);
    let word = |i: usize| u32::from_be_bytes([before[i], before[i + 1], before[i + 2], before[i + 3]]);
    (!header.fits_either([word(0), word(4)], page)).then(|| damaged(header.page, true))
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, buffer: *const c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: an open file of ours, and `buffer` has `amount` bytes.
    let (this, bytes) =
        unsafe { (&*file.cast::<File>(), std::slice::from_raw_parts(buffer.cast::<u8>(), amount as usize)) };
    match this.kind {
        Kind::Database => match page_at(offset) {
            Some(number) if bytes.len() == PAGE => {
                below!(file, xWrite, with_sum(number, bytes).as_ptr().cast(), amount, offset)
            }
            _ => below!(file, xWrite, buffer, amount, offset),
        },
        Kind::Log => {
            this.note_log_write(bytes, offset);
            // The header of a new round, or the last page of a transaction.
            let ends = offset == 0 || (bytes.len() == PAGE && this.commits.get());
            join(file, bytes, offset, ends)
        }
    }
}

/// A copy: the page that SQLite holds is not ours to write to.
fn with_sum(number: u32, bytes: &[u8]) -> [u8; PAGE] {
    let mut page = [0u8; PAGE];
    page.copy_from_slice(bytes);
    let sum = page_sum(number, &page[..PAGE - RESERVED]);
    page[PAGE - RESERVED..].copy_from_slice(&sum.to_le_bytes());
    page
}

fn join(file: *mut ffi::sqlite3_file, bytes: &[u8], offset: i64, ends: bool) -> c_int {
    // SAFETY: an open file of ours, which one thread at a time uses.
    let joined = unsafe { &(*file.cast::<File>()).joined };
    if !joined.borrow().takes(bytes.len(), offset) {
        let code = hand_on(file);
        if code != ffi::SQLITE_OK {
            return code;
        }
    }
    joined.borrow_mut().add(bytes, offset);
    if ends { hand_on(file) } else { ffi::SQLITE_OK }
}

impl File {
    /// A page that is written again by the transaction that wrote it before comes without a new header, and frames after it
    /// have empty ones until the transaction ends: then SQLite goes over all headers from there on.
    fn note_log_write(&self, bytes: &[u8], offset: i64) {
        if offset == 0 {
            // A new round of the log.
            self.unproved_from.set(i64::MAX);
        } else if bytes.len() == FRAME_HEADER {
            let frame = (offset - LOG_HEADER as i64) / FRAME as i64;
            self.written.set(frame);
            self.commits.set(bytes[4..8] != [0; 4]);
            let empty = bytes[8..].iter().all(|b| *b == 0);
            if empty {
                self.unproved_from.set(self.unproved_from.get().min(frame));
            } else if frame <= self.unproved_from.get() {
                self.unproved_from.set(i64::MAX);
            }
        } else if bytes.len() == PAGE
            && let Some(frame) = frame_at(offset)
            && self.written.replace(-1) != frame
        {
            self.unproved_from.set(self.unproved_from.get().min(frame));
        }
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `pAppData` of our VFS is the one below, which stays registered; it has this method, as every VFS must; the
    // arguments go on as they came. `file` has room for a `File` and the file below, see `around`.
    unsafe {
        let below = (*vfs).pAppData.cast::<ffi::sqlite3_vfs>();
        let Some(open_below) = (*below).xOpen else { return ffi::SQLITE_CANTOPEN };
        let kind = match flags & (ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL) {
            ffi::SQLITE_OPEN_MAIN_DB => Kind::Database,
            ffi::SQLITE_OPEN_WAL => Kind::Log,
            _ => return open_below(below, name, file, flags, out_flags),
        };
        let base = ffi::sqlite3_file { pMethods: std::ptr::null() };
        file.cast::<File>().write(File {
            base,
            kind,
            unproved_from: Cell::new(i64::MAX),
            written: Cell::new(-1),
            commits: Cell::new(false),
            joined: RefCell::default(),
            length: Cell::new(0),
        });
        let code = open_below(below, name, inner(file), flags, out_flags);
        if !(*inner(file)).pMethods.is_null() {
            // Also where it failed: SQLite then closes it. (Where it does not, nothing was joined, and nothing is to be freed.)
            (*file).pMethods = &METHODS;
        }
        code
    }
}

/// Calls a method of the VFS below.
macro_rules! vfs_below {
    ($($name:ident, $method:ident ( $($arg:ident: $type:ty),* ) -> $missing:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs $(, $arg: $type)*) -> c_int {
            // SAFETY: `pAppData` of our VFS is the one below, which stays registered; the arguments go on as they came.
            unsafe {
                let below = (*vfs).pAppData.cast::<ffi::sqlite3_vfs>();
                match (*below).$method {
                    Some(method) => method(below $(, $arg)*),
                    None => $missing,
                }
            }
        }
    )*};
}

vfs_below! {
    delete, xDelete(name: *const c_char, sync: c_int) -> ffi::SQLITE_IOERR_DELETE;
    access, xAccess(name: *const c_char, flags: c_int, out: *mut c_int) -> ffi::SQLITE_IOERR_ACCESS;
    full_pathname, xFullPathname(name: *const c_char, n: c_int, out: *mut c_char) -> ffi::SQLITE_CANTOPEN;
    randomness, xRandomness(n: c_int, out: *mut c_char) -> 0;
    sleep, xSleep(microseconds: c_int) -> 0;
    current_time, xCurrentTime(out: *mut f64) -> ffi::SQLITE_ERROR;
    last_error, xGetLastError(n: c_int, out: *mut c_char) -> 0;
    current_time_64, xCurrentTimeInt64(out: *mut i64) -> ffi::SQLITE_ERROR;
}
