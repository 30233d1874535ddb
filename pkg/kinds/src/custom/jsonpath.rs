//! The part of JSONPath that definitions use in columns and selectable fields (`client-go/util/jsonpath`): fields, indexes,
//! wildcards and comparisons of one field.

use isopod_api::float;
use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// Negative: from the end.
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`.
    Where {
        path: Vec<Step>,
        equal: bool,
        value: Value,
    },
}

/// Conditions inside of conditions are nothing that anybody writes.
const MAX_NESTING: usize = 8;

/// A path such as `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// `None`: it is no such path.
    pub fn parse(text: &str) -> Option<Self> {
        steps(text, MAX_NESTING).map(JsonPath)
    }

    /// All values at the path; what is missing is left out.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        follow(&self.0, root)
    }
}

fn follow<'a>(steps: &[Step], root: &'a Value) -> Vec<&'a Value> {
    steps.iter().fold(vec![root], |found, step| found.into_iter().flat_map(|v| step.of(v)).collect())
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Step::Index(i), Value::Array(items)) => {
                let at = if *i < 0 { *i + items.len() as i64 } else { *i };
                usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
            }
            (Step::All, Value::Array(items)) => items.iter().collect(),
            (Step::All, Value::Object(map)) => map.values().collect(),
            (Step::Where { path, equal, value }, Value::Array(items)) => {
                let holds = |item: &&Value| follow(path, item).first().is_some_and(|v| (*v == value) == *equal);
                items.iter().filter(holds).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// `nesting`: so many conditions may still be inside of each other.
fn steps(text: &str, nesting: usize) -> Option<Vec<Step>> {
    let mut all = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let end = closing(inside)?;
            all.push(bracket(inside[..end].trim(), nesting)?);
            rest = &inside[end + 1..];
            continue;
        }
        let name = rest.strip_prefix('.')?;
        // `..` descends to any depth: no definition may use it.
        if name.starts_with('.') || (name.is_empty() && !all.is_empty()) {
            return None;
        }
        let (field, left) = field(name);
        match field.as_str() {
            "" => {}
            "*" => all.push(Step::All),
            _ => all.push(Step::Field(field)),
        }
        rest = left;
    }
    Some(all)
}

/// A name up to the next `.` or `[` that has no backslash before it.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket ends that was opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<&str> {
    let strip = |q: char| text.strip_prefix(q)?.strip_suffix(q);
    strip('\'').or_else(|| strip('"'))
}

fn bracket(inside: &str, nesting: usize) -> Option<Step> {
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquoted(inside) {
        return Some(Step::Field(name.replace('\\', "")));
    }
    if let Some(condition) = inside.strip_prefix("?(").and_then(|c| c.strip_suffix(')')) {
        let equal = condition.contains("==");
        let (left, right) = condition.split_once(if equal { "==" } else { "!=" })?;
        let path = steps(left.trim().strip_prefix('@')?, nesting.checked_sub(1)?)?;
        let right = right.trim();
        let value = match unquoted(right) {
            Some(text) => Value::from(text),
            None => serde_json::from_str(right).ok()?,
        };
        return Some(Step::Where { path, equal, value });
    }
    inside.parse().ok().map(Step::Index)
}

/// As Go prints a value: text without quotes, lists and maps as JSON.
pub fn printed(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".to_owned(),
        Value::Number(n) if n.is_f64() => float::go_text(n.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_at_paths() {
        let object = json!({"spec": {"a": 1, "b.c": "x", "list": [{"n": "p", "v": 1}, {"n": "q", "v": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, want) in [
            (".spec.a", json!([1])),
            (r".spec.b\.c", json!(["x"])),
            (".spec['b.c']", json!(["x"])),
            (".spec.list[1].n", json!(["q"])),
            (".spec.list[-1].v", json!([2])),
            (".spec.list[*].v", json!([1, 2])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type!='Ready')].status", json!(["False"])),
            (".spec.list[?(@.v==2)].n", json!(["q"])),
            (".spec.missing.deep", json!([])),
        ] {
            let found = JsonPath::parse(path).map(|p| json!(p.find(&object)));
            assert_eq!(found, Some(want), "{path}");
        }
        let deep = format!(".a{}1{}", "[?(@".repeat(100_000), "==1)]".repeat(100_000));
        for bad in ["spec", ".spec[", ".spec..a", ".spec[?(@.a)]", ".spec[x]", &deep] {
            assert!(JsonPath::parse(bad).is_none(), "{}", &bad[..bad.len().min(80)]);
        }
    }

    #[test]
    fn values_as_go_prints_them() {
        for (value, want) in [
            (json!("a"), "a"),
            (json!(1), "1"),
            (json!(0.5), "0.5"),
            (json!(1e21), "1e+21"),
            (json!([1, "a"]), r#"[1,"a"]"#),
        ] {
            assert_eq!(printed(&value), want);
        }
    }
}
