//! What calls cost: cel-go's own functions, its extensions, and Kubernetes' library (`apiserver/pkg/cel/library/cost.go`).

use super::super::tree::{Id, What};
use super::super::types::Type;
use super::range::Range;
use super::{Entries, Estimate, Estimator, Given};
use crate::cel::value::Val;

/// The cost of looking at a character.
const STRING: f64 = 0.1;
/// The cost of a character of a regular expression.
const REGEX: f64 = 0.25;
const LIST: u64 = 10;
const ONE: Range = Range { min: 1, max: 1 };

fn costs(cost: Range) -> Option<Estimate> {
    Some(Estimate { cost, size: None })
}

fn sized(cost: Range, size: Range) -> Option<Estimate> {
    Some(Estimate { cost, size: Some(size) })
}

impl Estimator<'_> {
    pub(super) fn call_cost(
        &mut self,
        id: Id,
        function: &str,
        overload: &str,
        target: Option<&Given<'_>>,
        given: &[Given<'_>],
        argument_costs: &[Range],
    ) -> Estimate {
        let sum = argument_costs.iter().copied().fold(Range::of(0), Range::plus);
        match (overload, argument_costs) {
            // Of `&&` and `||` the second side may not be looked at.
            ("logical_and" | "logical_or", [left, right]) => {
                return Estimate { cost: Range { min: left.min, max: left.plus(*right).max }, size: None };
            }
            ("conditional", [test, yes, no]) => {
                let size = unknown(&given[1]).union(unknown(&given[2]));
                if let Some(entries) = self.common_entries(&given[1], &given[2]) {
                    self.entries.insert(id, entries);
                }
                return Estimate { cost: test.plus(yes.union(*no)), size: Some(size) };
            }
            _ => {}
        }
        let estimate = self
            .of_lists(overload, target, given)
            .or_else(|| self.of_library(function, overload, target, given))
            .or_else(|| self.standard(id, overload, target, given))
            .unwrap_or(Estimate { cost: ONE, size: None });
        Estimate { cost: estimate.cost.plus(sum), size: estimate.size }
    }

    fn common_entries(&self, a: &Given<'_>, b: &Given<'_>) -> Option<Entries> {
        let (a, b) = (self.entries_of(a.id?)?, self.entries_of(b.id?)?);
        Some(Entries { of_list: a.of_list, key: a.key.union(b.key), value: a.value.union(b.value) })
    }

    fn sized_of(&self, g: &Given<'_>) -> Range {
        g.computed.or_else(|| self.size_outside(&g.path)).unwrap_or(Range::UNKNOWN)
    }

    fn standard(
        &mut self,
        id: Id,
        overload: &str,
        target: Option<&Given<'_>>,
        given: &[Given<'_>],
    ) -> Option<Estimate> {
        match (overload, target, given) {
            ("string_format", Some(t), _) => costs(unknown(t).times(STRING)),
            ("string_to_bytes", _, [a]) => {
                let s = unknown(a);
                sized(s.times(STRING), Range { min: s.min, max: s.max.wrapping_mul(4) })
            }
            ("bytes_to_string", _, [a]) => {
                let s = unknown(a);
                sized(s.times(STRING), Range { min: s.min / 4, max: s.max })
            }
            ("strings_quote", _, [a]) => {
                let s = unknown(a);
                let size = Range { min: s.min.wrapping_add(2), max: s.max.wrapping_mul(2).wrapping_add(2) };
                sized(s.times(STRING), size)
            }
            ("starts_with_string" | "ends_with_string", _, [a]) => costs(unknown(a).times(STRING)),
            ("in_list", _, [_, list]) => costs(unknown(list)),
            ("matches_string", Some(text), [pattern]) | ("matches", None, [text, pattern]) => {
                costs(unknown(text).plus(ONE).times(STRING).multiply(unknown(pattern).times(REGEX)))
            }
            ("contains_string", Some(t), [part]) => {
                costs(unknown(t).times(STRING).multiply(unknown(part).times(STRING)))
            }
            ("add_string" | "add_bytes" | "add_list", _, [a, b]) => {
                let size = unknown(a).plus(unknown(b));
                if let Some(entries) = self.common_entries(a, b) {
                    self.entries.insert(id, entries);
                }
                sized(if overload == "add_list" { ONE } else { size.times(STRING) }, size)
            }
            (compared, _, [a, b]) if is_comparison(compared) => {
                let max = unknown(a).max.min(unknown(b).max);
                costs(Range { min: u64::from(max > 0), max }.times(STRING))
            }
            _ => None,
        }
    }

    /// cel-go's `ext/lists.go` and `ext/sets.go`.
    fn of_lists(&self, overload: &str, target: Option<&Given<'_>>, given: &[Given<'_>]) -> Option<Estimate> {
        let made = |factor: f64, size: Range| sized(size.times(factor).plus(ONE).plus(Range::of(LIST)), size);
        let squared = |factor: f64, size: Range| made(factor, size.multiply(size));
        let by_type = |overload: &str| {
            if ["list_string_", "list_bytes_"].iter().any(|p| overload.starts_with(p)) { 2.0 + STRING } else { 2.0 }
        };
        match (overload, target, given) {
            ("list_slice", Some(t), [from, to]) => {
                let (from, to) = (self.literal(from, 0), self.literal(to, self.sized_of(t).max));
                made(1.0, Range::of(to.wrapping_sub(from)))
            }
            ("list_flatten", Some(t), []) => made(1.0, self.sized_of(t)),
            ("list_flatten_int", Some(t), [depth]) => made(self.literal(depth, u64::MAX) as f64, self.sized_of(t)),
            ("lists_range", None, [n]) => made(1.0, Range::of(self.literal(n, u64::MAX))),
            ("list_reverse", Some(t), []) => made(1.0, self.sized_of(t)),
            ("list_distinct", Some(t), []) => squared(2.0, self.sized_of(t)),
            (sort, Some(t), []) if sort.ends_with("_sort") => squared(by_type(sort), self.sized_of(t)),
            (sort, Some(_), [keys]) if sort.ends_with("_sortByAssociatedKeys") => {
                squared(by_type(sort), self.sized_of(keys))
            }
            ("list_sets_contains_list" | "list_sets_intersects_list", _, [a, b]) => {
                costs(self.sized_of(a).multiply(self.sized_of(b)).plus(ONE))
            }
            ("list_sets_equivalent_list", _, [a, b]) => {
                costs(self.sized_of(a).multiply(self.sized_of(b)).times(2.0).plus(ONE))
            }
            _ => None,
        }
    }

    /// A number that stands in the expression itself.
    fn literal(&self, g: &Given<'_>, otherwise: u64) -> u64 {
        match g.id.map(|id| self.what(id)) {
            Some(What::Literal(Val::Int(n))) => u64::try_from(*n).unwrap_or(0),
            _ => otherwise,
        }
    }

    fn of_library(
        &self,
        function: &str,
        overload: &str,
        target: Option<&Given<'_>>,
        given: &[Given<'_>],
    ) -> Option<Estimate> {
        let text = |g: &Given<'_>| self.sized_of(g).times(STRING);
        match (function, target, given) {
            ("check", ..) => costs(Range::of(350_000)),
            (name, ..) if NOMINAL.contains(&name) => costs(ONE),
            ("ip", ..) if overload == "cidr_ip" => costs(ONE),
            ("fieldSelector" | "labelSelector", _, [a]) => {
                let size = self.sized_of(a);
                costs(Range::of(LIST).plus(size.times(STRING)).plus(size.times(0.5).times(50.0)))
            }
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", Some(t), _) => {
                costs(self.traversal(function, t))
            }
            ("url" | "jsonpatch.escapeKey", _, [a]) => sized(text(a), self.sized_of(a)),
            ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(t), _) => sized(text(t), self.sized_of(t)),
            ("replace", Some(t), [from, to, ..]) => {
                let size = replaced(self.sized_of(t), self.sized_of(from), self.sized_of(to));
                sized(self.sized_of(t).times(2.0 * STRING), size)
            }
            ("split", Some(t), _) => {
                let size = self.sized_of(t);
                let most = given.get(1).and_then(|limit| match limit.id.map(|id| self.what(id)) {
                    Some(What::Literal(Val::Int(n))) => Some(*n as u64),
                    _ => None,
                });
                sized(size.times(2.0 * STRING), Range { min: 0, max: most.unwrap_or(size.max) })
            }
            ("join", Some(t), _) => {
                let size = self.joined(t, given.first());
                sized(size.times(STRING), size)
            }
            ("find" | "findAll", Some(t), [pattern, ..]) => {
                let size = self.sized_of(t);
                let cost = size.plus(ONE).times(STRING).multiply(self.sized_of(pattern).times(REGEX));
                sized(cost, Range { min: 0, max: size.max })
            }
            ("ip.isCanonical", _, [a, ..]) => costs(self.sized_of(a).times(2.0 * STRING)),
            ("cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver", _, [a, ..]) => {
                costs(text(a))
            }
            ("containsIP" | "containsCIDR", _, [a, ..]) => costs(self.contains_address(function, overload, a)),
            // The longest pattern of a format's name.
            ("validate", _, [a, ..]) => costs(text(a).times(128.0 * REGEX)),
            ("_==_", _, [a, b]) => equality(a, b),
            _ => None,
        }
    }

    fn element<'g>(&self, list: &Given<'g>) -> Option<Given<'g>> {
        let of = *list.of.parts().first()?;
        let mut path = list.path.clone();
        if !path.is_empty() {
            path.push("@items".to_owned());
        }
        Some(Given { id: None, path, of, computed: None })
    }

    fn traversal(&self, function: &str, t: &Given<'_>) -> Range {
        let size = self.sized_of(t);
        match self.element(t) {
            Some(e) if matches!(e.of, Type::Text | Type::Bytes) => {
                size.multiply(ONE.plus(self.sized_of(&e).times(STRING)))
            }
            Some(_) => size.multiply(ONE),
            None if function == "includes" => size.multiply(ONE),
            None => size.times(STRING),
        }
    }

    fn joined(&self, t: &Given<'_>, by: Option<&Given<'_>>) -> Range {
        let count = self.sized_of(t);
        let mut size = self.element(t).map_or(Range::of(0), |e| count.multiply(self.sized_of(&e)));
        if let Some(by) = by {
            let gaps = Range { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
            size = size.plus(self.sized_of(by).multiply(gaps));
        }
        size
    }

    fn contains_address(&self, function: &str, overload: &str, other: &Given<'_>) -> Range {
        // Four bytes or sixteen.
        let bytes = Range { min: 4, max: 16 };
        let mut cost = bytes.plus(bytes).times(STRING);
        if function == "containsCIDR" {
            cost = cost.plus(bytes.times(STRING)).plus(ONE);
        }
        if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
            cost = cost.plus(self.sized_of(other).times(STRING));
        }
        cost
    }
}

