//! Upstream's answers to the expressions of `golden/expressions.txt`, which `hack/cel` asks for, and ours.

use super::cost::estimate;
use super::{Environment, Library, Type, check};
use crate::access::Access;
use crate::cel::admission::admission;
use crate::cel::declared::Declared;
use crate::cel::functions;
use crate::cel::value::Val;
use crate::cel::{Program, Variables};
use crate::custom::rules::shape::Shape;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

fn worlds(schema: &Declared) -> HashMap<&'static str, Environment> {
    let (this, objects) = schema.object_types("selfType");
    let own = Environment::new(Library::New)
        .objects(Arc::new(objects))
        .variable("self", this.clone())
        .variable("oldSelf", Type::optional(this));
    HashMap::from([
        ("self", own),
        ("admission", admission(Library::New, true, true)),
        ("patch", admission(Library::Patch, true, true)),
        ("device", Environment::new(Library::Device).variable("device", Type::Dyn)),
    ])
}

fn answers() -> impl Iterator<Item = Value> {
    let lines = include_str!("../golden/answers.jsonl").lines();
    lines.map(|l| serde_json::from_str(l).expect("every line is an answer"))
}

fn schema() -> Declared {
    let schema = serde_json::from_str(include_str!("../golden/schema.json")).expect("the schema is JSON");
    Declared::of_resource(&schema).expect("the schema has a type")
}

