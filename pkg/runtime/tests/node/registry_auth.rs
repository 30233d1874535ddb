//! Registries that want to know who asks, and that show who they are.

use crate::fixture::Node;
use crate::registry::Registry;
use isopod_runtime::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// bcrypt of "let-me-in".
const HTPASSWD: &str = "puller:$2a$05$abcdefghijklmnopqrstuu3Jd./u/rH1RxB6auX5v7gLP6uWhKCgG\n";

/// A certification authority's certificate in a file, and a certificate of 127.0.0.1 by it with its key.
fn certificates(dir: &std::path::Path) -> [PathBuf; 3] {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &ca).unwrap();
    let files = ["ca.pem", "leaf.pem", "leaf.key"].map(|name| dir.join(name));
    for (file, text) in files.iter().zip([ca.pem(), leaf.pem(), key.serialize_pem()]) {
        std::fs::write(file, text).unwrap();
    }
    files
}

fn password(password: &str) -> RegistryAuth {
    RegistryAuth { username: "puller".into(), password: password.into(), ..Default::default() }
}

fn identity(token: &str) -> RegistryAuth {
    RegistryAuth { identity_token: token.into(), ..Default::default() }
}

/// Pulls with these settings of `registries.yaml`; the error as text.
async fn pull(node: &Node, settings: &str, image: &str, auths: Vec<RegistryAuth>) -> Result<String, String> {
    std::fs::write(&node.config.registries, settings).unwrap();
    let runtime = IsopodRuntime::open(node.config.clone()).await.unwrap();
    runtime.pull_image(image, auths, None).await.map_err(|e| isopod_base::errors::Chain(&e).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls_and_passwords() {
    let open = Registry::start();
    open.push("team/box", "v1");
    let [ca, leaf, key] = certificates(open.dir());
    let other = tempfile::tempdir().unwrap();
    let [stranger, ..] = certificates(other.path());
    let htpasswd = open.dir().join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).unwrap();
    let tls = format!(", tls: {{certificate: {}, key: {}}}", leaf.display(), key.display());
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", htpasswd.display());
    let registry = open.guarded(&tls, &auth);
    let host = format!("127.0.0.1:{}", registry.port);
    let image = format!("{host}/team/box:v1");
    let settings = |config: &str| {
        format!("mirrors: {{\"{host}\": {{endpoint: [\"https://{host}\"]}}}}\nconfigs: {{\"{host}\": {{{config}}}}}\n")
    };
    let trusted = format!("tls: {{ca_file: {}}}", ca.display());
    let node = Node::new().await;
    for (config, auths, refusal) in [
        (String::new(), vec![password("let-me-in")], "certificate"),
        (format!("tls: {{ca_file: {}}}", stranger.display()), vec![password("let-me-in")], "certificate"),
        ("tls: {ca_file: /nothing/ca.pem}".into(), vec![password("let-me-in")], "/nothing/ca.pem"),
        (trusted.clone(), vec![], "not authorized"),
        (trusted.clone(), vec![password("nonsense")], "not authorized"),
        (trusted.clone(), vec![identity("nonsense")], "no authorization server"),
        (format!("{trusted}, auth: {{username: puller, password: nonsense}}"), vec![], "not authorized"),
    ] {
        let error = pull(&node, &settings(&config), &image, auths).await.unwrap_err();
        assert!(error.to_lowercase().contains(refusal), "{config}: {error}");
        assert!(!error.contains("let-me-in") && !error.contains("nonsense"), "a secret is told: {error}");
    }
    assert!(node.runtime.images().await.unwrap().is_empty());
    for (config, auths) in [
        (trusted.clone(), vec![password("let-me-in")]),
        // The wrong ones are tried first.
        (trusted.clone(), vec![password("nonsense"), password("let-me-in")]),
        (format!("{trusted}, auth: {{username: puller, password: let-me-in}}"), vec![]),
        (format!("{trusted}, auth: {{auth: cHVsbGVyOmxldC1tZS1pbg==}}"), vec![]),
        ("tls: {insecure_skip_verify: true}".into(), vec![password("let-me-in")]),
    ] {
        let node = Node::new().await;
        let id = pull(&node, &settings(&config), &image, auths).await.unwrap_or_else(|e| panic!("{config}: {e}"));
        assert_eq!(node.runtime.image_status(&image).await.unwrap().unwrap().id, id, "{config}");
    }
}

/// An authorization server, and in front of a registry a guard that lets through whoever shows the server's token.
struct Guard {
    port: u16,
    /// The bodies that were posted to the authorization server.
    forms: Arc<Mutex<Vec<String>>>,
    /// What the registry was shown.
    shown: Arc<Mutex<Vec<String>>>,
}

impl Guard {
    fn start(registry: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let guard = Guard { port, forms: Arc::default(), shown: Arc::default() };
        let (forms, shown) = (guard.forms.clone(), guard.shown.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (forms, shown) = (forms.clone(), shown.clone());
                // A client that hangs up ends its thread.
                std::thread::spawn(move || drop(answer(stream, port, registry, &forms, &shown)));
            }
        });
        guard
    }
}

