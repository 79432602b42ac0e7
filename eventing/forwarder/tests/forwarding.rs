//! The forwarder between an embedded log and a fake gateway, over real HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use backend_log::{Delivered, Log, Start};
use bytes::Bytes;
use domain::User;
use eventing::event_sources::Resources;
use forwarder::{Gateway, Settings, forward};
use framework::user_event;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SECONDS: &str = r#"
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: second-to-batch}
spec:
  schedule: "* * * * * *"
  data: "{}"
  sink: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: batch}}
"#;

/// A request that the fake gateway received.
#[derive(Clone)]
struct Call {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

type Calls = Arc<Mutex<Vec<Call>>>;

/// A fake gateway. Responds to the nth attempt of an event as the test specifies, once `gate` has a permit.
struct StandIn {
    calls: Calls,
    url: String,
    gate: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl StandIn {
    async fn start(answer: impl Fn(&str, usize) -> StatusCode + Send + Sync + 'static) -> Self {
        Self::answering(move |path, nth| (answer(path, nth), true), || true).await
    }

    /// Responds with or without the functions' header. `well` returns whether functions respond to health probes.
    async fn answering(
        answer: impl Fn(&str, usize) -> (StatusCode, bool) + Send + Sync + 'static,
        well: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let well = Arc::new(well);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (calls, gate) = (Calls::default(), Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)));
        let (answer, seen, open) = (Arc::new(answer), calls.clone(), gate.clone());
        let handler = move |request: Request<hyper::body::Incoming>| {
            let (answer, seen, open, well) = (answer.clone(), seen.clone(), open.clone(), well.clone());
            async move {
                let (head, body) = request.into_parts();
                if head.method == http::Method::GET {
                    let is_function = head.uri.path().starts_with("/function/") && well();
                    return Ok::<_, Infallible>(answered(StatusCode::OK, is_function));
                }
                let body = body.collect().await.unwrap().to_bytes();
                let call = Call { path: head.uri.path().to_owned(), headers: head.headers, body };
                let nth = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(call.clone());
                    let same = |c: &&Call| c.path == call.path && c.header("ce-id") == call.header("ce-id");
                    seen.iter().filter(same).count()
                };
                open.acquire().await.unwrap().forget();
                let (status, is_function) = answer(&call.path, nth);
                Ok(answered(status, is_function))
            }
        };
        let task = tokio::spawn(serve(listener, handler));
        Self { calls, url, gate, task }
    }

    /// Returns the received requests with a function's events.
    fn calls(&self, function: &str) -> Vec<Call> {
        let path = format!("/function/{function}");
        self.calls.lock().unwrap().iter().filter(|call| call.path == path).cloned().collect()
    }
}

fn answered(status: StatusCode, is_function: bool) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from("as the test says"));
    *answer.status_mut() = status;
    if is_function {
        answer.headers_mut().insert("x-lambda-function", http::HeaderValue::from_static("test"));
    }
    answer
}

/// A plain server, which adds no headers itself.
async fn serve<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request<hyper::body::Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(handler.clone());
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// A running forwarder, and its log.
struct Forwarding {
    log: Arc<dyn Log>,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    data: TempDir,
}

impl Forwarding {
    async fn start(gateway: &StandIn) -> Self {
        Self::over(tempfile::tempdir().unwrap(), gateway).await
    }

    async fn over(data: TempDir, gateway: &StandIn) -> Self {
        Self::with(data, gateway, |manifest| manifest).await
    }

    async fn with(data: TempDir, gateway: &StandIn, edit: impl Fn(String) -> String) -> Self {
        let file = data.path().join("log.db");
        let url = format!("sqlite:{}", file.display());
        let gateway_url = gateway.url.clone();
        let settings = Settings::read(move |key| match key {
            "LOG_URL" => Some(url.clone()),
            "GATEWAY_URL" => Some(gateway_url.clone()),
            "GATEWAY_USER" => Some("admin".to_owned()),
            "GATEWAY_PASSWORD" => Some("secret".to_owned()),
            "EVENT_TOKEN" => Some("token".to_owned()),
            _ => None,
        });
        let settings = settings.unwrap();
        let seconds = data.path().join("second-to-batch.yaml");
        std::fs::write(&seconds, SECONDS).unwrap();
        let texts = eventing::files::read(&[manifests(), vec![seconds]].concat()).unwrap();
        let texts: Vec<_> = texts.into_iter().map(|(file, text)| (file, edit(text))).collect();
        let arrows =
            Resources::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str()))).unwrap();
        let log = backend_log::open(&settings.log_url).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (kept, stopped) = (log.clone(), stop.clone());
        let gateway = Arc::new(Gateway::new(settings.gateway).unwrap());
        let task = tokio::spawn(async move { forward(&arrows, kept, gateway, listener, stopped).await });
        Self { log, address, stop, task, data }
    }

    async fn ingest(&self, name: &str) -> User {
        let user = User { id: Uuid::new_v4(), name: name.to_owned() };
        let record = user_event::to_record(&user_event::ingested(&user, &HeaderMap::new()).unwrap(), &user);
        self.log.append("user", vec![record]).await.unwrap();
        user
    }

    async fn dead_letters(&self) -> Vec<Delivered> {
        let mut consumer = self.log.consume("user-dead-letter", None, Start::Earliest).await.unwrap();
        consumer.poll_now(100).await.unwrap()
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.unwrap();
        let (head, body) = Response::<reqwest::Body>::from(answer).into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    async fn end(self) -> TempDir {
        self.stop.cancel();
        self.task.await.unwrap();
        self.data
    }
}

