//! Validation of jobs and cron jobs.

use super::check::{child, non_negative, qualified_name, supported};
use super::pod;
use crate::access::{self, Access, same};
use crate::metadata::{immutable, label_selector};
use isopod_api::names;
use isopod_api::selector::LabelSelector;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

fn spec_path() -> Path {
    Path::new("spec")
}

pub fn create(job: &Value) -> FieldErrors {
    let mut errs = generated_selector(job);
    errs.extend(selected_spec(job.at("spec"), &spec_path()));
    errs.extend(name_fits(job));
    errs
}

/// Labels and selector that the server makes name this job.
fn generated_selector(job: &Value) -> FieldErrors {
    if job.flag("spec.manualSelector") || !job.has("spec.selector") {
        return Vec::new();
    }
    let (uid, name) = (job.text("metadata.uid"), job.text("metadata.name"));
    let mut errs = Vec::new();
    if uid.is_empty() {
        errs.push(FieldError::required(&Path::new("metadata").child("uid"), ""));
    }
    let labels = job.at("spec.template.metadata.labels");
    let p = child(&spec_path(), "template.metadata.labels");
    let expected = [
        ("controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
    ];
    for (key, want) in expected {
        let m = format!("must be '{want}'");
        match labels.get(key).and_then(Value::as_str) {
            None => errs.push(FieldError::required(&p.key(key), m)),
            Some(v) if v != want => errs.push(FieldError::invalid(&p.key(key), labels.clone(), m)),
            _ => {}
        }
    }
    let own: serde_json::Map<String, Value> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    if let Ok(s) = LabelSelector::from_object(Some(job.at("spec.selector")))
        && !s.matches(&own)
    {
        let m = "`selector` not auto-generated";
        errs.push(FieldError::invalid(&spec_path().child("selector"), job.at("spec.selector").clone(), m));
    }
    errs
}

/// The pods of an indexed job are named by their index.
fn name_fits(job: &Value) -> FieldErrors {
    let n = job.int_or("spec.completions", 0);
    if job.text("spec.completionMode") != "Indexed" || n <= 0 {
        return Vec::new();
    }
    let name = job.text("metadata.name");
    let last = format!("{name}-{}", n - 1);
    if names::dns1123_label(&last).is_empty() {
        return Vec::new();
    }
    let m = format!("will not able to create pod with invalid DNS label: {last}");
    vec![FieldError::invalid(&Path::new("metadata").child("name"), name, m)]
}

fn selected_spec(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = job_spec(spec, path);
    let (s, p) = (spec.at("selector"), path.child("selector"));
    if s.is_null() {
        errs.push(FieldError::required(&p, ""));
    } else {
        errs.extend(label_selector(s, &p));
    }
    let labels = spec.at("template.metadata.labels");
    let empty = serde_json::Map::new();
    if let Ok(sel) = LabelSelector::from_object((!s.is_null()).then_some(s))
        && !sel.matches(labels.as_object().unwrap_or(&empty))
    {
        let m = "`selector` does not match template `labels`";
        errs.push(FieldError::invalid(&child(path, "template.metadata.labels"), labels.clone(), m));
    }
    errs
}

fn job_spec(spec: &Value, path: &Path) -> FieldErrors {
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    let mut errs = non_negative(spec, &counts, path);
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        let m = "when maxFailedIndexes is specified";
        errs.push(FieldError::required(&path.child("backoffLimitPerIndex"), m));
    }
    if let Some(by) = spec.at("managedBy").as_str() {
        errs.extend(names::domain_prefixed_path(&path.child("managedBy"), by));
        if by.len() > 63 {
            errs.push(FieldError::too_long(&path.child("managedBy"), 63));
        }
    }
    errs.extend(completion_mode(spec, path));
    let p = path.child("podFailurePolicy");
    errs.extend(failure_policy(spec, &p));
    if spec.has("successPolicy") {
        let p = path.child("successPolicy");
        if spec.text("completionMode") == "Indexed" {
            errs.extend(success_policy(spec, &p));
        } else {
            let m = "requires indexed completion mode";
            errs.push(FieldError::invalid(&p, spec.at("successPolicy").clone(), m));
        }
    }
    if let Some(r) = spec.at("podReplacementPolicy").as_str() {
        let allowed: &[&str] =
            if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        errs.extend(supported(r, allowed, &path.child("podReplacementPolicy")));
    }
    errs.extend(pod::template(spec.at("template"), &path.child("template")));
    errs.extend(restart_policy(spec, &child(path, "template.spec.restartPolicy")));
    errs
}

