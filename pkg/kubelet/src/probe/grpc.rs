//! The gRPC health check (`grpc.health.v1.Health/Check`), spoken by hand: one message each way over HTTP/2.

use super::http::dial_error;
use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::net::TcpStream;

const MAX_ANSWER: usize = 4096;

/// What the service said: `Ok(Some(1))` is SERVING.
pub async fn check(addr: &str, service: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, ask(addr, service)).await {
        Err(_) => {
            Err(format!("timeout: failed to connect service {addr:?} within {timeout:?}: context deadline exceeded"))
        }
        Ok(Err(e)) => Err(e),
        Ok(Ok(1)) => Ok(()),
        Ok(Ok(status)) => Err(format!("service unhealthy (responded with {:?})", status_name(status))),
    }
}

fn status_name(status: u64) -> &'static str {
    match status {
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNRECOGNIZED",
    }
}

async fn ask(addr: &str, service: &str) -> Result<u64, String> {
    let dial = |e: &std::io::Error| {
        format!("error: failed to connect service at {addr:?}: dial tcp {addr}: {}", dial_error(e))
    };
    let tcp = TcpStream::connect(addr).await.map_err(|e| dial(&e))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .map_err(|e| format!("error: health rpc failed: {e}"))?;
    let driver = tokio::spawn(connection);
    let answer = call(&mut sender, addr, service).await;
    driver.abort();
    answer
}

async fn call(
    sender: &mut hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    addr: &str,
    service: &str,
) -> Result<u64, String> {
    let request = Request::post(format!("http://{addr}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(message(service)))
        .map_err(|e| format!("error: health rpc failed: {e}"))?;
    let response = sender.send_request(request).await.map_err(|e| format!("error: health rpc failed: {e}"))?;
    // A call that fails at once has its status among the headers.
    let early = grpc_status(response.headers());
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| format!("error: health rpc failed: {e}"))?;
    let (code, text) = match body.trailers() {
        Some(t) => grpc_status(t),
        None => early,
    };
    match code.as_str() {
        "0" | "" => parse(&body.to_bytes()).ok_or_else(|| "error: health rpc failed: malformed answer".into()),
        "12" => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}"
        )),
        _ => Err(format!("error: health rpc failed: rpc error: code = {code} desc = {text}")),
    }
}

fn grpc_status(headers: &http::HeaderMap) -> (String, String) {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    (text("grpc-status"), text("grpc-message"))
}

/// `HealthCheckRequest{service = 1}` with gRPC's five-byte prefix.
fn message(service: &str) -> Bytes {
    let mut body = BytesMut::new();
    if !service.is_empty() {
        body.put_u8(1 << 3 | 2);
        varint(service.len() as u64, &mut body);
        body.put_slice(service.as_bytes());
    }
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(body.len() as u32);
    out.put_slice(&body);
    out.freeze()
}

fn varint(mut n: u64, out: &mut BytesMut) {
    while n >= 0x80 {
        out.put_u8(n as u8 | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

/// `HealthCheckResponse{status = 1}`; nothing at all is UNKNOWN.
fn parse(data: &[u8]) -> Option<u64> {
    let body = data.get(5..)?;
    match body {
        [] => Some(0),
        [8, rest @ ..] => {
            let mut value = 0u64;
            for (i, b) in rest.iter().enumerate().take(9) {
                value |= u64::from(b & 0x7f) << (7 * i);
                if b & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::service::service_fn;
    use std::convert::Infallible;

    async fn server(answer: &'static [u8]) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((s, _)) = listener.accept().await {
                let service = service_fn(move |r: Request<hyper::body::Incoming>| async move {
                    assert_eq!(r.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = r.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(&asked[..], b"\0\0\0\0\x04\x0a\x02ab");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let body = Full::new(Bytes::from_static(answer)).with_trailers(async move { Some(Ok(trailers)) });
                    Ok::<_, Infallible>(http::Response::new(body))
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(s), service),
                );
            }
        });
        addr
    }

    #[tokio::test]
    async fn statuses_are_told_apart() {
        let wait = Duration::from_secs(5);
        assert_eq!(check(&server(b"\0\0\0\0\x02\x08\x01").await, "ab", wait).await, Ok(()));
        let sick = check(&server(b"\0\0\0\0\x02\x08\x02").await, "ab", wait).await;
        assert_eq!(sick, Err("service unhealthy (responded with \"NOT_SERVING\")".into()));
        let unknown = check(&server(b"\0\0\0\0\0").await, "ab", wait).await;
        assert_eq!(unknown, Err("service unhealthy (responded with \"UNKNOWN\")".into()));
    }
}
