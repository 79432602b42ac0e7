//! Invalid requests of every kind, each with the status that the contract promises. They must store nothing and must
//! not delay other clients.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Request, header::HeaderValue};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

use crate::app::App;

const ID: &str = "fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad";
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const STRUCTURED: &[(&str, &str)] = &[("content-type", "application/cloudevents+json")];
const BATCHED: &[(&str, &str)] = &[("content-type", "application/cloudevents-batch+json")];
const BINARY: &[(&str, &str)] = &[
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "/s"),
    ("ce-type", "t"),
    ("content-type", "application/json"),
];

/// A request and its expected status.
struct Case {
    method: &'static str,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    status: u16,
}

fn case(
    method: &'static str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
    status: u16,
) -> Case {
    let headers =
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    Case { method, path: path.to_owned(), headers, body: body.as_ref().to_vec(), status }
}

/// Bodies that are not a valid user, for every route that accepts users.
fn no_users() -> Vec<Vec<u8>> {
    let quoted = |name: &str| format!(r#"{{"id":"{ID}","name":"{name}"}}"#).into_bytes();
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "[",
        "null",
        "true",
        "1",
        "1e999",
        "\"user\"",
        "[]",
        "{}",
        "{{}}",
        "nul",
        "'a'",
        "<user/>",
        "id=1&name=a",
        "\u{feff}{}",
        "{\"id\":1,\"name\":\"a\"}",
        "{\"id\":null,\"name\":\"a\"}",
        "{\"id\":[],\"name\":\"a\"}",
        "{\"id\":\"\",\"name\":\"a\"}",
        "{\"id\":\"x\",\"name\":\"a\"}",
        "{\"id\":\"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9a\",\"name\":\"a\"}",
        "{\"id\":\"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ag\",\"name\":\"a\"}",
        "{\"id\":\"../../etc/passwd\",\"name\":\"a\"}",
        "{\"name\":\"a\"}",
        "{\"id\":\"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad\"}",
        "{\"ID\":\"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad\",\"Name\":\"a\"}",
    ]
    .iter()
    .map(|body| body.as_bytes().to_vec())
    .collect();
    for name in [
        "null",
        "7",
        "[]",
        "{}",
        "true",
        "\"\"",
        "\"a",
        "a",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "\"\\x\"",
        "\"\\u00\"",
    ] {
        bodies.push(format!(r#"{{"id":"{ID}","name":{name}}}"#).into_bytes());
    }
    for control in ["\\u0000", "\\n", "\\u001b[31m", "\\u007f", "\\u0085", "\t", "\n"] {
        bodies.push(quoted(control));
    }
    bodies.push(quoted(&"a".repeat(256)));
    bodies.push(quoted(&"😀".repeat(256)));
    bodies.push(format!(r#"{{"id":"{ID}","name":"a","name":"b"}}"#).into_bytes());
    bodies.push(format!(r#"{{"id":"{ID}","id":"{ID}","name":"a"}}"#).into_bytes());
    bodies.push(format!(r#"{{"id":"{ID}","name":"a","age":7}}"#).into_bytes());
    bodies.push(format!(r#"{{"id":"{ID}","name":"a"}} {{}}"#).into_bytes());
    bodies.push(format!(r#"{{"id":"{ID}","name":"a",}}"#).into_bytes());
    bodies.push("[".repeat(30_000).into_bytes());
    bodies.push("{\"a\":".repeat(10_000).into_bytes());
    for bad_utf8 in
        [&[0xff][..], &[0xc3, 0x28], &[0xed, 0xa0, 0x80], &[0xf4, 0x90, 0x80, 0x80], &[0xc0, 0xaf]]
    {
        let mut body = quoted("a");
        let at = body.len() - 3;
        body.splice(at..at + 1, bad_utf8.iter().copied());
        bodies.push(body);
    }
    bodies
}

fn cases() -> Vec<Case> {
    let user = json!({ "id": ID, "name": "a" }).to_string();
    let event = |more: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{more}}}"#);
    let mut cases = Vec::new();
    for body in no_users() {
        cases.push(case("POST", "/ingress/user", JSON, &body, 400));
        for path in ["/ingress/", "/function/count/", "/function/store/"] {
            cases.push(case("POST", path, BINARY, &body, 400));
        }
    }
    for kind in [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "x",
        "application/jsonx",
    ] {
        cases.push(case("POST", "/ingress/user", &[("content-type", kind)], &user, 415));
        cases.push(case("POST", "/ingress/", &[("content-type", kind)], &user, 415));
    }
    cases.push(case("POST", "/ingress/user", &[], &user, 415));
    cases.push(case("POST", "/ingress/", &[], &user, 400));
    cases.push(case("POST", "/ingress/", JSON, &user, 400));
    let too_large = json!({ "id": ID, "name": "a".repeat(65 * 1024) }).to_string();
    cases.push(case("POST", "/ingress/user", JSON, &too_large, 413));
    cases.push(case("POST", "/ingress/", BINARY, &too_large, 413));
    cases.push(case("POST", "/ingress/", STRUCTURED, &too_large, 413));
    // The function or the gateway responds before it has read these bodies. The client must still receive the response.
    for _ in 0..10 {
        cases.push(case("POST", "/ingress/", BATCHED, " ".repeat(1024 * 1024 + 1), 413));
        cases.push(case("POST", "/ingress/", BATCHED, " ".repeat(3 * 1024 * 1024), 413));
    }
    for body in [
        event(""),
        event(r#","data":null"#),
        event(&format!(r#","data":{user},"data_base64":"e30=""#)),
        event(r#","data_base64":"!""#),
        event(&format!(r#","data":{user},"id":"2""#)),
        event(&format!(r#","data":{user},"Upper":"x""#)),
        event(&format!(r#","data":{user},"time":"noon""#)),
        event(&format!(r#","data":{user}"#)).replace("1.0", "0.3"),
        event(&format!(r#","data":{user}"#)).replace(r#""id":"1","#, ""),
        event(&format!(r#","data":{user}"#)).replace(r#""source":"/s","#, ""),
        event(&format!(r#","data":{user}"#)).replace(r#""type":"t","#, r#""type":"","#),
        "[]".to_owned(),
        user.clone(),
    ] {
        cases.push(case("POST", "/ingress/", STRUCTURED, &body, 400));
        cases.push(case("POST", "/ingress/", BATCHED, format!("[{body}]"), 400));
    }
    cases.push(case("POST", "/ingress/", BATCHED, event(&format!(r#","data":{user}"#)), 400));
    let xml = event(&format!(r#","datacontenttype":"text/xml","data":{user}"#));
    cases.push(case("POST", "/ingress/", STRUCTURED, xml, 415));
    cases.push(case("POST", "/ingress/", &[("content-type", "application/cloudevents+avro")], &user, 415));
    for (name, value) in [
        ("ce-specversion", "0.3"),
        ("ce-specversion", "x"),
        ("ce-id", ""),
        ("ce-time", "noon"),
        ("ce-my_ext", "1"),
    ] {
        let mut headers: Vec<_> = BINARY.iter().filter(|(n, _)| *n != name).copied().collect();
        headers.push((name, value));
        cases.push(case("POST", "/ingress/", &headers, &user, 400));
    }
    for (method, path, status) in [
        ("GET", "/ingress/user", 405),
        ("PUT", "/ingress/user", 405),
        ("DELETE", "/ingress/user", 405),
        ("PATCH", "/ingress/", 405),
        ("POST", "/service-analytics/analytics", 405),
        ("POST", "/ingress/healthz", 405),
        ("GET", "/function/count/", 405),
        ("POST", "/function/count/user/count", 405),
        ("GET", "/function/batch/", 405),
        ("POST", "/", 405),
        ("POST", "/status", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/ingress/nowhere", 404),
        ("POST", "/ingress/user/", 404),
        ("POST", "/ingress/user/..", 404),
        ("GET", "/function/nobody/", 404),
        ("GET", "/function/", 404),
        ("GET", "/service-analytics/analytics/", 404),
    ] {
        cases.push(case(method, path, JSON, "", status));
    }
    for query in [
        "from=x",
        "to=x",
        "limit=0",
        "limit=10001",
        "limit=x",
        "step=0m",
        "step=1",
        "before=-1",
        "color=red",
        "limit=1&limit=2",
    ] {
        cases.push(case("GET", &format!("/service-analytics/analytics?{query}"), &[], "", 400));
    }
    cases.push(case("POST", "/function/batch/?full=perhaps", BINARY, "{}", 400));
    cases.push(case("POST", "/function/batch/", JSON, "{}", 400));
    cases
}

#[tokio::test]
async fn every_bad_request_gets_its_status_and_changes_nothing() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "good").await;
    app.settle().await;
    let before = app.analytics().await;
    let cases = cases();
    assert!(cases.len() >= 100);
    for case in cases {
        let mut request = Request::builder().method(case.method).uri(&case.path);
        for (name, value) in &case.headers {
            request = request.header(name, HeaderValue::from_bytes(value).unwrap());
        }
        let body = String::from_utf8_lossy(&case.body[..case.body.len().min(120)]).into_owned();
        let what = format!("{} {} {body}", case.method, case.path);
        let answer = app.send(request.body(Bytes::from(case.body)).unwrap()).await;
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(answer.status(), case.status, "{what}: {:?}", answer.body());
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{what}");
        assert_eq!(answer.headers().contains_key("allow"), case.status == 405, "{what}");
        let problem: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(problem["status"], case.status, "{what}");
        assert!(problem["title"].is_string() && !problem["detail"].as_str().unwrap().is_empty(), "{what}");
    }
    app.settle().await;
    assert_eq!(app.analytics().await, before);
    assert_eq!(app.get("/status").await["deadLetters"], 0);
}

/// Bytes that are not an HTTP request. The server may respond with a 4xx or close the connection without a response.
const NO_HTTP: [&[u8]; 14] = [
    b"\r\n\r\n\r\n\r\n",
    b"\0\0\0\0\0\0\0\0",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"HELLO\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x01\x02\r\n\r\n",
    b"POST /ingress/user HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /ingress/user HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /ingress/user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense nonsense nonsense",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
];

#[tokio::test]
async fn bytes_that_are_no_http_get_a_400_or_an_end() {
    let mut app = App::start().await;
    let mut requests: Vec<Vec<u8>> = NO_HTTP.iter().map(|bytes| bytes.to_vec()).collect();
    requests.push(
        [b"GET /".to_vec(), vec![b'a'; 100_000], b" HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()].concat(),
    );
    requests.push(
        [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec(), vec![b'a'; 500_000], b"\r\n\r\n".to_vec()]
            .concat(),
    );
    let many = (0..500).flat_map(|n| format!("X-{n}: y\r\n").into_bytes()).collect();
    requests.push([b"GET / HTTP/1.1\r\nHost: localhost\r\n".to_vec(), many, b"\r\n".to_vec()].concat());
    for request in requests {
        let what = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(&request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "no end: {what}");
        let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
        let fine = answer.is_empty() || line.starts_with("HTTP/1.1 4") || !line.starts_with("HTTP/1.1");
        assert!(fine, "{what}: {line}");
    }
    app.post_user(Uuid::new_v4(), "still here").await;
}

#[tokio::test]
async fn stalled_clients_keep_nobody_out() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "warm").await;
    let beginnings: [&[u8]; 4] = [
        b"",
        b"POST /ingress/us",
        b"POST /ingress/user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Le",
        b"POST /ingress/user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{\"id",
    ];
    let mut stalled = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(beginnings[n % beginnings.len()]).await.unwrap();
        stalled.push(stream);
    }
    let started = Instant::now();
    for n in 0..50 {
        app.post_user(Uuid::new_v4(), &format!("user{n}")).await;
    }
    assert!(started.elapsed() < Duration::from_secs(8), "others had to wait for stalled clients");
    // The server closes stalled connections, with a 408 if a request had started.
    for mut stream in stalled {
        let mut answer = Vec::new();
        let end = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "a stalled connection is never closed");
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 51);
}

#[tokio::test]
async fn half_closed_and_broken_connections_are_answered_or_forgotten() {
    let mut app = App::start().await;
    let id = Uuid::new_v4();
    let body = json!({ "id": id, "name": "half" }).to_string();
    let request = format!(
        "POST /ingress/user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A client that sends a complete request receives the response.
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    // A client that disconnects before the end of its request stores no user.
    for cut in [10, 60, request.len() - 1] {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
        drop(stream);
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 1);
}
