//! What Prometheus and an OpenTelemetry collector see of a function.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::Request;
use lambda_architecture::client::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{sleep, timeout},
};

use crate::app::{DEADLINE, PROGRAM};

const TRACE: [u8; 16] =
    [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];

/// A function of its own; killed when the test ends.
struct Function(Child);

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_request_is_seen_in_metrics_and_in_its_callers_trace() {
    let data = tempfile::tempdir().unwrap();
    let collector = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (http, metrics) = (free_port(), free_port());
    let child = Command::new(PROGRAM)
        .args(["function", "ingest"])
        .current_dir(data.path())
        .env("PORT", http.port().to_string())
        .env("METRICS_PORT", metrics.port().to_string())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.local_addr().unwrap()))
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .stdout(Stdio::null())
        .spawn();
    let _function = Function(child.unwrap());
    let user = r#"{"id":"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad","name":"a"}"#;
    let request = Request::post("/user")
        .header("content-type", "application/json")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(Bytes::from_static(user.as_bytes()))
        .unwrap();
    let (mut client, started) = (Client::new(http), Instant::now());
    while client.get("/healthz").await.is_err() {
        assert!(started.elapsed() < DEADLINE, "the function never answers");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(client.send(request).await.unwrap().status(), 201);

    let page = Client::new(metrics).get("/metrics").await.unwrap();
    let page = String::from_utf8_lossy(page.body()).into_owned();
    assert!(page.contains("http_requests_total{method=\"POST\",status=\"201\"} 1"), "{page}");

    let traced = async {
        loop {
            let (mut stream, _) = collector.accept().await.unwrap();
            let mut sent = Vec::new();
            // One post a connection is enough; what it says after its head is the spans.
            while !sent.windows(TRACE.len()).any(|window| window == TRACE) {
                if stream.read_buf(&mut sent).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            if sent.windows(TRACE.len()).any(|window| window == TRACE) {
                return String::from_utf8_lossy(&sent).starts_with("POST /v1/traces ");
            }
        }
    };
    assert!(timeout(DEADLINE, traced).await.expect("no trace came"), "traces go to /v1/traces");
}
