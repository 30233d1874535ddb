//! What becomes of a token's claims: rules that must hold, and the user that they make, as names of claims or as expressions.

use isopod_api::{FieldError, FieldErrors, Path, UserInfo};
use isopod_kinds::access::Access;
use isopod_kinds::cel::{Program, Val, Variables};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What one expression may cost: upstream's limit for such expressions.
const BUDGET: u64 = 1_000_000;
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// One name with a value.
struct Variable(&'static str, Val);

impl Variables for Variable {
    fn get(&self, name: &str) -> Option<Result<Val, String>> {
        (name == self.0).then(|| Ok(self.1.clone()))
    }
}

struct Expression {
    text: String,
    program: Program,
}

impl Expression {
    fn new(text: &str) -> Result<Self, String> {
        Ok(Expression { text: text.to_owned(), program: Program::compile(text)? })
    }

    fn run(&self, variable: &Variable) -> Result<Val, String> {
        let failed = |e| format!("expression '{}' resulted in error: {e}", self.text);
        self.program.run(variable, &mut BUDGET.clone()).map_err(failed)
    }
}

/// Where a value comes from.
enum Origin {
    Claim { name: String, prefix: String },
    Expression(Expression),
}

impl Origin {
    fn new(mapping: &Value) -> Result<Option<Self>, String> {
        Ok(match (mapping.text("claim"), mapping.text("expression")) {
            ("", "") => None,
            ("", text) => Some(Origin::Expression(Expression::new(text)?)),
            (name, _) => Some(Origin::Claim { name: name.to_owned(), prefix: mapping.text("prefix").to_owned() }),
        })
    }
}

enum Rule {
    Claim { name: String, value: String },
    Expression { expression: Expression, message: String },
}

fn rules(list: &[Value]) -> Result<Vec<Rule>, String> {
    let rule = |r: &Value| match r.text("claim") {
        "" => Expression::new(r.text("expression"))
            .map(|expression| Rule::Expression { expression, message: r.text("message").to_owned() }),
        name => Ok(Rule::Claim { name: name.to_owned(), value: r.text("requiredValue").to_owned() }),
    };
    list.iter().map(rule).collect()
}

pub struct Mappings {
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
    username: Origin,
    groups: Option<Origin>,
    uid: Option<Origin>,
    extra: Vec<(String, Expression)>,
}

impl Mappings {
    /// From one entry of `jwt`.
    pub fn new(jwt: &Value) -> Result<Self, String> {
        let mappings = jwt.at("claimMappings");
        let extra = |e: &Value| -> Result<_, String> {
            Ok((e.text("key").to_owned(), Expression::new(e.text("valueExpression"))?))
        };
        Ok(Mappings {
            claim_rules: rules(jwt.list("claimValidationRules"))?,
            user_rules: rules(jwt.list("userValidationRules"))?,
            username: Origin::new(mappings.at("username"))?.ok_or("no username is mapped")?,
            groups: Origin::new(mappings.at("groups"))?,
            uid: Origin::new(mappings.at("uid"))?,
            extra: mappings.list("extra").iter().map(extra).collect::<Result<_, String>>()?,
        })
    }

    /// The user that verified claims make. The error is upstream's.
    pub fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let variable = Variable("claims", Val::from_json(claims));
        let context = |what: &'static str| move |e: String| format!("oidc: error evaluating {what}: {e}");
        let name = self.username(claims, &variable)?;
        let groups = match &self.groups {
            None => Vec::new(),
            Some(Origin::Claim { name, .. }) if claims.get(name).is_none() => Vec::new(),
            Some(Origin::Claim { name, prefix }) => {
                let all = texts(&claims[name.as_str()]).ok_or_else(|| {
                    format!("oidc: parse groups claim {name:?}: it is neither text nor a list of texts")
                })?;
                all.into_iter().map(|g| format!("{prefix}{g}")).collect()
            }
            Some(Origin::Expression(e)) => {
                let what = context("group claim expression");
                list(&e.run(&variable).map_err(what)?).map_err(what)?
            }
        };
        let uid = match &self.uid {
            None => String::new(),
            Some(Origin::Claim { name, .. }) => {
                text(claims, name).map_err(|e| format!("oidc: parse uid claim {name:?}: {e}"))?
            }
            Some(Origin::Expression(e)) => match e.run(&variable).map_err(context("uid claim expression"))? {
                Val::Text(uid) => uid.to_string(),
                _ => return Err(context("uid claim expression")("uid claim expression must return a string".into())),
            },
        };
        let mut extra = BTreeMap::new();
        for (key, expression) in &self.extra {
            let failed = |e: String| context("extra claim expression")(format!("{}: {e}", expression.text));
            let values = list(&expression.run(&variable).map_err(failed)?).map_err(failed)?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        if let Some(id) = claims["jti"].as_str().filter(|id| !id.is_empty()) {
            extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        for rule in &self.claim_rules {
            check_claims(rule, claims, &variable)?;
        }
        let user = UserInfo { name, uid, groups, extra };
        self.check_user(&user)?;
        Ok(user)
    }

    fn username(&self, claims: &Value, variable: &Variable) -> Result<String, String> {
        match &self.username {
            Origin::Expression(e) => {
                let failed = |e: String| format!("oidc: error evaluating username claim expression: {e}");
                match e.run(variable).map_err(failed)? {
                    Val::Text(name) if name.is_empty() => {
                        Err("oidc: empty username via CEL expression is not allowed".into())
                    }
                    Val::Text(name) => Ok(name.to_string()),
                    _ => Err(failed("username claim expression must return a string".into())),
                }
            }
            Origin::Claim { name, prefix } => {
                let value = text(claims, name).map_err(|e| format!("oidc: parse username claims {name:?}: {e}"))?;
                if name == "email" {
                    // Providers that do not say whether they verify addresses are taken at their word.
                    match claims.get("email_verified") {
                        None | Some(Value::Bool(true)) => {}
                        Some(Value::Bool(false)) => return Err("oidc: email not verified".into()),
                        Some(other) => return Err(format!("oidc: parse 'email_verified' claim: {other} is no bool")),
                    }
                }
                Ok(format!("{prefix}{value}"))
            }
        }
    }

    fn check_user(&self, user: &UserInfo) -> Result<(), String> {
        let shown = json!({
            "username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
        });
        let variable = Variable("user", Val::from_json(&shown));
        for rule in &self.user_rules {
            if let Rule::Expression { expression, message } = rule {
                hold(expression, message, &variable)
                    .map_err(|e| format!("oidc: error evaluating user info validation rule: {e}"))?;
            }
        }
        Ok(())
    }

    /// What is wrong with the rules and mappings of an entry of `jwt`.
    pub fn validate(jwt: &Value, path: &Path) -> FieldErrors {
        let mut errors = validate_rules(jwt.list("claimValidationRules"), &path.child("claimValidationRules"), true);
        let at = path.child("claimMappings");
        let mappings = jwt.at("claimMappings");
        for (key, prefixed, needed) in [("username", true, true), ("groups", true, false), ("uid", false, false)] {
            errors.extend(validate_mapping(mappings.at(key), &at.child(key), prefixed, needed));
        }
        let mut keys = BTreeSet::new();
        for (i, extra) in mappings.list("extra").iter().enumerate() {
            let (at, key) = (at.child("extra").index(i), extra.text("key"));
            errors.extend(isopod_api::names::domain_prefixed_path(&at.child("key"), key));
            if key != key.to_lowercase() {
                errors.push(FieldError::invalid(&at.child("key"), key, "must be lowercase"));
            }
            if is_reserved(key) {
                let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                errors.push(FieldError::invalid(&at.child("key"), key, why));
            }
            if !keys.insert(key) {
                errors.push(FieldError::duplicate(&at.child("key"), key));
            }
            match extra.text("valueExpression") {
                "" => errors.push(FieldError::required(&at.child("valueExpression"), "")),
                text => errors.extend(compile(text, &at.child("valueExpression"))),
            }
        }
        errors.extend(validate_rules(jwt.list("userValidationRules"), &path.child("userValidationRules"), false));
        errors
    }
}

fn is_reserved(key: &str) -> bool {
    let domain = key.split('/').next().unwrap_or_default();
    ["k8s.io", "kubernetes.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")))
}

