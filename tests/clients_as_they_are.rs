//! Requests of clients, proxies and attackers that no HTTP library would send. They must not delay other clients.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

use crate::{
    app::{App, DEADLINE, Options},
    stores::Stores,
    wire::{self, Answer, ask, ask_half_closed, request},
};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const BATCHED: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");
/// Maximum time that one request may delay another.
const PROMPT: Duration = Duration::from_secs(5);

fn user(id: Uuid) -> String {
    json!({ "id": id, "name": "as they are" }).to_string()
}

async fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Answer {
    ask(address, &request("GET", target, headers, b"")).await.unwrap_or_else(|| panic!("no answer: {target}"))
}

async fn post(address: SocketAddr, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    ask(address, &request("POST", "/ingress/user", headers, body)).await.expect("no answer")
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let mut app = App::start().await;
    for n in 1..=5 {
        let id = Uuid::new_v4();
        // With `keep-alive` as well: a half-close is not a request to close the connection.
        for connection in ["close", "keep-alive"] {
            let headers = [JSON, ("Connection", connection)];
            let sent = request("POST", "/ingress/user", &headers, user(id).as_bytes());
            let answer = ask_half_closed(app.address, &sent).await;
            assert_eq!(answer.expect("no answer").status, 201, "{connection}");
        }
        app.settle().await;
        assert_eq!(app.user_count().await, n);
    }
    let read = request("GET", "/service-analytics/analytics", &[], b"");
    assert_eq!(ask_half_closed(app.address, &read).await.expect("no answer").status, 200);
    assert_eq!(app.tick("").await["users"], 5);
}

#[tokio::test]
async fn only_an_object_is_a_user_or_an_event() {
    let mut app = App::start().await;
    let id = Uuid::new_v4();
    let array = json!([id, "user1"]);
    let answer = post(app.address, &[JSON], array.to_string().as_bytes()).await;
    assert_eq!(answer.status, 400);
    assert!(answer.problem().contains("object"), "{answer:?}");
    let event = json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": array });
    let envelope = json!(["1.0", "1", "/s", "t", { "id": id, "name": "user1" }]);
    for (kind, body) in [
        ("application/cloudevents+json", event.clone()),
        ("application/cloudevents-batch+json", json!([event])),
        ("application/cloudevents+json", envelope.clone()),
        ("application/cloudevents-batch+json", json!([envelope])),
    ] {
        let sent = request("POST", "/ingress/", &[("Content-Type", kind)], body.to_string().as_bytes());
        let answer = ask(app.address, &sent).await.unwrap();
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 0);
}

#[tokio::test]
async fn a_request_without_a_good_host_is_refused() {
    let app = App::start().await;
    let none = ask(app.address, b"GET /status HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    assert_eq!(none.status, 400, "{none:?}");
    none.problem();
    let two = b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let two = ask(app.address, two).await.unwrap();
    assert_eq!(two.status, 400, "{two:?}");
    for host in [
        "a b",
        "local/host",
        "me@localhost",
        "[::1",
        "localhost:port",
        "localhost:1:2",
        "local\"host",
        "\u{e9}",
    ] {
        let answer = get(app.address, "/status", &[("Host", host)]).await;
        assert_eq!(answer.status, 400, "{host}: {answer:?}");
        answer.problem();
    }
}

#[tokio::test]
async fn a_name_is_the_same_with_a_dot_in_capitals_and_in_absolute_form() {
    let app = App::start().await;
    for host in [
        "count.default.localhost",
        "count.default.localhost:8080",
        "count.default.localhost.",
        "count.default.localhost.:8080",
        "Count.Default.LOCALHOST",
    ] {
        let answer = get(app.address, "/user/count", &[("Host", host)]).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "userCount": 0 })), "{host}");
    }
    // The host in the request target takes precedence over the header.
    for host in ["localhost", "store.default.localhost", "elsewhere"] {
        let target = "http://count.default.localhost/user/count";
        let answer = get(app.address, target, &[("Host", host)]).await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
}