#[test]
fn types_and_errors_are_upstreams() {
    let worlds = worlds(&schema());
    let mut wrong = Vec::new();
    for answer in answers() {
        let (text, wanted) = (answer.text("e"), answer.text("errors"));
        match check(text, &worlds[answer.text("in")]) {
            Ok(checked) if wanted.is_empty() => {
                let found = checked.result().shown();
                if found != answer.text("type") {
                    wrong.push(format!("{text}\n  wanted {}\n  found  {found}", answer.text("type")));
                }
            }
            Ok(checked) => wrong.push(format!("{text}\n  wanted {wanted}\n  found  {}", checked.result().shown())),
            // Of a text that is no expression we tell the first error alone.
            Err(e) if wanted.contains("Syntax error") && wanted.starts_with(&e) => {}
            Err(e) if e == wanted => {}
            Err(e) => wrong.push(format!("{text}\n  wanted {wanted}{}\n  found  {e}", answer.text("type"))),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn estimates_are_upstreams() {
    let schema = schema();
    let mut worlds = worlds(&schema);
    for world in worlds.values_mut().filter(|w| w.library == Library::New) {
        world.library = Library::Stored;
    }
    let mut wrong = Vec::new();
    for answer in answers().filter(|a| a.has("estimate")) {
        let (text, world) = (answer.text("e"), answer.text("in"));
        let Ok(checked) = check(text, &worlds[world]) else { continue };
        let of_any = Declared::Any;
        let range = estimate(&checked, if world == "self" { &schema } else { &of_any });
        let wanted: Vec<u64> = answer.list("estimate").iter().filter_map(Value::as_u64).collect();
        if wanted != [range.min, range.max] {
            wrong.push(format!("{text}\n  wanted {wanted:?}\n  found  {range:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// As `hack/cel` writes it.
fn shown(value: &Val) -> String {
    let all = |items: Vec<String>| items.join(", ");
    match value {
        Val::Uint(u) => format!("{u}u"),
        Val::Double(d) if d.is_finite() => {
            let text = format!("{d:e}");
            let (mantissa, exponent) = text.split_once('e').expect("the form has an exponent");
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        Val::Text(t) => format!("{t:?}"),
        Val::Bytes(b) => format!("b{}", b.iter().map(|x| format!("{x:02x}")).collect::<String>()),
        Val::Timestamp(t) => format!("timestamp {t}"),
        Val::Duration(d) => format!("duration {}", d.as_nanos()),
        Val::Optional(None) => "none".into(),
        Val::Optional(Some(v)) => format!("some {}", shown(v)),
        Val::Type(t) => format!("type {t}"),
        Val::List(items) => format!("[{}]", all(items.iter().map(shown).collect())),
        Val::Map(map) => {
            let mut entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}: {}", shown(&k.value()), shown(v))).collect();
            entries.sort();
            format!("{{{}}}", all(entries))
        }
        Val::Null | Val::Bool(_) | Val::Int(_) | Val::Double(_) => functions::display(value),
        other => format!("of type {}", other.type_name()),
    }
}

/// Upstream makes what is constant out while it compiles.
fn failure(answer: &Value) -> &str {
    answer.text("failure").trim_start_matches("program: ")
}

struct Nothing;

impl Variables for Nothing {
    fn get(&self, _: &str) -> Option<Result<Val, String>> {
        None
    }
}

/// Of expressions that speak of no variable.
#[test]
fn values_are_upstreams() {
    let mut wrong = Vec::new();
    for answer in answers().filter(|a| a.text("in") == "self" && (a.has("value") || a.has("failure"))) {
        let text = answer.text("e");
        if ["self", "oldSelf", ".self", "selfType"].iter().any(|name| text.contains(name)) {
            continue;
        }
        let Ok(program) = Program::compile(text) else { continue };
        let found = program.run(&Nothing, &mut 10_000_000);
        let (wanted, found) = match &found {
            Ok(value) if answer.has("value") => (answer.text("value"), shown(value)),
            Ok(value) => (failure(&answer), shown(value)),
            Err(e) if answer.has("value") => (answer.text("value"), e.clone()),
            Err(e) => (failure(&answer), e.clone()),
        };
        if wanted != found {
            wrong.push(format!("{text}\n  wanted {wanted}\n  found  {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the expressions of a world speak of, with the values that `hack/cel` gives them.
struct Given(HashMap<&'static str, Val>);

impl Variables for Given {
    fn get(&self, name: &str) -> Option<Result<Val, String>> {
        self.0.get(name).cloned().map(Ok)
    }
}

fn given() -> HashMap<&'static str, Given> {
    let schema: Value = serde_json::from_str(include_str!("../golden/schema.json")).expect("the schema is JSON");
    let data: Value = serde_json::from_str(include_str!("../golden/data.json")).expect("the data are JSON");
    let own = Shape::new(&schema, false).value(&data);
    let object = Val::from_json(&data);
    let limit = Val::map(std::iter::once(("limit", Val::Int(3))));
    let admission =
        || Given(HashMap::from([("object", object.clone()), ("oldObject", Val::Null), ("params", limit.clone())]));
    HashMap::from([
        ("self", Given(HashMap::from([("self", own), ("oldSelf", Val::Optional(None))]))),
        ("admission", admission()),
        ("patch", admission()),
        ("device", Given(HashMap::from([("device", object)]))),
    ])
}

/// What evaluating takes of a budget, up to its end or to where it fails.
#[test]
fn costs_are_upstreams() {
    const BUDGET: u64 = 10_000_000;
    let (given, worlds) = (given(), worlds(&schema()));
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for answer in answers().filter(|a| a.has("cost")) {
        let text = answer.text("e");
        // Nobody gives them a value there, and metadata has no type.
        if ["authorizer", "request", "namespaceObject", "self.metadata"].iter().any(|name| text.contains(name)) {
            continue;
        }
        let Ok(program) = Program::compile_for(text, &worlds[answer.text("in")]) else { continue };
        let mut left = BUDGET;
        let result = program.run(&given[answer.text("in")], &mut left);
        compared += 1;
        let (wanted, found) = (answer.at("cost").as_u64().unwrap_or_default(), BUDGET - left);
        if wanted != found {
            let came_to = result.map_or_else(|e| e, |value| shown(&value));
            let upstream = format!("{}{}", answer.text("value"), answer.text("failure"));
            wrong.push(format!("{text}\n  wanted {wanted}: {upstream}\n  found  {found}: {came_to}"));
        }
    }
    assert!(compared > 600, "only {compared}");
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A value of a type, for a call.
fn sample(t: &Type) -> Val {
    match t {
        Type::Bool => Val::Bool(true),
        Type::Int => Val::Int(1),
        Type::Uint => Val::Uint(1),
        Type::Double => Val::Double(1.0),
        Type::Bytes => Val::Bytes(b"1".as_slice().into()),
        Type::Timestamp => Val::Timestamp(jiff::Timestamp::UNIX_EPOCH),
        Type::Duration => Val::Duration(jiff::SignedDuration::ZERO),
        Type::List(item) => Val::list(vec![sample(item)]),
        Type::Map(..) => Val::map(std::iter::once(("a", Val::Int(1)))),
        Type::Opaque(name, parts) => match (&**name, &parts[..]) {
            ("optional_type", [inner]) => Val::some(sample(inner)),
            ("net.IP", _) => called("ip", "::1"),
            ("net.CIDR", _) => called("cidr", "::/8"),
            _ => Val::Null,
        },
        Type::Object(name) => match &**name {
            "kubernetes.Quantity" => called("quantity", "1"),
            "kubernetes.Semver" => called("semver", "1.0.0"),
            "kubernetes.URL" => called("url", "https://a"),
            "kubernetes.NamedFormat" => {
                functions::call("format.uuid", &[]).expect("it is one").expect("it has no faults")
            }
            _ => Val::Null,
        },
        Type::Dyn => Val::list(Vec::new()),
        _ => Val::text("1"),
    }
}

fn called(function: &str, text: &str) -> Val {
    functions::call(function, &[Val::text(text)]).expect("it is a function").expect("the text is well formed")
}

#[test]
fn what_is_declared_can_be_evaluated() {
    let mut missing = Vec::new();
    for (name, overload) in super::functions::names() {
        let operator = name.contains(['@', '_', '!']);
        // The authorizer's are the API server's own.
        let of_requests = matches!(overload.arguments.first(), Some(Type::Object(o)) if o.contains("authorization"));
        if operator || of_requests {
            continue;
        }
        let values: Vec<Val> = overload.arguments.iter().map(sample).collect();
        let found = match &values[..] {
            [target, rest @ ..] if overload.member => functions::method(name, target, rest),
            all => functions::call(name, all),
        };
        if found.is_none() {
            missing.push(format!("{name} ({})", overload.id));
        }
    }
    missing.sort();
    assert!(missing.is_empty(), "{missing:#?}");
}