fn compile(text: &str, path: &Path) -> Option<FieldError> {
    Program::compile(text).err().map(|why| FieldError::invalid(path, text, why))
}

fn validate_mapping(mapping: &Value, path: &Path, prefixed: bool, needed: bool) -> FieldErrors {
    let (claim, expression) = (mapping.text("claim"), mapping.text("expression"));
    let prefix = mapping.get("prefix").filter(|p| !p.is_null());
    match (claim.is_empty(), expression.is_empty()) {
        (false, false) => vec![FieldError::invalid(path, "", "claim and expression can't both be set")],
        (true, true) if needed => vec![FieldError::required(path, "claim or expression is required")],
        (true, false) => {
            let why = "may not be specified when expression is set";
            let given = prefix.map(|p| FieldError::invalid(&path.child("prefix"), p.clone(), why));
            given.into_iter().chain(compile(expression, &path.child("expression"))).collect()
        }
        (false, true) if prefixed && prefix.is_none() => {
            let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
            vec![FieldError::required(&path.child("prefix"), why)]
        }
        _ => Vec::new(),
    }
}

/// `claims`: rules may be about a claim by its name.
fn validate_rules(rules: &[Value], path: &Path, claims: bool) -> FieldErrors {
    let (mut errors, mut seen) = (Vec::new(), BTreeSet::new());
    for (i, rule) in rules.iter().enumerate() {
        let at = path.index(i);
        let (claim, expression) = (rule.text("claim"), rule.text("expression"));
        match (claim.is_empty() || !claims, expression.is_empty()) {
            (false, false) => {
                errors.push(FieldError::invalid(&at, claim, "claim and expression can't both be set"));
            }
            (true, true) if claims => errors.push(FieldError::required(&at, "claim or expression is required")),
            (true, true) => errors.push(FieldError::required(&at.child("expression"), "")),
            (false, true) => {
                if !rule.text("message").is_empty() {
                    let why = "may not be specified when claim is set";
                    errors.push(FieldError::invalid(&at.child("message"), rule.text("message"), why));
                }
                if !seen.insert(format!("claim {claim}")) {
                    errors.push(FieldError::duplicate(&at.child("claim"), claim));
                }
            }
            (true, false) => {
                if claims && !rule.text("requiredValue").is_empty() {
                    let why = "may not be specified when expression is set";
                    errors.push(FieldError::invalid(&at.child("requiredValue"), rule.text("requiredValue"), why));
                }
                if !seen.insert(format!("expression {expression}")) {
                    errors.push(FieldError::duplicate(&at.child("expression"), expression));
                }
                errors.extend(compile(expression, &at.child("expression")));
            }
        }
    }
    errors
}