#[tokio::test]
async fn a_request_for_another_host_or_from_another_site_is_refused() {
    let mut app = App::start().await;
    for host in ["example.org", "127.0.0.1.example.org:8080", "10.0.0.1"] {
        for path in ["/status", "/function/count/user/count"] {
            let answer = get(app.address, path, &[("Host", host)]).await;
            assert_eq!(answer.status, 403, "{host}: {answer:?}");
            assert!(answer.problem().contains("--allow-host"), "{answer:?}");
        }
    }
    let body = user(Uuid::new_v4());
    for (header, value) in
        [("Origin", "https://example.org"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site")]
    {
        let answer = post(app.address, &[JSON, (header, value)], body.as_bytes()).await;
        assert_eq!(answer.status, 403, "{header}: {value}: {answer:?}");
        answer.problem();
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 0);
    let own = format!("http://{}", app.address);
    let answer =
        post(app.address, &[JSON, ("Origin", &own), ("Sec-Fetch-Site", "same-origin")], body.as_bytes())
            .await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[tokio::test]
async fn analytics_that_have_not_changed_are_not_sent_again() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "first").await;
    app.settle().await;
    let ask =
        async |tag: &str| get(app.address, "/service-analytics/analytics", &[("If-None-Match", tag)]).await;
    let first = ask("\"other\"").await;
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!((first.status, first.header("cache-control")), (200, Some("no-cache")));
    let again = ask(&tag).await;
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(tag.as_str())));
    app.post_user(Uuid::new_v4(), "second").await;
    app.settle().await;
    let changed = get(app.address, "/service-analytics/analytics", &[("If-None-Match", &tag)]).await;
    assert_eq!(changed.status, 200);
    assert_ne!(changed.header("etag"), Some(tag.as_str()));
}

