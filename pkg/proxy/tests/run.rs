//! The loop against an API server that answers lists and watches, on a node of namespaces. Needs root.

#![allow(clippy::unwrap_used)]

mod lab;

use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use isopod_api::UserInfo;
use isopod_base::clock::Clock;
use isopod_client::{Informers, in_process};
use isopod_proxy::{HostPort, HostPorts, Proxy, ProxyConfig};
use isopod_sys::nft::{Batch, NftSocket, Table};
use kube::client::Body;
use lab::*;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

type Sender = mpsc::UnboundedSender<String>;

/// Lists by path, and the open watches of each.
#[derive(Clone, Default)]
struct Api {
    lists: Arc<Mutex<HashMap<String, Vec<Json>>>>,
    watches: Arc<Mutex<HashMap<String, Vec<Sender>>>>,
    revision: Arc<Mutex<u32>>,
}

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

impl Api {
    fn set(&self, path: &str, mut object: Json) {
        let mut revision = self.revision.lock().unwrap();
        *revision += 1;
        object["metadata"]["resourceVersion"] = json!((*revision + 100).to_string());
        object["metadata"]["uid"] = object["metadata"]["name"].clone();
        let mut lists = self.lists.lock().unwrap();
        let list = lists.entry(path.to_owned()).or_default();
        let old = list.iter().position(|o| o["metadata"]["name"] == object["metadata"]["name"]);
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        if let Some(old) = old {
            list.remove(old);
        }
        list.push(object.clone());
        let line = json!({"type": kind, "object": object}).to_string() + "\n";
        let mut watches = self.watches.lock().unwrap();
        watches.entry(path.to_owned()).or_default().retain(|w| w.send(line.clone()).is_ok());
    }

    fn answer(&self, request: &Request<Body>) -> Response<BoxBody<bytes::Bytes, Infallible>> {
        let path = request.uri().path().to_owned();
        let lists = self.lists.lock().unwrap();
        if !request.uri().query().unwrap_or_default().contains("watch=") {
            let items = lists.get(&path).cloned().unwrap_or_default();
            let revision = (*self.revision.lock().unwrap() + 100).to_string();
            let list = json!({"kind": "List", "metadata": {"resourceVersion": revision}, "items": items});
            return Response::new(http_body_util::Full::from(list.to_string()).boxed());
        }
        let (tx, rx) = mpsc::unbounded_channel();
        self.watches.lock().unwrap().entry(path).or_default().push(tx);
        let frames = futures::stream::unfold(rx, |mut rx| async {
            rx.recv().await.map(|s| (Ok(Frame::data(bytes::Bytes::from(s))), rx))
        });
        Response::new(BodyExt::boxed(StreamBody::new(frames)))
    }

    fn informers(&self) -> Informers {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(&request)) }
        });
        Informers::new(in_process(service, UserInfo::new("system:kube-proxy", &[])))
    }
}

/// Runs the proxy on the lab's node while `test` runs elsewhere; stops it afterwards.
fn with_proxy(lab: &Lab, api: &Api, config: ProxyConfig, test: impl FnOnce()) {
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let proxy = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    Proxy::run(config, api.informers(), Clock::system(), stop.clone()).await.unwrap();
                });
            };
            lab.node.run(proxy).unwrap();
        });
        // A failed test must still stop the proxy, or the scope waits for ever.
        let guard = stop.clone().drop_guard();
        test();
        drop(guard);
        running.join().unwrap();
    });
}

/// Asks until the answer is the wanted one; the last answer when it never is.
fn until(want: &str, ask: impl Fn() -> String) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let last = ask();
        if last.starts_with(want) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{last} instead of {want}");
        std::thread::yield_now();
    }
}

#[test]
fn the_table_follows_the_cluster() {
    let lab = Lab::new();
    let (two, three, client) = (lab.pod(2), lab.pod(3), lab.pod(9));
    serve(&two, "two", 8080);
    serve(&three, "three", 8080);
    let api = Api::default();
    api.set(SERVICES, service_json(json!({})));
    api.set(SLICES, slice_json(&[(pod_ip(2), "rl")], "TCP"));
    let pod = SocketAddrV4::new(pod_ip(2), 8080);
    let (ports, given) = watch::channel(Vec::new());
    let config = ProxyConfig { host_ports: HostPorts::Given(given), ..config() };
    let (statistics, trouble) = (config.statistics.clone(), config.trouble.subscribe());
    assert!(trouble.borrow().is_some(), "there is no table yet");
    with_proxy(&lab, &api, config, || {
        until("two", || ask(&client, VIP, 80));
        until("None", || format!("{:?}", *trouble.borrow()));
        api.set(SLICES, slice_json(&[(pod_ip(3), "rl")], "TCP"));
        until("three", || ask(&client, VIP, 80));
        let protocol = isopod_proxy::state::Protocol::Tcp;
        ports.send(vec![HostPort { protocol, host_ip: None, host_port: 8000, pod }]).unwrap();
        until("two", || ask(&lab.outside, NODE_IP, 8000));
        assert_eq!(statistics.full_syncs.load(Ordering::Relaxed), 1, "the rest were differences");

        // Somebody flushes the table: the next change puts all of it back.
        let mut flush = Batch::new();
        flush.delete_table(&Table("isopod-proxy".into()));
        lab.node.run(|| NftSocket::open().unwrap().commit(flush).unwrap()).unwrap();
        api.set(SLICES, slice_json(&[(pod_ip(2), "rl")], "TCP"));
        until("two", || ask(&client, VIP, 80));
        until("two", || ask(&lab.outside, NODE_IP, 8000));
        assert_eq!(statistics.failures.load(Ordering::Relaxed), 1);
    });
    assert!(ask(&client, VIP, 80).starts_with("two"), "services work while the proxy is away");
}

