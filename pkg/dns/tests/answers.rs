//! Every form of name, against a small cluster; then the same over sockets, with a server to forward to.

#![allow(clippy::unwrap_used)]

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use isopod_client::views::{EndpointSlice, Service};
use isopod_dns::answer::{Outcome, Zone, answer};
use isopod_dns::cluster::{Cluster, service_of};
use isopod_dns::{Dns, DnsConfig};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

struct Fixture {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    synced: bool,
}

impl Cluster for Fixture {
    fn is_synced(&self) -> bool {
        self.synced
    }
    fn has_namespace(&self, name: &str) -> bool {
        ["default", "kube-system"].contains(&name)
    }
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.iter().find(|s| s.metadata.namespace == namespace && s.metadata.name == name).cloned()
    }
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let of = |s: &&Arc<EndpointSlice>| s.metadata.namespace == namespace && service_of(s) == Some(service);
        self.slices.iter().filter(of).cloned().collect()
    }
    fn services_at(&self, ip: IpAddr) -> Vec<Arc<Service>> {
        self.services.iter().filter(|s| s.spec.cluster_ips.contains(&ip.to_string())).cloned().collect()
    }
    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let ip = ip.to_string();
        let at = |s: &&Arc<EndpointSlice>| s.endpoints.iter().any(|e| e.addresses.contains(&ip));
        self.slices.iter().filter(at).cloned().collect()
    }
}

fn cluster() -> Fixture {
    let service = |name: &str, spec: serde_json::Value| -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})).unwrap(),
        )
    };
    let slice = |name: &str, endpoints: serde_json::Value, ports: serde_json::Value| -> Arc<EndpointSlice> {
        let labels = json!({"kubernetes.io/service-name": name});
        let v = json!({"metadata": {"namespace": "default", "name": format!("{name}-1"), "labels": labels},
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        Arc::new(serde_json::from_value(v).unwrap())
    };
    let http = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let many: Vec<_> = (0..100).map(|i| json!({"addresses": [format!("10.42.9.{i}")]})).collect();
    Fixture {
        synced: true,
        services: vec![
            service("web", json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ports": http})),
            service(
                "db",
                json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]}),
            ),
            service("empty", json!({"clusterIP": "None", "clusterIPs": ["None"]})),
            service("many", json!({"clusterIP": "None", "clusterIPs": ["None"]})),
            service("out", json!({"type": "ExternalName", "externalName": "www.example.org"})),
            service("again", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
            service("loop", json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"})),
        ],
        slices: vec![
            slice(
                "web",
                json!([{"addresses": ["10.42.0.5"]}]),
                json!([{"name": "http", "port": 8080, "protocol": "TCP"}]),
            ),
            slice(
                "db",
                json!([
                    {"addresses": ["10.42.0.2"], "hostname": "db-0"},
                    {"addresses": ["10.42.0.3"], "conditions": {"ready": true}},
                    {"addresses": ["10.42.0.4"], "hostname": "db-2", "conditions": {"ready": false}},
                ]),
                json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]),
            ),
            slice("empty", json!([{"addresses": ["10.42.0.6"], "conditions": {"ready": false}}]), json!([])),
            slice("many", json!(many), json!([])),
        ],
    }
}

fn zone() -> Zone {
    let domain = Name::from_ascii("cluster.local.").unwrap();
    Zone { domain, ttl: 5, service_ip: Some("10.43.0.10".parse().unwrap()) }
}

