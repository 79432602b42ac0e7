//! The HTTP server of a function: limits, slow clients, HTTP/1.1 and h2c, drain on SIGTERM.

mod activity;
mod body;
mod bound;
mod connection;
mod socket;
mod vet;

use std::{
    any::Any,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    path::Path,
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use listenfd::ListenFd;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_util::task::TaskTracker;

pub use self::body::{read_body, unread};
use self::{bound::Connections, connection::Protocols};
use crate::{
    call,
    config::{Config, ConfigError, DATA, EXIT_CONFIG},
    metrics,
    router::{Request, Response, Router, State, problem, route_method},
    telemetry,
};

/// Largest body of one user or event, bytes.
pub const ONE_LIMIT: usize = 64 * 1024;
/// Largest body of a batch, bytes.
pub const BATCH_LIMIT: usize = 1024 * 1024;
/// Maximum time for requests in flight after SIGTERM; Knative kills after 300 s by default.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time after SIGTERM for requests whose clients have disconnected.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failure to accept a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How long accepting must have worked before the next failure is logged.
const ACCEPT_QUIET: Duration = Duration::from_secs(30);

/// Runs a function until SIGTERM or SIGINT: reads the configuration, opens the routes, serves. `name` appears in the
/// logs. With an invalid configuration it prints one line on standard error and exits with 64.
pub fn run<S: State>(
    name: &'static str,
    open: impl FnOnce(&Config) -> Result<Router<S>, ConfigError>,
) -> ExitCode {
    // One thread serves, because functions scale by replicas. Backends have their own threads.
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

async fn function<S: State>(
    name: &'static str,
    open: impl FnOnce(&Config) -> Result<Router<S>, ConfigError>,
) -> Result<(), Stop> {
    // Whoever starts functions as children says where embedded stores lie.
    let data = std::env::var_os("DATA_FOLDER").unwrap_or_else(|| DATA.into());
    let config = Config::read(|key| std::env::var(key).ok(), Path::new(&data)).map_err(Stop::Config)?;
    let telemetry = telemetry::start(name, &config, io::stdout).map_err(Stop::Config)?;
    bound::raise_descriptors();
    let router = open(&config).map_err(Stop::Config)?.named(name);
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

/// The socket passed by the parent (systemd's protocol), or else the port on all addresses.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match ListenFd::from_env().take_tcp_listener(0)? {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        }
        None => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// If standard input is a pipe from the parent, exit when the parent dies, even by SIGKILL.
fn hold_lifeline() {
    if std::env::var_os("LIFELINE").is_some_and(|v| v == "stdin") {
        std::thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        });
    }
}

/// Completes when the process is asked to stop.
pub fn terminated() -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Serves the routes until `stop`, then accepts no connection and drains requests in flight.
pub async fn serve<S: State>(listener: TcpListener, router: Router<S>, stop: impl Future<Output = ()>) {
    let (mark, router) = (router.mark(), Arc::new(router));
    serve_marked(listener, move |_, request| respond(router.clone(), request), mark, stop).await;
}

/// Like `serve`, with any handler of a client's address and request. Each request runs in a task of its own that
/// completes even if the client disconnects; a panic becomes a 500.
pub async fn serve_with<H, F>(listener: TcpListener, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(SocketAddr, hyper::Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    serve_marked(listener, handler, None, stop).await;
}

async fn serve_marked<H, F>(
    listener: TcpListener,
    handler: H,
    mark: Option<HeaderValue>,
    stop: impl Future<Output = ()>,
) where
    H: Fn(SocketAddr, hyper::Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let protocols = Arc::new(Protocols::new(handler, mark));
    let connections = Connections::new(bound::by_descriptors());
    let (stopping, stopped) = watch::channel(());
    let mut failures = AcceptFailures::default();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let slot = connections.admit();
                tokio::spawn(connection::serve(stream, peer, protocols.clone(), slot, stopped.clone()));
            }
            // Typically out of file descriptors: requests in flight continue, and free some.
            Err(error) => {
                failures.tell(&error);
                connections.evict_one();
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop((listener, stopped));
    drain(stopping, &protocols.tasks).await;
}

async fn accept(listener: &TcpListener, connections: &Connections) -> io::Result<(TcpStream, SocketAddr)> {
    connections.room().await;
    listener.accept().await
}

/// Waits for connections to close, then briefly for requests whose clients have disconnected: they have effects.
async fn drain(stopping: watch::Sender<()>, tasks: &TaskTracker) {
    let _ = stopping.send(());
    tasks.close();
    let drained = timeout(DRAIN_TIMEOUT, stopping.closed()).await.is_ok();
    if !drained || timeout(ABANDONED_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!("requests were still under way when the time to drain was over");
    }
}

/// Logs failures to accept once, and again only after a period without any.
#[derive(Default)]
struct AcceptFailures {
    last: Option<Instant>,
}

impl AcceptFailures {
    /// Returns whether it was logged.
    fn tell(&mut self, error: &io::Error) -> bool {
        let quiet = self.last.is_none_or(|last| last.elapsed() > ACCEPT_QUIET);
        self.last = Some(Instant::now());
        if quiet {
            tracing::error!(%error, "could not accept a connection; this is said once until it works again");
        }
        quiet
    }
}

async fn respond<S: State>(router: Arc<Router<S>>, request: hyper::Request<Incoming>) -> Response {
    let (id, observed) = (call::id(request.headers()), telemetry::observe(&request));
    let answering = AssertUnwindSafe(answer(&router, request)).catch_unwind();
    let answering = async { answering.await.unwrap_or_else(|panic| panicked(&*panic)) };
    call::answered(id, observed.run(answering)).await
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let why = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(why, "a request was not answered, since its handler panicked");
    problem(StatusCode::INTERNAL_SERVER_ERROR, "the request was not answered; this is a fault here")
}

async fn answer<S: State>(router: &Router<S>, request: hyper::Request<Incoming>) -> Response {
    let (head, body) = request.into_parts();
    let route = match router.find(&route_method(&head.method), head.uri.path(), &head.headers) {
        Ok(route) => route,
        Err(response) => return unread(*response, body),
    };
    if let Err(rejection) = vet::content_encoding(&head.headers) {
        let mut response = problem(rejection.status, rejection.detail);
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        return unread(response, body);
    }
    let limit = if event::media_type(&head.headers) == event::BATCHED { BATCH_LIMIT } else { ONE_LIMIT };
    let body = match read_body(body, limit).await {
        Ok(body) => body,
        Err(response) => return *response,
    };
    route.answer(Request::new(head, body)).await
}

#[cfg(test)]
mod tests;
