//! The stack of a thread.

use std::io;

/// What lies so many bytes below the caller is not in use.
const KEPT: usize = 256 << 10;

/// Gives back to the kernel what deep recursions have left below the caller on the stack of its thread.
#[inline(never)]
pub fn give_back() -> io::Result<()> {
    let (low, _) = bounds()?;
    let here = std::ptr::from_ref(&low).addr();
    let page =
        usize::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096)).unwrap_or(4096);
    let end = here.saturating_sub(KEPT) / page * page;
    let Some(length) = end.checked_sub(low).filter(|n| *n > 0) else { return Ok(()) };
    // SAFETY: the range is of this thread's own stack, and ends far below the frame of this function, the lowest that there is: no
    // live value is in it. What grows into it again finds zeros, which it has to write over anyway, as any new frame.
    let given = unsafe { libc::madvise(std::ptr::without_provenance_mut(low), length, libc::MADV_DONTNEED) };
    if given == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The lowest address of the calling thread's stack, and its size.
fn bounds() -> io::Result<(usize, usize)> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the first call fills the attributes in, or fails; the others read and release what it has filled in.
    unsafe {
        let failed = libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr());
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        let failed = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
    }
    Ok((low.addr(), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the stack's pages, those that take memory.
    fn resident() -> usize {
        let (low, size) = bounds().unwrap();
        // The guard is no part of it everywhere.
        let (start, pages) = (low + (64 << 10), (size - (64 << 10)) / 4096);
        let mut present = vec![0u8; pages];
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        let asked = unsafe {
            libc::mincore(
                std::ptr::without_provenance_mut(start.next_multiple_of(4096)),
                (pages - 1) * 4096,
                present.as_mut_ptr(),
            )
        };
        assert_eq!(asked, 0, "{}", io::Error::last_os_error());
        present.iter().filter(|p| **p & 1 == 1).count()
    }

    #[inline(never)]
    fn recurse(levels: usize) -> usize {
        let frame = std::hint::black_box([levels; 512]);
        if levels == 0 { 0 } else { frame[levels % 512] - levels + 1 + recurse(levels - 1) }
    }

    #[test]
    fn what_a_recursion_has_touched_is_given_back() {
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(|| {
            let kept = std::hint::black_box([7u8; 4096]);
            assert_eq!(recurse(5000), 5000);
            let before = resident();
            give_back().unwrap();
            let after = resident();
            assert!(before > 4000 && after < 200, "{before} pages, then {after}");
            assert_eq!(recurse(5000), 5000);
            assert_eq!(kept, [7u8; 4096]);
        });
        thread.unwrap().join().unwrap();
    }
}