/// "CODE: answers; additional records", or "forward".
fn ask(cluster: &Fixture, name: &str, kind: RecordType) -> String {
    let show = |records: &[Record]| {
        let mut all: Vec<String> = records.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
        all.sort();
        all.join(", ")
    };
    match answer(&zone(), cluster, &Name::from_ascii(name).unwrap(), kind) {
        Outcome::Forward => "forward".into(),
        Outcome::Answer(a) => {
            let soa = a.authorities.iter().filter(|r| r.record_type() == RecordType::SOA).count();
            let negative = a.answers.is_empty() && a.code != ResponseCode::ServFail && a.code != ResponseCode::NoError
                || a.answers.is_empty() && a.code == ResponseCode::NoError && !name.ends_with("arpa.");
            assert_eq!(soa, usize::from(negative), "an empty answer has the SOA: {name}");
            let code = match a.code {
                ResponseCode::NoError => "ok",
                ResponseCode::NXDomain => "nx",
                ResponseCode::ServFail => "fail",
                _ => "?",
            };
            let parts = [code.to_owned(), show(&a.answers), show(&a.additionals)];
            parts.join("|").trim_end_matches('|').to_owned()
        }
    }
}

#[test]
fn names_of_the_cluster() {
    use RecordType as T;
    let cluster = cluster();
    for (name, kind, want) in [
        ("web.default.svc", T::A, "ok|A 10.43.0.7"),
        ("WEB.Default.SVC", T::A, "ok|A 10.43.0.7"),
        ("web.default.svc", T::AAAA, "ok"),
        ("web.default.svc", T::MX, "ok"),
        ("none.default.svc", T::A, "nx"),
        ("web.nowhere.svc", T::A, "nx"),
        ("default.svc", T::A, "ok"),
        ("nowhere.svc", T::A, "nx"),
        ("svc", T::A, "ok"),
        ("default.pod", T::A, "ok"),
        ("web.default.other", T::A, "nx"),
        ("_http._tcp.web.default.svc", T::SRV, "ok|SRV 0 100 80 web.default.svc.cluster.local.|A 10.43.0.7"),
        ("_dns._udp.web.default.svc", T::SRV, "ok|SRV 0 100 53 web.default.svc.cluster.local.|A 10.43.0.7"),
        ("_http._udp.web.default.svc", T::SRV, "nx"),
        ("http._tcp.web.default.svc", T::SRV, "nx"),
        ("a._http._tcp.web.default.svc", T::SRV, "nx"),
        (
            "web.default.svc",
            T::SRV,
            "ok|SRV 0 50 53 web.default.svc.cluster.local., SRV 0 50 80 web.default.svc.cluster.local.|A 10.43.0.7",
        ),
        ("10-42-0-5.web.default.svc", T::A, "ok|A 10.42.0.5"),
        ("db.default.svc", T::A, "ok|A 10.42.0.2, A 10.42.0.3"),
        ("db-0.db.default.svc", T::A, "ok|A 10.42.0.2"),
        ("10-42-0-3.db.default.svc", T::A, "ok|A 10.42.0.3"),
        ("10-42-0-2.db.default.svc", T::A, "nx"),
        ("db-2.db.default.svc", T::A, "nx"),
        (
            "_sql._tcp.db.default.svc",
            T::SRV,
            "ok|SRV 0 50 5432 10-42-0-3.db.default.svc.cluster.local., SRV 0 50 5432 db-0.db.default.svc.cluster.local.\
             |A 10.42.0.2, A 10.42.0.3",
        ),
        ("empty.default.svc", T::A, "nx"),
        ("out.default.svc", T::A, "ok|CNAME www.example.org."),
        ("out.default.svc", T::CNAME, "ok|CNAME www.example.org."),
        ("out.default.svc", T::SRV, "ok"),
        ("a.out.default.svc", T::A, "nx"),
        ("1-2-3-4.default.pod", T::A, "ok|A 1.2.3.4"),
        ("1-2-3-4.default.pod", T::AAAA, "ok"),
        ("fd00--7.default.pod", T::AAAA, "ok|AAAA fd00::7"),
        ("1-2-3.default.pod", T::A, "nx"),
        ("1-2-3-4.nowhere.pod", T::A, "nx"),
        ("dns-version", T::TXT, "ok|TXT 1.1.0"),
        ("dns-version", T::A, "ok"),
        ("ns.dns", T::A, "ok|A 10.43.0.10"),
    ] {
        assert_eq!(ask(&cluster, &format!("{name}.cluster.local."), kind), want, "{name} {kind}");
    }
    assert_eq!(ask(&cluster, "cluster.local.", T::NS), "ok|NS ns.dns.cluster.local.|A 10.43.0.10");
    assert_eq!(ask(&cluster, "cluster.local.", T::A), "ok");
    for (name, want) in [
        ("7.0.43.10.in-addr.arpa.", "ok|PTR web.default.svc.cluster.local."),
        ("2.0.42.10.in-addr.arpa.", "ok|PTR db-0.db.default.svc.cluster.local."),
        ("3.0.42.10.in-addr.arpa.", "ok|PTR 10-42-0-3.db.default.svc.cluster.local."),
        ("4.0.42.10.in-addr.arpa.", "forward"),
        ("1.1.1.1.in-addr.arpa.", "forward"),
        ("0.42.10.in-addr.arpa.", "forward"),
        ("example.org.", "forward"),
        ("notcluster.local.", "forward"),
        ("local.", "forward"),
    ] {
        assert_eq!(ask(&cluster, name, RecordType::PTR), want, "{name}");
    }
}

