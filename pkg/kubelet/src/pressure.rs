//! Whether the node runs out of memory or disk, as its conditions `MemoryPressure` and `DiskPressure` say it. Pure.

use crate::config::KubeletConfig;
use crate::machine::Machine;
use isopod_api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use std::str::FromStr;

/// How much must be left: bytes, or a part of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Bytes(u64),
    Percent(f64),
}

impl Amount {
    /// No limit.
    const NONE: Amount = Amount::Bytes(0);

    /// In bytes, of a whole of so many.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Amount::Bytes(n) => n,
            Amount::Percent(p) => (whole as f64 * p / 100.0) as u64,
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no amount: write bytes (100Mi) or a part of the whole (10%)");
        match text.strip_suffix('%') {
            // Upstream takes both for "no limit".
            Some("0" | "100") => Ok(Amount::NONE),
            Some(part) => match part.parse() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Amount::Percent(p)),
                _ => Err(bad()),
            },
            None => match Quantity::parse(text).map(|q| u64::try_from(q.value())) {
                Ok(Ok(n)) if n > 0 => Ok(Amount::Bytes(n)),
                _ => Err(bad()),
            },
        }
    }
}

/// What must be left of memory, and of the disk that pods and images share, as `--eviction-hard` says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    pub memory: Amount,
    pub nodefs: Amount,
    pub imagefs: Amount,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { memory: Amount::Bytes(100 << 20), nodefs: Amount::Percent(10.0), imagefs: Amount::NONE }
    }
}

impl Thresholds {
    /// `Default` as a text.
    pub const DEFAULT: &str = "memory.available<100Mi,nodefs.available<10%";

    /// Bytes of a disk of that size.
    pub fn disk(&self, size: u64) -> u64 {
        self.nodefs.of(size).max(self.imagefs.of(size))
    }
}

/// `memory.available<100Mi,nodefs.available<10%`. As upstream's, it stands for all of the defaults: what it does not name has no limit.
impl FromStr for Thresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Thresholds { memory: Amount::NONE, nodefs: Amount::NONE, imagefs: Amount::NONE };
        let mut named = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (signal, amount) =
                part.split_once('<').ok_or_else(|| format!("{part:?} is no threshold: write SIGNAL<AMOUNT"))?;
            let limit = match signal {
                "memory.available" => &mut limits.memory,
                "nodefs.available" => &mut limits.nodefs,
                "imagefs.available" => &mut limits.imagefs,
                _ => {
                    return Err(format!(
                        "unknown signal {signal:?}: there are memory.available, nodefs.available and imagefs.available"
                    ));
                }
            };
            if named.contains(&signal) {
                return Err(format!("signal {signal:?} is named twice"));
            }
            named.push(signal);
            *limit = amount.parse()?;
        }
        Ok(limits)
    }
}

/// What is left of what pods use up, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    pub memory: u64,
    pub disk: u64,
}

/// What the conditions say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
}

/// When each was seen last. A pressure that is over stays in the status for a while (`evictionPressureTransitionPeriod`): a node
/// at the edge would go to and fro, and each time its status and its taints were written.
#[derive(Debug, Default)]
pub struct Pressures {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
}

impl Pressures {
    pub fn see(&mut self, cfg: &KubeletConfig, machine: &Machine, left: Left, now: Timestamp) -> Pressure {
        let lasts = SignedDuration::try_from(cfg.eviction_pressure_transition).unwrap_or(SignedDuration::MAX);
        let see = |seen: &mut Option<Timestamp>, low: bool| {
            if low {
                *seen = Some(now);
            }
            low || seen.is_some_and(|at| now.duration_since(at) < lasts)
        };
        Pressure {
            memory: see(&mut self.memory, left.memory < cfg.eviction_hard.memory.of(machine.memory)),
            disk: see(&mut self.disk, left.disk < cfg.eviction_hard.disk(machine.disk)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Pressure = Pressure { memory: false, disk: false };

    fn machine() -> Machine {
        Machine { memory: 1 << 30, disk: 100 << 30, ..Default::default() }
    }

    #[test]
    fn a_pressure_lasts_until_it_was_not_seen_for_a_while() {
        let cfg = KubeletConfig::default();
        let mut pressures = Pressures::default();
        let mut at = |second: i64, memory: u64, disk: u64| {
            let left = Left { memory: memory << 20, disk: disk << 30 };
            pressures.see(&cfg, &machine(), left, Timestamp::from_second(second).unwrap())
        };
        let (little, much) = (99, 101);
        assert_eq!(at(0, much, 10), NONE);
        assert_eq!(at(10, much, 9), Pressure { disk: true, ..NONE });
        assert_eq!(at(20, little, 10), Pressure { memory: true, disk: true });
        assert_eq!(at(309, much, 50), Pressure { memory: true, disk: true });
        assert_eq!(at(310, much, 50), Pressure { memory: true, ..NONE });
        // Seen again in time, it lasts on.
        assert_eq!(at(319, little, 50), Pressure { memory: true, ..NONE });
        assert_eq!(at(618, much, 50), Pressure { memory: true, ..NONE });
        assert_eq!(at(619, much, 50), NONE);
    }

    #[test]
    fn without_a_period_the_status_says_what_is() {
        let cfg = KubeletConfig { eviction_pressure_transition: std::time::Duration::ZERO, ..Default::default() };
        let mut pressures = Pressures::default();
        let now = Timestamp::UNIX_EPOCH;
        assert!(pressures.see(&cfg, &machine(), Left { memory: 0, disk: 0 }, now).disk);
        assert_eq!(pressures.see(&cfg, &machine(), Left { memory: 1 << 30, disk: 50 << 30 }, now), NONE);
    }

    #[test]
    fn thresholds_are_bytes_or_parts_and_stand_for_all_defaults() {
        let limits: Thresholds = "memory.available<5%,imagefs.available<2Gi,nodefs.available<1.5%".parse().unwrap();
        assert_eq!(limits.memory.of(1000), 50);
        assert_eq!(limits.disk(100 << 30), 2 << 30);
        assert_eq!(limits.disk(1000 << 30), 15 << 30);
        assert_eq!(Thresholds::DEFAULT.parse(), Ok(Thresholds::default()));
        let only: Thresholds = "nodefs.available<1Gi".parse().unwrap();
        assert_eq!((only.memory.of(1 << 30), only.disk(1 << 40)), (0, 1 << 30));
        for none in ["", "nodefs.available<0%", "nodefs.available<100%"] {
            let limits: Thresholds = none.parse().unwrap();
            assert_eq!((limits.memory.of(1 << 30), limits.disk(1 << 40)), (0, 0), "{none:?}");
        }
    }

    #[test]
    fn a_threshold_that_says_nothing_is_refused() {
        for (bad, why) in [
            ("nodefs.available", "write SIGNAL<AMOUNT"),
            ("nodefs.available>10%", "write SIGNAL<AMOUNT"),
            ("nodefs.free<10%", "unknown signal"),
            ("nodefs.available<10%,nodefs.available<1Gi", "named twice"),
            ("nodefs.available<0", "no amount"),
            ("nodefs.available<-1Gi", "no amount"),
            ("nodefs.available<101%", "no amount"),
            ("nodefs.available<NaN%", "no amount"),
            ("nodefs.available<lots", "no amount"),
        ] {
            let said = bad.parse::<Thresholds>().unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
