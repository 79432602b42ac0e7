//! One connection: protocol detection, a deadline for every state, and requests that run in tasks of their own.

use std::{convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::{
    activity::Activity,
    body::{RECEIVING, Unread, unread},
    bound::Slot,
    socket::{Socket, is_peer_gone, notice_dead_peers},
    vet,
};
use crate::router::{FUNCTION, Response, problem};

/// What an HTTP/2 client sends first.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// HTTP/2 keep-alive: ping interval, and timeout of the response.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send its headers, or the first byte of them.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to discard what a client still sends after an early response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an HTTP/2 connection without requests is kept; an HTTP/1 connection waits for `HEADER_TIMEOUT`.
const H2_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for a client to read a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an idle connection and a stalled body may delay a shutdown.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);
const DRAIN_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often deadlines are checked.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Largest head of an HTTP/1 request, bytes; also what is read of a body at once.
const HEAD_LIMIT: usize = 128 * 1024;
/// Maximum number of bytes to discard after an early response.
const LINGER_LIMIT: usize = 16 * 1024 * 1024;

/// State shared by all connections of a listener.
pub(super) struct Protocols<H> {
    pub(super) handler: H,
    /// Requests are tasks that outlive their connections; the drain waits for them here.
    pub(super) tasks: TaskTracker,
    /// Whose answers these are.
    pub(super) mark: Option<HeaderValue>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl<H> Protocols<H> {
    pub(super) fn new(handler: H, mark: Option<HeaderValue>) -> Self {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        // A client that half-closed after its request still expects the response.
        http1.half_close(true).max_buf_size(HEAD_LIMIT);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).max_concurrent_streams(1_000);
        http2.keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
        // Above what `vet` refuses, so that its answer has a body.
        http2.max_header_list_size(2 * HEAD_LIMIT as u32);
        Self { handler, tasks: TaskTracker::new(), mark, http1, http2 }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<H, F>(
    stream: TcpStream,
    peer: SocketAddr,
    protocols: Arc<Protocols<H>>,
    slot: Slot,
    mut stop: watch::Receiver<()>,
) where
    H: Fn(SocketAddr, hyper::Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    notice_dead_peers(&stream);
    let (stream, activity) = (Arc::new(stream), slot.activity.clone());
    let spoken = tokio::select! {
        spoken = speaks(&stream) => spoken,
        () = activity.eviction() => None,
        () = sleep(HEADER_TIMEOUT) => None,
        _ = stop.changed() => None,
    };
    let Some((version, read)) = spoken else { return };
    activity.moved();
    let socket = Socket::new(stream.clone(), read, activity.clone(), protocols.mark.clone());
    let (socket, asked) = (TokioIo::new(socket), (protocols.clone(), activity.clone()));
    let service = service_fn(move |request| respond(asked.0.clone(), asked.1.clone(), peer, request));
    let failed = if version == Version::HTTP_2 {
        drive(protocols.http2.serve_connection(socket, service), version, &activity, &stream, &mut stop).await
    } else {
        drive(protocols.http1.serve_connection(socket, service), version, &activity, &stream, &mut stop).await
    };
    // Closing with unread bytes would reset the connection and lose the response.
    if failed || activity.ends() {
        let _ = timeout(LINGER_TIMEOUT, forget(&stream)).await;
    }
}

/// The detected protocol and the bytes read so far; `None` if the client closed before sending anything.
async fn speaks(stream: &TcpStream) -> Option<(Version, Bytes)> {
    let mut read = Vec::with_capacity(H2_PREFACE.len());
    loop {
        stream.readable().await.ok()?;
        let mut buffer = [0; H2_PREFACE.len()];
        match stream.try_read(&mut buffer[read.len()..]) {
            Ok(0) if read.is_empty() => return None,
            // Not a preface: HTTP/1 reports what is wrong.
            Ok(0) => return Some((Version::HTTP_11, read.into())),
            Ok(n) => {
                let from = read.len();
                read.extend_from_slice(&buffer[from..from + n]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        }
        if !H2_PREFACE.starts_with(&read) {
            return Some((Version::HTTP_11, read.into()));
        }
        if read.len() == H2_PREFACE.len() {
            return Some((Version::HTTP_2, read.into()));
        }
    }
}

/// Runs one request in a task of its own, so that a client that disconnects cancels no work with effects.
async fn respond<H, F>(
    protocols: Arc<Protocols<H>>,
    activity: Arc<Activity>,
    peer: SocketAddr,
    mut request: hyper::Request<Incoming>,
) -> Result<Response, Infallible>
where
    H: Fn(SocketAddr, hyper::Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let guard = activity.request();
    let mut response = match vet::vet(&mut request) {
        Err(rejection) => unread(problem(rejection.status, rejection.detail), request.into_body()),
        Ok(()) => {
            let answering = RECEIVING.scope(activity.clone(), (protocols.handler)(peer, request));
            protocols.tasks.spawn(answering).await.unwrap_or_else(|error| {
                tracing::error!(%error, "a request was not answered");
                problem(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the request was not answered; this is a fault here",
                )
            })
        }
    };
    if let Some(mark) = &protocols.mark {
        response.headers_mut().insert(FUNCTION, mark.clone());
    }
    if response.extensions().get::<Unread>().is_some() {
        activity.cut_after(LINGER_TIMEOUT);
    }
    drop(guard);
    Ok(response)
}

/// Drives a connection until it ends or must end; returns whether it ended with an error.
async fn drive<C: GracefulConnection>(
    connection: C,
    version: Version,
    activity: &Activity,
    stream: &TcpStream,
    stop: &mut watch::Receiver<()>,
) -> bool {
    let mut connection = pin!(connection);
    let mut stopping = false;
    let mut leaving = false;
    let mut watch = interval(WATCH_INTERVAL);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.is_err(),
            () = activity.eviction() => return false,
            _ = stop.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = watch.tick() => {
                match overdue(version, activity, stopping || leaving) {
                    Overdue::Cut => return false,
                    Overdue::Leave if !leaving => {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    _ if is_peer_gone(stream) => return false,
                    _ => {}
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    /// Nothing is.
    No,
    /// The client is to be told that the connection ends.
    Leave,
    /// The connection is closed at once.
    Cut,
}

fn overdue(version: Version, activity: &Activity, stopping: bool) -> Overdue {
    let cut = |over: bool| if over { Overdue::Cut } else { Overdue::No };
    if activity.is_overdue() {
        return Overdue::Cut;
    }
    if activity.requests() > 0 {
        let stuck = activity.only_receiving() && activity.still_for() > DRAIN_BODY_TIMEOUT;
        return cut(stopping && stuck);
    }
    let idle = activity.idle_for();
    match version {
        _ if stopping => cut(idle.min(activity.still_for()) > DRAIN_IDLE_TIMEOUT || idle > WRITE_TIMEOUT),
        Version::HTTP_2 if !activity.any_request() => cut(idle > HEADER_TIMEOUT),
        // Pings move bytes, so only requests tell.
        Version::HTTP_2 if idle > H2_IDLE_TIMEOUT => Overdue::Leave,
        Version::HTTP_2 => Overdue::No,
        _ => cut(activity.still_for() > WRITE_TIMEOUT),
    }
}

/// Discards input until the client has closed its half.
async fn forget(stream: &TcpStream) {
    let mut buffer = [0; 8 * 1024];
    let mut left = LINGER_LIMIT;
    while left > 0 && stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => left = left.saturating_sub(n),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::{
        Overdue::{Cut, Leave, No},
        *,
    };

    const ONE_MORE: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_under_way_has_a_deadline_in_every_state() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        for (version, was_asked, stopping, deadline, then) in [
            (one, true, false, WRITE_TIMEOUT, Cut),
            (two, false, false, HEADER_TIMEOUT, Cut),
            (two, true, false, H2_IDLE_TIMEOUT, Leave),
            (one, false, true, DRAIN_IDLE_TIMEOUT, Cut),
            (one, true, true, DRAIN_IDLE_TIMEOUT, Cut),
            (two, false, true, DRAIN_IDLE_TIMEOUT, Cut),
            (two, true, true, DRAIN_IDLE_TIMEOUT, Cut),
        ] {
            let case = format!("{version:?}, asked before: {was_asked}, stopping: {stopping}");
            let activity = Activity::new();
            if was_asked {
                drop(activity.request());
            }
            advance(deadline).await;
            assert_eq!(overdue(version, &activity, stopping), No, "{case}");
            advance(ONE_MORE).await;
            assert_eq!(overdue(version, &activity, stopping), then, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_read_slowly_goes_on_and_pings_keep_no_connection() {
        let (reading, pinging) = (Activity::new(), Activity::new());
        drop((reading.request(), pinging.request()));
        for _ in 0..3 {
            advance(WRITE_TIMEOUT).await;
            reading.moved();
            pinging.moved();
            assert_eq!(overdue(Version::HTTP_11, &reading, false), No);
        }
        assert_eq!(overdue(Version::HTTP_2, &pinging, false), Leave);
        // While the server stops, such a client has this long and no longer.
        assert_eq!(overdue(Version::HTTP_11, &reading, true), Cut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_worked_for_however_long_unless_its_body_stalls_a_shutdown() {
        let activity = Activity::new();
        let _request = activity.request();
        advance(Duration::from_secs(3_600)).await;
        assert_eq!(overdue(Version::HTTP_11, &activity, true), No);
        let _receiving = activity.receiving();
        activity.moved();
        advance(DRAIN_BODY_TIMEOUT).await;
        assert_eq!(overdue(Version::HTTP_11, &activity, true), No);
        advance(ONE_MORE).await;
        assert_eq!(overdue(Version::HTTP_11, &activity, false), No);
        assert_eq!(overdue(Version::HTTP_11, &activity, true), Cut);
        // Its answer was sent before its body had come: it is cut, although bytes still trickle.
        activity.cut_after(LINGER_TIMEOUT);
        advance(LINGER_TIMEOUT - ONE_MORE).await;
        assert_eq!(overdue(Version::HTTP_11, &activity, false), No);
        advance(ONE_MORE).await;
        activity.moved();
        assert_eq!(overdue(Version::HTTP_11, &activity, false), Cut);
    }
}