fn restart_policy(spec: &Value, path: &Path) -> FieldErrors {
    match spec.text("template.spec.restartPolicy") {
        "Always" | "" => vec![FieldError::required(path, "valid values: \"OnFailure\", \"Never\"")],
        "OnFailure" if spec.has("podFailurePolicy") => {
            let m = "only \"Never\" is supported when podFailurePolicy is specified";
            vec![FieldError::invalid(path, "OnFailure", m)]
        }
        "OnFailure" | "Never" => Vec::new(),
        other => vec![FieldError::not_supported(path, other, &["OnFailure", "Never"])],
    }
}

fn completion_mode(spec: &Value, path: &Path) -> FieldErrors {
    let mode = spec.text("completionMode");
    let mut errs = Vec::new();
    if spec.has("completionMode") && !matches!(mode, "NonIndexed" | "Indexed") {
        errs.push(FieldError::not_supported(&path.child("completionMode"), mode, &["NonIndexed", "Indexed"]));
    }
    let (completions, parallelism) = (spec.int("completions"), spec.int("parallelism"));
    let failed = spec.int("maxFailedIndexes");
    let mut at_most = |field: &str, n: Option<i64>, max: i64, why: &str| {
        if let Some(n) = n.filter(|n| *n > max) {
            let m = format!("must be less than or equal to {max}{why}");
            errs.push(FieldError::invalid(&path.child(field), n, m));
        }
    };
    if mode == "Indexed" {
        at_most("parallelism", parallelism, 100_000, " when completion mode is Indexed");
        at_most("maxFailedIndexes", failed, 100_000, "");
        let many = completions.is_some_and(|c| c > 100_000) && spec.has("backoffLimitPerIndex");
        if many {
            let why = " when completions are above 100000 and used with backoff limit per index";
            at_most("parallelism", parallelism, 10_000, why);
            at_most("maxFailedIndexes", failed, 10_000, why);
        }
        match completions {
            None => {
                let m = "when completion mode is Indexed";
                errs.push(FieldError::required(&path.child("completions"), m));
            }
            Some(c) => {
                if let Some(f) = failed.filter(|f| *f > c) {
                    let m = "must be less than or equal to completions";
                    errs.push(FieldError::invalid(&path.child("maxFailedIndexes"), f, m));
                }
                if many && failed.is_none() {
                    let m = "must be specified when completions is above 100000";
                    errs.push(FieldError::required(&path.child("maxFailedIndexes"), m));
                }
            }
        }
    } else if !spec.has("completionMode") || mode == "NonIndexed" {
        for f in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(n) = spec.int(f) {
                errs.push(FieldError::invalid(&path.child(f), n, "requires indexed completion mode"));
            }
        }
    }
    errs
}

fn failure_policy(spec: &Value, path: &Path) -> FieldErrors {
    let (rules, p) = (spec.list("podFailurePolicy.rules"), path.child("rules"));
    let mut errs = Vec::new();
    if rules.len() > 20 {
        errs.push(FieldError::too_many(&p, rules.len(), 20));
    }
    let template = spec.at("template.spec");
    let names: BTreeSet<&str> =
        template.list("containers").iter().chain(template.list("initContainers")).map(|c| c.text("name")).collect();
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    for (i, r) in rules.iter().enumerate() {
        let (p, action) = (p.index(i), r.text("action"));
        let ap = p.child("action");
        match action {
            "" => {
                let m = "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]";
                errs.push(FieldError::required(&ap, m));
            }
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                errs.push(FieldError::invalid(&ap, action, "requires the backoffLimitPerIndex to be set"));
            }
            a => errs.extend(supported(a, &ACTIONS, &ap)),
        }
        let (codes, conditions) = (r.has("onExitCodes"), r.list("onPodConditions"));
        if codes {
            errs.extend(exit_codes(r.at("onExitCodes"), &names, &p.child("onExitCodes")));
        }
        errs.extend(pod_conditions(conditions, &p.child("onPodConditions")));
        let mut whole = |m: &str| {
            let mut e = FieldError::invalid(&p, Value::Null, m);
            e.shown = None;
            errs.push(e);
        };
        match (codes, conditions.is_empty()) {
            (true, false) => whole("specifying both OnExitCodes and OnPodConditions is not supported"),
            (false, true) => whole("specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
        }
    }
    errs
}

