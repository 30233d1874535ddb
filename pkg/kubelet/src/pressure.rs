//! Whether the node runs out of memory or disk, as its conditions `MemoryPressure` and `DiskPressure` say it. Pure.

use crate::config::KubeletConfig;
use isopod_api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};

/// What is left of what pods use up.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Bytes.
    pub memory: u64,
    pub disk_percent: u64,
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
    pub fn see(&mut self, cfg: &KubeletConfig, left: Left, now: Timestamp) -> Pressure {
        let least = Quantity::parse(&cfg.eviction_hard_memory).map_or(0, |q| q.value());
        let lasts = SignedDuration::try_from(cfg.eviction_pressure_transition).unwrap_or(SignedDuration::MAX);
        let see = |seen: &mut Option<Timestamp>, low: bool| {
            if low {
                *seen = Some(now);
            }
            low || seen.is_some_and(|at| now.duration_since(at) < lasts)
        };
        Pressure {
            memory: see(&mut self.memory, (left.memory as i64) < least),
            disk: see(&mut self.disk, left.disk_percent < cfg.eviction_hard_nodefs_percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Pressure = Pressure { memory: false, disk: false };

    #[test]
    fn a_pressure_lasts_until_it_was_not_seen_for_a_while() {
        let cfg = KubeletConfig::default();
        let mut pressures = Pressures::default();
        let mut at = |second: i64, memory: u64, disk_percent: u64| {
            pressures.see(&cfg, Left { memory, disk_percent }, Timestamp::from_second(second).unwrap())
        };
        let (little, much) = (99 << 20, 101 << 20);
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
        assert!(pressures.see(&cfg, Left { memory: 0, disk_percent: 0 }, now).disk);
        assert_eq!(pressures.see(&cfg, Left { memory: 1 << 30, disk_percent: 50 }, now), NONE);
    }
}