#[test]
fn nothing_is_said_of_the_cluster_before_it_is_known() {
    let unknown = Fixture { synced: false, ..cluster() };
    assert_eq!(ask(&unknown, "web.default.svc.cluster.local.", RecordType::A), "fail");
    assert_eq!(ask(&unknown, "7.0.43.10.in-addr.arpa.", RecordType::PTR), "fail");
    assert_eq!(ask(&unknown, "example.org.", RecordType::A), "forward");
}

/// A server for everything else: answers any name with 192.0.2.1, a name that begins with "no" not at all, and counts.
async fn other_server() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            let question = Message::from_vec(&buffer[..n]).unwrap();
            let query = question.queries[0].clone();
            if query.name().to_ascii().starts_with("no") {
                continue;
            }
            let mut m = Message::response(question.metadata.id, OpCode::Query);
            m.add_query(query.clone());
            m.add_answer(Record::from_rdata(query.name().clone(), 20, RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))));
            // Somebody who does not know the id.
            let mut forged = m.clone();
            forged.metadata.id = forged.metadata.id.wrapping_add(1);
            forged.answers[0].data = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
            socket.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
            socket.send_to(&m.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (address, asked)
}

struct Running {
    address: SocketAddr,
    config: DnsConfig,
    asked: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

async fn start(cluster: Fixture) -> Running {
    let (other, asked) = other_server().await;
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {other}\n")).unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = DnsConfig { resolv_conf, ..DnsConfig::new("cluster.local", vec![address]) };
    let stop = CancellationToken::new();
    let running = tokio::spawn(Dns::serve(config.clone(), Arc::new(cluster), stop.clone()));
    // It listens when TCP, the second socket, is there.
    while TcpStream::connect(address).await.is_err() {
        assert!(!running.is_finished());
        tokio::task::yield_now().await;
    }
    Running { address, config, asked, _dir: dir, _stop: stop.drop_guard() }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut m = Message::query();
    m.metadata.recursion_desired = true;
    m.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    m
}

impl Running {
    async fn raw(&self, question: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(question, self.address).await.unwrap();
        let mut buffer = vec![0; 4096];
        let n = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.ok()?.unwrap();
        buffer.truncate(n);
        Some(buffer)
    }

    async fn udp(&self, question: &Message) -> Message {
        let answer = Message::from_vec(&self.raw(&question.to_vec().unwrap()).await.unwrap()).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        answer
    }

