//! APIServices, as clients and the servers behind them see them.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use isopod_testkit::TestServer;
use kube::client::ConfigExt;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const GROUP: &str = "/apis/wardle.example.com/v1alpha1";

/// An extension API server.
struct Extension {
    port: u16,
    ca: String,
    seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

/// `alpn`: which versions of HTTP it speaks.
async fn extension(alpn: &[&str]) -> Extension {
    extension_without(alpn, "nothing").await
}

/// It does not serve this path.
async fn extension_without(alpn: &[&str], missing: &'static str) -> Extension {
    isopod_pki::tls::install_provider();
    let made = rcgen::generate_simple_self_signed(["ext.default.svc".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ca = base64::engine::general_purpose::STANDARD.encode(made.cert.pem());
    let seen: Arc<Mutex<Vec<(String, HeaderMap)>>> = Arc::default();
    let (acceptor, kept) = (TlsAcceptor::from(Arc::new(config)), seen.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, kept) = (acceptor.clone(), kept.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let serve = service_fn(move |request: Request<Incoming>| {
                    let kept = kept.clone();
                    async move {
                        kept.lock().unwrap().push((request.uri().path().to_owned(), request.headers().clone()));
                        Ok::<_, Infallible>(match request.uri().path() == missing {
                            true => Response::builder().status(404).body(Body::empty()).unwrap(),
                            false => respond(request).await,
                        })
                    }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), serve).await;
            });
        }
    });
    Extension { port, ca, seen }
}

fn document(content_type: &str, value: &Value) -> Response<Body> {
    Response::builder()
        .header("content-type", content_type)
        .header("etag", "\"1\"")
        .body(value.to_string().into())
        .unwrap()
}

async fn respond(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let resource = json!({"resource": "flunders", "responseKind": {"group": "", "version": "", "kind": "Flunder"},
        "scope": "Namespaced", "singularResource": "flunder", "verbs": ["get", "list", "watch"]});
    match path.strip_prefix(GROUP).unwrap_or(&path) {
        "/apis" => {
            let versions = json!([{"version": "v1alpha1", "resources": [resource]}]);
            let items = json!([{"metadata": {"name": "wardle.example.com"}, "versions": versions}]);
            let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "items": items});
            document("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", &list)
        }
        "/openapi/v3" => document(
            "application/json",
            &json!({"paths": {"apis/wardle.example.com/v1alpha1": {"serverRelativeURL": "/openapi/v3/x?hash=1"}, "version": {}}}),
        ),
        "/openapi/v2" => {
            let path = format!("{GROUP}/flunders");
            let paths = json!({path: {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Flunder"}}}}}});
            document("application/json", &json!({"paths": paths, "definitions": {"Flunder": {"type": "object"}}}))
        }
        "" => document("application/json", &json!({"kind": "APIResourceList"})),
        "/flunders" if request.uri().query().is_some_and(|q| q.contains("watch")) => {
            // The first event at once; the stream stays open.
            let first = futures::stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{\"type\":\"ADDED\"}\n"))]);
            Response::new(Body::from_stream(first.chain(futures::stream::pending())))
        }
        "/away" => {
            Response::builder().status(302).header("location", "https://example.com/").body(Body::empty()).unwrap()
        }
        "/echo" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let mut four = [0; 4];
                io.read_exact(&mut four).await.unwrap();
                io.write_all(&four).await.unwrap();
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            response.header("connection", "upgrade").header("upgrade", "echo").body(Body::empty()).unwrap()
        }
        _ => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let response = Response::builder()
                .status(207)
                .header("warning", "299 - \"mind\"")
                .header("access-control-allow-origin", "*");
            response.body(Body::from(body)).unwrap()
        }
    }
}

