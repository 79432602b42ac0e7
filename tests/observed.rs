//! Metrics, traces and logs of a function, as Prometheus, an OpenTelemetry collector and a log reader receive them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{Request, StatusCode};
use lambda_architecture::client::Client;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::app::{App, DEADLINE, PROGRAM};

const TRACE: [u8; 16] =
    [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];

/// A separate function process. Killed when the test ends.
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
            // Only the first POST of each connection is read. Its body contains the spans.
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

#[tokio::test]
async fn a_cron_connectors_call_ticks_and_is_found_in_the_logs() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "a").await;
    app.eventually("it is stored", async |app| app.tick("").await["users"] == 1).await;
    // OpenFaaS's gateway adds the two headers; the Community Edition's connector adds none.
    let call = Request::post("/function/batch/")
        .header("x-call-id", "call-7")
        .header("x-start-time", "1700000000000000000")
        .body(Bytes::new())
        .unwrap();
    let answer = app.send(call).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["x-call-id"]),
        (StatusCode::OK, &"call-7".parse().unwrap())
    );
    let logs = std::fs::read_to_string(app.data.path().join("logs/batch.log")).unwrap();
    let lines = logs.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_call: Vec<_> = lines.filter(|line| line["callId"] == "call-7").collect();
    assert_eq!((of_call.len(), &of_call[0]["msg"]), (1, &json!("batch views are up to date")), "{logs}");
}
