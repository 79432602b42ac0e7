//! The HTTP server around a function: limits, slow clients, HTTP/1.1 and h2c, drain on SIGTERM.
//! Knows no route and no backend.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use listenfd::ListenFd;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{
    call,
    config::{Config, ConfigError, DATA, EXIT_CONFIG},
    event, metrics,
    router::{Request, Response, Router, problem},
    telemetry,
};

/// Largest body of one user or event, bytes.
pub const ONE_LIMIT: usize = 64 * 1024;
/// Largest body of a batch, bytes.
pub const BATCH_LIMIT: usize = 1024 * 1024;
/// How long a client may take to send its headers, or the first byte of them.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a body is read that was answered before its end.
const LINGER: Duration = Duration::from_secs(5);
/// How long requests under way may take after SIGTERM; Knative's default is 300 s before it kills.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a function until SIGTERM or SIGINT: reads the configuration from the environment, opens its routes, serves.
/// `name` stands in the logs. Exits 64 with one line on standard error when the configuration is wrong.
pub fn run(name: &'static str, open: impl FnOnce(&Config) -> Result<Router, ConfigError>) -> ExitCode {
    // One thread serves; replicas are how a function grows. Backends have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Stop::Io).and_then(|runtime| runtime.block_on(function(name, open)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Config(error)) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_CONFIG)
        }
        Err(Stop::Io(error)) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Stop {
    Config(ConfigError),
    Io(io::Error),
}

async fn function(
    name: &'static str,
    open: impl FnOnce(&Config) -> Result<Router, ConfigError>,
) -> Result<(), Stop> {
    let config = Config::read(|key| std::env::var(key).ok(), Path::new(DATA)).map_err(Stop::Config)?;
    let telemetry = telemetry::start(name, &config, io::stdout).map_err(Stop::Config)?;
    let router = open(&config).map_err(Stop::Config)?;
    let listener = listen(config.port).await.map_err(Stop::Io)?;
    hold_lifeline();
    if let Some(port) = config.metrics_port {
        let scrape = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map_err(Stop::Io)?;
        tokio::spawn(serve(scrape, metrics::router(), std::future::pending()));
    }
    tracing::debug!(function = name, port = config.port, "serves");
    serve(listener, router, terminated().map_err(Stop::Io)?).await;
    telemetry.flush();
    Ok(())
}

/// The socket that the starter passed (systemd's protocol), or else the port on all addresses.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match ListenFd::from_env().take_tcp_listener(0)? {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        }
        None => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// Where the starter holds the other end of standard input, its death by SIGKILL ends this process too.
fn hold_lifeline() {
    if std::env::var_os("LIFELINE").is_some_and(|v| v == "stdin") {
        std::thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        });
    }
}

/// Ends when the process is asked to stop.
pub fn terminated() -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Serves the routes until `stop`; then takes no new connection and lets requests under way end.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let router = Arc::new(router);
    serve_with(listener, move |_, request| respond(router.clone(), request), stop).await;
}

/// Serves any handler of a client's address and request likewise.
pub async fn serve_with<H, F>(listener: TcpListener, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(SocketAddr, hyper::Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let handler = Arc::new(handler);
    let graceful = GracefulShutdown::new();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(1_000);
    let server = Arc::new(server);
    tokio::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of file descriptors, say: those under way go on, and free some.
                Err(error) => {
                    tracing::error!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (server, handler, watcher) = (server.clone(), handler.clone(), graceful.watcher());
        tokio::spawn(async move {
            if !speaks(&stream).await {
                return;
            }
            let service = service_fn(move |request| {
                let answer = handler(peer, request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // A broken connection is its client's affair.
            let _ = watcher.watch(connection.into_owned()).await;
        });
    }
    drop(listener);
    if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the time to drain was over");
    }
}

/// Whether the client sends anything in time: the protocol is not known before, so hyper's own timeout does not run.
async fn speaks(stream: &TcpStream) -> bool {
    let _ = stream.set_nodelay(true);
    matches!(timeout(HEADER_TIMEOUT, stream.peek(&mut [0])).await, Ok(Ok(1)))
}

async fn respond(router: Arc<Router>, request: hyper::Request<Incoming>) -> Response {
    let (id, observed) = (call::id(request.headers()), telemetry::observe(&request));
    call::answered(id, observed.run(answer(&router, request))).await
}

async fn answer(router: &Router, request: hyper::Request<Incoming>) -> Response {
    let (head, body) = request.into_parts();
    let method = if head.method == Method::HEAD { Method::GET } else { head.method };
    if let Err(response) = router.check(&method, head.uri.path()) {
        return unread(*response, body);
    }
    let limit = if event::media_type(&head.headers) == event::BATCHED { BATCH_LIMIT } else { ONE_LIMIT };
    let body = match read_body(body, limit).await {
        Ok(body) => body,
        Err(response) => return *response,
    };
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    router.answer(Request { method, path, query, headers: head.headers, body }).await
}

/// Reads a whole body of at most `limit` bytes, or says what to answer instead (400, 408 or 413).
pub async fn read_body(mut body: Incoming, limit: usize) -> Result<Bytes, Box<Response>> {
    let read = timeout(BODY_TIMEOUT, read(&mut body, limit)).await.unwrap_or_else(|_| {
        Err(Box::new(problem(StatusCode::REQUEST_TIMEOUT, "the body took too long; send it faster")))
    });
    read.map_err(|response| Box::new(unread(*response, body)))
}

/// An answer to a request whose body was not read whole: the client is told that the connection ends with it. What it
/// still sends is read and forgotten for a while, since closing on unread bytes would destroy the answer on its way.
#[must_use]
pub fn unread<B>(mut response: http::Response<B>, mut body: Incoming) -> http::Response<B> {
    if !body.is_end_stream() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        tokio::spawn(timeout(LINGER, async move { while let Some(Ok(_)) = body.frame().await {} }));
    }
    response
}

async fn read(body: &mut Incoming, limit: usize) -> Result<Bytes, Box<Response>> {
    let too_large = || {
        Box::new(problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the body must have at most {limit} bytes")))
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Box::new(problem(StatusCode::BAD_REQUEST, format!("the body did not come whole: {e}")))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(too_large());
        }
        // Nearly every body comes in one frame, which need not be copied.
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
