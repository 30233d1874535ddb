//! Answers to questions about the cluster, as the Kubernetes DNS specification 1.1.0 wants them.
//!
//! ```text
//! <service>.<ns>.svc.<domain>                     cluster IPs; addresses of endpoints when headless; or a CNAME
//! <host>.<service>.<ns>.svc.<domain>              one endpoint
//! _<port>._<protocol>.<service>.<ns>.svc.<domain> SRV
//! <a-b-c-d>.<ns>.pod.<domain>                     that address
//! <reversed address>.in-addr.arpa, .ip6.arpa      PTR to the service, or to the endpoint
//! dns-version.<domain>                            TXT
//! ```
//! A name that exists without records of the type is answered empty with the zone's SOA; one that does not exist, with
//! NXDOMAIN. A headless service without ready endpoints does not exist (the specification, 2.4.1).

use crate::cluster::{Cluster, service_of};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use isopod_client::views::{Endpoint, EndpointSlice, Service};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const VERSION: &str = "1.1.0";
/// The version's record does not change for as long as this program runs.
const VERSION_TTL: u32 = 28_800;

/// The zone that this server answers for.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Lower case, absolute.
    pub domain: Name,
    pub ttl: u32,
    /// The DNS service's own address.
    pub service_ip: Option<IpAddr>,
}

/// What to send back, or whom to ask.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Answer(Answer),
    /// Not the cluster's: ask an upstream server.
    Forward,
}

#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// An external name to resolve further, for the records that the client asked of its alias.
    pub chase: Option<Name>,
}

/// One place at which a service, an endpoint or a pod is.
struct Place {
    ip: IpAddr,
    /// The name to which an SRV record points.
    host: Name,
    port: Option<u16>,
}

/// What a name stands for.
enum Found {
    Places(Vec<Place>),
    Alias(Name),
    /// It exists, with no records of its own.
    Empty,
    Missing,
}

/// Answers one question.
pub fn answer(zone: &Zone, cluster: &dyn Cluster, name: &Name, kind: RecordType) -> Outcome {
    let lower = name.to_lowercase();
    if !zone.domain.zone_of_case(&lower) {
        return match reverse(&lower) {
            Some(ip) => pointer(zone, cluster, name, kind, ip),
            None => Outcome::Forward,
        };
    }
    if !cluster.is_synced() {
        return Outcome::Answer(failure());
    }
    let below = usize::from(lower.num_labels() - zone.domain.num_labels());
    let labels: Option<Vec<&str>> = lower.iter().take(below).map(|l| std::str::from_utf8(l).ok()).collect();
    let labels = labels.unwrap_or_default();
    Outcome::Answer(match labels[..] {
        [] if below == 0 => apex(zone, name, kind),
        ["dns-version"] if kind == RecordType::TXT => {
            let text = RData::TXT(TXT::new(vec![VERSION.to_owned()]));
            records(vec![Record::from_rdata(name.clone(), VERSION_TTL, text)])
        }
        ["dns-version"] => nothing(zone, ResponseCode::NoError),
        ["ns", "dns"] => {
            let places = zone.service_ip.map(|ip| Place { ip, host: lower.clone(), port: None });
            render(zone, name, kind, Found::Places(places.into_iter().collect()))
        }
        _ => render(zone, name, kind, find(zone, cluster, &labels)),
    })
}

/// SERVFAIL: the client asks another server, or again.
pub fn failure() -> Answer {
    Answer { code: ResponseCode::ServFail, ..Answer::default() }
}

fn records(answers: Vec<Record>) -> Answer {
    Answer { answers, ..Answer::default() }
}

/// No records; the SOA tells resolvers for how long that holds.
fn nothing(zone: &Zone, code: ResponseCode) -> Answer {
    Answer { code, authorities: vec![soa(zone)], ..Answer::default() }
}

/// A name in the zone.
fn within(zone: &Zone, labels: &[&str]) -> Option<Name> {
    Name::from_labels(labels.iter().map(|l| l.as_bytes())).ok()?.append_domain(&zone.domain).ok()
}

fn soa(zone: &Zone) -> Record {
    let name = |labels: &[&str]| within(zone, labels).unwrap_or_else(|| zone.domain.clone());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let serial = u32::try_from(now & u64::from(u32::MAX)).unwrap_or_default();
    let soa = SOA::new(name(&["ns", "dns"]), name(&["hostmaster"]), serial, 7200, 1800, 86_400, zone.ttl);
    Record::from_rdata(zone.domain.clone(), zone.ttl, RData::SOA(soa))
}