#[tokio::test]
async fn an_encoded_body_is_refused_by_its_coding() {
    let mut app = App::start().await;
    for coding in ["gzip", "zstd", "br", "deflate", "identity, gzip"] {
        let answer = post(app.address, &[JSON, ("Content-Encoding", coding)], b"\x1f\x8b\x08\0").await;
        assert_eq!(answer.status, 415, "{coding}: {answer:?}");
        let detail = answer.problem();
        assert!(detail.contains("Content-Encoding") || detail.contains(coding), "{detail}");
    }
    let body = user(Uuid::new_v4());
    let answer = post(app.address, &[JSON, ("Content-Encoding", "identity")], body.as_bytes()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    app.settle().await;
    assert_eq!(app.user_count().await, 1);
}

#[tokio::test]
async fn a_byte_order_mark_is_taken_or_named() {
    let mut app = App::start().await;
    let body = format!("\u{feff}{}", user(Uuid::new_v4()));
    let answer = post(app.address, &[JSON], body.as_bytes()).await;
    let taken = answer.status == 201;
    if !taken {
        assert_eq!(answer.status, 400);
        let detail = answer.problem().to_lowercase();
        assert!(["byte order mark", "byte-order mark", "bom"].iter().any(|n| detail.contains(n)), "{detail}");
    }
    app.settle().await;
    assert_eq!(app.user_count().await, u64::from(taken));
}

#[tokio::test]
async fn methods_and_paths_are_as_http_says() {
    let app = App::start().await;
    let redirect = get(app.address, "/service-analytics", &[]).await;
    assert!([301, 302, 307, 308].contains(&redirect.status), "{redirect:?}");
    let location = redirect.header("location").unwrap();
    assert!(location.ends_with("/service-analytics/"), "{location}");
    assert_eq!(get(app.address, location, &[]).await.status, 200);

    for path in ["/", "/status", "/service-analytics/", "/service-analytics/analytics", "/ingress/healthz"] {
        let (head, get) = (
            ask(app.address, &request("HEAD", path, &[], b"")).await.unwrap(),
            get(app.address, path, &[]).await,
        );
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert!(head.header("content-length").is_some(), "{path}: {head:?}");
    }
    for (path, allowed) in [
        ("/ingress/user", "POST"),
        ("/ingress/", "POST"),
        ("/service-analytics/analytics", "GET"),
        ("/function/count/user/count", "GET"),
        ("/status", "GET"),
    ] {
        let answer = ask(app.address, &request("OPTIONS", path, &[], b"")).await.unwrap();
        // The gateway's own pages need not support OPTIONS, but must name the methods that they accept.
        let known = [200, 204].contains(&answer.status) || (path == "/status" && answer.status == 405);
        assert!(known, "{path}: {answer:?}");
        let allow = answer.header("allow").unwrap_or_default();
        assert!(allow.split(',').any(|method| method.trim() == allowed), "{path}: {allow}");
    }
}

/// The target of the link to older points, as a path.
fn older(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let target = link.strip_prefix('<')?.split_once('>')?.0.to_owned();
    Some(format!("/service-analytics/analytics{target}"))
}

#[tokio::test]
async fn links_lead_on_also_at_the_edge_of_years() {
    let mut app = App::start().await;
    for n in 0..3 {
        app.post_user(Uuid::new_v4(), &format!("user{n}")).await;
        app.settle().await;
    }
    for window in [
        "",
        "&from=0000-01-01T00:00:00%2B01:00",
        "&from=0000-01-01T00:00:00Z",
        "&to=9999-12-31T23:59:59-01:00",
        "&to=9999-12-31T23:59:59.999999999-23:59",
        "&from=0000-01-01T00:00:00%2B23:59&to=9999-12-31T23:59:59-23:59&step=1s",
        "&from=2016-12-31T23:59:60Z",
    ] {
        let mut path = format!("/service-analytics/analytics?limit=1{window}");
        let mut pages = 0;
        loop {
            let answer = get(app.address, &path, &[]).await;
            if pages == 0 && answer.status == 400 {
                let detail = answer.problem();
                assert!(detail.contains("`from`") || detail.contains("`to`"), "{path}: {detail}");
                break;
            }
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            pages += 1;
            assert!(pages <= 4, "{path} never ends");
            match older(&answer) {
                Some(next) => path = next,
                None => break,
            }
        }
    }
}

#[tokio::test]
async fn extremes_of_a_query_are_answered_at_once() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "someone").await;
    app.settle().await;
    for query in [
        "step=1s",
        "step=4294967295s",
        "step=4294967295d",
        "step=99999999999999999999d",
        "step=1s&from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59Z",
        "step=4294967295d&from=9999-12-31T23:59:58Z",
        "limit=10000",
        "limit=18446744073709551616",
        "before=18446744073709551615",
        "before=0",
        "before=9223372036854775808",
        "from=9999-12-31T23:59:59-23:59",
        "to=0000-01-01T00:00:00%2B23:59",
        "from=0000-01-01T00:00:00Z&to=0000-01-01T00:00:01Z&step=4294967295d",
    ] {
        let started = Instant::now();
        let answer = get(app.address, &format!("/service-analytics/analytics?{query}"), &[]).await;
        assert!([200, 400].contains(&answer.status), "{query}: {answer:?}");
        assert!(started.elapsed() < PROMPT, "{query}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn what_the_server_refuses_by_itself_is_a_problem_as_well() {
    let app = App::start().await;
    let long = "a".repeat(20 * 1024);
    let large = "a".repeat(100 * 1024);
    let many: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    for (what, statuses, sent) in [
        ("no request line", &[400][..], b"HELLO\r\n\r\n".to_vec()),
        ("no version", &[400], b"GET /\r\n\r\n".to_vec()),
        ("another version", &[400, 505], b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_vec()),
        ("no colon", &[400], b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n".to_vec()),
        ("a bad header name", &[400], b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n".to_vec()),
        ("a control character", &[400], b"GET / HTTP/1.1\r\nHost: localhost\r\nx: \x01\r\n\r\n".to_vec()),
        (
            "a bad length",
            &[400],
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n".to_vec(),
        ),
        ("a long path", &[404, 414], request("GET", &format!("/{long}"), &[], b"")),
        ("a path that is too long", &[414], request("GET", &format!("/{large}"), &[], b"")),
        ("a query that is too long", &[414], request("GET", &format!("/status?{large}"), &[], b"")),
        ("a long path below a function", &[404, 414], request("GET", &format!("/ingress/{long}"), &[], b"")),
        ("a large header", &[431], request("GET", "/status", &[("x", &large)], b"")),
        ("many headers", &[431], format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").into_bytes()),
    ] {
        let answer = ask(app.address, &sent).await.unwrap_or_else(|| panic!("{what}: no answer"));
        assert!(statuses.contains(&answer.status), "{what}: {answer:?}");
        assert!(!answer.problem().is_empty(), "{what}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_large_body_holds_up_nobody() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "warm").await;
    let members = |number: usize| (0..number).map(|n| format!("\"a{n}\":0,")).collect::<String>();
    let known = format!(
        "\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"data\":{}",
        user(Uuid::new_v4())
    );
    let nested = format!("{{{}\"z\":0}}", members(80_000));
    for (what, body) in [
        ("members of an event", format!("[{{{}{known}}}]", members(80_000))),
        ("members of a user", format!("[{}]", known_event(&nested))),
        ("events", format!("[{}{{}}]", "{},".repeat(300_000))),
        ("brackets", "[".repeat(1_000_000)),
    ] {
        assert!(body.len() <= 1024 * 1024, "{what}: {}", body.len());
        let sent = request("POST", "/ingress/", &[BATCHED], body.as_bytes());
        let address = app.address;
        let large = tokio::spawn(async move { ask(address, &sent).await });
        let begun = Instant::now();
        loop {
            let started = Instant::now();
            let posted = timeout(DEADLINE, app.post_user(Uuid::new_v4(), "in between")).await;
            assert!(posted.is_ok() && started.elapsed() < PROMPT, "{what}: {:?}", started.elapsed());
            if large.is_finished() {
                break;
            }
        }
        assert!(begun.elapsed() < PROMPT * 2, "{what}: answered after {:?}", begun.elapsed());
        let answer = large.await.unwrap().unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!(answer.status, 400, "{what}");
    }
}

fn known_event(data: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{data}}}"#)
}

/// Raises the limit of open files of this process, which opens more connections than the process under test may hold.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_nobody_out_and_are_closed() {
    raise_own_limit();
    let options = Options { open_files: Some(1024), ..Options::default() };
    let mut app = App::start_as(Stores::Embedded, options, |_, manifest| manifest).await;
    app.post_user(Uuid::new_v4(), "warm").await;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let beginnings: [&[u8]; 5] = [b"", b"P", &PREFACE[..10], PREFACE, &settings];
    let mut silent = Vec::new();
    for n in 0..1_100 {
        let Ok(Ok(mut stream)) = timeout(PROMPT, TcpStream::connect(app.address)).await else { continue };
        let _ = stream.write_all(beginnings[n % beginnings.len()]).await;
        silent.push(stream);
    }
    let started = Instant::now();
    let sent = request("POST", "/ingress/user", &[JSON], user(Uuid::new_v4()).as_bytes());
    while wire::ask_and_hang_up(app.address, &sent, PROMPT).await != Some(201) {
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(15), "nobody gets in for {waited:?}");
    }
    for mut stream in silent {
        let mut answer = Vec::new();
        // The server's HTTP/2 settings may be read first. Only the end of the stream matters.
        let end = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "a silent connection is never closed: {answer:?}");
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 2);
}

#[tokio::test]
async fn headers_that_connection_names_go_no_further() {
    let mut app = App::start().await;
    let event = |id: Uuid, connection: &str| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("ce-hop", "v"),
            JSON,
            ("Connection", connection),
        ];
        request("POST", "/ingress/", &headers, user(id).as_bytes())
    };
    // Without `ce-specversion` the request is not a CloudEvent.
    let answer = ask(app.address, &event(Uuid::new_v4(), "close, ce-specversion")).await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    let connection = "close, X-Forwarded-For, Forwarded, X-Forwarded-Proto, ce-hop";
    let answer = ask(app.address, &event(Uuid::new_v4(), connection)).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    app.settle().await;
    assert_eq!(app.user_count().await, 1);
}