fn pod_conditions(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if list.len() > 20 {
        errs.push(FieldError::too_many(path, list.len(), 20));
    }
    for (i, c) in list.iter().enumerate() {
        let p = path.index(i);
        errs.extend(qualified_name(c.text("type"), &p.child("type")));
        errs.extend(match c.text("status") {
            "" => {
                let m = "valid values: [\"False\" \"True\" \"Unknown\"]";
                vec![FieldError::required(&p.child("status"), m)]
            }
            s => supported(s, &["False", "True", "Unknown"], &p.child("status")),
        });
    }
    errs
}

fn exit_codes(r: &Value, containers: &BTreeSet<&str>, path: &Path) -> FieldErrors {
    let mut errs = match r.text("operator") {
        "" => vec![FieldError::required(&path.child("operator"), "valid values: [\"In\" \"NotIn\"]")],
        op => supported(op, &["In", "NotIn"], &path.child("operator")),
    };
    if let Some(name) = r.at("containerName").as_str().filter(|n| !containers.contains(n)) {
        let m = "must be one of the container or initContainer names in the pod template";
        errs.push(FieldError::invalid(&path.child("containerName"), name, m));
    }
    let (values, p) = (r.list("values"), path.child("values"));
    if values.is_empty() {
        errs.push(FieldError::invalid(&p, r.at("values").clone(), "at least one value is required"));
    } else if values.len() > 255 {
        errs.push(FieldError::too_many(&p, values.len(), 255));
    }
    let numbers: Vec<i64> = values.iter().filter_map(Value::as_i64).collect();
    for (i, n) in numbers.iter().enumerate() {
        if r.text("operator") == "In" && *n == 0 {
            errs.push(FieldError::invalid(&p.index(i), 0, "must not be 0 for the In operator"));
        }
        if numbers[..i].contains(n) {
            errs.push(FieldError::duplicate(&p.index(i), *n));
        }
    }
    if numbers.windows(2).any(|w| w[0] > w[1]) {
        errs.push(FieldError::invalid(&p, r.at("values").clone(), "must be ordered"));
    }
    errs
}

fn success_policy(spec: &Value, path: &Path) -> FieldErrors {
    let (rules, p) = (spec.list("successPolicy.rules"), path.child("rules"));
    let completions = spec.int_or("completions", 0);
    let mut errs = Vec::new();
    if rules.is_empty() {
        let m = "at least one rules must be specified when the successPolicy is specified";
        errs.push(FieldError::required(&p, m));
    }
    if rules.len() > 20 {
        errs.push(FieldError::too_many(&p, rules.len(), 20));
    }
    for (i, r) in rules.iter().enumerate() {
        let p = p.index(i);
        let (count, indexes) = (r.int("succeededCount"), r.at("succeededIndexes").as_str());
        if count.is_none() && indexes.is_none() {
            let m = "at least one of succeededCount or succeededIndexes must be specified";
            errs.push(FieldError::required(&p, m));
        }
        let total = match indexes.map(|s| index_count(s, completions)) {
            Some(Err(e)) => {
                let m = format!("error parsing succeededIndexes: {e}");
                errs.push(FieldError::invalid(&p.child("succeededIndexes"), indexes.unwrap_or(""), m));
                0
            }
            Some(Ok(n)) => n,
            None => 0,
        };
        let Some(n) = count else { continue };
        let p = p.child("succeededCount");
        errs.extend(non_negative(r, &["succeededCount"], &path.child("rules").index(i)));
        if n > completions {
            let m = format!("must be less than or equal to {completions} (the number of specified completions)");
            errs.push(FieldError::invalid(&p, n, m));
        }
        if indexes.is_some() && n > total {
            let m = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errs.push(FieldError::invalid(&p, n, m));
        }
    }
    errs
}