fn api_service(extension: &Extension, more: Value) -> Value {
    let mut spec = json!({"group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000,
        "versionPriority": 200, "caBundle": extension.ca,
        "service": {"namespace": "default", "name": "ext", "port": extension.port}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": spec})
}

async fn make_service(s: &TestServer) {
    let spec = json!({"type": "ExternalName", "externalName": "localhost"});
    let made = s.post("/api/v1/namespaces/default/services", json!({"metadata": {"name": "ext"}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{}", made.text);
}

/// The condition `Available`, once it has this reason.
async fn available(s: &TestServer, name: &str, reason: &str) -> Value {
    let path = format!("{SERVICES}?watch=1&fieldSelector=metadata.name%3D{name}");
    let response = s.open(Request::get(path).body(Body::empty()).unwrap()).await;
    let mut events = response.into_body().into_data_stream();
    let wait = async {
        while let Some(Ok(bytes)) = events.next().await {
            for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                let event: Value = serde_json::from_slice(line).unwrap();
                let condition = event["object"]["status"]["conditions"][0].clone();
                if condition["reason"] == reason {
                    return condition;
                }
            }
        }
        Value::Null
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.expect(reason)
}

async fn aggregated(s: &TestServer) -> Value {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let answer = s.send(Request::get("/apis").header("accept", accept).body(Body::empty()).unwrap()).await;
    let items = answer.json["items"].as_array().unwrap();
    items.iter().find(|g| g["metadata"]["name"] == "wardle.example.com").cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_group_is_served_elsewhere_once_its_server_answers() {
    let (s, ext) = (TestServer::start().await, extension(&["h2", "http/1.1"]).await);
    let made = s.post(SERVICES, api_service(&ext, json!({}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let condition = available(&s, "v1alpha1.wardle.example.com", "ServiceNotFound").await;
    assert_eq!(
        (&condition["status"], &condition["message"]),
        (&json!("False"), &json!("service/ext in \"default\" is not present"))
    );
    let refused = s.get(&format!("{GROUP}/flunders")).await;
    assert_eq!((refused.code, refused.text.as_str()), (503, "service unavailable\n"));
    assert_eq!(aggregated(&s).await["versions"], json!([{"version": "v1alpha1", "freshness": "Stale"}]));

    make_service(&s).await;
    let condition = available(&s, "v1alpha1.wardle.example.com", "Passed").await;
    assert_eq!((&condition["status"], &condition["message"]), (&json!("True"), &json!("all checks passed")));
    let found = aggregated(&s).await;
    assert_eq!(found["versions"][0]["freshness"], "Current");
    assert_eq!(found["versions"][0]["resources"][0]["resource"], "flunders");
    let group = s.get("/apis/wardle.example.com").await.json;
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    let groups = s.get("/apis").await.json;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("apiregistration.k8s.io", "wardle.example.com"));
    let paths = s.get("/").await.json["paths"].to_string();
    assert!(paths.contains(&format!("\"{GROUP}\"")), "{paths}");

    let gone = s.delete(&format!("{SERVICES}/v1alpha1.wardle.example.com")).await;
    assert_eq!(gone.code, 200);
    while s.get("/apis/wardle.example.com").await.code != 404 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_and_answers_pass_through() {
    for alpn in [&["h2"], &["http/1.1"]] {
        let (s, ext) = (TestServer::start().await, extension(alpn).await);
        make_service(&s).await;
        s.post(SERVICES, api_service(&ext, json!({}))).await;
        available(&s, "v1alpha1.wardle.example.com", "Passed").await;
        ext.seen.lock().unwrap().clear();

        let request = Request::post(format!("{GROUP}/namespaces/a/flunders?dryRun=All"))
            .header("authorization", "Bearer secret")
            .header("x-remote-user", "forged")
            .header("audit-id", "my-id");
        let answer = s.send(request.body(Body::from("body")).unwrap()).await;
        assert_eq!((answer.code, answer.text.as_str()), (207, "body"), "{alpn:?}");
        assert_eq!(answer.headers["warning"], "299 - \"mind\"");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        let seen: Vec<(String, HeaderMap)> = ext.seen.lock().unwrap().clone();
        let (_, headers) = seen.iter().find(|(path, _)| path.ends_with("/namespaces/a/flunders")).unwrap();
        let user: Vec<_> = headers.get_all("x-remote-user").iter().collect();
        assert_eq!(user, ["admin"]);
        assert_eq!(headers["x-remote-group"], "system:masters");
        assert_eq!(headers["audit-id"], "my-id");
        assert!(!headers.contains_key("authorization"));

        let watch = s.open(Request::get(format!("{GROUP}/flunders?watch=1")).body(Body::empty()).unwrap()).await;
        let first = watch.into_body().into_data_stream().next().await.unwrap().unwrap();
        assert_eq!(&first[..], b"{\"type\":\"ADDED\"}\n");
        let away = s.get(&format!("{GROUP}/away")).await;
        let m = "the backend attempted to redirect this request, which is not permitted";
        assert_eq!((away.code, away.text.as_str()), (502, m));
    }
}

#[tokio::test]
async fn connections_are_taken_over() {
    let (s, ext) = (TestServer::start().await, extension(&["h2", "http/1.1"]).await);
    make_service(&s).await;
    s.post(SERVICES, api_service(&ext, json!({}))).await;
    available(&s, "v1alpha1.wardle.example.com", "Passed").await;
    let listening = s.listen().await;
    let read = kube::config::Kubeconfig::read_from(&listening.kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
    let tls = config.rustls_client_config().unwrap();
    let stream = tokio::net::TcpStream::connect(listening.url.trim_start_matches("https://")).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    let head = format!("GET {GROUP}/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
}

#[tokio::test]
async fn a_certificate_that_is_not_good_is_told() {
    let (s, ext) = (TestServer::start().await, extension(&["h2"]).await);
    make_service(&s).await;
    let other = extension(&["h2"]).await;
    s.post(SERVICES, api_service(&ext, json!({"caBundle": other.ca}))).await;
    let condition = available(&s, "v1alpha1.wardle.example.com", "FailedDiscoveryCheck").await;
    let message = condition["message"].as_str().unwrap();
    assert!(
        message.ends_with("tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        "{message}"
    );
    let path = format!("{SERVICES}/v1alpha1.wardle.example.com");
    let mut object = s.get(&path).await.json;
    object["spec"]["caBundle"] = Value::Null;
    object["spec"]["insecureSkipTLSVerify"] = true.into();
    assert_eq!(s.put(&path, object).await.code, 200);
    available(&s, "v1alpha1.wardle.example.com", "Passed").await;
}

#[tokio::test]
async fn documents_of_other_servers_are_merged() {
    let (s, ext) = (TestServer::start().await, extension(&["h2"]).await);
    make_service(&s).await;
    s.post(SERVICES, api_service(&ext, json!({}))).await;
    available(&s, "v1alpha1.wardle.example.com", "Passed").await;
    let key = "apis/wardle.example.com/v1alpha1";
    let index = loop {
        let index = s.get("/openapi/v3").await.json;
        if !index["paths"][key].is_null() {
            break index;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(index["paths"][key]["serverRelativeURL"], "/openapi/v3/x?hash=1");
    assert_ne!(index["paths"]["version"], json!({}));
    let swagger = loop {
        let swagger = s.get("/openapi/v2").await.json;
        if !swagger["definitions"]["Flunder"].is_null() {
            break swagger;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(swagger["paths"][format!("{GROUP}/flunders")].is_object());
    assert!(swagger["paths"]["/version/"].is_object());
    s.get(&format!("/openapi/v3/{key}")).await;
    assert!(ext.seen.lock().unwrap().iter().any(|(path, _)| path == &format!("/openapi/v3/{key}")));
}

#[tokio::test]
async fn a_server_that_knows_openapi_v2_alone_is_told_of_in_v3() {
    let (s, ext) = (TestServer::start().await, extension_without(&["h2"], "/openapi/v3").await);
    make_service(&s).await;
    s.post(SERVICES, api_service(&ext, json!({}))).await;
    available(&s, "v1alpha1.wardle.example.com", "Passed").await;
    let key = "apis/wardle.example.com/v1alpha1";
    let url = loop {
        let index = s.get("/openapi/v3").await.json;
        if let Some(url) = index["paths"][key]["serverRelativeURL"].as_str() {
            break url.to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(url.starts_with(&format!("/openapi/v3/{key}?hash=")), "{url}");
    let document = s.get(&url).await;
    assert_eq!(document.headers["cache-control"], "public, immutable");
    let get = &document.json["paths"][format!("{GROUP}/flunders")]["get"];
    assert!(get["responses"]["200"].is_object(), "{}", document.text);
    assert_eq!(document.json["components"]["schemas"]["Flunder"], json!({"type": "object"}));
    let old = s.get(&format!("/openapi/v3/{key}?hash=old")).await;
    assert_eq!((old.code, &old.headers["location"]), (301, &http::HeaderValue::from_str(&url).unwrap()));
    // It goes with its server.
    s.delete(&format!("{SERVICES}/v1alpha1.wardle.example.com")).await;
    while s.get(&format!("/openapi/v3/{key}")).await.code != 404 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_served_here_has_api_services() {
    let s = TestServer::start().await;
    let apps = s.get(&format!("{SERVICES}/v1.apps")).await.json;
    let managed = |o: &Value| o["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"].clone();
    assert_eq!((managed(&apps), &apps["status"]["conditions"][0]["reason"]), (json!("onstart"), &json!("Local")));
    let definition = json!({"metadata": {"name": "gadgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "gadgets", "kind": "Gadget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(s.post(definitions, definition).await.code, 201);
    available(&s, "v1.example.com", "Local").await;
    let path = format!("{SERVICES}/v1.example.com");
    assert_eq!(managed(&s.get(&path).await.json), "true");
    // One that is deleted comes again, as long as it is served.
    let uid = s.get(&path).await.json["metadata"]["uid"].clone();
    s.delete(&path).await;
    while s.get(&path).await.json["metadata"]["uid"].as_str().is_none_or(|u| u == uid) {
        tokio::task::yield_now().await;
    }
    s.delete(&format!("{definitions}/gadgets.example.com")).await;
    while s.get(&path).await.code != 404 {
        tokio::task::yield_now().await;
    }
}
