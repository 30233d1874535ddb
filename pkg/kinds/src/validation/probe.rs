//! Probes and lifecycle handlers.

use super::check::{child, invalid_each, non_negative, port_number, port_or_name, required, supported};
use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

/// The three probes of a container that runs for good.
pub fn probes(c: &Value, grace: Option<i64>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (field, kind) in
        [("livenessProbe", Kind::Restarts), ("readinessProbe", Kind::Readiness), ("startupProbe", Kind::Restarts)]
    {
        if c.has(field) {
            errs.extend(probe(c.at(field), &kind, grace, &path.child(field)));
        }
    }
    errs
}

enum Kind {
    Restarts,
    Readiness,
}

fn probe(p: &Value, kind: &Kind, grace: Option<i64>, path: &Path) -> FieldErrors {
    let mut errs = handler(p, &["exec", "httpGet", "tcpSocket", "grpc"], grace, path);
    let counts = ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    errs.extend(non_negative(p, &counts, path));
    let own = p.int("terminationGracePeriodSeconds");
    if let Some(n) = own.filter(|n| *n <= 0) {
        errs.push(FieldError::invalid(&path.child("terminationGracePeriodSeconds"), n, "must be greater than 0"));
    }
    match (kind, own, p.int_or("successThreshold", 0)) {
        (Kind::Restarts, _, n) if n != 1 => {
            errs.push(FieldError::invalid(&path.child("successThreshold"), n, "must be 1"));
        }
        (Kind::Readiness, Some(n), _) => {
            let m = "must not be set for readinessProbes";
            errs.push(FieldError::invalid(&path.child("terminationGracePeriodSeconds"), n, m));
        }
        _ => {}
    }
    errs
}

/// `lifecycle`; `os` is `spec.os.name`, empty where it is not set.
pub fn lifecycle(l: &Value, grace: Option<i64>, os: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for f in ["postStart", "preStop"] {
        if l.has(f) {
            errs.extend(handler(l.at(f), &["exec", "httpGet", "tcpSocket", "sleep"], grace, &path.child(f)));
        }
    }
    if let Some(s) = l.at("stopSignal").as_str() {
        let p = path.child("stopSignal");
        match os {
            "" => errs.push(FieldError::forbidden(&p, "may not be set for containers with empty `spec.os.name`")),
            "windows" => errs.extend(supported(s, &["SIGKILL", "SIGTERM"], &p)),
            _ => {}
        }
    }
    errs
}

/// Exactly one of `kinds`.
fn handler(h: &Value, kinds: &[&str], grace: Option<i64>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = false;
    for kind in kinds.iter().filter(|k| h.has(k)) {
        let (v, p) = (h.at(kind), path.child(kind));
        if seen {
            errs.push(FieldError::forbidden(&p, "may not specify more than 1 handler type"));
            continue;
        }
        seen = true;
        errs.extend(match *kind {
            "exec" => required(v, "command", &p),
            "httpGet" => http_get(v, &p),
            "tcpSocket" => port_or_name(v.at("port"), &p.child("port")),
            "grpc" => port_number(v, "port", &p),
            _ => sleep(v, grace, &p),
        });
    }
    if !seen {
        errs.push(FieldError::required(path, "must specify a handler type"));
    }
    errs
}

fn sleep(v: &Value, grace: Option<i64>, path: &Path) -> FieldErrors {
    let n = v.int_or("seconds", 0);
    match grace {
        Some(g) if n < 0 || n > g => {
            let m = format!("must be non-negative and less than terminationGracePeriodSeconds ({g})");
            vec![FieldError::invalid(path, n, m)]
        }
        _ => Vec::new(),
    }
}

fn http_get(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = required(v, "path", path);
    errs.extend(port_or_name(v.at("port"), &path.child("port")));
    errs.extend(supported(v.text("scheme"), &["HTTP", "HTTPS"], &path.child("scheme")));
    for h in v.list("httpHeaders") {
        let name = h.text("name");
        errs.extend(invalid_each(&path.child("httpHeaders"), name, names::http_header_name(name)));
    }
    if let Some(proto) = v.at("protocol").as_str() {
        errs.extend(supported(proto, &["HTTP1", "HTTP2"], &child(path, "protocol")));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(c: Value) -> Vec<String> {
        probes(&c, Some(30), &Path::new("c")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn probes_of_a_container() {
        let ok = json!({"httpGet": {"path": "/", "port": "http", "scheme": "HTTP"}, "successThreshold": 1});
        assert_eq!(say(json!({"livenessProbe": ok})), [""; 0]);
        assert_eq!(
            say(json!({"livenessProbe": {"successThreshold": 2}})),
            [
                "c.livenessProbe: Required value: must specify a handler type",
                "c.livenessProbe.successThreshold: Invalid value: 2: must be 1"
            ]
        );
        assert_eq!(
            say(json!({"readinessProbe": {"exec": {}, "tcpSocket": {"port": 1}, "periodSeconds": -1}})),
            [
                "c.readinessProbe.exec.command: Required value",
                "c.readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "c.readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
        assert_eq!(
            say(json!({"startupProbe": {"tcpSocket": {"port": 0}, "successThreshold": 1}})),
            ["c.startupProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive"]
        );
    }
}
