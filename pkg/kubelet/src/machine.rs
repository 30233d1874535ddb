//! What the machine is: processors, memory, disk, kernel, identity.

use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    pub swap: u64,
    /// Bytes of the file system below the kubelet's root.
    pub disk: u64,
    pub kernel: String,
    pub os_image: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    /// As Go names it: `amd64`.
    pub arch: String,
    /// Bytes of each size of huge pages: (`2Mi`, bytes).
    pub hugepages: Vec<(String, u64)>,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A field of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Processors that are online: `0-3,6`.
fn cpu_count(list: &str) -> u32 {
    let span = |part: &str| {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        Some(b.trim().parse::<u32>().ok()?.checked_sub(a.trim().parse().ok()?)? + 1)
    };
    list.split(',').filter_map(span).sum()
}

fn os_image(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| "Unknown".into(), |p| p.trim_matches('"').to_owned())
}

fn hugepages() -> Vec<(String, u64)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib =
            name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse::<u64>().ok());
        let count =
            std::fs::read_to_string(entry.path().join("nr_hugepages")).ok().and_then(|n| n.trim().parse::<u64>().ok());
        if let (Some(kib), Some(count)) = (kib, count) {
            let size = if kib >= 1 << 20 { format!("{}Gi", kib >> 20) } else { format!("{}Mi", kib >> 10) };
            out.push((size, count * kib * 1024));
        }
    }
    out.sort();
    out
}

impl Machine {
    /// Reads this machine; what cannot be read stays empty.
    pub fn here(root_dir: &Path) -> Self {
        let memory = read("/proc/meminfo");
        let mut cpus = cpu_count(&read("/sys/devices/system/cpu/online"));
        if cpus == 0 {
            cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        }
        let machine_id = read("/etc/machine-id");
        Machine {
            cpus,
            memory: meminfo(&memory, "MemTotal"),
            swap: meminfo(&memory, "SwapTotal"),
            disk: isopod_sys::mount::usage(root_dir).map_or(0, |([capacity, ..], _)| capacity),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_image(&read("/etc/os-release")),
            system_uuid: match read("/sys/class/dmi/id/product_uuid") {
                id if id.is_empty() => machine_id.clone(),
                id => id,
            },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
            hugepages: hugepages(),
        }
    }
}

/// Memory that could be had without swapping, in bytes.
pub fn available_memory() -> u64 {
    meminfo(&read("/proc/meminfo"), "MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(cpu_count("0-3,6"), 5);
        assert_eq!(cpu_count("0"), 1);
        assert_eq!(meminfo("MemTotal:       16384 kB\nMemFree: 1 kB\n", "MemTotal"), 16 << 20);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        let here = Machine::here(Path::new("/"));
        assert!(here.cpus > 0 && here.memory > 0 && here.disk > 0 && !here.kernel.is_empty());
    }
}
