//! Nodes → JSON: scalars are resolved, aliases followed, `<<` merged, keys made strings.

use super::scalar::{self, Scalar};
use super::tree::{Content, Id, Tree};
use super::{Document, YamlError};
use crate::json;
use crate::scalar::go_quote;
use isopod_api::float;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};

const MERGE: &str = "tag:yaml.org,2002:merge";

pub(super) fn decode(tree: &Tree, limit: usize) -> Result<Document, YamlError> {
    let mut d = Decoder { tree, limit, ..Decoder::new(tree) };
    let value = match tree.root {
        Some(root) => d.any(root)?,
        None => Any::Scalar(Scalar::Null),
    };
    let value = d.json(value);
    match d.unconvertible.or(d.unsupported) {
        Some(why) => Err(YamlError::NoJson(why)),
        None => Ok(Document { value, repeated: d.repeated }),
    }
}

struct Decoder<'t> {
    tree: &'t Tree,
    limit: usize,
    depth: usize,
    /// Aliases that are being followed.
    following: HashSet<Id>,
    /// Nodes that were decoded, and how many of them below an alias.
    decoded: u64,
    aliased: u64,
    repeated: Vec<String>,
    /// The first key that no string can be made of, and the first value that JSON has none for.
    unconvertible: Option<String>,
    unsupported: Option<String>,
}

/// A decoded node: what is no scalar is JSON already.
enum Any {
    Scalar(Scalar),
    Collection(Value),
}

type Entries = BTreeMap<Scalar, Value>;

impl<'t> Decoder<'t> {
    fn new(tree: &'t Tree) -> Self {
        Decoder {
            tree,
            limit: 0,
            depth: 0,
            following: HashSet::new(),
            decoded: 0,
            aliased: 0,
            repeated: Vec::new(),
            unconvertible: None,
            unsupported: None,
        }
    }

    /// What aliases make of a text is bounded by what upstream allows.
    fn count(&mut self) -> Result<(), YamlError> {
        self.decoded += 1;
        self.aliased += u64::from(!self.following.is_empty());
        let ratio = self.aliased as f64 / self.decoded as f64;
        if self.aliased > 100 && self.decoded > 1000 && ratio > allowed_ratio(self.decoded) {
            return Err(YamlError::Text("document contains excessive aliasing".to_owned()));
        }
        Ok(())
    }

    fn any(&mut self, id: Id) -> Result<Any, YamlError> {
        self.count()?;
        match &self.tree.nodes[id].content {
            Content::Alias { anchor, of } => self.follow(id, anchor, |d| d.any(*of)),
            Content::Scalar(s) if s.tag.is_empty() && !s.plain => Ok(Any::Scalar(Scalar::Text(s.text.clone()))),
            Content::Scalar(s) => scalar::resolve(&s.tag, &s.text).map(Any::Scalar),
            Content::Sequence(items) => self.below(|d| {
                let items: Result<Vec<Value>, _> = items.iter().map(|item| d.any(*item).map(|v| d.json(v))).collect();
                Ok(Any::Collection(Value::Array(items?)))
            }),
            Content::Mapping(children) => {
                let mut entries = Entries::new();
                self.mapping(children, &mut entries)?;
                Ok(Any::Collection(Value::Object(self.object(entries))))
            }
        }
    }

    fn follow<T>(
        &mut self,
        id: Id,
        anchor: &str,
        then: impl FnOnce(&mut Self) -> Result<T, YamlError>,
    ) -> Result<T, YamlError> {
        if !self.following.insert(id) {
            return Err(YamlError::Text(format!("anchor '{anchor}' value contains itself")));
        }
        let out = then(self);
        self.following.remove(&id);
        out
    }

    /// Merged maps are no deeper than the one that they are merged into, but whoever reads them is.
    fn below<T>(&mut self, then: impl FnOnce(&mut Self) -> Result<T, YamlError>) -> Result<T, YamlError> {
        if self.depth >= self.limit {
            return Err(YamlError::NoJson(json::TOO_DEEP.to_owned()));
        }
        self.depth += 1;
        let out = then(self);
        self.depth -= 1;
        out
    }

    fn mapping(&mut self, children: &[Id], entries: &mut Entries) -> Result<(), YamlError> {
        self.below(|d| {
            for pair in children.chunks_exact(2) {
                let (key, value) = (pair[0], pair[1]);
                if d.is_merge(key) {
                    d.merge(value, entries)?;
                    continue;
                }
                let key = match d.any(key)? {
                    Any::Scalar(key) => key,
                    Any::Collection(v) => {
                        return Err(YamlError::Text(format!("invalid map key: {}", go_syntax(&v, true))));
                    }
                };
                let decoded = d.any(value)?;
                let decoded = d.json(decoded);
                // Removed: of equal floats the last one is the key.
                if entries.remove(&key).is_some() && !matches!(key, Scalar::Float(x) if x.is_nan()) {
                    let line = d.tree.nodes[value].line + 1;
                    d.repeated.push(format!("line {line}: key {} already set in map", shown(&key)));
                }
                entries.insert(key, decoded);
            }
            Ok(())
        })
    }

