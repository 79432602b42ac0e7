//! Checks the images' trees against the requirements of Knative and OpenFaaS (`task test:images`): read-only root, user
//! 65532, no privileges, standard input closed, and only Knative's environment.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// Runs an image without a container engine.
mod image;

/// A stand-in for OpenFaaS' gateway in front of the functions.
mod gateway;
/// Reports tests that cannot run here.
#[path = "../not_run.rs"]
mod not_run;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lambda_architecture::client::Client;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::image::{Container, FORWARDER, FUNCTIONS, Root, environment, free_address, images, tmp};

/// Maximum memory of an idle function, in kilobytes.
const RSS_KB: u64 = 16 * 1024;
/// Maximum size of an image's files, uncompressed, in bytes.
const IMAGE_BYTES: u64 = 12_000_000;

fn all() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.into_iter().chain([FORWARDER])
}

async fn sealed(images: &Path, name: &str) -> (Container, tempfile::TempDir) {
    let tmp = tmp();
    let mut container = Container::start(images, name, Root::ReadOnly, tmp.path(), &[]);
    container.answers().await;
    (container, tmp)
}

#[tokio::test]
async fn each_image_answers_probes_and_holds_little_memory() {
    let Some(images) = images() else { return };
    for name in all() {
        let (container, tmp) = sealed(&images, name).await;
        for path in ["/healthz", "/_/health", "/health/liveness"] {
            let answer = container.get(path).await;
            assert_eq!(
                (answer.status(), answer.body().as_ref()),
                (StatusCode::OK, b"ok".as_slice()),
                "{name}"
            );
        }
        for path in ["/readyz", "/_/ready", "/health/readiness"] {
            // No store is configured, and the embedded stores cannot be written.
            let answer = container.get(path).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{name}");
            let problem: Value = serde_json::from_slice(answer.body()).unwrap();
            assert!(!problem["detail"].as_str().unwrap().is_empty(), "{name}");
        }
        println!("{name}: {} kB resident when idle", container.rss_kb());
        assert!(container.rss_kb() <= RSS_KB, "{name} holds {} kB", container.rss_kb());
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0, "{name} wrote to /tmp");
    }
}

#[tokio::test]
async fn each_image_runs_as_nobody_on_a_root_that_cannot_be_written() {
    let Some(images) = images() else { return };
    for name in all() {
        let (container, _tmp) = sealed(&images, name).await;
        for (field, value) in [
            ("Uid", "65532 65532 65532 65532"),
            ("Gid", "65532 65532 65532 65532"),
            ("Groups", ""),
            ("NoNewPrivs", "1"),
            ("CapEff", "0000000000000000"),
        ] {
            assert_eq!(container.status(field), value, "{name}: {field}");
        }
        let given = environment(name, container.address.port(), &[]);
        let environ = container.proc("environ");
        assert_eq!(environ.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), given, "{name}");
        let mounts = container.proc("mountinfo");
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    }
}

#[tokio::test]
async fn what_proxies_add_changes_no_answer() {
    let Some(images) = images() else { return };
    for name in all() {
        let (container, _tmp) = sealed(&images, name).await;
        let request = Request::get("/healthz")
            .header("host", format!("{name}.default.example.com"))
            .header("forwarded", "for=192.0.2.60;proto=https;host=example.com, for=\"[2001:db8::1]:4711\"")
            .header("x-forwarded-for", "192.0.2.60, 10.0.0.1")
            .header("x-forwarded-host", "example.com")
            .header("x-forwarded-proto", "https")
            .header("x-request-id", "1")
            .header("x-call-id", "call-1")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .body(Bytes::new())
            .unwrap();
        let answer = Client::new(container.address).send(request).await.unwrap();
        assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, b"ok".as_slice()), "{name}");
        assert_eq!(answer.headers()["x-call-id"], "call-1", "{name}");
    }
}

#[tokio::test]
async fn each_image_speaks_http_2_without_being_asked_first() {
    let Some(images) = images() else { return };
    for name in all() {
        let (container, _tmp) = sealed(&images, name).await;
        let stream = tokio::net::TcpStream::connect(container.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let uri = format!("http://{}/healthz", container.address);
        let answer =
            sender.send_request(Request::get(uri).body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, http::Version::HTTP_2), "{name}");
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok", "{name}");
    }
}

