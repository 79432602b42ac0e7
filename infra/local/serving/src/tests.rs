//! Requests, replicas and their number, against replicas that run in this process.

/// Random schedules of waiting requests.
mod schedules;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use framework::serve::serve_with;
use futures_util::FutureExt;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::{FunctionSpec, Guard, Launched, Launcher, LivenessProbe, Serving, lease::Lease, status::Change};

const DEADLINE: Duration = Duration::from_secs(30);

/// Starts functions in this process that answer after a while, and records what reaches them.
#[derive(Clone, Default)]
struct Fakes {
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    launched: AtomicU32,
    under_way: Mutex<BTreeMap<u32, usize>>,
    most_in_one: AtomicUsize,
    requests: AtomicUsize,
    /// Number of requests that were completed.
    done: AtomicUsize,
    /// Headers of the last request.
    headers: Mutex<http::HeaderMap>,
    /// Replicas that respond no longer.
    hung: Mutex<BTreeSet<u32>>,
    /// Number of starts that will fail, and that will panic.
    failing: AtomicU32,
    panicking: AtomicU32,
    /// Stops the replica of that number.
    stops: Mutex<BTreeMap<u32, CancellationToken>>,
}

impl Launcher for Fakes {
    fn launch(&self, _: &FunctionSpec) -> io::Result<Launched> {
        if self.seen.panicking.load(SeqCst) > 0 {
            self.seen.panicking.fetch_sub(1, SeqCst);
            panic!("the launcher broke");
        }
        if self.seen.failing.load(SeqCst) > 0 {
            self.seen.failing.fetch_sub(1, SeqCst);
            return Err(io::Error::other("no room"));
        }
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let number = self.seen.launched.fetch_add(1, SeqCst) + 1;
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        self.seen.stops.lock().unwrap().insert(number, stop.clone());
        let (seen, ended) = (self.seen.clone(), stop.clone());
        let server = tokio::spawn(serve_with(
            listener,
            move |_, request: Request<hyper::body::Incoming>| {
                if request.uri().path() != "/healthz" {
                    *seen.headers.lock().unwrap() = request.headers().clone();
                }
                answer(seen.clone(), number, request.uri().path().to_owned())
            },
            async move { ended.cancelled().await },
        ));
        let killed = kill.clone();
        let ended = Box::pin(async move {
            tokio::select! {
                ended = server => ended.map_or_else(|e| e.to_string(), |()| "ended".to_owned()),
                () = killed.cancelled() => "killed".to_owned(),
            }
        });
        Ok(Launched { pid: number, address, stop, kill, ended })
    }

    fn log_of(&self, function: &str) -> String {
        format!("{function}.log")
    }
}

async fn answer(seen: Arc<Seen>, number: u32, path: String) -> http::Response<Full<Bytes>> {
    if seen.hung.lock().unwrap().contains(&number) {
        std::future::pending::<()>().await;
    }
    if path != "/healthz" {
        seen.requests.fetch_add(1, SeqCst);
        let now = {
            let mut under_way = seen.under_way.lock().unwrap();
            let now = under_way.entry(number).or_default();
            *now += 1;
            *now
        };
        seen.most_in_one.fetch_max(now, SeqCst);
        let takes = if path == "/slow" { DEADLINE } else { Duration::from_millis(20) };
        tokio::time::sleep(takes).await;
        *seen.under_way.lock().unwrap().entry(number).or_default() -= 1;
        seen.done.fetch_add(1, SeqCst);
    }
    http::Response::new(Full::default())
}

fn spec(concurrency: u32, annotations: &[(&str, &str)]) -> FunctionSpec {
    let named = annotations
        .iter()
        .map(|(name, value)| (format!("autoscaling.knative.dev/{name}"), (*value).to_owned()));
    FunctionSpec {
        container_concurrency: concurrency,
        timeout: Duration::from_secs(10),
        annotations: named.collect(),
        ..FunctionSpec::named("f")
    }
}

/// The same, probed so often that a hung replica is found soon.
fn probed(concurrency: u32, annotations: &[(&str, &str)]) -> FunctionSpec {
    let liveness = LivenessProbe {
        period: Duration::from_millis(20),
        timeout: Duration::from_millis(200),
        ..LivenessProbe::default()
    };
    FunctionSpec { timeout: DEADLINE, liveness, ..spec(concurrency, annotations) }
}