/// How many indexes `1,3-5` names, all below `completions` and growing.
fn index_count(text: &str, completions: i64) -> Result<i64, String> {
    let number = |s: &str| {
        let n: i64 = s.parse().map_err(|_| format!("cannot convert string to integer for index: {s:?}"))?;
        if n >= completions { Err(format!("too large index: {s:?}")) } else { Ok(n) }
    };
    let (mut total, mut last) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = part.split('-').collect();
        let (x, y) = match ends[..] {
            [x] => (number(x)?, number(x)?),
            [x, y] => (number(x)?, number(y)?),
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if ends.len() == 2 && x >= y {
            return Err(format!("non-increasing order, previous: {x}, current: {y}"));
        }
        if let Some(l) = last.filter(|l| *l >= x) {
            return Err(format!("non-increasing order, previous: {l}, current: {x}"));
        }
        (total, last) = (total + y - x + 1, Some(y));
    }
    Ok(total)
}

pub fn update(new: &Value, old: &Value) -> FieldErrors {
    let (n, o, path) = (new.at("spec"), old.at("spec"), spec_path());
    let mut errs = selected_spec(n, &path);
    if n.text("completionMode") == "Indexed" {
        let (c, p) = (n.at("completions"), path.child("completions"));
        if !same(c, o.at("completions")) && !c.is_null() && c != n.at("parallelism") {
            errs.push(FieldError::invalid(&p, c.clone(), "can only be modified in tandem with spec.parallelism"));
        }
    } else {
        errs.extend(immutable(n, o, "completions", &path));
    }
    errs.extend(immutable(n, o, "selector", &path));
    errs.extend(template_update(new, old, &path));
    for f in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        errs.extend(immutable(n, o, f, &path));
    }
    errs.extend(name_fits(new));
    errs
}

/// A suspended job that never ran may change where its pods run and what they ask for.
fn template_update(new: &Value, old: &Value, path: &Path) -> FieldErrors {
    let mut before = old.at("spec").clone();
    let now = new.at("spec");
    let suspended = old.flag("spec.suspend");
    if suspended && !old.has("status.startTime") {
        let moved = [
            "template.spec.affinity.nodeAffinity",
            "template.spec.nodeSelector",
            "template.spec.tolerations",
            "template.spec.schedulingGates",
            "template.metadata.annotations",
            "template.metadata.labels",
        ];
        for f in moved {
            access::keep(&mut before, now, f);
        }
    }
    if suspended {
        for list in ["template.spec.containers", "template.spec.initContainers"] {
            for (b, n) in access::list_mut(&mut before, list).iter_mut().zip(now.list(list)) {
                if b.text("name") == n.text("name") {
                    access::keep(b, n, "resources");
                }
            }
        }
    }
    immutable(now, &before, if suspended { "template.spec" } else { "template" }, path)
}