/// The manifests of the project's event sources and functions.
fn manifests() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let service = |name: &str| root.join("functions").join(name).join("service.yaml");
    [root.join("eventing")].into_iter().chain(["count", "store", "batch"].map(service)).collect()
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn each_user_reaches_both_functions_as_a_cloud_event() {
    let gateway = StandIn::start(|_, _| StatusCode::NO_CONTENT).await;
    let forwarding = Forwarding::start(&gateway).await;
    let user = forwarding.ingest("Zoë").await;
    for function in ["count", "store"] {
        eventually("it was called", async || !gateway.calls(function).is_empty()).await;
        let call = gateway.calls(function).remove(0);
        assert_eq!(call.header("ce-type"), user_event::INGESTED);
        assert_eq!(call.header("ce-partitionkey"), user.id.to_string());
        assert_eq!(call.header("content-type"), "application/json");
        assert_eq!(call.header("x-event-token"), "token");
        assert_eq!(call.header("authorization"), "Basic YWRtaW46c2VjcmV0");
        assert_eq!(User::from_json(&call.body).unwrap(), user);
        assert!(call.header("x-call-id").parse::<Uuid>().is_ok());
    }
    forwarding.end().await;
}

#[tokio::test]
async fn a_503_is_tried_again_under_the_same_call_id() {
    let answer = |path: &str, nth| match (path, nth) {
        ("/function/count", 1..=2) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    let gateway = StandIn::start(answer).await;
    let forwarding = Forwarding::start(&gateway).await;
    forwarding.ingest("a").await;
    forwarding.ingest("b").await;
    eventually("both arrived", async || gateway.calls("count").len() == 6).await;
    let mut ids: Vec<_> =
        gateway.calls("count").iter().map(|call| call.header("x-call-id").to_owned()).collect();
    ids.sort();
    assert!(ids[0] == ids[2] && ids[3] == ids[5] && ids[0] != ids[3], "{ids:?}");
    let status = || async {
        let arrows: Vec<serde_json::Value> =
            serde_json::from_slice(forwarding.get("/arrows").await.body()).unwrap();
        arrows.into_iter().find(|arrow| arrow["function"] == "count").unwrap()
    };
    eventually("nothing is left", || async { status().await["lag"] == 0 }).await;
    assert_eq!(
        (status().await["retried"].clone(), status().await["delivered"].clone()),
        (4.into(), 2.into())
    );
    assert!(forwarding.dead_letters().await.is_empty());
    forwarding.end().await;
}

#[tokio::test]
async fn a_400_ends_in_the_dead_letter_and_says_why() {
    let answer = |path: &str, _| match path {
        "/function/store" => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    let gateway = StandIn::start(answer).await;
    let forwarding = Forwarding::start(&gateway).await;
    let user = forwarding.ingest("a").await;
    eventually("there is a letter", async || !forwarding.dead_letters().await.is_empty()).await;
    let letter = forwarding.dead_letters().await.remove(0).record;
    assert_eq!(letter.header("ce_knativeerrorcode").unwrap(), "400");
    let destination = format!("{}function/store", gateway.url);
    assert_eq!(letter.header("ce_knativeerrordest").unwrap(), &destination);
    assert_eq!(letter.value.unwrap(), user.to_json());
    assert_eq!(gateway.calls("store").len(), 1);
    forwarding.end().await;
}

#[tokio::test]
async fn what_a_gateway_answers_for_a_function_that_is_away_is_never_final() {
    // Statuses with which faasd, its provider and proxies respond, and then a rejection of the forwarder itself.
    let own = [405, 404, 500, 502, 503, 400, 200, 204, 302, 422];
    let answer = move |path: &str, nth| match path {
        "/function/store" if nth <= own.len() => (StatusCode::from_u16(own[nth - 1]).unwrap(), false),
        "/function/store" if nth == own.len() + 1 => (StatusCode::UNAUTHORIZED, true),
        _ => (StatusCode::NO_CONTENT, true),
    };
    let gateway = StandIn::answering(answer, || false).await;
    let forwarding = Forwarding::start(&gateway).await;
    forwarding.ingest("a").await;
    eventually("it arrived", async || gateway.calls("store").len() == own.len() + 2).await;
    let arrow = async || {
        let arrows: Vec<serde_json::Value> =
            serde_json::from_slice(forwarding.get("/arrows").await.body()).unwrap();
        arrows.into_iter().find(|arrow| arrow["function"] == "store").unwrap()
    };
    eventually("it is finished", async || arrow().await["delivered"] == 1).await;
    let arrow = arrow().await;
    assert_eq!((&arrow["dead"], &arrow["restarts"]), (&0.into(), &0.into()));
    assert!(arrow["lastError"].is_null(), "{arrow}");
    assert!(forwarding.dead_letters().await.is_empty());
    forwarding.end().await;
}

#[tokio::test]
async fn retries_do_not_count_while_a_function_is_away_and_do_once_it_is_well() {
    let (well, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let counted = tries.clone();
    let answer = move |path: &str, _| match path {
        "/function/store" => {
            counted.fetch_add(1, SeqCst);
            (StatusCode::BAD_GATEWAY, false)
        }
        _ => (StatusCode::NO_CONTENT, true),
    };
    let is_well = well.clone();
    let gateway = StandIn::answering(answer, move || is_well.load(SeqCst)).await;
    // Three retries with a delay of a millisecond, so that the limit is reached soon.
    let forwarding = Forwarding::with(tempfile::tempdir().unwrap(), &gateway, |manifest| {
        manifest.replace("retry: 240", "retry: 3").replace("PT0.02S", "PT0.001S")
    })
    .await;
    forwarding.ingest("a").await;
    eventually("it was tried often", async || tries.load(SeqCst) > 10).await;
    assert!(forwarding.dead_letters().await.is_empty());
    well.store(true, SeqCst);
    eventually("it is dead", async || !forwarding.dead_letters().await.is_empty()).await;
    forwarding.end().await;
}

#[tokio::test]
async fn the_clock_ticks_batch() {
    let gateway = StandIn::start(|_, _| StatusCode::OK).await;
    let forwarding = Forwarding::start(&gateway).await;
    eventually("it ticked twice", async || gateway.calls("batch").len() >= 2).await;
    let ticks = gateway.calls("batch");
    assert_eq!(ticks[0].header("ce-type"), "dev.knative.sources.ping");
    assert_ne!(ticks[0].header("x-call-id"), ticks[1].header("x-call-id"));
    forwarding.end().await;
}

#[tokio::test]
async fn what_is_under_way_ends_and_is_not_sent_again() {
    let gateway = StandIn::start(|_, _| StatusCode::OK).await;
    let forwarding = Forwarding::start(&gateway).await;
    gateway.gate.forget_permits(Semaphore::MAX_PERMITS);
    forwarding.ingest("a").await;
    for function in ["count", "store"] {
        eventually("it was called", async || !gateway.calls(function).is_empty()).await;
    }
    forwarding.stop.cancel();
    gateway.gate.add_permits(1_000_000);
    let data = forwarding.end().await;
    let again = Forwarding::over(data, &gateway).await;
    again.ingest("b").await;
    for function in ["count", "store"] {
        eventually("the second came", async || gateway.calls(function).len() >= 2).await;
    }
    let data = again.end().await;
    assert_eq!((gateway.calls("count").len(), gateway.calls("store").len()), (2, 2));
    drop(data);
}

#[tokio::test]
async fn it_is_ready_once_the_gateway_answers() {
    let gateway = StandIn::start(|_, _| StatusCode::OK).await;
    let forwarding = Forwarding::start(&gateway).await;
    assert_eq!(forwarding.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(forwarding.get("/readyz").await.status(), StatusCode::OK);
    gateway.task.abort();
    let _ = gateway.task.await;
    let missing = async || forwarding.get("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE;
    eventually("it says so", missing).await;
    let answer = forwarding.get("/readyz").await;
    assert!(String::from_utf8_lossy(answer.body()).contains("gateway"), "{answer:?}");
    assert_eq!(forwarding.get("/healthz").await.status(), StatusCode::OK);
    forwarding.end().await;
}
