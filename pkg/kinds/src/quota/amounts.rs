//! Resource lists: names with exact quantities.

use crate::access::Access;
use isopod_api::quantity::{Format, Quantity};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A resource list. A name that is absent says nothing; one that is zero says zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts(pub BTreeMap<String, Quantity>);

/// So many things.
pub fn number(n: usize) -> Quantity {
    Quantity::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi)
}

impl Amounts {
    /// Reads a JSON map of quantities; what is no quantity reads as zero.
    pub fn read(list: &Value) -> Self {
        let amount = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok()).unwrap_or_default();
        Amounts(list.entries("").into_iter().map(|(k, v)| (k.to_owned(), amount(v))).collect())
    }

    pub fn to_json(&self) -> Value {
        let text = |(k, v): (&String, &Quantity)| (k.clone(), Value::String(v.to_string()));
        Value::Object(self.0.iter().map(text).collect::<Map<String, Value>>())
    }

    pub fn get(&self, name: &str) -> Option<&Quantity> {
        self.0.get(name)
    }
    pub fn set(&mut self, name: impl Into<String>, amount: Quantity) {
        self.0.insert(name.into(), amount);
    }
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            match self.0.get_mut(name) {
                Some(sum) => sum.add(amount),
                None => self.set(name.clone(), amount.clone()),
            }
        }
    }

    /// Takes from `other` what is larger there.
    pub fn raise(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            if self.0.get(name).is_none_or(|own| amount > own) {
                self.set(name.clone(), amount.clone());
            }
        }
    }

    /// What is more here than in `before`; names without an increase are left out.
    pub fn increase_over(&self, before: &Amounts) -> Amounts {
        let more = |(name, amount): (&String, &Quantity)| {
            let mut rest = amount.clone();
            if let Some(b) = before.0.get(name) {
                rest.sub(b);
            }
            (rest.sign() > 0).then(|| (name.clone(), rest))
        };
        Amounts(self.0.iter().filter_map(more).collect())
    }

    pub fn without_zeros(&self) -> Amounts {
        Amounts(self.0.iter().filter(|(_, v)| !v.is_zero()).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    /// Only these names.
    pub fn only<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Amounts {
        let kept = names.into_iter().filter_map(|n| self.0.get_key_value(n));
        Amounts(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    /// The names of which there is more here than in `limits`.
    pub fn exceeding<'a>(&'a self, limits: &Amounts) -> Vec<&'a str> {
        let over = |(name, amount): &(&String, &Quantity)| limits.0.get(*name).is_some_and(|l| *amount > l);
        self.0.iter().filter(over).map(|(name, _)| name.as_str()).collect()
    }
}

/// As messages show them: `cpu=1,pods=2`.
impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, amount)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={amount}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_added_compared_and_shown() {
        let a = || Amounts::read(&json!({"cpu": "100m", "pods": "1"}));
        let b = Amounts::read(&json!({"cpu": "1", "memory": "1Gi"}));
        let mut sum = a();
        sum.add(&b);
        assert_eq!(sum.to_string(), "cpu=1100m,memory=1Gi,pods=1");
        let mut max = a();
        max.raise(&b);
        assert_eq!(max.to_string(), "cpu=1,memory=1Gi,pods=1");
        assert_eq!(sum.increase_over(&a()).to_string(), "cpu=1,memory=1Gi");
        assert_eq!(a().increase_over(&sum).to_string(), "");
        assert_eq!(sum.exceeding(&a()), ["cpu"]);
        assert_eq!(sum.only(["pods", "none"]).to_json(), json!({"pods": "1"}));
        assert_eq!(Amounts::read(&json!({"a": "0", "b": "1"})).without_zeros().names(), ["b"]);
    }
}
