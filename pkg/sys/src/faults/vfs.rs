//! The disk as SQLite sees it: each call goes to the layer below, between the disk's decision and its note of it.
//!
//! Invariant: a [`File`] that SQLite holds was written by `open`, has the layer below's own file behind it in the same
//! block of memory, and its `shared` lives until `close`.

use super::{Disk, Failure};
use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What SQLite allocates for an open file; that of the layer below follows.
#[repr(C)]
struct File {
    methods: *const sqlite3_io_methods,
    shared: *mut Shared,
}

struct Shared {
    disk: Arc<Disk>,
    /// `None`: a file without a name, which nobody finds after a power cut.
    file: Option<(u64, String)>,
    /// The next sync takes the directory along, as SQLite's own layer does with a log that it may have created.
    syncs_names: AtomicBool,
    /// So many failed syncs of the file have been told to who has it open here.
    failures_told: AtomicU64,
}

/// What a registered layer points to.
struct Layer {
    base: *mut sqlite3_vfs,
    disk: std::sync::Weak<Disk>,
    _name: CString,
}

pub(super) fn register(disk: &Arc<Disk>, base: Option<&str>) -> io::Result<()> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "SQLite has no layer of that name");
    let base = base.map(CString::new).transpose()?;
    // SAFETY: the argument is null or a string that outlives the call; SQLite's layers are never freed.
    let below = unsafe { ffi::sqlite3_vfs_find(base.as_ref().map_or(std::ptr::null(), |b| b.as_ptr())) };
    if below.is_null() {
        return Err(unknown());
    }
    let name = CString::new(disk.name())?;
    let name_pointer = name.as_ptr();
    let layer = Box::new(Layer { base: below, disk: Arc::downgrade(disk), _name: name });
    // SAFETY: `below` is a registered layer, hence readable.
    let mut vfs = unsafe { std::ptr::read(below) };
    vfs.iVersion = vfs.iVersion.min(2);
    vfs.szOsFile += size_of::<File>() as c_int;
    vfs.pNext = std::ptr::null_mut();
    vfs.zName = name_pointer;
    vfs.pAppData = Box::into_raw(layer).cast();
    vfs.xOpen = Some(open);
    vfs.xDelete = Some(delete);
    vfs.xAccess = Some(access);
    vfs.xFullPathname = Some(full_pathname);
    vfs.xDlOpen = None;
    vfs.xDlError = None;
    vfs.xDlSym = None;
    vfs.xDlClose = None;
    vfs.xRandomness = Some(randomness);
    vfs.xSleep = Some(sleep);
    vfs.xCurrentTime = None;
    vfs.xGetLastError = Some(last_error);
    vfs.xCurrentTimeInt64 = Some(current_time);
    // SAFETY: the layer and all it points to are never freed: a few hundred bytes for each disk of a test.
    let code = unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0) };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(unknown()) }
}

pub(super) fn unregister(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    // SAFETY: a string that outlives the call; an unregistered layer stays in memory for who still has it open.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(name.as_ptr());
        if !vfs.is_null() {
            ffi::sqlite3_vfs_unregister(vfs);
        }
    }
}

/// # Safety
/// `vfs` is one that [`register`] made.
unsafe fn layer<'a>(vfs: *mut sqlite3_vfs) -> &'a Layer {
    // SAFETY: as the caller says; a layer is never freed.
    unsafe { &*(*vfs).pAppData.cast::<Layer>() }
}

/// # Safety
/// `file` is one that `open` opened.
unsafe fn shared<'a>(file: *mut sqlite3_file) -> &'a Shared {
    // SAFETY: the module's invariant.
    unsafe { &*(*file.cast::<File>()).shared }
}

/// The file of the layer below and one of its methods.
macro_rules! below {
    ($file:ident . $method:ident ( $($argument:expr),* )) => {{
        let base = $file.cast::<File>().add(1).cast::<sqlite3_file>();
        match (*(*base).pMethods).$method {
            Some(method) => method(base, $($argument),*),
            None => ffi::SQLITE_ERROR,
        }
    }};
}

macro_rules! base_vfs {
    ($vfs:ident . $method:ident ( $($argument:expr),* )) => {{
        let base = layer($vfs).base;
        match (*base).$method {
            Some(method) => method(base, $($argument),*),
            None => ffi::SQLITE_ERROR,
        }
    }};
}

fn code(failure: Failure, otherwise: c_int) -> c_int {
    match failure {
        Failure::Full => ffi::SQLITE_FULL,
        Failure::Io | Failure::NoPower => otherwise,
    }
}