    fn is_merge(&self, id: Id) -> bool {
        matches!(&self.tree.nodes[id].content, Content::Scalar(s) if s.text == "<<" && (s.plain || s.tag == MERGE))
    }

    fn merge(&mut self, id: Id, entries: &mut Entries) -> Result<(), YamlError> {
        match &self.tree.nodes[id].content {
            // Of several maps the first one counts.
            Content::Sequence(items) => items.iter().rev().try_for_each(|item| self.merge_one(*item, entries)),
            _ => self.merge_one(id, entries),
        }
    }

    fn merge_one(&mut self, id: Id, entries: &mut Entries) -> Result<(), YamlError> {
        match &self.tree.nodes[id].content {
            Content::Mapping(children) => {
                self.count()?;
                self.mapping(children, entries)
            }
            Content::Alias { anchor, of } if let Content::Mapping(children) = &self.tree.nodes[*of].content => {
                self.count()?;
                self.follow(id, anchor, |d| {
                    d.count()?;
                    d.mapping(children, entries)
                })
            }
            _ => {
                let why = "map merge requires map or sequence of maps as the value";
                Err(YamlError::Text(why.to_owned()))
            }
        }
    }

    fn object(&mut self, entries: Entries) -> Map<String, Value> {
        let mut map = Map::new();
        for (key, value) in entries {
            let key = match key {
                Scalar::Text(text) => text,
                Scalar::Int(i) => i.to_string(),
                Scalar::Bool(b) => b.to_string(),
                Scalar::Float(x) => float_key(x),
                Scalar::Null | Scalar::Uint(_) => {
                    let go_type = if matches!(key, Scalar::Null) { "%!s(<nil>)" } else { "uint64" };
                    let (key, value) = (shown(&key), go_syntax(&value, true));
                    let told = format!("unsupported map key of type: {go_type}, key: {key}, value: {value}");
                    self.unconvertible.get_or_insert(told);
                    continue;
                }
            };
            map.insert(key, value);
        }
        map
    }

    fn json(&mut self, any: Any) -> Value {
        let literal = match any {
            Any::Collection(value) => return value,
            Any::Scalar(Scalar::Null) => return Value::Null,
            Any::Scalar(Scalar::Bool(b)) => return Value::Bool(b),
            Any::Scalar(Scalar::Int(i)) => return Value::from(i),
            Any::Scalar(Scalar::Text(text)) => return Value::String(text),
            Any::Scalar(Scalar::Uint(u)) => u.to_string(),
            Any::Scalar(Scalar::Float(x)) if x.is_finite() => float::go_json(x),
            Any::Scalar(Scalar::Float(x)) => {
                self.unsupported.get_or_insert_with(|| format!("json: unsupported value: {}", infinite(x)));
                return Value::Null;
            }
        };
        // As whoever reads the JSON does: a float that is a whole number is one.
        json::number(&literal).unwrap_or(Value::Null)
    }
}

/// From how many nodes on how much may come of aliases.
fn allowed_ratio(decoded: u64) -> f64 {
    const LOW: u64 = 400_000;
    const HIGH: u64 = 4_000_000;
    match decoded {
        ..=LOW => 0.99,
        HIGH.. => 0.10,
        _ => 0.99 - 0.89 * ((decoded - LOW) as f64 / (HIGH - LOW) as f64),
    }
}

/// A key as Go shows it.
fn shown(key: &Scalar) -> String {
    match key {
        Scalar::Null => "<nil>".to_owned(),
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Uint(u) => format!("{u:#x}"),
        Scalar::Float(x) if x.is_finite() => float::go_text(*x),
        Scalar::Float(x) => infinite(*x).to_owned(),
        Scalar::Text(text) => go_quote(text),
    }
}

fn infinite(x: f64) -> &'static str {
    match x {
        f64::INFINITY => "+Inf",
        f64::NEG_INFINITY => "-Inf",
        _ => "NaN",
    }
}

/// A number that is a key has the digits of one of 32 bits.
fn float_key(x: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "that is how upstream writes it")]
    let single = x as f32;
    match x {
        f64::INFINITY => ".inf".to_owned(),
        f64::NEG_INFINITY => "-.inf".to_owned(),
        _ if x.is_nan() => ".nan".to_owned(),
        _ if single.is_infinite() => if x > 0.0 { ".inf" } else { "-.inf" }.to_owned(),
        _ => single.to_string().parse().map_or_else(|_| single.to_string(), float::go_text),
    }
}

/// Go's `%#v` of a value, as part of which a null has its type with it.
fn go_syntax(value: &Value, outermost: bool) -> String {
    let all = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Null if outermost => "<nil>".to_owned(),
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(s) => go_quote(s),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", all(items.iter().map(|v| go_syntax(v, false)).collect()))
        }
        Value::Object(map) => {
            let entries = map.iter().map(|(k, v)| format!("{}:{}", go_quote(k), go_syntax(v, false)));
            format!("map[interface {{}}]interface {{}}{{{}}}", all(entries.collect()))
        }
        Value::Number(n) if n.is_f64() => float::go_text(n.as_f64().unwrap_or_default()),
        scalar => scalar.to_string(),
    }
}
