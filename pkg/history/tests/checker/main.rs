//! The checker is checked: histories that a correct toy store makes pass, and each way of breaking one is found.

#![allow(clippy::unwrap_used)]

mod epochs;
mod mutations;
mod toy;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_a_correct_store_does_is_right(seed: u64, steps in 50usize..1500) {
        let history = toy::run(seed, steps);
        if let Err(violation) = isopod_history::check(&history) {
            panic!("seed {seed}, {steps} steps: {}", isopod_history::report(&history, &violation));
        }
    }
}

#[test]
fn the_toy_does_all_that_is_checked() {
    let history = toy::run(1, 20_000);
    let summary = isopod_history::check(&history).unwrap();
    assert!(summary.transactions > 1000 && summary.reads > 500 && summary.events > 2000, "{summary:?}");
    assert!(summary.unknown > 100 && summary.happened > 30 && summary.happened < summary.unknown, "{summary:?}");
    assert!(summary.refused > 10 && summary.watches > 20, "{summary:?}");
}
