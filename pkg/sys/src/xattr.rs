//! Extended attributes of a path's last component itself (links are not followed).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c(text: &[u8]) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

pub fn set(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (c(path.as_os_str().as_bytes())?, c(name)?);
    // SAFETY: both strings end in NUL and `value` is given with its length; all live until the call returns.
    let r = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `None`: no such attribute.
pub fn get(path: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (c(path.as_os_str().as_bytes())?, c(name)?);
    let mut value = vec![0u8; 64 << 10];
    // SAFETY: the kernel writes at most `value.len()` bytes to `value`; the strings end in NUL.
    let n = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if n >= 0 {
        value.truncate(n as usize);
        return Ok(Some(value));
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(None),
        e => Err(e),
    }
}

/// The attributes' names.
pub fn list(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let path = c(path.as_os_str().as_bytes())?;
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: the kernel writes at most `names.len()` bytes to `names`; the path ends in NUL.
    let n = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    if n < 0 {
        let e = io::Error::last_os_error();
        return if e.raw_os_error() == Some(libc::ENOTSUP) { Ok(vec![]) } else { Err(e) };
    }
    names.truncate(n as usize);
    Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
}
