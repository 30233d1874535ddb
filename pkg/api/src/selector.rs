//! Label and field selectors: parsing, matching, and the text that upstream's errors give (`apimachinery/pkg/labels`,
//! `apimachinery/pkg/fields`).
//!
//! Invariant: a selector is parsed once and matches without allocating.

use crate::{FieldError, Path};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Why a selector could not be read; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

fn err<T>(text: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(text.into()))
}

/// Where a selector looks a label up.
pub trait Labels {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for serde_json::Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// An object, by its `metadata.labels`.
impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get("metadata")?.get("labels")?.get(key)?.as_str()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> Labels for [(K, V)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k.as_ref() == key).map(|(_, v)| v.as_ref())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted.
    pub values: Vec<String>,
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        use Operator::*;
        let mut errors = Vec::new();
        let path = Path::new("values");
        if let Some(why) = label_key_error(key) {
            errors.push(FieldError::invalid(&Path::new("key"), key, why));
        }
        let shown = || Value::from(values.clone());
        match operator {
            In | NotIn if values.is_empty() => {
                let why = "for 'in', 'notin' operators, values set can't be empty";
                errors.push(FieldError::invalid(&path, shown(), why));
            }
            Equals | DoubleEquals | NotEquals if values.len() != 1 => {
                errors.push(FieldError::invalid(&path, shown(), "exact-match compatibility requires one single value"));
            }
            Exists | DoesNotExist if !values.is_empty() => {
                let why = "values set must be empty for exists and does not exist";
                errors.push(FieldError::invalid(&path, shown(), why));
            }
            GreaterThan | LessThan => {
                if values.len() != 1 {
                    let why = "for 'Gt', 'Lt' operators, exactly one value is required";
                    errors.push(FieldError::invalid(&path, shown(), why));
                }
                for (i, v) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(FieldError::invalid(&path.index(i), v.as_str(), why));
                }
            }
            _ => {}
        }
        for (i, v) in values.iter().enumerate() {
            if let Some(why) = label_value_error(v) {
                errors.push(FieldError::invalid(&path.index(i).key(key), v.as_str(), why));
            }
        }
        match &errors[..] {
            [] => {
                values.sort();
                Ok(Requirement { key: key.to_owned(), operator, values })
            }
            [one] => err(one.to_string()),
            many => err(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
        }
    }

    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        use Operator::*;
        let value = labels.label(&self.key);
        // They are sorted, and there may be as many of them as fit into a request, for every object of a list.
        let has = |v: &str| self.values.binary_search_by(|x| x.as_str().cmp(v)).is_ok();
        match self.operator {
            In | Equals | DoubleEquals => value.is_some_and(has),
            NotIn | NotEquals => !value.is_some_and(has),
            Exists => value.is_some(),
            DoesNotExist => value.is_none(),
            GreaterThan | LessThan => {
                let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
                match (value.and_then(|v| v.parse::<i64>().ok()), bound) {
                    (Some(v), Some(b)) => {
                        (self.operator == GreaterThan && v > b) || (self.operator == LessThan && v < b)
                    }
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operator::*;
        let (k, v) = (&self.key, self.values.join(","));
        match self.operator {
            DoesNotExist => write!(f, "!{k}"),
            Exists => write!(f, "{k}"),
            Equals => write!(f, "{k}={v}"),
            DoubleEquals => write!(f, "{k}=={v}"),
            NotEquals => write!(f, "{k}!={v}"),
            In => write!(f, "{k} in ({v})"),
            NotIn => write!(f, "{k} notin ({v})"),
            GreaterThan => write!(f, "{k}>{v}"),
            LessThan => write!(f, "{k}<{v}"),
        }
    }
}

/// All requirements must hold; none: everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// `app=web,tier in (a,b),!legacy`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser { tokens: lex(text), at: 0 }.selector().map(Self::new)
    }

    /// A `metav1.LabelSelector`. Absent selects nothing, empty selects everything.
    pub fn from_object(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (k, v) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements.push(Requirement::new(k, Operator::Equals, vec![v.as_str().unwrap_or_default().to_owned()])?);
        }
        for e in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let operator = match e["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
            requirements.push(Requirement::new(e["key"].as_str().unwrap_or_default(), operator, values.collect())?);
        }
        Ok(Self::new(requirements))
    }

    /// Every pair must be there, as in a Service's `spec.selector`. Nothing is validated.
    pub fn from_map(map: &serde_json::Map<String, Value>) -> Self {
        let equals = |(k, v): (&String, &Value)| Requirement {
            key: k.clone(),
            operator: Operator::Equals,
            values: vec![v.as_str().unwrap_or_default().to_owned()],
        };
        Self::new(map.iter().map(equals).collect())
    }

    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