    async fn tcp(&self, question: &Message) -> Message {
        let mut s = TcpStream::connect(self.address).await.unwrap();
        let bytes = question.to_vec().unwrap();
        s.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).await.unwrap();
        let n = s.read_u16().await.unwrap();
        let mut answer = vec![0; n.into()];
        s.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
}

fn data(m: &Message) -> Vec<String> {
    m.answers.iter().map(|r| r.data.to_string()).collect()
}

#[tokio::test]
async fn over_udp_and_tcp() {
    let server = start(cluster()).await;
    let web = question("Web.default.svc.cluster.local.", RecordType::A);
    for answer in [server.udp(&web).await, server.tcp(&web).await] {
        assert_eq!(data(&answer), ["10.43.0.7"]);
        assert_eq!(answer.answers[0].name.to_ascii(), "Web.default.svc.cluster.local.", "as it was asked");
        assert!(
            answer.metadata.authoritative && answer.metadata.recursion_available && answer.metadata.recursion_desired
        );
        assert_eq!(answer.answers[0].ttl, 5);
    }
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let db = server.udp(&question("db.default.svc.cluster.local.", RecordType::A)).await;
        firsts.insert(data(&db).remove(0));
    }
    assert_eq!(firsts.len(), 2, "addresses take turns");
}

#[tokio::test]
async fn long_answers_are_cut_for_udp_only() {
    let server = start(cluster()).await;
    let mut many = question("many.default.svc.cluster.local.", RecordType::A);
    let cut = server.udp(&many).await;
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.to_vec().unwrap().len() <= 512);
    assert_eq!(server.tcp(&many).await.answers.len(), 100);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    many.set_edns(edns);
    let longer = server.udp(&many).await;
    assert!(longer.answers.len() > cut.answers.len() && longer.edns.is_some());
}

#[tokio::test]
async fn other_names_are_forwarded_and_kept() {
    let server = start(cluster()).await;
    let other = question("example.org.", RecordType::A);
    assert_eq!(data(&server.udp(&other).await), ["192.0.2.1"], "not the forged one");
    let again = question("EXAMPLE.org.", RecordType::A);
    let kept = server.udp(&again).await;
    assert_eq!(
        (data(&kept), kept.queries[0].name().to_ascii()),
        (vec!["192.0.2.1".to_owned()], "EXAMPLE.org.".to_owned())
    );
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    let out = server.udp(&question("out.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&out), ["www.example.org.", "192.0.2.1"]);
    let again = server.udp(&question("again.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&again), ["web.default.svc.cluster.local.", "10.43.0.7"]);
    let endless = server.udp(&question("loop.default.svc.cluster.local.", RecordType::A)).await;
    assert!(endless.answers.len() < 20);
    let nobody = server.udp(&question("nobody.example.org.", RecordType::A)).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(server.config.statistics.forward_failures.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn bad_questions_get_errors_and_answers_none() {
    let server = start(cluster()).await;
    let code = |m: Message| m.metadata.response_code;
    let mut chaos = question("web.default.svc.cluster.local.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(server.udp(&chaos).await), ResponseCode::Refused);
    let mut update = question("web.default.svc.cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(server.udp(&update).await), ResponseCode::NotImp);
    let none = Message::query();
    assert_eq!(code(server.udp(&none).await), ResponseCode::FormErr);
    let garbage = [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[63; 20]].concat();
    let answer = Message::from_vec(&server.raw(&garbage).await.unwrap()).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x1234, ResponseCode::FormErr));
    // An answer, or noise, gets nothing: the next question's answer is the first thing that comes.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut response = question("web.default.svc.cluster.local.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let web = question("web.default.svc.cluster.local.", RecordType::A);
    for bytes in [response.to_vec().unwrap(), vec![1, 2, 3], web.to_vec().unwrap()] {
        socket.send_to(&bytes, server.address).await.unwrap();
    }
    let mut buffer = [0; 512];
    let n = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..n]).unwrap().metadata.id, web.metadata.id);
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let server = start(cluster()).await;
    let error = Dns::serve(server.config.clone(), Arc::new(cluster()), CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen for DNS on {}", server.address));
    let bad = DnsConfig { domain: "..".into(), ..server.config.clone() };
    let error = Dns::serve(bad, Arc::new(cluster()), CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("is not a usable cluster domain"), "{error}");
}
