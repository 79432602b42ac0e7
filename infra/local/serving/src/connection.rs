//! Connection pool of one replica (HTTP/1.1 keep-alive).

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Maximum size of a response body, bytes.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// Idle connections older than this are not reused. Functions close theirs after 10 s, so none is closing while in use.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

type Sender = SendRequest<Full<Bytes>>;

/// Why there is no response.
pub(crate) enum Failure {
    /// The request was not sent, so it is safe to retry; returns the request.
    NotSent(io::Error, Box<Request<Full<Bytes>>>),
    /// The connection broke; the function may have processed the request.
    Broken(String),
    /// The request timed out; the function may have processed it.
    TimedOut,
}

/// The connections to one address. The lock of `idle` is a leaf: nothing is awaited and no other lock is taken under
/// it.
pub(crate) struct Connections {
    address: SocketAddr,
    /// Cancelled when the process hangs; aborts all requests to it.
    hung: CancellationToken,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Connections {
    pub(crate) fn new(address: SocketAddr, hung: CancellationToken) -> Self {
        Self { address, hung, idle: Mutex::default() }
    }

    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        while let Some(mut sender) = self.take_idle() {
            if self.unless_hung(sender.ready()).await.is_none_or(|ready| ready.is_err()) {
                continue;
            }
            match self.exchange(sender, request).await {
                Err(Failure::NotSent(_, back)) => request = *back,
                answered => return answered,
            }
        }
        match self.unless_hung(self.connect()).await {
            Some(Ok(sender)) => self.exchange(sender, request).await,
            Some(Err(error)) => Err(Failure::NotSent(error, Box::new(request))),
            None => Err(Failure::NotSent(io::ErrorKind::ConnectionAborted.into(), Box::new(request))),
        }
    }

    async fn unless_hung<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.hung.cancelled() => None,
        }
    }

    /// Closes all idle connections.
    pub(crate) fn close_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The most recently used idle connection.
    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.pop() {
            Some((sender, since)) if since.elapsed() < IDLE_TIMEOUT => Some(sender),
            // The rest of the stack has been idle for longer.
            _ => {
                idle.clear();
                None
            }
        }
    }

    async fn connect(&self) -> io::Result<Sender> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The request's future reports the connection's errors.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn exchange(
        &self,
        sender: Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Failure> {
        let answer = self.unless_hung(self.exchange_on(sender, request)).await;
        answer.unwrap_or_else(|| Err(Failure::Broken("it hung and was killed".to_owned())))
    }

    /// Returns the connection to the pool only after a complete response; a cancelled request closes it.
    async fn exchange_on(
        &self,
        mut sender: Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Failure> {
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                return Err(match error.take_message() {
                    Some(back) => Failure::NotSent(io::ErrorKind::ConnectionReset.into(), Box::new(back)),
                    None => Failure::Broken(error.into_error().to_string()),
                });
            }
        };
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT).collect().await;
        let body = body.map_err(|e| Failure::Broken(e.to_string()))?.to_bytes();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push((sender, Instant::now()));
        drop(idle);
        Ok(Response::from_parts(head, body))
    }
}