/// `metadata.name=a,status.phase!=Running`: a conjunction of equalities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    /// True: must be equal; false: must differ.
    pub equal: bool,
    pub value: String,
}

impl FieldSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parts = split_unescaped(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let Some((field, equal, value)) = split_term(part) else {
                return err(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            terms.push(FieldTerm { field: field.to_owned(), equal, value: unescape(value)? });
        }
        Ok(FieldSelector { terms })
    }

    /// `lookup` gives the value of a field; an unknown field is the empty string.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (lookup(&t.field).unwrap_or_default() == t.value) == t.equal)
    }

    /// The value that `field` must have, where the selector says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            let value = t.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}{}{value}", t.field, if t.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        for (op, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(rest) = term[i..].strip_prefix(op) {
                return Some((&term[..i], equal, rest));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                Some(e) => return err(format!("invalid field selector: invalid escape sequence: \\{e}")),
                None => return err("invalid field selector: invalid escape sequence: \\"),
            },
            // Go prints the rune as a number.
            ',' | '=' => {
                return err(format!("invalid field selector: unescaped character in value: {}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    ClosedPar,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    OpenPar,
}

fn keyword(s: &str) -> Option<Token> {
    Some(match s {
        ")" => Token::ClosedPar,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "in" => Token::In,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenPar,
        _ => return None,
    })
}

fn lex(text: &str) -> Vec<(Token, String)> {
    let special = |c: char| "=!(),><".contains(c);
    let space = |c: char| " \t\r\n".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(space);
    while let Some(first) = rest.chars().next() {
        let (token, used) = if special(first) {
            let symbols = rest.chars().take(2).take_while(|c| special(*c)).count();
            // The longest operator that the run of symbols starts with.
            match (1..=symbols).rev().find_map(|n| keyword(&rest[..n]).map(|t| (t, n))) {
                Some((t, n)) => ((t, rest[..n].to_owned()), n),
                None => {
                    let run = rest.find(|c| !special(c)).unwrap_or(rest.len());
                    ((Token::Error, format!("error expected: keyword found '{}'", &rest[..run])), run)
                }
            }
        } else {
            let n = rest.find(|c| special(c) || space(c)).unwrap_or(rest.len());
            ((keyword(&rest[..n]).unwrap_or(Token::Identifier), rest[..n].to_owned()), n)
        };
        tokens.push(token);
        rest = rest[used..].trim_start_matches(space);
    }
    tokens.push((Token::End, String::new()));
    tokens
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    /// The next token where `in` and `notin` are plain words.
    fn peek(&self) -> (Token, &str) {
        let (t, s) = &self.tokens[self.at.min(self.tokens.len() - 1)];
        (if matches!(t, Token::In | Token::NotIn) { Token::Identifier } else { *t }, s)
    }

    fn next(&mut self) -> (Token, String) {
        let (t, s) = self.peek();
        let found = (t, s.to_owned());
        self.at += 1;
        found
    }

    fn selector(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut all = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let one = self.requirement();
                    all.push(one.map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?);
                    match self.next() {
                        (Token::End, _) => return Ok(all),
                        (Token::Comma, _) => {
                            let (t, s) = self.peek();
                            if !matches!(t, Token::Identifier | Token::Not) {
                                return err(format!("found '{s}', expected: identifier after ','"));
                            }
                        }
                        (_, s) => return err(format!("found '{s}', expected: ',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(all),
                (_, s) => return err(format!("found '{s}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return err(format!("found '{key}', expected: identifier"));
        }
        if let Some(why) = label_key_error(&key) {
            return err(FieldError::invalid(&Path::root(), key.as_str(), why).to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, vec![]);
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, vec![]);
        }
        let (token, text) = self.tokens[self.at.min(self.tokens.len() - 1)].clone();
        self.at += 1;
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return err(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let (token, text) = self.next();
        if token != Token::OpenPar {
            return err(format!("found '{text}' expected: '('"));
        }
        match self.peek() {
            (Token::Identifier | Token::Comma, _) => {
                let list = self.identifiers()?;
                self.at += 1;
                Ok(list)
            }
            (Token::ClosedPar, _) => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            (_, s) => err(format!("found '{s}', expected: ',', ')' or identifier")),
        }
    }

    /// Up to, not with, the closing parenthesis.
    fn identifiers(&mut self) -> Result<Vec<String>, SelectorError> {
        let mut set = BTreeSet::new();
        loop {
            match self.next() {
                (Token::Identifier, s) => {
                    set.insert(s);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::ClosedPar, _) => return Ok(set.into_iter().collect()),
                        (_, s) => return err(format!("found '{s}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    let following = self.peek().0;
                    if set.is_empty() || matches!(following, Token::ClosedPar | Token::Comma) {
                        set.insert(String::new());
                    }
                    if following == Token::ClosedPar {
                        return Ok(set.into_iter().collect());
                    }
                }
                (_, s) => return err(format!("found '{s}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Identifier, s) => Ok(s),
            (_, s) => err(format!("found '{s}', expected: identifier")),
        }
    }
}

const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
     must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
     validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn qualified_part(s: &str) -> bool {
    let alnum = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    alnum(s.chars().next())
        && alnum(s.chars().last())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// What is wrong with a label key, in upstream's words.
fn label_key_error(key: &str) -> Option<String> {
    let mut errors = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return Some(format!(
                "a qualified name {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
        }
        Some((prefix, name)) => {
            let label = |l: &str| {
                qualified_part(l) && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            };
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else if prefix.len() > 253 {
                errors.push("prefix part must be no more than 253 bytes".to_owned());
            } else if !prefix.split('.').all(label) {
                errors.push(format!("prefix part {SUBDOMAIN}"));
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 bytes".to_owned());
    }
    if !qualified_part(name) {
        errors.push(format!("name part {NAME_PART}"));
    }
    (!errors.is_empty()).then(|| errors.join("; "))
}

fn label_value_error(value: &str) -> Option<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push("must be no more than 63 bytes".to_owned());
    }
    if !value.is_empty() && !qualified_part(value) {
        errors.push(VALUE.to_owned());
    }
    (!errors.is_empty()).then(|| errors.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selectors_match_like_upstream() {
        let check = |selector: &str, pairs: &[(&str, &str)], want: bool| {
            let s = LabelSelector::parse(selector).unwrap();
            assert_eq!(s.matches(&labels(pairs)), want, "{selector} on {pairs:?}");
        };
        check("", &[("x", "y")], true);
        check("x=y", &[("x", "y")], true);
        check("x=y,z=w", &[("x", "y"), ("z", "w")], true);
        check("x!=y,z!=w", &[("x", "z"), ("z", "a")], true);
        check("notin=in", &[("notin", "in")], true);
        check("x", &[("x", "z")], true);
        check("!x", &[("y", "z")], true);
        check("!x", &[("x", "z")], false);
        check("x>1", &[("x", "2")], true);
        check("x<1", &[("x", "2")], false);
        check("foo in (bar,)", &[("foo", "")], true);
        check("foo in (bar,baz)", &[("foo", "baz")], true);
        check("foo notin (bar)", &[], true);
        check("x==", &[("x", "")], true);
        check("x=y", &[], false);
    }

    #[test]
    fn bad_label_selectors_say_what_upstream_says() {
        let check = |selector: &str, want: &str| {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().to_string(), want, "{selector}");
        };
        check("x,,z", "found ',', expected: identifier after ','");
        check("x in", "unable to parse requirement: found '' expected: '('");
        check("x y", "unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt");
        check("=x", "found '=', expected: !, identifier, or 'end of string'");
        check("x in (a b)", "unable to parse requirement: found 'b', expected: ',' or ')'");
        check(
            "x>a",
            "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an integer",
        );
        let bad_key = LabelSelector::parse("-x=y").unwrap_err().to_string();
        assert!(
            bad_key.starts_with("unable to parse requirement: <nil>: Invalid value: \"-x\": name part must"),
            "{bad_key}"
        );
    }

    #[test]
    fn label_selector_of_an_object() {
        let s = LabelSelector::from_object(Some(&json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "NotIn", "values": ["d", "e"]}]})));
        let s = s.unwrap();
        assert_eq!(s.to_string(), "a=b,c notin (d,e)");
        assert!(s.matches(&json!({"metadata": {"labels": {"a": "b", "c": "f"}}})));
        assert!(!LabelSelector::from_object(None).unwrap().matches(&labels(&[])));
        assert!(LabelSelector::from_object(Some(&json!({}))).unwrap().matches(&labels(&[])));
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed,metadata.name==a\\,b").unwrap();
        assert_eq!(s.exact("metadata.name"), Some("a,b"));
        let fields = |f: &str| match f {
            "spec.nodeName" => Some("n1"),
            "status.phase" => Some("Running"),
            "metadata.name" => Some("a,b"),
            _ => None,
        };
        assert!(s.matches(fields));
        assert_eq!(s.to_string(), "metadata.name=a\\,b,spec.nodeName=n1,status.phase!=Failed");
        let bad = FieldSelector::parse("foo").unwrap_err().to_string();
        assert_eq!(bad, "invalid selector: 'foo'; can't understand 'foo'");
        assert!(FieldSelector::parse("a=b=c").is_err());
    }
}