fn apex(zone: &Zone, name: &Name, kind: RecordType) -> Answer {
    match (kind, within(zone, &["ns", "dns"])) {
        (RecordType::SOA, _) => records(vec![soa(zone)]),
        (RecordType::NS, Some(server)) => {
            let glue = zone.service_ip.map(|ip| Record::from_rdata(server.clone(), zone.ttl, address(ip)));
            Answer {
                additionals: glue.into_iter().collect(),
                ..records(vec![Record::from_rdata(name.clone(), zone.ttl, RData::NS(NS(server)))])
            }
        }
        _ => nothing(zone, ResponseCode::NoError),
    }
}

/// Resolves the labels left of the domain.
fn find(zone: &Zone, cluster: &dyn Cluster, labels: &[&str]) -> Found {
    let (rest, namespace, is_service) = match labels {
        ["svc" | "pod"] => return Found::Empty,
        [rest @ .., namespace, kind @ ("svc" | "pod")] => (rest, *namespace, *kind == "svc"),
        _ => return Found::Missing,
    };
    match (rest, is_service) {
        ([], _) if cluster.has_namespace(namespace) => Found::Empty,
        ([name], true) => service(zone, cluster, namespace, name, Which::All),
        ([host, name], true) => service(zone, cluster, namespace, name, Which::Host(host)),
        ([port, protocol, name], true) => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
            (Some(port), Some(protocol)) => service(zone, cluster, namespace, name, Which::Port(port, protocol)),
            _ => Found::Missing,
        },
        ([dashed], false) if cluster.has_namespace(namespace) => match (pod_ip(dashed), within(zone, labels)) {
            (Some(ip), Some(host)) => Found::Places(vec![Place { ip, host, port: None }]),
            _ => Found::Missing,
        },
        _ => Found::Missing,
    }
}

/// Which part of a service is asked for.
#[derive(Clone, Copy)]
enum Which<'a> {
    All,
    Host(&'a str),
    Port(&'a str, &'a str),
}

impl Which<'_> {
    fn takes_port(self, name: &str, protocol: &str) -> bool {
        match self {
            // An endpoint's or service's own name stands for all its ports.
            Which::All | Which::Host(_) => true,
            Which::Port(wanted, transport) => wanted == name && transport.eq_ignore_ascii_case(protocol),
        }
    }

    fn takes_host(self, host: &str) -> bool {
        match self {
            Which::Host(wanted) => wanted == host,
            _ => true,
        }
    }
}

fn service(zone: &Zone, cluster: &dyn Cluster, namespace: &str, name: &str, which: Which<'_>) -> Found {
    let Some(service) = cluster.service(namespace, name) else { return Found::Missing };
    if service.spec.kind == "ExternalName" {
        let target = Name::from_ascii(&service.spec.external_name).ok();
        return match (which, target) {
            (Which::All, Some(mut target)) => {
                target.set_fqdn(true);
                Found::Alias(target)
            }
            _ => Found::Missing,
        };
    }
    let places = if is_headless(&service) || matches!(which, Which::Host(_)) {
        let slices = cluster.slices(namespace, name);
        slices.iter().flat_map(|s| endpoints(zone, s, namespace, name, which)).collect()
    } else {
        cluster_ips(zone, &service, which)
    };
    if places.is_empty() { Found::Missing } else { Found::Places(places) }
}

fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip == "None"
}

fn cluster_ips(zone: &Zone, service: &Service, which: Which<'_>) -> Vec<Place> {
    let Some(host) = within(zone, &[&service.metadata.name, &service.metadata.namespace, "svc"]) else {
        return Vec::new();
    };
    let one = std::slice::from_ref(&service.spec.cluster_ip);
    let ips = if service.spec.cluster_ips.is_empty() { one } else { &service.spec.cluster_ips };
    let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let ports = service.spec.ports.iter().filter(|p| which.takes_port(&p.name, protocol(&p.protocol)));
    ports
        .flat_map(|p| ips.iter().map(|ip| (*ip, u16::try_from(p.port).ok())))
        .map(|(ip, port)| Place { ip, host: host.clone(), port })
        .collect()
}

/// The ready endpoints of a slice.
fn endpoints(zone: &Zone, slice: &EndpointSlice, namespace: &str, name: &str, which: Which<'_>) -> Vec<Place> {
    let mut ports: Vec<Option<u16>> = slice
        .ports
        .iter()
        .filter(|p| {
            which.takes_port(p.name.as_deref().unwrap_or_default(), protocol(p.protocol.as_deref().unwrap_or_default()))
        })
        .map(|p| p.port.and_then(|n| u16::try_from(n).ok()))
        .collect();
    // A service without ports has addresses all the same.
    if slice.ports.is_empty() && !matches!(which, Which::Port(..)) {
        ports.push(None);
    }
    let mut places = Vec::new();
    for endpoint in slice.endpoints.iter().filter(|e| e.conditions.is_ready()) {
        for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
            let host = host_of(endpoint, ip);
            if let (true, Some(host)) = (which.takes_host(&host), within(zone, &[&host, name, namespace, "svc"])) {
                places.extend(ports.iter().map(|port| Place { ip, host: host.clone(), port: *port }));
            }
        }
    }
    places
}

