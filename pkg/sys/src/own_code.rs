//! This program's own code, as far as it is mapped.

use std::io;
use std::ops::Range;

/// Unmaps this program's code and constants. What runs again is mapped again as it runs, from the kernel's page cache; what only
/// the start needed is not, and is the first that a machine short of memory forgets.
pub fn unmap_unused() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for Range { start, end } in never_written(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a private mapping of a file that this process has never been able to write to, so all that is
        // forgotten is which of the file's pages are mapped: the next access finds the same bytes.
        if unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The program's mappings that hold the file's bytes unchanged: code, and what lies before it from the file's beginning on.
/// Others that are read-only now may have been written to (relocated) before.
fn never_written(maps: &str, program: &str) -> Vec<Range<usize>> {
    let parse = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let path = fields.nth(2)?.trim_start();
        let unchanged = permissions == "r-xp" || (permissions == "r--p" && offset.bytes().all(|b| b == b'0'));
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (path == program && unchanged).then_some(address(start)?..address(end)?)
    };
    maps.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_to() {
        let maps = "\
7f0000000000-7f0000d3d000 r--p 00000000 fe:00 1234   /usr/local/bin/iso pod
7f0000d3d000-7f0003e70000 r-xp 00d3c000 fe:00 1234   /usr/local/bin/iso pod
7f0003e70000-7f0003f73000 r--p 03e6e000 fe:00 1234   /usr/local/bin/iso pod
7f0003f73000-7f0003f7f000 rw-p 03f70000 fe:00 1234   /usr/local/bin/iso pod
7f0003f7f000-7f0003fd5000 rw-p 00000000 00:00 0
7f0004000000-7f0004001000 r-xp 00000000 fe:00 77     /usr/lib/libother.so
7fff00000000-7fff00021000 rw-p 00000000 00:00 0      [stack]
7fff00100000-7fff00102000 r-xp 00000000 00:00 0      [vdso]
";
        assert_eq!(
            never_written(maps, "/usr/local/bin/iso pod"),
            [0x7f00_0000_0000..0x7f00_00d3_d000, 0x7f00_00d3_d000..0x7f00_03e7_0000]
        );
    }

    /// What `/proc/self/smaps` says of the program's code.
    fn mapped() -> usize {
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines =
            smaps.lines().skip_while(|l| !(l.contains(" r-xp ") && l.ends_with(&*program.to_string_lossy())));
        let rss = lines.find_map(|l| l.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_is_unmapped_and_runs_on() {
        // Reads every page of the code, so that all of it is mapped.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let code = never_written(&maps, &program.to_string_lossy()).pop().unwrap();
        // SAFETY: the range is mapped and readable, and nothing writes to code.
        let bytes = unsafe { std::slice::from_raw_parts(code.start as *const u8, code.len()) };
        assert_ne!(bytes.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>(), 0);
        let before = mapped();
        unmap_unused().unwrap();
        let after = mapped();
        assert!(after < before, "{after} KiB are mapped, {before} were");
    }
}
