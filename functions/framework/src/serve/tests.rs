//! The server over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

use super::*;
use crate::router::{FUNCTION, empty};

/// The beginning of HTTP/2, after which its client says nothing more.
const SILENT_SETTINGS: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
/// Longer than anything here may take.
const LONG: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    gate: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Server {
    /// `POST /wait` waits for a permit, `GET /panic` panics, `POST /` is guarded where there is a token.
    async fn start(token: Option<&str>) -> Self {
        let (gate, begun, ended) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::default());
        let (g, b, e): (_, Arc<AtomicUsize>, Arc<AtomicUsize>) = (gate.clone(), begun, ended);
        let (begun, ended) = (b.clone(), e.clone());
        let router = Router::new(())
            .named("test")
            .guarded(token.map(str::to_owned))
            .post("/", |(), _| async { Ok(empty(StatusCode::NO_CONTENT)) })
            .get("/panic", |(), _| async { panic!("on purpose") })
            .get("/wait", move |(), _| {
                let (gate, begun, ended) = (g.clone(), b.clone(), e.clone());
                async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    if let Ok(permit) = gate.acquire().await {
                        permit.forget();
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok(empty(StatusCode::NO_CONTENT))
                }
            });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, router, async { drop(stopped.await) }));
        Self { address, stop: Some(stop), task, gate, begun, ended }
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// All that comes back to a request until the connection ends.
    async fn answer(&self, request: &str) -> String {
        read(&mut self.send(request).await).await
    }
}

async fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("the connection never ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn eventually(what: impl Fn() -> bool) {
    let all = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, all).await.expect("it never came to that");
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_handler_runs_to_its_end_though_its_client_is_gone_and_the_drain_waits_for_it() {
    let mut server = Server::start(None).await;
    for _ in 0..20 {
        drop(server.send(&get("/wait")).await);
    }
    eventually(|| server.begun.load(Ordering::SeqCst) == 20).await;
    drop(server.stop.take());
    server.gate.add_permits(20);
    timeout(LONG, &mut server.task).await.unwrap().unwrap();
    assert_eq!(server.ended.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn a_handler_runs_to_its_end_though_its_client_resets_the_connection() {
    let server = Server::start(None).await;
    let client = server.send(&get("/wait")).await;
    eventually(|| server.begun.load(Ordering::SeqCst) == 1).await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // Long enough for the connection to end, and with it what only the connection holds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.gate.add_permits(1);
    eventually(|| server.ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn the_drain_ends_at_once_when_connections_are_idle() {
    let mut server = Server::start(None).await;
    let idle = server.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.readable().await.unwrap();
    let (silent, begun) = (server.send("").await, server.send("GET /heal").await);
    // It answers neither the farewell nor a ping.
    let http2 = server.send(SILENT_SETTINGS).await;
    http2.readable().await.unwrap();
    drop(server.stop.take());
    timeout(connection::HEADER_TIMEOUT / 2, &mut server.task)
        .await
        .expect("idle clients hold up the end")
        .unwrap();
    drop((idle, silent, begun, http2));
}

/// Sends a request, and resets the connection once its handler has begun.
async fn send_and_reset(server: &Server) {
    let begun = server.begun.load(Ordering::SeqCst);
    let client = server.send(&get("/wait")).await;
    eventually(|| server.begun.load(Ordering::SeqCst) == begun + 1).await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn the_drain_waits_for_handlers_whose_connections_are_gone() {
    let mut server = Server::start(None).await;
    send_and_reset(&server).await;
    drop(server.stop.take());
    // Longer than it takes to find out that the client is gone, and less than the drain then waits.
    let ended = timeout(ABANDONED_TIMEOUT / 2, &mut server.task).await;
    assert!(ended.is_err(), "the server ended before its handler");
    server.gate.add_permits(1);
    timeout(LONG, &mut server.task).await.unwrap().unwrap();
    assert_eq!(server.ended.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_drain_does_not_wait_for_ever_for_clients_that_are_gone() {
    let mut server = Server::start(None).await;
    send_and_reset(&server).await;
    drop(server.stop.take());
    timeout(DRAIN_TIMEOUT / 2, &mut server.task)
        .await
        .expect("a client that is gone holds up the end")
        .unwrap();
    assert_eq!(server.ended.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failure_to_accept_is_logged_once_until_it_works_again() {
    let (mut failures, error) = (AcceptFailures::default(), io::Error::other("no descriptors"));
    let logged: Vec<_> = (0..3).map(|_| failures.tell(&error)).collect();
    assert_eq!(logged, [true, false, false]);
    failures.last = Instant::now().checked_sub(ACCEPT_QUIET + ACCEPT_BACKOFF);
    assert!(failures.last.is_some() && failures.tell(&error));
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_server_goes_on() {
    let server = Server::start(None).await;
    let answer = server.answer(&get("/panic")).await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("application/problem+json"), "{answer}");
    assert!(server.answer(&get("/healthz")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let server = Server::start(None).await;
    let mut stream = server.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    stream.shutdown().await.unwrap();
    eventually(|| server.begun.load(Ordering::SeqCst) == 1).await;
    server.gate.add_permits(1);
    let answer = read(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[tokio::test]
async fn what_no_handler_sees_is_a_problem_with_the_mark_too() {
    let server = Server::start(None).await;
    let (long, many) = ("a".repeat(66_000), "a: b\r\n".repeat(200));
    let close = "Connection: close\r\n\r\n";
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n".to_owned(), 400),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n{close}"), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nb: {}\r\n{close}", "c".repeat(1 << 20)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}{close}"), 431),
        (format!("GET /healthz HTTP/1.1\r\n{close}"), 400),
        (format!("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n{close}"), 400),
        (format!("GET /healthz HTTP/1.1\r\nHost: a/b\r\n{close}"), 400),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n{close}0\r\n\r\n"), 400),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n{close}"), 400),
        (
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n{close}x"),
            415,
        ),
        (format!("GET /nowhere HTTP/1.1\r\nHost: a\r\n{close}"), 404),
        (format!("PUT / HTTP/1.1\r\nHost: a\r\n{close}"), 405),
    ] {
        let what = &request[..request.len().min(80)];
        let answer = server.answer(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
        assert!(answer.contains("application/problem+json"), "{what}: {answer}");
        assert!(answer.contains(&format!("{FUNCTION}: test")), "{what}: {answer}");
        assert!(answer.contains(&format!("\"status\":{status}")), "{what}: {answer}");
    }
    let old = server.answer("GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
}

#[tokio::test]
async fn options_tell_the_methods_and_heads_have_no_body() {
    let server = Server::start(None).await;
    for (target, allow) in
        [("*", "GET, HEAD, POST, OPTIONS"), ("/", "POST, OPTIONS"), ("/wait", "GET, HEAD, OPTIONS")]
    {
        let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = server.answer(&request).await;
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        assert!(answer.contains(&format!("allow: {allow}\r\n")), "{answer}");
    }
    let head = server.answer("HEAD /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 2\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn events_need_the_secret_where_there_is_one_and_probes_do_not() {
    let server = Server::start(Some("s3cret")).await;
    let post = |token: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n{token}\r\n")
    };
    for bad in ["", "x-event-token: \r\n", "x-event-token: s3cre\r\n", "x-event-token: s3cret2\r\n"] {
        let answer = server.answer(&post(bad)).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(answer.contains("www-authenticate: "), "{answer}");
    }
    assert!(server.answer(&post("x-event-token: s3cret\r\n")).await.starts_with("HTTP/1.1 204"));
    assert!(server.answer(&get("/readyz")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn silent_beginnings_of_either_protocol_are_closed() {
    let server = Server::start(None).await;
    let mut streams = Vec::new();
    for beginning in ["", "P", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SILENT_SETTINGS, "GET / HT"] {
        streams.push((beginning, server.send(beginning).await));
    }
    // Before any other deadline closes them.
    let deadline = tokio::time::Instant::now() + connection::HEADER_TIMEOUT * 2;
    for (beginning, mut stream) in streams {
        let mut rest = Vec::new();
        let end = tokio::time::timeout_at(deadline, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "{beginning:?} is not closed in time");
    }
}
