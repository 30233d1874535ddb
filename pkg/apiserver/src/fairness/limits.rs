//! How many seats each priority level has: from its shares, and from what the others do not need (KEP-1040, borrowing).

use super::demand::Demand;
use isopod_kinds::access::Access;
use serde_json::Value;

/// A target of nothing would be divided by.
const LEAST_TARGET: f64 = 0.001;
const EPSILON: f64 = 1e-7;
/// A request takes at most this part of its level's seats.
const WIDEST: f64 = 0.15;

/// What a level's configuration makes of its shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub nominal: u32,
    /// What it never lends.
    pub min: u32,
    /// What it may have at most with what it borrows.
    pub max: u32,
}

/// The shares of a level's spec.
pub fn shares(spec: &Value) -> f64 {
    let (field, or) = if spec.text("type") == "Exempt" { ("exempt", 0) } else { ("limited", 30) };
    spec.at(field).int_or("nominalConcurrencyShares", or) as f64
}

/// `total`: of the server; `sum`: the shares of all levels.
pub fn limits(spec: &Value, total: u32, sum: f64) -> Limits {
    let exempt = spec.text("type") == "Exempt";
    let own = spec.at(if exempt { "exempt" } else { "limited" });
    let nominal = if sum > 0.0 { (f64::from(total) * shares(spec) / sum).ceil() } else { 0.0 };
    let percent = |field: &str| own.int(field).map(|p| (nominal * p as f64 / 100.0).round());
    let lendable = percent("lendablePercent").unwrap_or(0.0);
    let borrowing = if exempt { None } else { percent("borrowingLimitPercent") };
    Limits {
        nominal: nominal as u32,
        min: (nominal - lendable) as u32,
        max: (nominal + borrowing.unwrap_or(f64::from(total))) as u32,
    }
}

/// The most seats of one request of a level with queues; `hand`: how many queues a flow has.
pub fn widest(nominal: u32, hand: u32) -> u32 {
    let part = (f64::from(nominal) * WIDEST).ceil() as u32;
    part.min(nominal / hand.max(1)).max(1)
}

/// A level, as far as seats are shared out.
#[derive(Clone, Copy, Debug)]
pub struct Party {
    pub exempt: bool,
    pub limits: Limits,
    pub demand: Demand,
    pub current: u32,
}

impl Party {
    /// What it keeps whatever the others need.
    fn least(&self) -> u32 {
        let used = self.demand.high_watermark;
        let used = if self.exempt { used } else { used.min(self.limits.nominal) };
        used.max(self.limits.min)
    }

    fn target(&self) -> f64 {
        self.demand.smoothed.max(f64::from(self.least()))
    }
}

/// How the seats were shared out.
#[derive(Debug, PartialEq)]
pub struct Shares {
    /// Seats by level, in the order given.
    pub current: Vec<u32>,
    pub targets: Vec<f64>,
    /// What part of its target each level got.
    pub fair: f64,
}

/// Shares the seats out anew. What is exempt takes what it needs first.
pub fn share(parties: &[Party]) -> Shares {
    let total: i64 = parties.iter().map(|p| i64::from(p.limits.nominal)).sum();
    let sum = |exempt: bool, f: fn(&Party) -> u32| -> i64 {
        parties.iter().filter(|p| p.exempt == exempt).map(|p| i64::from(f(p))).sum()
    };
    let left = total - sum(true, Party::least);
    let (min, least) = (sum(false, |p| p.limits.min), sum(false, Party::least));
    let targets = parties.iter().map(Party::target).collect();
    let with = |f: &dyn Fn(&Party) -> u32| -> Vec<u32> {
        parties.iter().map(|p| if p.exempt { p.least() } else { f(p) }).collect()
    };
    if left <= min {
        return Shares { current: with(&|p| p.limits.min), targets, fair: 0.0 };
    }
    if left <= least {
        let part = (left - min) as f64 / (least - min) as f64;
        let more = |p: &Party| (f64::from(p.least() - p.limits.min) * part).round() as u32;
        return Shares { current: with(&|p| p.limits.min + more(p)), targets, fair: 0.0 };
    }
    let bounded: Vec<Bounded> = parties.iter().filter(|p| !p.exempt).map(Bounded::from).collect();
    let Some((allocations, fair)) = allocate(total as f64, &bounded) else {
        return Shares { current: with(&|p| p.current), targets, fair: 0.0 };
    };
    let mut next = allocations.into_iter();
    let current = parties.iter().map(|p| match p.exempt {
        true => p.least(),
        false => next.next().unwrap_or_default().round() as u32,
    });
    Shares { current: current.collect(), targets, fair }
}

#[derive(Clone, Copy, Debug)]
struct Bounded {
    target: f64,
    lower: f64,
    upper: f64,
}

impl From<&Party> for Bounded {
    fn from(p: &Party) -> Self {
        let lower = f64::from(p.least());
        Bounded { target: p.target().max(LEAST_TARGET), lower, upper: f64::from(p.limits.max).max(lower) }
    }
}