#[test]
fn a_proxy_that_cannot_write_its_table_says_why() {
    let lab = Lab::new();
    let api = Api::default();
    // Longer than any name that the kernel takes.
    let config = ProxyConfig { table_prefix: "x".repeat(300), host_ports: HostPorts::None, ..config() };
    let (statistics, trouble) = (config.statistics.clone(), config.trouble.subscribe());
    with_proxy(&lab, &api, config, || {
        until("1", || statistics.failures.load(Ordering::Relaxed).min(1).to_string());
        until("Some(\"service proxy: cannot program the service table", || format!("{:?}", *trouble.borrow()));
        assert_eq!(statistics.syncs.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn this_kernel_takes_a_sample_of_every_class() {
    let lab = Lab::new();
    lab.node.run(|| Proxy::try_table().unwrap()).unwrap();
    lab.node.run(|| Proxy::cleanup("isopod-probe").unwrap()).unwrap();
}

#[test]
fn a_udp_client_that_keeps_its_port_follows_its_service() {
    let lab = Lab::new();
    let (two, three, client_ns) = (lab.pod(2), lab.pod(3), lab.pod(9));
    serve_udp(&two, "two", 8080);
    serve_udp(&three, "three", 8080);
    let api = Api::default();
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080, "protocol": "UDP"}]);
    api.set(SERVICES, service_json(json!({"type": "NodePort", "ports": ports})));
    api.set(SLICES, slice_json(&[], "UDP"));
    let (client, outsider) = (UdpClient::new(&client_ns), UdpClient::new(&lab.outside));
    let statistics = config().statistics;
    let config = ProxyConfig { statistics: statistics.clone(), ..config() };
    with_proxy(&lab, &api, config, || {
        until("1", || statistics.full_syncs.load(Ordering::Relaxed).to_string());
        assert_eq!(client.ask(VIP, 80), "WouldBlock", "no endpoint, no answer");
        api.set(SLICES, slice_json(&[(pod_ip(2), "rl")], "UDP"));
        until("two 10.42.0.9", || client.ask(VIP, 80));
        until("two", || outsider.ask(NODE_IP, 30080));
        api.set(SLICES, slice_json(&[(pod_ip(3), "rl")], "UDP"));
        until("three 10.42.0.9", || client.ask(VIP, 80));
        until("three", || outsider.ask(NODE_IP, 30080));
        // It is counted after the flows are gone.
        until("2", || statistics.stale_flows_deleted.load(Ordering::Relaxed).to_string());
    });
}

/// One more service beside many: what the proxy itself measures.
#[test]
fn a_change_is_planned_and_written_without_looking_at_the_other_services() {
    let lab = Lab::new();
    let pod = lab.pod(2);
    serve(&pod, "two", 8080);
    let api = Api::default();
    let named = |i: u32| {
        let ip = Ipv4Addr::from_bits(VIP.to_bits() + i).to_string();
        let mut service = service_json(json!({"clusterIP": ip, "clusterIPs": [ip]}));
        service["metadata"]["name"] = json!(format!("web-{i}"));
        let mut slice = slice_json(&[(pod_ip(2), "rl")], "TCP");
        slice["metadata"]["name"] = json!(format!("web-{i}"));
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(format!("web-{i}"));
        (service, slice)
    };
    let n = 300;
    for i in 0..n {
        let (service, slice) = named(i);
        api.set(SERVICES, service);
        api.set(SLICES, slice);
    }
    let statistics = config().statistics;
    let config = ProxyConfig { statistics: statistics.clone(), ..config() };
    with_proxy(&lab, &api, config, || {
        until("two", || ask(&lab.node, VIP, 80));
        let (service, slice) = named(n);
        api.set(SLICES, slice);
        api.set(SERVICES, service);
        until("two", || ask(&lab.node, Ipv4Addr::from_bits(VIP.to_bits() + n), 80));
        assert_eq!(statistics.full_syncs.load(Ordering::Relaxed), 1);
        assert!(statistics.syncs.load(Ordering::Relaxed) <= 3);
    });
}
