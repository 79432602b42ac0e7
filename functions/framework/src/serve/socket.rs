//! The socket as hyper sees it: replays bytes that were read to detect the protocol, records activity, and replaces
//! hyper's own empty error responses by problem documents.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, StatusCode};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::activity::Activity;
use crate::{error::Problem, router::FUNCTION};

/// How the answers end that hyper gives by itself: these lines, in this order, and then a date.
const BARE: &str = "\r\nconnection: close\r\ncontent-length: 0\r\ndate: ";
/// More than such an answer has.
const BARE_LENGTH: usize = 256;

/// Lets the kernel detect a dead peer: by keep-alive probes, and by missing acknowledgements.
pub(super) fn notice_dead_peers(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(15)));
}

/// Whether the kernel has noticed that the peer is gone.
pub(super) fn is_peer_gone(stream: &TcpStream) -> bool {
    !matches!(SockRef::from(stream).take_error(), Ok(None))
}

/// The socket; shared, since the connection still needs it when hyper is done with it.
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    /// What was read already.
    read: Bytes,
    /// What hyper takes for written and is not yet.
    unwritten: BytesMut,
    activity: Arc<Activity>,
    mark: Option<HeaderValue>,
}

impl Socket {
    pub(super) fn new(
        stream: Arc<TcpStream>,
        read: Bytes,
        activity: Arc<Activity>,
        mark: Option<HeaderValue>,
    ) -> Self {
        Self { stream, read, unwritten: BytesMut::new(), activity, mark }
    }

    fn poll_stream(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.activity.moved();
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            match ready!(self.poll_stream(cx, &self.unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.unwritten.advance(n),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let n = self.read.len().min(buffer.remaining());
            buffer.put_slice(&self.read.split_to(n));
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.activity.moved();
                    return Poll::Ready(read.map(drop));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unwritten(cx))?;
        let Some((before, problem)) = bare_answer(bytes, self.mark.as_ref()) else {
            return self.poll_stream(cx, bytes);
        };
        self.unwritten.extend_from_slice(before);
        self.unwritten.extend_from_slice(&problem);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unwritten(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(cx))?;
        Poll::Ready(SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}

/// What stands before an answer of hyper's own at the end of `bytes`, and what is sent in its place.
fn bare_answer<'a>(bytes: &'a [u8], mark: Option<&HeaderValue>) -> Option<(&'a [u8], Vec<u8>)> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail_at = bytes.len().saturating_sub(BARE_LENGTH);
    let tail = std::str::from_utf8(&bytes[tail_at..]).ok()?;
    let at = tail.rfind("HTTP/1.1 4")?;
    let head = &tail[at..];
    let status: StatusCode = head.get(9..12)?.parse().ok()?;
    let rest = &head[head.find(BARE)? + BARE.len()..];
    // The date is the last line.
    if &rest[rest.find("\r\n")?..] != "\r\n\r\n" {
        return None;
    }
    Some((&bytes[..tail_at + at], problem(status, mark)))
}

fn problem(status: StatusCode, mark: Option<&HeaderValue>) -> Vec<u8> {
    let detail = match status {
        StatusCode::URI_TOO_LONG => "the request's target is too long; send what it holds in a body",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the headers are too many or too large; send at most 100 of them and 64 KiB in all"
        }
        _ => "this is no HTTP request that can be parsed; mend its first line and its headers",
    };
    let body = Problem::new(status, detail).to_json();
    let mark = mark.and_then(|m| m.to_str().ok()).map(|m| format!("{FUNCTION}: {m}\r\n")).unwrap_or_default();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\n{mark}connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_is_told_to_look_after_silent_peers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        notice_dead_peers(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let found_out = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert!(found_out <= Duration::from_secs(15), "{found_out:?}");
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(15)));
    }
}