impl Bounded {
    fn at(&self, fair: f64) -> f64 {
        (fair * self.target).clamp(self.lower, self.upper)
    }
}

/// The one proportion of all targets, within their bounds, that adds up to `sum`; `None`: the bounds do not allow any.
fn allocate(sum: f64, items: &[Bounded]) -> Option<(Vec<f64>, f64)> {
    let at = |fair: f64| items.iter().map(|i| i.at(fair)).sum::<f64>();
    let lowest: f64 = items.iter().map(|i| i.lower).sum();
    let highest: f64 = items.iter().map(|i| i.upper).sum();
    if lowest - sum > EPSILON || sum - highest > EPSILON {
        return None;
    }
    // Between two bounds the sum is a straight line: find the bounds that it lies between.
    let mut bounds: Vec<f64> = items.iter().flat_map(|i| [i.lower / i.target, i.upper / i.target]).collect();
    bounds.sort_by(f64::total_cmp);
    let above = bounds.iter().position(|b| at(*b) >= sum - EPSILON)?;
    let fair = match above {
        0 => bounds[0],
        _ => {
            let (from, to) = (bounds[above - 1], bounds[above]);
            let (low, high) = (at(from), at(to));
            if high - low > EPSILON { from + (to - from) * (sum - low) / (high - low) } else { to }
        }
    };
    Some((items.iter().map(|i| i.at(fair)).collect(), fair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_kinds::bootstrap::fairness;
    use proptest::prelude::*;

    fn specs() -> Vec<(String, Value)> {
        let mut all = fairness::mandatory().levels;
        all.extend(fairness::suggested().levels);
        all.iter().map(|l| (l.text("metadata.name").to_owned(), l["spec"].clone())).collect()
    }

    fn of(name: &str, total: u32) -> Limits {
        let sum = specs().iter().map(|(_, s)| shares(s)).sum();
        limits(&specs().into_iter().find(|(n, _)| n == name).unwrap().1, total, sum)
    }

    #[test]
    fn the_default_limits_are_upstreams() {
        // What upstream's `apiserver_flowcontrol_{nominal,lower,upper}_limit_seats` say with 600 seats.
        assert_eq!(of("catch-all", 600), Limits { nominal: 13, min: 13, max: 613 });
        assert_eq!(of("exempt", 600), Limits { nominal: 0, min: 0, max: 600 });
        assert_eq!(of("workload-low", 600), Limits { nominal: 245, min: 24, max: 845 });
        assert_eq!(of("system", 600), Limits { nominal: 74, min: 50, max: 674 });
        assert_eq!((widest(98, 6), widest(245, 6), widest(4, 6)), (15, 37, 1));
    }

    fn party(limits: Limits, high_watermark: u32, smoothed: f64) -> Party {
        Party {
            exempt: false,
            limits,
            demand: Demand { high_watermark, smoothed, ..Default::default() },
            current: limits.nominal,
        }
    }

    #[test]
    fn seats_are_lent_and_come_back() {
        let each = Limits { nominal: 100, min: 50, max: 200 };
        let busy = share(&[party(each, 300, 300.0), party(each, 0, 0.0)]);
        assert_eq!(busy.current, [150, 50]);
        let both = share(&[party(each, 300, 300.0), party(each, 120, 120.0)]);
        assert_eq!(both.current, [100, 100]);
    }

    #[test]
    fn what_is_exempt_takes_from_the_others() {
        let each = Limits { nominal: 100, min: 50, max: 200 };
        let exempt = Party { exempt: true, ..party(Limits { nominal: 0, min: 0, max: 200 }, 90, 90.0) };
        assert_eq!(share(&[exempt, party(each, 100, 100.0), party(each, 0, 0.0)]).current, [90, 60, 50]);
    }

    proptest! {
        #[test]
        fn shares_add_up_within_their_bounds(
            parties in proptest::collection::vec((1_u32..200, 0_u32..100, 0_u32..200, 0_u32..400), 1..8)
        ) {
            let make = |(nominal, lendable, borrow, used): (u32, u32, u32, u32)| {
                let lendable = nominal * lendable / 100;
                let limits = Limits { nominal, min: nominal - lendable, max: nominal + borrow };
                party(limits, used, f64::from(used))
            };
            let parties: Vec<Party> = parties.into_iter().map(make).collect();
            let shared = share(&parties);
            let total: i64 = parties.iter().map(|p| i64::from(p.limits.nominal)).sum();
            let sum: i64 = shared.current.iter().map(|c| i64::from(*c)).sum();
            // Each is rounded by itself.
            prop_assert!((sum - total).abs() <= parties.len() as i64, "{:?} of {total}", shared);
            for (party, current) in parties.iter().zip(&shared.current) {
                prop_assert!((party.limits.min..=party.limits.max).contains(current), "{party:?} {current}");
            }
        }
    }
}