fn check_claims(rule: &Rule, claims: &Value, variable: &Variable) -> Result<(), String> {
    match rule {
        Rule::Claim { name, value } => {
            if claims.get(name).is_none() {
                return Err(format!("oidc: required claim {name} not present in ID token"));
            }
            let got = text(claims, name).map_err(|e| format!("oidc: parse claim {name}: {e}"))?;
            if got != *value {
                return Err(format!("oidc: required claim {name} value does not match. Got = {got}, want = {value}"));
            }
            Ok(())
        }
        Rule::Expression { expression, message } => hold(expression, message, variable)
            .map_err(|e| format!("oidc: error evaluating claim validation expression: {e}")),
    }
}

fn hold(expression: &Expression, message: &str, variable: &Variable) -> Result<(), String> {
    match expression.run(variable)? {
        Val::Bool(true) => Ok(()),
        Val::Bool(false) => Err(format!("validation expression '{}' failed: {message}", expression.text)),
        _ => Err("validation expression must return a boolean".into()),
    }
}

fn text(claims: &Value, name: &str) -> Result<String, String> {
    match claims.get(name) {
        None => Err("claim not present".into()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("{other} is no text")),
    }
}

/// One text or several.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) => all.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// What an expression made: a text or a list of them; empty texts and null are nothing.
fn list(value: &Val) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    match value {
        Val::Null => Ok(Vec::new()),
        Val::Text(text) => Ok(Some(text.to_string()).filter(|t| !t.is_empty()).into_iter().collect()),
        Val::List(all) => {
            let mut out = Vec::new();
            for item in all.iter() {
                match item {
                    Val::Text(text) if text.is_empty() => {}
                    Val::Text(text) => out.push(text.to_string()),
                    _ => return Err(wrong()),
                }
            }
            Ok(out)
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_become_a_user() {
        let mappings = Mappings::new(&json!({
            "claimValidationRules": [
                {"claim": "tenant", "requiredValue": "x"},
                {"expression": "claims.exp - claims.iat <= 3600", "message": "too long"},
            ],
            "claimMappings": {
                "username": {"expression": "claims.sub + ':' + claims.tenant"},
                "groups": {"claim": "roles", "prefix": "p:"},
                "uid": {"claim": "sub"},
                "extra": [{"key": "example.org/tenant", "valueExpression": "claims.tenant"},
                          {"key": "example.org/none", "valueExpression": "''"}],
            },
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}],
        }))
        .unwrap();
        let claims = json!({"sub": "jane", "tenant": "x", "roles": ["a", "b"], "exp": 10, "iat": 0, "jti": "7"});
        let user = mappings.user(&claims).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane:x", "jane"));
        assert_eq!(user.groups, ["p:a", "p:b"]);
        assert_eq!(user.extra["example.org/tenant"], ["x"]);
        assert_eq!(user.extra[CREDENTIAL_ID], ["JTI=7"]);
        assert_eq!(user.extra.len(), 2);
        let refused = |change: Value| {
            let mut claims = claims.clone();
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            mappings.user(&claims).unwrap_err()
        };
        assert_eq!(
            refused(json!({"tenant": "y"})),
            "oidc: required claim tenant value does not match. Got = y, want = x"
        );
        assert_eq!(
            refused(json!({"exp": 4000})),
            "oidc: error evaluating claim validation expression: validation expression 'claims.exp - claims.iat <= 3600' failed: too long"
        );
        assert_eq!(
            refused(json!({"sub": "system:admin"})),
            "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('system:')' failed: reserved"
        );
    }

    #[test]
    fn unverified_addresses_are_no_names() {
        let mappings =
            Mappings::new(&json!({"claimMappings": {"username": {"claim": "email", "prefix": "oidc:"}}})).unwrap();
        let user = |verified: Value| mappings.user(&json!({"email": "a@b", "email_verified": verified}));
        assert_eq!(user(true.into()).unwrap().name, "oidc:a@b");
        assert_eq!(user(false.into()).unwrap_err(), "oidc: email not verified");
        assert_eq!(mappings.user(&json!({"email": "a@b"})).unwrap().name, "oidc:a@b");
    }
}
