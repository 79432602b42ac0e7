//! A small HTTP client: one keep-alive connection, one request at a time.
//! Does not retry; the caller decides what a failure means.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, client::conn::http1::SendRequest, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there, or the connection broke.
    #[error("no connection")]
    Io(#[from] std::io::Error),
    /// The connection broke, or the response is not HTTP.
    #[error("no answer")]
    Http(#[from] hyper::Error),
    /// The request itself cannot be written.
    #[error("no such request")]
    Request(#[from] http::Error),
}

/// A connection that opens lazily and reopens after a failure.
pub struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client of a server; connects on first use.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// `GET path`.
    pub async fn get(&mut self, path: &str) -> Result<Response<Bytes>, ClientError> {
        self.send(Request::get(path).body(Bytes::new())?).await
    }

    /// `POST path` with a JSON body.
    pub async fn post_json(
        &mut self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, ClientError> {
        self.send(Request::post(path).header("content-type", "application/json").body(body.into())?).await
    }

    /// Sends a request whose URI is a path, and reads the whole response.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let answer = self.try_send(request).await;
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn try_send(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let mut request = request.map(Full::new);
        if !request.headers().contains_key(HOST)
            && let Ok(host) = self.address.to_string().try_into()
        {
            request.headers_mut().insert(HOST, host);
        }
        let (head, body) = self.sender().await?.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, ClientError> {
        let mut open = self.sender.take();
        // Replaces a connection that was closed meanwhile.
        if let Some(sender) = &mut open
            && sender.ready().await.is_err()
        {
            open = None;
        }
        let open = match open {
            Some(sender) => sender,
            None => connect(self.address).await?,
        };
        Ok(self.sender.insert(open))
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, ClientError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with an error when the server goes away; the request in flight gets that error too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
