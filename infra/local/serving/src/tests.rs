//! Requests, replicas and their number, against replicas that run in this process.

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use shared::serve::serve_with;
use tokio_util::sync::CancellationToken;

use crate::{FunctionSpec, Launched, Launcher, Serving};

const DEADLINE: Duration = Duration::from_secs(30);

/// Starts functions in this process that answer after a while, and sees what reaches them.
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
    /// Ends the replica of that number.
    stops: Mutex<BTreeMap<u32, CancellationToken>>,
}

impl Launcher for Fakes {
    fn launch(&self, _: &FunctionSpec) -> io::Result<Launched> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let number = self.seen.launched.fetch_add(1, SeqCst) + 1;
        let stop = CancellationToken::new();
        self.seen.stops.lock().unwrap().insert(number, stop.clone());
        let (seen, ended) = (self.seen.clone(), stop.clone());
        let server = tokio::spawn(serve_with(
            listener,
            move |_, request: Request<hyper::body::Incoming>| {
                answer(seen.clone(), number, request.uri().path().to_owned())
            },
            async move { ended.cancelled().await },
        ));
        let ended =
            Box::pin(async move { server.await.map_or_else(|e| e.to_string(), |()| "ended".to_owned()) });
        Ok(Launched { pid: number, address, stop, ended })
    }

    fn log_of(&self, function: &str) -> String {
        format!("{function}.log")
    }
}

async fn answer(seen: Arc<Seen>, number: u32, path: String) -> http::Response<Full<Bytes>> {
    if path != "/healthz" {
        let earlier = seen.requests.fetch_add(1, SeqCst);
        // Its connection breaks, as when its process is killed.
        assert!(path != "/breaks" || earlier % 2 == 1, "this one breaks");
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
    }
    http::Response::new(Full::default())
}

fn spec(concurrency: u32, annotations: &[(&str, &str)]) -> FunctionSpec {
    let named = annotations
        .iter()
        .map(|(name, value)| (format!("autoscaling.knative.dev/{name}"), (*value).to_owned()));
    FunctionSpec {
        name: "f".to_owned(),
        container_concurrency: concurrency,
        timeout: Duration::from_secs(10),
        annotations: named.collect(),
        env: Vec::new(),
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
    let serving = Serving::unclocked(vec![spec(7, &[("max-scale", "1")])], fakes.clone()).unwrap();
    let statuses = statuses(&serving, 60).await;
    assert!(statuses.iter().all(|status| *status == 200));
    assert_eq!(fakes.seen.most_in_one.load(SeqCst), 7);
    assert_eq!(fakes.seen.launched.load(SeqCst), 1);
    serving.shutdown().await;
}

#[tokio::test]
async fn more_than_may_wait_are_refused_with_a_503() {
    let fakes = Fakes::default();
    let serving = Serving::unclocked(vec![spec(1, &[("max-scale", "1")])], fakes).unwrap();
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
    let serving = Serving::unclocked(vec![quick], fakes).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/slow")).await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
}

#[tokio::test]
async fn only_what_changes_nothing_is_sent_again_when_its_connection_breaks() {
    let fakes = Fakes::default();
    let serving = Serving::unclocked(vec![spec(10, &[])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/breaks")).await.status(), 200);
    let post = Request::post("/breaks").body(Bytes::new()).unwrap();
    assert_eq!(invoker.send("f", post).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(fakes.seen.requests.load(SeqCst), 3);
}

#[tokio::test]
async fn a_replica_that_ended_is_replaced_and_takes_nothing_with_it() {
    let fakes = Fakes::default();
    let serving = Serving::unclocked(vec![spec(10, &[])], fakes.clone()).unwrap();
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
    let serving = Serving::unclocked(vec![spec(10, &[("window", "6s")])], fakes.clone()).unwrap();
    let invoker = serving.invoker();
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
    let now = Instant::now();
    for second in 1..=10 {
        let function = &serving.functions["f"];
        function.tick(now + Duration::from_secs(second), second % 2 == 0);
    }
    assert!(serving.status()[0].replicas.is_empty());
    assert_eq!(invoker.send("f", get("/")).await.status(), 200);
    assert_eq!(fakes.seen.launched.load(SeqCst), 2);
}
