//! Raw HTTP/1.1, for requests that no HTTP library would send.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Timeout of a response, after which the test fails.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that a server sent before it closed the connection.
#[derive(Debug)]
pub struct Answer {
    /// The status of the first response.
    pub status: u16,
    head: String,
    /// All bytes after the first head.
    pub body: Vec<u8>,
}

impl Answer {
    /// Parses the response from all bytes of a connection. Returns `None` if there is none.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some(Self { status, head, body: bytes[end + 4..].to_vec() })
    }

    /// The value of the first header with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `detail` of the response, which must be an RFC 9457 problem with the response's status.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        problem["detail"].as_str().unwrap_or_default().to_owned()
    }
}

/// Builds a request with a body. It requests that the server close the connection, unless `headers` say otherwise.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: localhost\r\n");
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
        head.push_str("Connection: close\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Sends bytes and reads until the server closes the connection. Returns `None` if it closes without a response.
pub async fn ask(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    exchange(address, bytes, false).await
}

/// Like `ask`, but closes the sending half of the connection after the bytes.
pub async fn ask_half_closed(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    exchange(address, bytes, true).await
}

async fn exchange(address: SocketAddr, bytes: &[u8], half_close: bool) -> Option<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may respond and close the connection before it has read everything.
        let _ = stream.write_all(bytes).await;
        if half_close {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let answer = timeout(ANSWER_TIMEOUT, exchange).await.expect("no answer and no end of the connection");
    Answer::parse(&answer)
}

/// Sends bytes, waits up to `patience` for a response, and drops the connection. Returns the status if it arrived in
/// time.
pub async fn ask_and_hang_up(address: SocketAddr, bytes: &[u8], patience: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let asked = async {
        stream.write_all(bytes).await.ok()?;
        let mut answer = Vec::new();
        while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                return None;
            }
        }
        Answer::parse(&answer).map(|answer| answer.status)
    };
    timeout(patience, asked).await.ok().flatten()
}
