//! How long plugins and steps take: counters that every write adds to without waiting for others.

use super::step_labels;
use crate::admission::{Operation, Step};
use crate::exposition::Family;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const STEP_BOUNDS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const STEPS: [Step; 2] = [Step::Admit, Step::Validate];
const OPERATIONS: [Operation; 4] = [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];
const OUTCOMES: [bool; 2] = [false, true];
pub const COMBINATIONS: usize = STEPS.len() * OPERATIONS.len() * OUTCOMES.len();

/// One histogram.
#[derive(Default)]
struct Times {
    /// One for each bound, and one for what is above.
    counts: [AtomicU64; STEP_BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// One for each step, operation and outcome.
#[derive(Default)]
pub struct Timings([Times; COMBINATIONS]);

pub fn place(step: Step, operation: Operation, refused: bool) -> usize {
    (step as usize * OPERATIONS.len() + operation as usize) * OUTCOMES.len() + usize::from(refused)
}

/// All, in the order of their places.
pub fn combinations() -> impl Iterator<Item = (Step, Operation, bool)> {
    STEPS
        .into_iter()
        .flat_map(|s| OPERATIONS.into_iter().flat_map(move |o| OUTCOMES.into_iter().map(move |r| (s, o, r))))
}

impl Timings {
    pub fn observe(&self, step: Step, operation: Operation, refused: bool, took: Duration) {
        let times = &self.0[place(step, operation, refused)];
        let seconds = took.as_secs_f64();
        times.counts[STEP_BOUNDS.partition_point(|b| *b < seconds)].fetch_add(1, Ordering::Relaxed);
        times.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was observed; `labels` come first.
    pub fn write(&self, family: &mut Family<'_>, labels: &[(&str, &str)]) {
        for (times, combination) in self.0.iter().zip(combinations()) {
            let counts: Vec<u64> = times.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
            if counts.iter().any(|c| *c > 0) {
                let sum = Duration::from_nanos(times.nanos.load(Ordering::Relaxed)).as_secs_f64();
                family.histogram(&step_labels(labels, combination), &STEP_BOUNDS, &counts, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Page;

    #[test]
    fn each_combination_has_its_place() {
        let places: Vec<usize> = combinations().map(|(s, o, r)| place(s, o, r)).collect();
        assert_eq!(places, (0..COMBINATIONS).collect::<Vec<_>>());
    }

    #[test]
    fn only_what_was_observed_is_written() {
        let timings = Timings::default();
        timings.observe(Step::Validate, Operation::Delete, true, Duration::from_millis(30));
        let mut page = Page::default();
        timings.write(&mut page.family("x", "X.", "histogram"), &[("name", "N")]);
        let page = page.finish();
        let labels = r#"{name="N",operation="DELETE",rejected="true",type="validate""#;
        assert!(page.contains(&format!("x_bucket{labels},le=\"0.1\"}} 1\n")), "{page}");
        assert!(page.contains(&format!("x_bucket{labels},le=\"0.025\"}} 0\n")), "{page}");
        assert!(page.contains(&format!("x_sum{labels}}} 0.03\n")) && page.matches("_count").count() == 1, "{page}");
    }
}
