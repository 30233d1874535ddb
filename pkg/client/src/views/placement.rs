//! Which nodes a pod may be on: node selectors, required node affinity, and taints that it tolerates.

use super::*;

impl Requirement {
    fn holds(&self, value: Option<&String>) -> bool {
        let number = |s: &str| s.parse::<i64>().ok();
        match self.operator.as_str() {
            "In" => value.is_some_and(|v| self.values.contains(v)),
            "NotIn" => value.is_none_or(|v| !self.values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            op @ ("Gt" | "Lt") => match (value.and_then(|v| number(v)), self.values.first().and_then(|v| number(v))) {
                (Some(have), Some(limit)) => {
                    if op == "Gt" {
                        have > limit
                    } else {
                        have < limit
                    }
                }
                _ => false,
            },
            _ => false,
        }
    }
}

impl NodeSelectorTerm {
    /// A term without any requirement matches nothing.
    pub fn matches(&self, node: &Meta) -> bool {
        if self.match_expressions.is_empty() && self.match_fields.is_empty() {
            return false;
        }
        self.match_expressions.iter().all(|r| r.holds(node.labels.get(&r.key)))
            && self.match_fields.iter().all(|r| r.key == "metadata.name" && r.holds(Some(&node.name)))
    }
}

impl PodSpec {
    /// Whether the node is one that the pod asks for.
    pub fn asks_for(&self, node: &Meta) -> bool {
        if !self.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v)) {
            return false;
        }
        let required = self.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        match required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
            // The terms are alternatives.
            Some(selector) => selector.node_selector_terms.iter().any(|t| t.matches(node)),
            None => true,
        }
    }
}

impl Toleration {
    /// An empty key with `Exists` tolerates everything; an empty effect every effect. `Gt` and `Lt` compare whole numbers.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator.as_str() {
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
            "Exists" => true,
            op => match (taint.value.parse::<i64>(), self.value.parse::<i64>()) {
                (Ok(taint), Ok(limit)) => (op == "Gt" && taint > limit) || (op == "Lt" && taint < limit),
                _ => false,
            },
        }
    }
}

impl IntOrString {
    /// A number, or that share of `total` which a percentage asks for.
    pub fn scaled(&self, total: i32, round_up: bool) -> i32 {
        match self {
            IntOrString::Int(n) => *n,
            IntOrString::Text(t) => {
                let percent: i64 = t.trim_end_matches('%').parse().unwrap_or(0);
                let product = percent * i64::from(total);
                let up = round_up && product % 100 != 0;
                (product.div_euclid(100) + i64::from(up)) as i32
            }
        }
    }
}