pub fn status(new: &Value, old: &Value) -> FieldErrors {
    let (n, o, p) = (new.at("status"), old.at("status"), Path::new("status"));
    let mut errs = non_negative(n, &["active", "succeeded", "failed", "ready", "terminating"], &p);
    let is = |s: &Value, kind: &str| {
        s.list("conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
    };
    let mut condition = |m: &str| {
        let mut e = FieldError::invalid(&p.child("conditions"), Value::Null, m);
        e.shown = None;
        errs.push(e);
    };
    let (complete, failed) = (is(n, "Complete"), is(n, "Failed"));
    let (target, met) = (is(n, "FailureTarget"), is(n, "SuccessCriteriaMet"));
    for (wrong, m) in [
        (complete && failed, "cannot set Complete=True and Failed=true conditions"),
        (complete && target, "cannot set Complete=True and FailureTarget=true conditions"),
        (
            failed && !target && !is(o, "Failed"),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            complete && !met && !is(o, "Complete"),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
        (met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
    ] {
        if wrong {
            condition(m);
        }
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is(o, kind) && !is(n, kind) {
            condition(&format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    let finished = complete || failed;
    if n.has("completionTime") && !complete {
        let m = "cannot set completionTime when there is no Complete=True condition";
        errs.push(FieldError::invalid(&p.child("completionTime"), n["completionTime"].clone(), m));
    }
    if complete && !n.has("completionTime") {
        let m = "completionTime is required for Complete jobs";
        errs.push(FieldError::required(&p.child("completionTime"), m));
    }
    if finished && n.int_or("active", 0) > 0 {
        let m = "active>0 is invalid for finished job";
        errs.push(FieldError::invalid(&p.child("active"), n.int_or("active", 0), m));
    }
    if finished && !n.has("startTime") {
        errs.push(FieldError::required(&p.child("startTime"), "startTime is required for finished job"));
    }
    if n.int_or("ready", 0) > n.int_or("active", 0) {
        let m = "cannot set more ready pods than active";
        errs.push(FieldError::invalid(&p.child("ready"), n.int_or("ready", 0), m));
    }
    for f in ["failed", "succeeded"] {
        if n.int_or(f, 0) < o.int_or(f, 0) {
            let m = format!("cannot decrease the {f} counter");
            errs.push(FieldError::invalid(&p.child(f), n.int_or(f, 0), m));
        }
    }
    if o.has("startTime") && n.at("startTime") != o.at("startTime") && !new.flag("spec.suspend") {
        let m = "field is immutable for unsuspended job once set";
        errs.push(FieldError::invalid(&p.child("startTime"), n.at("startTime").clone(), m));
    }
    errs
}

pub fn cron_create(c: &Value) -> FieldErrors {
    let mut errs = cron(c, &Value::Null);
    let name = c.text("metadata.name");
    if name.len() > 52 {
        let m = "must be no more than 52 characters";
        errs.push(FieldError::invalid(&Path::new("metadata").child("name"), name, m));
    }
    errs
}

pub fn cron(new: &Value, old: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), spec_path());
    let (schedule, p) = (spec.text("schedule"), path.child("schedule"));
    let mut errs = Vec::new();
    if schedule.is_empty() {
        errs.push(FieldError::required(&p, "").declared());
    } else {
        errs.extend(cron_schedule(schedule).err().map(|e| FieldError::invalid(&p, schedule, e)));
        let zoned = schedule.contains("TZ");
        match (old.text("spec.schedule").contains("TZ"), zoned) {
            (true, true) if spec.has("timeZone") => {
                let m = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
                errs.push(FieldError::invalid(&p, schedule, m));
            }
            (false, true) => {
                let m = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                errs.push(FieldError::invalid(&p, schedule, m));
            }
            _ => {}
        }
    }
    errs.extend(non_negative(spec, &["startingDeadlineSeconds"], &path));
    if let Some(zone) = spec.at("timeZone").as_str().filter(|z| old.at("spec.timeZone").as_str() != Some(z)) {
        errs.extend(time_zone(zone, &path.child("timeZone")));
    }
    errs.extend(super::check::one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path));
    let (t, tp) = (spec.at("jobTemplate.spec"), child(&path, "jobTemplate.spec"));
    errs.extend(job_spec(t, &tp));
    if t.has("selector") {
        let m = "`selector` will be auto-generated";
        errs.push(FieldError::invalid(&tp.child("selector"), t["selector"].clone(), m));
    }
    if t.flag("manualSelector") {
        errs.push(FieldError::not_supported(&tp.child("manualSelector"), true, &["nil", "false"]));
    }
    errs.extend(non_negative(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &path));
    errs
}

fn time_zone(zone: &str, path: &Path) -> FieldErrors {
    if zone.is_empty() {
        return vec![FieldError::invalid(path, zone, "timeZone must be nil or non-empty string")];
    }
    let part = |p: &str| {
        let chars = p.chars().all(|c| c.is_ascii_alphanumeric() || ".-_+".contains(c));
        chars && (1..=14).contains(&p.len()) && !p.starts_with('-') && p != "." && p != ".."
    };
    if !zone.split('/').all(part) {
        return vec![FieldError::invalid(path, zone, format!("unknown time zone {zone}"))];
    }
    if zone.eq_ignore_ascii_case("local") {
        let m = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return vec![FieldError::invalid(path, zone, m)];
    }
    match jiff::tz::TimeZone::get(zone) {
        Ok(_) => Vec::new(),
        Err(_) => vec![FieldError::invalid(path, zone, format!("unknown time zone {zone}"))],
    }
}

/// Whether a schedule has the five fields of cron, or a macro (`@daily`, `@every 5m`).
pub fn cron_schedule(text: &str) -> Result<(), String> {
    let spec = match text.split_once(' ') {
        Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => rest.trim(),
        _ => text,
    };
    if let Some(name) = spec.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let every = name.strip_prefix("every ").is_some_and(|d| d.trim_end().ends_with(['s', 'm', 'h']));
        let ok = known.contains(&name) || every;
        return if ok { Ok(()) } else { Err(format!("unrecognized descriptor: {spec}")) };
    }
    let fields: Vec<&str> = spec.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let ranges: [(i64, i64, &[&str], i64); 5] =
        [(0, 59, &[], 0), (0, 23, &[], 0), (1, 31, &[], 0), (1, 12, &MONTHS, 1), (0, 6, &DAYS, 0)];
    fields.iter().zip(ranges).try_for_each(|(f, r)| f.split(',').try_for_each(|part| cron_range(part, r)))
}

fn cron_range(part: &str, (min, max, names, first): (i64, i64, &[&str], i64)) -> Result<(), String> {
    let number = |s: &str| -> Result<i64, String> {
        if let Some(i) = names.iter().position(|n| n.eq_ignore_ascii_case(s)) {
            return Ok(i as i64 + first);
        }
        let n = s
            .parse::<i64>()
            .map_err(|_| format!("failed to parse int from {s}: strconv.Atoi: parsing {s:?}: invalid syntax"))?;
        if n < 0 { Err(format!("negative number ({n}) not allowed: {s}")) } else { Ok(n) }
    };
    let pieces: Vec<&str> = part.split('/').collect();
    let ends: Vec<&str> = pieces[0].split('-').collect();
    let (start, mut end) = match ends[..] {
        ["*" | "?"] => (min, max),
        [a] => {
            let a = number(a)?;
            (a, a)
        }
        [a, b] => (number(a)?, number(b)?),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    match pieces[..] {
        [_] => {}
        [_, step] => {
            if ends.len() == 1 {
                end = max;
            }
            if number(step)? == 0 {
                return Err(format!("step of range should be a positive number: {part}"));
            }
        }
        _ => return Err(format!("too many slashes: {part}")),
    }
    if start < min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {part}"));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job() -> Value {
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": {
            "parallelism": 1, "completions": 1, "completionMode": "NonIndexed", "podReplacementPolicy": "TerminatingOrFailed",
            "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
            "template": {"metadata": {"labels": {"batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
                "batch.kubernetes.io/job-name": "j", "job-name": "j"}},
                "spec": {"restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                    "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}},
        }})
    }

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn jobs() {
        assert_eq!(say(create(&job())), [""; 0]);
        let with = |path: &str, v: Value| {
            let mut j = job();
            access::set(&mut j, path, v);
            j
        };
        let table = [
            ("spec.completions", json!(-1), "spec.completions: Invalid value: -1: must be greater than or equal to 0"),
            (
                "spec.template.spec.restartPolicy",
                json!("Always"),
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            (
                "spec.backoffLimitPerIndex",
                json!(1),
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
            (
                "spec.podFailurePolicy",
                json!({"rules": [{"action": "FailJob"}]}),
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ),
        ];
        for (path, v, want) in table {
            assert_eq!(say(create(&with(path, v.clone()))).first().map(String::as_str), Some(want), "{path} {v}");
        }
        let moved = with(
            "spec.template.spec.containers",
            json!([{"name": "d", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]),
        );
        let errs = say(update(&moved, &job()));
        assert!(
            errs.len() == 1
                && errs[0].starts_with("spec.template: Invalid value: ")
                && errs[0].ends_with(": field is immutable"),
            "{errs:?}"
        );
        assert_eq!(index_count("1,3-5", 10), Ok(4));
        assert!(index_count("5,3", 10).is_err());
    }

    #[test]
    fn schedules() {
        for ok in ["* * * * *", "*/5 0-6 1,15 jan-mar mon", "@daily", "@every 5m", "0 0 * * 0"] {
            assert_eq!(cron_schedule(ok), Ok(()), "{ok}");
        }
        assert_eq!(cron_schedule("* * *"), Err("expected exactly 5 fields, found 3: [* * *]".into()));
        assert_eq!(cron_schedule("60 * * * *"), Err("end of range (60) above maximum (59): 60".into()));
        assert!(cron_schedule("a * * * *").is_err());
        assert_eq!(time_zone("Europe/Berlin", &Path::new("z")), []);
        assert_eq!(
            say(time_zone("Mars/Base", &Path::new("z"))),
            ["z: Invalid value: \"Mars/Base\": unknown time zone Mars/Base"]
        );
    }
}
