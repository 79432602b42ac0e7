//! A function that the runtime does not know of, added by its manifests alone. Its replicas run in the test's process.

use std::{
    io,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use backend_log::Start;
use bytes::Bytes;
use eventing::{event::Event, event_sources, sink::Sink};
use framework::serve::serve_with;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serving::{FunctionSpec, Guard, Launched, Launcher, Serving};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    manifests,
    repair::{self, Target},
    system::{FunctionSink, System, SystemArgs},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Function, path and `ce-id` of a request.
type Seen = (String, String, Option<String>);

/// Answers everything with 200 and records it.
#[derive(Clone, Default)]
struct InProcess {
    /// Each request except probes.
    requests: Arc<Mutex<Vec<Seen>>>,
}

impl InProcess {
    /// Ids of the events that a function got.
    fn events(&self, function: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(name, ..)| name == function).filter_map(|(.., id)| id.clone()).collect()
    }

    async fn wait_for(&self, ids: &[&str]) {
        let arrived = async {
            while self.events("audit") != ids {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, arrived).await.unwrap_or_else(|_| panic!("{:?}", self.events("audit")));
    }
}

impl Launcher for InProcess {
    fn launch(&self, spec: &FunctionSpec) -> io::Result<Launched> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (requests, name) = (self.requests.clone(), spec.name.clone());
        let answer = move |_, request: Request<Incoming>| {
            let id = request.headers().get("ce-id").map(|id| id.to_str().unwrap().to_owned());
            let path = request.uri().path().to_owned();
            if path != "/healthz" {
                requests.lock().unwrap().push((name.clone(), path, id));
            }
            async { Response::new(Full::default()) }
        };
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let server =
            serve_with(tokio::net::TcpListener::from_std(listener)?, answer, stop.clone().cancelled_owned());
        let server = tokio::spawn(server);
        let ended = Box::pin(async move { format!("{:?}", server.await) });
        Ok(Launched { pid: 1, address, stop, kill, ended })
    }

    fn log_of(&self, function: &str) -> String {
        format!("{function}.log")
    }
}

fn system(data: &Path) -> System {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifests = ["infra/local/fixtures/audit", "eventing/dead-letter.yaml"];
    System::open(&SystemArgs {
        allow_host: Vec::new(),
        listen: "127.0.0.1:0".parse().unwrap(),
        data: data.to_owned(),
        manifests: manifests.map(|path| project.join(path)).into(),
    })
    .unwrap()
}

#[tokio::test]
async fn a_function_added_by_its_manifests_is_reached_by_name_by_prefix_by_source_and_by_replay() {
    let data = tempfile::tempdir().unwrap();
    let (system, replicas) = (system(data.path()), InProcess::default());
    let serve = || Serving::start(manifests::specs(&system.arrows).unwrap(), replicas.clone()).unwrap();
    let serving = Arc::new(serve());

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut client, stop) = (Client::new(listener.local_addr().unwrap()), CancellationToken::new());
    let (running, routes, stopped) = (serving.clone(), system.routes.clone(), stop.clone());
    let gateway = tokio::spawn(async move {
        let status = |_| async { Response::new(Bytes::new()) };
        running.gateway(listener, routes, Guard::default(), status, stopped.cancelled_owned()).await;
    });
    for path in ["/function/audit/by/name", "/audits/by/prefix"] {
        assert_eq!(client.get(path).await.unwrap().status(), 200, "{path}");
    }
    assert_eq!(client.get("/ingress/user").await.unwrap().status(), 404);
    let paths: Vec<_> = replicas.requests.lock().unwrap().iter().map(|(_, path, _)| path.clone()).collect();
    assert_eq!(paths, ["/by/name", "/by/prefix"]);

    let topic = &system.arrows.sources()[0].topic;
    let record = Event::new("1", "/test", "user").to_record();
    system.log.append(topic, vec![record]).await.unwrap();
    let sink: Arc<dyn Sink> = Arc::new(FunctionSink(serving.invoker()));
    let sources = event_sources::run(&system.arrows, &system.log, &sink, mpsc::unbounded_channel().0, &stop);
    replicas.wait_for(&["1"]).await;

    let source = repair::source(&system, "audit").unwrap();
    repair::replay(&system, &Target::Own(serve()), &source, Start::Earliest).await.unwrap();
    replicas.wait_for(&["1", "1"]).await;

    stop.cancel();
    gateway.await.unwrap();
    timeout(DEADLINE, sources.ended()).await.unwrap();
    serving.shutdown().await;
}

#[tokio::test]
async fn a_function_that_no_source_feeds_cannot_be_replayed_to() {
    let data = tempfile::tempdir().unwrap();
    let error = repair::source(&system(data.path()), "count").err().unwrap().to_string();
    assert!(error.contains("`count`") && error.ends_with("one of: audit"), "{error}");
}
