//! Requests to one replica over connections that are kept open.

use std::{
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

/// Largest body of an answer, bytes.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// Functions close idle connections after 10 s; one that might be closed at this moment is not used.
const IDLE: Duration = Duration::from_secs(5);

type Sender = SendRequest<Full<Bytes>>;

/// Why there is no answer.
pub(crate) enum Failure {
    /// Not a byte reached the function; here is the request again.
    NotSent(io::Error, Box<Request<Full<Bytes>>>),
    /// It may have been worked on.
    Broken(String),
}

/// The connections to one address.
pub(crate) struct Connections {
    address: SocketAddr,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Connections {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_err() {
                continue;
            }
            match self.exchange(sender, request).await {
                Err(Failure::NotSent(_, back)) => request = *back,
                answered => return answered,
            }
        }
        match self.connect().await {
            Ok(sender) => self.exchange(sender, request).await,
            Err(error) => Err(Failure::NotSent(error, Box::new(request))),
        }
    }

    /// Closes the connections that nobody uses.
    pub(crate) fn close_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.pop() {
            Some((sender, since)) if since.elapsed() < IDLE => Some(sender),
            // Those below it have been idle for longer still.
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
        // Its errors reach whoever waits for an answer.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn exchange(
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