/// The label of an endpoint: its hostname, or its address with dashes.
fn host_of(endpoint: &Endpoint, ip: IpAddr) -> String {
    match &endpoint.hostname {
        Some(name) if !name.is_empty() => name.clone(),
        _ => ip.to_string().replace(['.', ':'], "-"),
    }
}

fn protocol(name: &str) -> &str {
    if name.is_empty() { "TCP" } else { name }
}

/// `10-42-0-7`, or an IPv6 address with dashes for colons.
fn pod_ip(dashed: &str) -> Option<IpAddr> {
    let v4 = dashed.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::from);
    v4.or_else(|| dashed.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from))
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// Makes records of the asked type from what was found.
fn render(zone: &Zone, name: &Name, kind: RecordType, found: Found) -> Answer {
    let places = match found {
        Found::Missing => return nothing(zone, ResponseCode::NXDomain),
        Found::Empty => return nothing(zone, ResponseCode::NoError),
        Found::Alias(target) => {
            // A name that is an alias has that record whatever is asked; SRV records do not go through it.
            if kind == RecordType::SRV {
                return nothing(zone, ResponseCode::NoError);
            }
            let alias = Record::from_rdata(name.clone(), zone.ttl, RData::CNAME(CNAME(target.clone())));
            let chase = (kind != RecordType::CNAME).then_some(target);
            return Answer { chase, ..records(vec![alias]) };
        }
        Found::Places(places) => places,
    };
    let mut answer = Answer::default();
    match kind {
        RecordType::A | RecordType::AAAA => {
            for place in places.iter().filter(|p| p.ip.is_ipv4() == (kind == RecordType::A)) {
                add(&mut answer.answers, Record::from_rdata(name.clone(), zone.ttl, address(place.ip)));
            }
        }
        RecordType::SRV => {
            let with_port: Vec<(&Place, u16)> = places.iter().filter_map(|p| Some((p, p.port?))).collect();
            // Weights add up to about 100.
            let weight = u16::try_from(100 / with_port.len().max(1)).unwrap_or(1).max(1);
            for (place, port) in with_port {
                let srv = SRV::new(0, weight, port, place.host.clone());
                add(&mut answer.answers, Record::from_rdata(name.clone(), zone.ttl, RData::SRV(srv)));
                add(&mut answer.additionals, Record::from_rdata(place.host.clone(), zone.ttl, address(place.ip)));
            }
        }
        _ => {}
    }
    if answer.answers.is_empty() { nothing(zone, ResponseCode::NoError) } else { answer }
}

fn add(records: &mut Vec<Record>, record: Record) {
    if !records.contains(&record) {
        records.push(record);
    }
}

/// The address of a complete reverse name.
fn reverse(name: &Name) -> Option<IpAddr> {
    let arpa = name.iter().next_back().is_some_and(|l| l == b"arpa");
    let net = arpa.then(|| name.parse_arpa_name().ok()).flatten()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Names of the services at the address, or else of the endpoints. Other addresses are not the cluster's to answer.
fn pointer(zone: &Zone, cluster: &dyn Cluster, name: &Name, kind: RecordType, ip: IpAddr) -> Outcome {
    if !cluster.is_synced() {
        return Outcome::Answer(failure());
    }
    let mut targets: Vec<Name> = Vec::new();
    for s in cluster.services_at(ip) {
        targets.extend(within(zone, &[&s.metadata.name, &s.metadata.namespace, "svc"]));
    }
    if targets.is_empty() {
        for slice in cluster.slices_at(ip) {
            let at = |e: &&Endpoint| e.conditions.is_ready() && e.addresses.iter().any(|a| a.parse() == Ok(ip));
            let Some(service) = service_of(&slice) else { continue };
            for e in slice.endpoints.iter().filter(at) {
                targets.extend(within(zone, &[&host_of(e, ip), service, &slice.metadata.namespace, "svc"]));
            }
        }
    }
    if targets.is_empty() {
        return Outcome::Forward;
    }
    let mut answer = Answer::default();
    if kind == RecordType::PTR {
        for target in targets {
            add(&mut answer.answers, Record::from_rdata(name.clone(), zone.ttl, RData::PTR(PTR(target))));
        }
    }
    Outcome::Answer(answer)
}