#[tokio::test]
async fn sigterm_lets_a_request_end_and_takes_no_new_one() {
    let Some(images) = images() else { return };
    for name in all() {
        let (mut container, _tmp) = sealed(&images, name).await;
        let mut slow = TcpStream::connect(container.address).unwrap();
        slow.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        slow.write_all(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
        )
        .unwrap();
        // The function sends this when it starts to read the body. From now on the request is in progress.
        let mut begun = [0; 25];
        slow.read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"HTTP/1.1 100 Continue\r\n\r\n", "{name}");
        container.terminate();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match TcpStream::connect(container.address) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                _ => assert!(Instant::now() < deadline, "{name} still takes connections"),
            }
        }
        slow.write_all(b"body").unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"),
            "{name}: {answer}"
        );
        assert_eq!(container.ended().await.code(), Some(0), "{name}");
    }
}

#[tokio::test]
async fn all_images_together_count_a_user_and_write_only_to_tmp() {
    let Some(images) = images() else { return };
    let tmp = tmp();
    let stores = ["LOG_URL", "MASTER_URL", "VIEWS_URL"].map(|key| (key, format!("sqlite:/tmp/{key}.db")));
    let mut containers = BTreeMap::new();
    for name in FUNCTIONS {
        containers.insert(name, Container::start(&images, name, Root::Writable, tmp.path(), &stores));
    }
    let functions =
        containers.iter().map(|(name, container)| ((*name).to_owned(), container.address)).collect();
    let url = gateway::start(functions).await;
    let env = [stores.as_slice(), &[("GATEWAY_URL", url.clone())]].concat();
    containers.insert(FORWARDER, Container::start(&images, FORWARDER, Root::Writable, tmp.path(), &env));
    for container in containers.values_mut() {
        container.answers().await;
        assert_eq!(container.get("/readyz").await.status(), StatusCode::OK);
    }

    let mut client = Client::new(url.strip_prefix("http://").unwrap().parse().unwrap());
    let user = json!({ "id": Uuid::new_v4(), "name": "Zoë" });
    let posted = client.post_json("/function/ingest/user", user.to_string()).await.unwrap();
    assert_eq!(posted.status(), StatusCode::CREATED);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // The same request as the cron connector's.
        let tick = Request::post("/function/batch").body(Bytes::new()).unwrap();
        assert_eq!(client.send(tick).await.unwrap().status(), StatusCode::OK);
        let answer = client.get("/function/analytics/analytics").await.unwrap();
        let analytics: Value = serde_json::from_slice(answer.body()).unwrap();
        if analytics["longestNameUser"] == user && analytics["userCount"][0]["userCount"] == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{analytics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, container) in &mut containers {
        println!("{name}: {} kB resident after work", container.rss_kb());
        container.terminate();
        assert_eq!(container.ended().await.code(), Some(0), "{name}");
        if *name == "batch" {
            assert!(container.logs().contains(r#""callId":"a-call""#), "{}", container.logs());
        }
        assert_eq!(container.written(), Vec::<std::path::PathBuf>::new(), "{name}");
    }
}

#[test]
fn each_image_is_small() {
    let Some(images) = images() else { return };
    let sizes: BTreeMap<_, _> = all().map(|name| (name, bytes(&images.join(name)))).collect();
    for (name, size) in &sizes {
        println!("{name}: {:.1} MB", *size as f64 / 1e6);
    }
    for (name, size) in &sizes {
        assert!(*size <= IMAGE_BYTES, "{name} has {size} bytes");
    }
}

#[test]
fn each_image_answers_once_it_is_started() {
    let Some(images) = images() else { return };
    for name in all() {
        let mut took: Vec<_> = (0..11).map(|_| exec_to_answer(&images.join(name), name)).collect();
        took.sort_by(f64::total_cmp);
        println!("{name}: {:.1} ms from exec to the first answer", took[5] * 1e3);
    }
}

fn bytes(path: &Path) -> u64 {
    if !path.is_dir() {
        return path.symlink_metadata().unwrap().len();
    }
    std::fs::read_dir(path).unwrap().map(|entry| bytes(&entry.unwrap().path())).sum()
}

/// Seconds from the start of a process until its first response. The process runs without a container, since setting
/// one up takes longer than the function's start.
fn exec_to_answer(image: &Path, name: &str) -> f64 {
    let address = free_address();
    let env = environment(name, address.port(), &[]);
    let env = env.iter().map(|pair| pair.split_once('=').unwrap());
    let folder = tmp();
    let mut command = Command::new(image.join("function"));
    command.env_clear().envs(env).current_dir(folder.path()).stdin(Stdio::null());
    if name == FORWARDER {
        let manifests = image.join("etc/lambda-architecture");
        command.args(["eventing", "functions"].map(|folder| manifests.join(folder)));
    }
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(_) => {
                assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none())
            }
        }
    };
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let took = started.elapsed().as_secs_f64();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    child.kill().unwrap();
    child.wait().unwrap();
    took
}