/// The last part of a path.
///
/// # Safety
/// `name` is a string that outlives the result.
unsafe fn file_name<'a>(name: *const c_char) -> &'a str {
    // SAFETY: as the caller says.
    let path = unsafe { CStr::from_ptr(name) }.to_str().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives memory of `szOsFile` bytes, a name that lives as long as the file, and its own layer.
    unsafe {
        (*file).pMethods = std::ptr::null();
        let Some(disk) = layer(vfs).disk.upgrade() else { return ffi::SQLITE_CANTOPEN };
        let tracked = if name.is_null() {
            None
        } else {
            let mut state = disk.state();
            if !state.power {
                return ffi::SQLITE_CANTOPEN;
            }
            let path = Path::new(CStr::from_ptr(name).to_str().unwrap_or_default());
            let short = file_name(name).to_owned();
            let id = match state.names.get(&short).copied() {
                Some(id) => id,
                // What the disk does not know yet is as the test left it. (Read here and only here: closing a file that is
                // open elsewhere in the process would end the locks on it.)
                None if path.exists() => state.found(&short, std::fs::read(path).unwrap_or_default()),
                None if flags & ffi::SQLITE_OPEN_CREATE == 0 || state.change().is_err() => return ffi::SQLITE_CANTOPEN,
                None => state.created(&short),
            };
            Some((id, short))
        };
        let base = file.cast::<File>().add(1).cast::<sqlite3_file>();
        let code = base_vfs!(vfs.xOpen(name, base, flags, out));
        if code != ffi::SQLITE_OK {
            return code;
        }
        let logs = ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL;
        let syncs_names = AtomicBool::new(flags & ffi::SQLITE_OPEN_CREATE != 0 && flags & logs != 0);
        let file = file.cast::<File>();
        let failures = tracked.as_ref().map_or(0, |(id, _)| disk.state().failed_syncs(*id));
        let failures_told = AtomicU64::new(failures);
        (*file).shared = Box::into_raw(Box::new(Shared { disk, file: tracked, syncs_names, failures_told }));
        (*file).methods = &METHODS;
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite gives its own layer and a string.
    unsafe {
        let Some(disk) = layer(vfs).disk.upgrade() else { return ffi::SQLITE_IOERR_DELETE };
        let mut state = disk.state();
        if let Err(e) = state.change() {
            return code(e, ffi::SQLITE_IOERR_DELETE);
        }
        let done = base_vfs!(vfs.xDelete(name, 0));
        if done == ffi::SQLITE_OK {
            state.deleted(file_name(name));
            if sync != 0 {
                state.sync_names();
            }
        }
        done
    }
}

unsafe extern "C" fn access(vfs: *mut sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { base_vfs!(vfs.xAccess(name, flags, out)) }
}

unsafe extern "C" fn full_pathname(vfs: *mut sqlite3_vfs, name: *const c_char, n: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { base_vfs!(vfs.xFullPathname(name, n, out)) }
}

unsafe extern "C" fn randomness(vfs: *mut sqlite3_vfs, n: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { base_vfs!(vfs.xRandomness(n, out)) }
}

unsafe extern "C" fn sleep(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { base_vfs!(vfs.xSleep(microseconds)) }
}

unsafe extern "C" fn last_error(vfs: *mut sqlite3_vfs, n: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { base_vfs!(vfs.xGetLastError(n, out)) }
}

unsafe extern "C" fn current_time(vfs: *mut sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { base_vfs!(vfs.xCurrentTimeInt64(out)) }
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // Without mapped files: what is written through a mapping is not seen here.
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

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: the module's invariant; SQLite does not use a file after it closed it.
    unsafe {
        let code = below!(file.xClose());
        drop(Box::from_raw((*file.cast::<File>()).shared));
        code
    }
}

unsafe extern "C" fn read(file: *mut sqlite3_file, out: *mut c_void, n: c_int, at: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe {
        if !shared(file).disk.has_power() {
            return ffi::SQLITE_IOERR_READ;
        }
        below!(file.xRead(out, n, at))
    }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, data: *const c_void, n: c_int, at: ffi::sqlite3_int64) -> c_int {
    // SAFETY: the module's invariant; SQLite gives `n` bytes.
    unsafe {
        let Shared { disk, file: Some((id, name)), .. } = shared(file) else {
            return below!(file.xWrite(data, n, at));
        };
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), n as usize);
        let mut state = disk.state();
        let fault = state.write_fault(*id, name, at as u64, bytes.len());
        let len = fault.map_or_else(|(len, _)| len, |()| bytes.len());
        if len > 0 {
            let done = below!(file.xWrite(data, len as c_int, at));
            if done != ffi::SQLITE_OK {
                return done;
            }
            state.wrote(*id, at as u64, &bytes[..len]);
        }
        fault.map_or_else(|(_, failure)| code(failure, ffi::SQLITE_IOERR_WRITE), |()| ffi::SQLITE_OK)
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    // SAFETY: the module's invariant.
    unsafe {
        let Shared { disk, file: Some((id, _)), .. } = shared(file) else { return below!(file.xTruncate(size)) };
        let mut state = disk.state();
        if let Err(e) = state.change() {
            return code(e, ffi::SQLITE_IOERR_TRUNCATE);
        }
        let done = below!(file.xTruncate(size));
        if done == ffi::SQLITE_OK {
            state.truncated(*id, size as u64);
        }
        done
    }
}

/// Not handed on: the machine keeps its power, and real syncs would only take time.
unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    // SAFETY: the module's invariant.
    let shared = unsafe { shared(file) };
    let Some((id, name)) = &shared.file else { return ffi::SQLITE_OK };
    let mut state = shared.disk.state();
    let synced = state.sync(*id, name);
    // As Linux has it: everybody who has the file open is told once, whoever's sync it was that failed.
    let failures = state.failed_syncs(*id);
    let told = shared.failures_told.swap(failures, Ordering::SeqCst);
    if let Err(e) = synced.and(if failures > told { Err(Failure::Io) } else { Ok(()) }) {
        return code(e, ffi::SQLITE_IOERR_FSYNC);
    }
    if shared.syncs_names.swap(false, Ordering::SeqCst) {
        state.sync_names();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xFileSize(out)) }
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xLock(level)) }
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xUnlock(level)) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xCheckReservedLock(out)) }
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xFileControl(op, argument)) }
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xSectorSize()) }
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xDeviceCharacteristics()) }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xShmMap(page, size, extend, out)) }
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xShmLock(offset, n, flags)) }
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe {
        let base = file.cast::<File>().add(1).cast::<sqlite3_file>();
        if let Some(barrier) = (*(*base).pMethods).xShmBarrier {
            barrier(base);
        }
    }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { below!(file.xShmUnmap(delete)) }
}
