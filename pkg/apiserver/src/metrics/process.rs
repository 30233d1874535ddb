//! What the process uses, under the names of Prometheus' clients.

use crate::exposition::Page;
use std::fs;

/// Of the kernel's interface, whatever its own clock is.
const TICKS_PER_SECOND: f64 = 100.0;

/// What `/proc` tells of this process.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    start_seconds: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
    max_virtual_bytes: f64,
    open_files: f64,
    max_files: f64,
}

impl Usage {
    fn read() -> Option<Self> {
        let text = |path: &str| fs::read_to_string(path).ok();
        let mut usage = Usage::parse(
            &text("/proc/self/stat")?,
            &text("/proc/self/status")?,
            &text("/proc/self/limits")?,
            &text("/proc/stat")?,
        )?;
        usage.open_files = fs::read_dir("/proc/self/fd").ok()?.count() as f64;
        Some(usage)
    }

    fn parse(stat: &str, status: &str, limits: &str, machine: &str) -> Option<Self> {
        // The program's name is in brackets and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |n: usize| fields.get(n - 3)?.parse::<f64>().ok().map(|t| t / TICKS_PER_SECOND);
        let kilobytes = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|k| k * 1024.0)
        };
        let limit = |name: &str| {
            let soft = limits.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?;
            if soft == "unlimited" { Some(u64::MAX as f64) } else { soft.parse().ok() }
        };
        let booted = machine.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
        Some(Usage {
            cpu_seconds: ticks(14)? + ticks(15)?,
            start_seconds: booted + ticks(22)?,
            virtual_bytes: kilobytes("VmSize")?,
            resident_bytes: kilobytes("VmRSS")?,
            max_virtual_bytes: limit("Max address space")?,
            open_files: 0.0,
            max_files: limit("Max open files")?,
        })
    }
}

pub fn write(page: &mut Page) {
    let Some(usage) = Usage::read() else { return };
    for (name, help, kind, value) in [
        ("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", "counter", usage.cpu_seconds),
        ("process_max_fds", "Maximum number of open file descriptors.", "gauge", usage.max_files),
        ("process_open_fds", "Number of open file descriptors.", "gauge", usage.open_files),
        ("process_resident_memory_bytes", "Resident memory size in bytes.", "gauge", usage.resident_bytes),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            "gauge",
            usage.start_seconds,
        ),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes.", "gauge", usage.virtual_bytes),
        (
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes.",
            "gauge",
            usage.max_virtual_bytes,
        ),
    ] {
        page.family(name, help, kind).value(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_what_it_uses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1500 1000000 300 18446744073709551615";
        let status = "Name:\ta) b\nVmSize:\t    2000 kB\nVmRSS:\t     300 kB\n";
        let limits = "Limit Soft Limit Hard Limit Units\nMax open files            1024       4096       files\n\
                      Max address space         unlimited            unlimited            bytes\n";
        let usage = Usage::parse(stat, status, limits, "cpu 1 2\nbtime 1000\n").unwrap();
        let wanted = Usage {
            cpu_seconds: 3.0,
            start_seconds: 1015.0,
            virtual_bytes: 2_048_000.0,
            resident_bytes: 307_200.0,
            max_virtual_bytes: 18_446_744_073_709_551_615.0,
            open_files: 0.0,
            max_files: 1024.0,
        };
        assert_eq!(usage, wanted);
        let this = Usage::read().unwrap();
        assert!(this.open_files > 2.0 && this.resident_bytes > 0.0, "{this:?}");
    }
}
