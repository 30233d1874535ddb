//! Small languages: selectors, quantities, times.

use isopod_api::quantity::{Format, Quantity};
use isopod_api::selector::{FieldSelector, LabelSelector};
use isopod_schema::scalar;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What is parsed is printed so that it is parsed to the same, and selects the same.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = LabelSelector::parse(text) {
        let shown = selector.to_string();
        let again = LabelSelector::parse(&shown).unwrap_or_else(|e| panic!("{text:?} is shown as {shown:?}: {e}"));
        assert_eq!(again.to_string(), shown, "{text:?}");
        for labels in [&[][..], &[("app", "web")], &[("app", "1"), ("tier", "")]] {
            let labels: BTreeMap<String, String> =
                labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(selector.matches(&labels), again.matches(&labels), "{text:?} and {shown:?} of {labels:?}");
        }
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let shown = selector.to_string();
        let again = FieldSelector::parse(&shown).unwrap_or_else(|e| panic!("{text:?} is shown as {shown:?}: {e}"));
        let sorted = |s: &FieldSelector| {
            let mut terms: Vec<_> = s.terms.iter().map(|t| (t.field.clone(), t.equal, t.value.clone())).collect();
            terms.sort();
            terms
        };
        assert_eq!(sorted(&again), sorted(&selector), "{text:?} and {shown:?}");
    }
}

/// A canonical quantity is its own canonical form and the same amount; amounts are ordered; arithmetic ends.
pub fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let all: Vec<Quantity> = text.split_whitespace().take(3).filter_map(|t| t.parse().ok()).collect();
    for q in &all {
        let shown = q.to_string();
        let again: Quantity = shown.parse().unwrap_or_else(|e| panic!("{text:?} is shown as {shown:?}: {e}"));
        if !loses_its_suffix(q) {
            assert_eq!(again.cmp(q), Ordering::Equal, "{text:?} is shown as {shown:?}");
        }
        let canonical = scalar::quantity(&shown).unwrap_or_else(|e| panic!("{shown:?}: {e}"));
        if !loses_its_format(q, &shown) {
            assert_eq!(again.to_string(), shown, "of {text:?}");
            assert_eq!(canonical, shown);
        }
        let _ = (q.value(), q.milli_value(), q.as_i64(), q.as_f64(), q.sign());
        let mut rounded = q.clone();
        rounded.round_up(0);
        let mut negative = q.clone();
        negative.neg();
        negative.neg();
        assert_eq!(negative.cmp(q), Ordering::Equal, "{text:?}");
    }
    if let [a, b, ..] = &all[..] {
        assert_eq!(a.cmp(b), b.cmp(a).reverse(), "{text:?}");
        let (mut sum, mut other) = (a.clone(), b.clone());
        sum.add(b);
        other.add(a);
        assert_eq!(sum.cmp(&other), Ordering::Equal, "{text:?}");
        let mut difference = a.clone();
        difference.sub(a);
        assert!(difference.is_zero(), "{text:?}");
        let mut product = a.clone();
        product.mul(b.value());
        let _ = product.to_string();
    }
}

/// Upstream knows no suffix above `E`, and writes none for the zeros of such an amount.
fn loses_its_suffix(q: &Quantity) -> bool {
    q.format() != Format::DecimalExponent && q.as_f64().abs() > 9.9e20
}

/// As upstream's: a binary amount that is no whole number of Ki has no suffix, and is read as a decimal one then.
fn loses_its_format(q: &Quantity, shown: &str) -> bool {
    q.format() == Format::BinarySi && shown.ends_with(|c: char| c.is_ascii_digit())
}

/// Times and durations in canonical form are their own.
pub fn scalar(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for canonical in [scalar::time, scalar::micro_time, scalar::duration] {
        let Ok(shown) = canonical(text) else { continue };
        let again = canonical(&shown).unwrap_or_else(|e| panic!("{text:?} is shown as {shown:?}: {e}"));
        assert_eq!(again, shown, "{text:?}");
    }
}