/// Functions that only look at what is there.
const NOMINAL: [&str; 38] = [
    "serviceAccount",
    "path",
    "group",
    "resource",
    "subresource",
    "namespace",
    "name",
    "allowed",
    "reason",
    "error",
    "errored",
    "masked",
    "prefixLength",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "format.named",
    "sign",
    "asInteger",
    "isInteger",
    "asApproximateFloat",
    "isGreaterThan",
    "isLessThan",
    "compareTo",
    "add",
    "sub",
    "major",
    "minor",
    "patch",
    "getScheme",
    "getHostname",
    "getHost",
    "getPort",
    "getEscapedPath",
    "getQuery",
];

fn unknown(g: &Given<'_>) -> Range {
    g.computed.unwrap_or(Range::UNKNOWN)
}

fn is_comparison(overload: &str) -> bool {
    matches!(overload, "equals" | "not_equals")
        || ["less", "greater", "less_equals", "greater_equals"]
            .iter()
            .any(|p| overload == format!("{p}_string") || overload == format!("{p}_bytes"))
}

fn equality(a: &Given<'_>, b: &Given<'_>) -> Option<Estimate> {
    if a.of.name() != b.of.name() {
        return None;
    }
    match a.of {
        Type::Opaque(name, _) if matches!(&**name, "net.IP" | "net.CIDR") => costs(ONE),
        Type::Object(name) => match &**name {
            "kubernetes.Quantity" | "kubernetes.Semver" => costs(ONE),
            "kubernetes.NamedFormat" => costs(Range { min: 1, max: 64 }.times(STRING)),
            "kubernetes.URL" => {
                let max = b.computed.map_or(1, |size| size.max);
                costs(Range { min: 1, max }.times(STRING))
            }
            name if name.starts_with("kubernetes.authorization.") => costs(ONE),
            _ => None,
        },
        _ => None,
    }
}

/// How long a text can be when parts of it are replaced.
fn replaced(text: Range, from: Range, to: Range) -> Range {
    let divided = |a: u64, b: u64| (a as f64 / b as f64).ceil() as u64;
    let (mut count, mut kept) = (Range::of(0), Range::of(0));
    if from.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = divided(text.max, from.min);
    }
    if from.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = divided(text.min, from.max);
    }
    count.multiply(to).plus(kept)
}