fn respond(mut stream: &TcpStream, status: &str, header: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn answer(
    stream: TcpStream,
    port: u16,
    registry: u16,
    forms: &Mutex<Vec<String>>,
    shown: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        let found = head.iter().filter_map(|l| l.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.to_owned()).unwrap_or_default()
    };
    if head.first().is_some_and(|l| l.starts_with("POST /token ")) {
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let form = String::from_utf8_lossy(&body).into_owned();
        let known = form.split('&').any(|p| p == "refresh_token=from-log-in");
        forms.lock().unwrap().push(form);
        return match known {
            true => {
                respond(&stream, "200 OK", "Content-Type: application/json\r\n", r#"{"access_token":"for-an-hour"}"#)
            }
            false => respond(&stream, "401 Unauthorized", "", ""),
        };
    }
    let authorization = header("authorization");
    if !authorization.is_empty() {
        shown.lock().unwrap().push(authorization.clone());
    }
    if authorization != "Bearer for-an-hour" {
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"the registry\",error=\"invalid_token\"\r\n"
        );
        return respond(&stream, "401 Unauthorized", &challenge, "");
    }
    let mut behind = TcpStream::connect(("127.0.0.1", registry))?;
    let kept = head.iter().filter(|l| !l.to_ascii_lowercase().starts_with("connection:"));
    let request: String = kept.map(|l| format!("{l}\r\n")).collect();
    write!(behind, "{request}Connection: close\r\n\r\n")?;
    std::io::copy(&mut behind, &mut &stream)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged() {
    let registry = Registry::start();
    registry.push("team/box", "v1");
    let guard = Guard::start(registry.port);
    let image = format!("127.0.0.1:{}/team/box:v1", guard.port);
    let node = Node::new().await;
    let error = pull(&node, "", &image, vec![identity("out-of-date")]).await.unwrap_err();
    assert!(error.contains("does not take the identity token: 401"), "{error}");
    let id = pull(&node, "", &image, vec![identity("out-of-date"), identity("from-log-in")]).await.unwrap();
    assert_eq!(node.runtime.image_status(&image).await.unwrap().unwrap().id, id);
    let forms = std::mem::take(&mut *guard.forms.lock().unwrap());
    let form = "grant_type=refresh_token&refresh_token=from-log-in&service=the+registry&client_id=isopod&scope=repository%3Ateam%2Fbox%3Apull";
    assert_eq!((forms.len(), forms[2].as_str()), (3, form));
    let shown = guard.shown.lock().unwrap().clone();
    assert!(shown.iter().all(|s| s == "Bearer for-an-hour"), "the registry was shown {shown:?}");
    // From registries.yaml, for a registry that wants no token at all too.
    for port in [guard.port, registry.port] {
        let node = Node::new().await;
        let host = format!("127.0.0.1:{port}");
        let settings = format!("configs: {{\"{host}\": {{auth: {{identity_token: from-log-in}}}}}}\n");
        assert_eq!(pull(&node, &settings, &format!("{host}/team/box:v1"), vec![]).await.unwrap(), id);
    }
}