fn post(path: &str) -> Request<Bytes> {
    Request::post(path).body(Bytes::new()).unwrap()
}

async fn until(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

async fn statuses(serving: &Serving, requests: usize) -> Vec<StatusCode> {
    let invoker = serving.invoker();
    let sending: Vec<_> = (0..requests)
        .map(|_| {
            let invoker = invoker.clone();
            tokio::spawn(async move { invoker.send("f", get("/")).await.status() })
        })
        .collect();
    let mut statuses = Vec::new();
    for sent in sending {
        statuses.push(sent.await.unwrap());
    }
    statuses
}

#[tokio::test]
async fn a_replica_never_has_more_requests_than_it_may() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(7, &[("max-scale", "1")])], fakes.clone()).unwrap();
    let statuses = statuses(&serving, 60).await;
    assert!(statuses.iter().all(|status| *status == 200));
    assert_eq!(fakes.seen.most_in_one.load(SeqCst), 7);
    assert_eq!(fakes.seen.launched.load(SeqCst), 1);
    serving.shutdown().await;
}

#[tokio::test]
async fn more_than_may_wait_are_refused_with_a_503() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(1, &[("max-scale", "1")])], fakes).unwrap();
    let invoker = serving.invoker();
    let slow = tokio::spawn({
        let invoker = invoker.clone();
        async move { invoker.send("f", get("/slow")).await }
    });
    let started = Instant::now();
    while serving.status()[0].replicas.iter().all(|replica| replica.in_flight == 0) {
        assert!(started.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    let waiting: Vec<_> = (0..1_000)
        .map(|_| {
            let invoker = invoker.clone();
            tokio::spawn(async move { invoker.send("f", get("/")).await })
        })
        .collect();
    while serving.status()[0].queued < 1_000 {
        assert!(started.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    let refused = invoker.send("f", get("/")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    slow.abort();
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_a_504_and_frees_its_place() {
    let fakes = Fakes::default();
    let quick = FunctionSpec { timeout: Duration::from_millis(100), ..spec(1, &[("max-scale", "1")]) };
    let serving = Serving::without_autoscaler(vec![quick], fakes).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/slow")).await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
}

/// Starts a replica that breaks the connection of every other request, as when its process is killed meanwhile.
#[derive(Clone, Default)]
struct Breaking {
    requests: Arc<AtomicUsize>,
}

impl Launcher for Breaking {
    fn launch(&self, _: &FunctionSpec) -> io::Result<Launched> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(break_connections(listener, self.requests.clone()));
        let ended = Box::pin(async move { format!("{:?}", server.await) });
        Ok(Launched {
            pid: 1,
            address,
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            ended,
        })
    }

    fn log_of(&self, function: &str) -> String {
        format!("{function}.log")
    }
}

async fn break_connections(listener: TcpListener, requests: Arc<AtomicUsize>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let requests = requests.clone();
        // hyper closes a connection whose service fails, without an answer.
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let breaks =
                request.uri().path() != "/healthz" && requests.fetch_add(1, SeqCst).is_multiple_of(2);
            let answer = http::Response::new(Full::<Bytes>::default());
            async move { if breaks { Err(io::Error::other("breaks")) } else { Ok(answer) } }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

#[tokio::test]
async fn only_what_changes_nothing_is_sent_again_when_its_connection_breaks() {
    let breaking = Breaking::default();
    let serving = Serving::without_autoscaler(vec![spec(10, &[])], breaking.clone()).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
    let post = Request::post("/").body(Bytes::new()).unwrap();
    assert_eq!(invoker.send("f", post).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(breaking.requests.load(SeqCst), 3);
}

#[tokio::test]
async fn a_replica_that_ended_is_replaced_and_takes_nothing_with_it() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(10, &[])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    for turn in 1..=3 {
        assert_eq!(invoker.send("f", get("/")).await.status(), 200);
        assert_eq!(fakes.seen.launched.load(SeqCst), turn);
        fakes.seen.stops.lock().unwrap()[&turn].cancel();
        let started = Instant::now();
        while !serving.status()[0].replicas.is_empty() {
            assert!(started.elapsed() < DEADLINE);
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(fakes.seen.requests.load(SeqCst), 3);
}

#[tokio::test]
async fn an_idle_function_goes_to_zero_and_a_request_brings_it_back() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(10, &[("window", "6s")])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
    let now = Instant::now();
    for second in 1..=10 {
        let function = &serving.functions["f"];
        function.replicas.tick(now + Duration::from_secs(second), second % 2 == 0);
    }
    assert!(serving.status()[0].replicas.is_empty());
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
    assert_eq!(fakes.seen.launched.load(SeqCst), 2);
}

#[tokio::test]
async fn a_replica_that_hangs_is_replaced_and_its_requests_go_elsewhere_or_end() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![probed(2, &[("max-scale", "1")])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
    fakes.seen.hung.lock().unwrap().insert(1);
    // The first two are in flight when it is found out, the others wait.
    let requests = [post("/"), get("/"), post("/"), get("/")].map(|request| invoker.send("f", request));
    let mut statuses = Vec::new();
    for answer in futures_util::future::join_all(requests).await {
        statuses.push(answer.status());
    }
    assert_eq!(statuses, [502, 200, 200, 200]);
    assert_eq!(fakes.seen.launched.load(SeqCst), 2);
    let status = &serving.status()[0];
    assert_eq!((status.crashes, status.replicas[0].in_flight), (1, 0));
    assert!(status.last_error.as_ref().unwrap().contains("liveness"), "{status:?}");
    serving.shutdown().await;
}

#[tokio::test]
async fn a_replica_that_is_busy_is_not_taken_for_one_that_hangs() {
    let fakes = Fakes::default();
    let mut busy = probed(100, &[("max-scale", "1")]);
    // No probe can be answered in time.
    busy.liveness.timeout = Duration::ZERO;
    busy.liveness.period = Duration::from_millis(200);
    let serving = Serving::without_autoscaler(vec![busy], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        let (one, two) = tokio::join!(invoker.send("f", post("/")), invoker.send("f", get("/")));
        assert_eq!([one.status(), two.status()], [200, 200]);
    }
    assert_eq!(serving.status()[0].crashes, 0);
}

#[tokio::test]
async fn a_process_that_hangs_at_its_start_is_killed() {
    let fakes = Fakes::default();
    fakes.seen.hung.lock().unwrap().extend(1..=10);
    let patient =
        FunctionSpec { start_timeout: Duration::from_millis(50), timeout: DEADLINE, ..spec(1, &[]) };
    let serving = Serving::without_autoscaler(vec![patient], fakes.clone()).unwrap();
    let answer = serving.invoker().send("f", get("/")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let detail = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(detail.contains("did not answer within"), "{detail}");
    assert_eq!(fakes.seen.launched.load(SeqCst), 3);
}

#[tokio::test]
async fn clients_that_hang_up_at_any_moment_leave_nothing_behind() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(2, &[("max-scale", "1")])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    for round in 0..100_u64 {
        let patience = Duration::from_micros(round * 500);
        let requests = (0..6).map(|n| {
            let (invoker, request) = (invoker.clone(), if n % 2 == 0 { get("/") } else { post("/") });
            async move { tokio::time::timeout(patience, invoker.send("f", request)).await }
        });
        futures_util::future::join_all(requests).await;
        assert_eq!(serving.status()[0].queued, 0, "after {patience:?}");
    }
    until(|| serving.status()[0].replicas.iter().all(|replica| replica.in_flight == 0)).await;
    assert_eq!(serving.functions["f"].replicas.pool().load.level(), 0.0);
    let statuses = statuses(&serving, 20).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    serving.shutdown().await;
}

#[tokio::test]
async fn a_permit_that_was_granted_but_not_received_is_returned() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(1, &[("max-scale", "1")])], fakes).unwrap();
    let set = &serving.functions["f"].replicas;
    let in_flight = || serving.status()[0].replicas[0].in_flight;
    let first = Lease::acquire(set).await.ok().unwrap();
    let mut second = Box::pin(Lease::acquire(set));
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    assert_eq!((serving.status()[0].queued, in_flight()), (0, 1), "the permit went to the second");
    drop(second);
    assert_eq!(in_flight(), 0);
}

#[tokio::test]
async fn what_was_sent_goes_to_its_end_when_its_client_hangs_up() {
    let fakes = Fakes::default();
    let serving = Serving::without_autoscaler(vec![spec(1, &[("max-scale", "1")])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    let sent = tokio::spawn(async move { invoker.send("f", post("/")).await });
    until(|| fakes.seen.requests.load(SeqCst) == 1).await;
    sent.abort();
    until(|| serving.status()[0].replicas[0].in_flight == 0).await;
    assert_eq!(fakes.seen.done.load(SeqCst), 1);
}

#[tokio::test]
async fn a_panic_while_a_replica_starts_is_told_and_the_next_one_starts() {
    let fakes = Fakes::default();
    fakes.seen.panicking.store(2, SeqCst);
    let serving = Serving::without_autoscaler(vec![spec(1, &[("max-scale", "1")])], fakes).unwrap();
    assert_eq!(serving.invoker().send("f", get("/")).await.status(), 200);
    let task = &serving.supervised().status()[0];
    assert_eq!((task.name.as_str(), task.restarts), ("replica of f", 2));
    assert_eq!(task.last_error.as_deref(), Some("panicked: the launcher broke"));
    assert_eq!(serving.status()[0].starting, 0);
}

#[tokio::test]
async fn a_crash_loop_is_told_once_with_its_reason_and_ends() {
    let fakes = Fakes::default();
    fakes.seen.failing.store(6, SeqCst);
    let serving = Serving::without_autoscaler(vec![spec(1, &[("min-scale", "1")])], fakes).unwrap();
    let mut changes = serving.changes();
    let invoker = serving.invoker();
    let refused = invoker.send("f", get("/")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(String::from_utf8_lossy(refused.body()).contains("no room"));
    let started = Instant::now();
    while invoker.send("f", get("/")).await.status() != 200 {
        assert!(started.elapsed() < DEADLINE);
    }
    let mut told = Vec::new();
    while let Ok(change) = changes.try_recv() {
        if let Change::Crashed { why, .. } = change {
            told.push(why);
        }
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[1].contains("crash loop"), "{told:?}");
    let status = &serving.status()[0];
    assert_eq!((status.crashes, status.crash_loop), (6, false));
}

/// Runs a gateway to the function `f` on an address until one request is answered; returns the response.
async fn through_gateway(fakes: Fakes, guard: Guard, listen: &str, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let serving = Serving::without_autoscaler(vec![spec(1, &[])], fakes).unwrap();
    let listener = tokio::net::TcpListener::bind((listen, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let client = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        stop.cancel();
        answer
    };
    let status = |_| async { http::Response::default() };
    tokio::join!(serving.gateway(listener, Vec::new(), guard, status, stop.cancelled()), client).1
}

#[tokio::test]
async fn an_internal_function_is_reached_only_where_the_gateway_listens_on_loopback() {
    let request = "GET /function/f/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for (internal, listen, status) in
        [("f", "127.0.0.1", "200"), ("f", "0.0.0.0", "403"), ("other", "0.0.0.0", "200")]
    {
        let guard = Guard::new([], [internal.to_owned()]);
        let answer = through_gateway(Fakes::default(), guard, listen, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{internal} on {listen}: {answer}");
    }
}

#[tokio::test]
async fn what_connection_names_is_taken_off_before_the_gateway_adds_its_own() {
    let fakes = Fakes::default();
    let request = "GET /function/f/x HTTP/1.1\r\nHost: localhost\r\nX-Mine: b\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: \
        close, X-Mine, Forwarded, X-Forwarded-For, X-Forwarded-Proto\r\n\r\n";
    let answer = through_gateway(fakes.clone(), Guard::default(), "127.0.0.1", request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let headers = fakes.seen.headers.lock().unwrap().clone();
    let shown = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(shown("forwarded"), Some("for=127.0.0.1;host=\"localhost\";proto=http"), "{headers:?}");
    assert_eq!((shown("x-forwarded-for"), shown("x-forwarded-proto")), (Some("127.0.0.1"), Some("http")));
    assert_eq!(shown("x-mine"), None);
}
