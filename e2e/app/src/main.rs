//! The program inside the test images: an HTTP and UDP server that drains when it is told to end.
//!
//! On SIGTERM it answers `/readyz` with 503, keeps serving for `DRAIN_SECONDS` (default 5), then ends with code 0: what a
//! well-behaved app does so that a rolling update loses no request.
//!
//! `GET /` answers the host's name and the version; `/healthz`, `/readyz`; `/exit?CODE` ends at once; `/headers` echoes
//! the request; `/client` the caller's address. UDP on the same port echoes with the host's name, and HTTP/2 is gRPC's health
//! check: the nameless service is healthy until the program drains, others are unknown.

mod grpc;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn main() -> std::io::Result<()> {
    let port = env("PORT", "8080");
    let draining = Arc::new(AtomicBool::new(false));
    // A second SIGTERM ends it at once, because the first one sets the flag.
    signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGTERM, 1, Arc::clone(&draining))?;
    let (send, received) = std::sync::mpsc::channel();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if send.send(()).is_err() {
                return;
            }
        }
    });
    let udp = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    std::thread::spawn(move || echo(&udp));
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    println!("listening on {port}");
    let flag = Arc::clone(&draining);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let flag = Arc::clone(&flag);
            std::thread::spawn(move || drop(answer(stream, &flag)));
        }
    });
    if received.recv().is_ok() {
        draining.store(true, Ordering::SeqCst);
        println!("draining");
        std::thread::sleep(Duration::from_secs(env("DRAIN_SECONDS", "5").parse().unwrap_or(5)));
    }
    println!("bye");
    Ok(())
}

fn echo(udp: &UdpSocket) {
    let mut buf = [0; 2048];
    while let Ok((n, from)) = udp.recv_from(&mut buf) {
        let mut reply = hostname().into_bytes();
        reply.push(b' ');
        reply.extend_from_slice(&buf[..n]);
        // The sender may be gone.
        let _ = udp.send_to(&reply, from);
    }
}

fn answer(stream: TcpStream, draining: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line);
    }
    if head.first().is_some_and(|l| l.starts_with("PRI ")) {
        let to = reader.get_ref().try_clone()?;
        return grpc::serve(reader, to, |service| match service {
            "" if draining.load(Ordering::SeqCst) => grpc::NOT_SERVING,
            "" => grpc::SERVING,
            _ => grpc::SERVICE_UNKNOWN,
        });
    }
    let path = head.first().and_then(|l| l.split(' ').nth(1)).unwrap_or("/").to_owned();
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let (status, body) = match path {
        "/readyz" if draining.load(Ordering::SeqCst) => ("503 Service Unavailable", "draining\n".to_owned()),
        "/readyz" | "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/headers" => ("200 OK", head.concat()),
        "/client" => ("200 OK", format!("{}\n", peer.ip())),
        "/exit" => std::process::exit(query.parse().unwrap_or(1)),
        "/" => ("200 OK", format!("{} {}\n", hostname(), env("VERSION", "v1"))),
        _ => ("404 Not Found", "not found\n".to_owned()),
    };
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    stream.flush()
}
