//! A request or a record as text: `name: value` for each header, an empty line, and the body. A line without a colon is
//! a header without a value; without an empty line there is no body.

use bytes::Bytes;
use event::{Delivered, Record};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers and body, as they were written.
pub struct Message {
    headers: Vec<(Vec<u8>, Option<Bytes>)>,
    body: Option<Bytes>,
}

impl Message {
    /// Any bytes are a message.
    pub fn parse(input: &[u8]) -> Self {
        let end = match input.first() {
            Some(b'\n') => Some(0),
            _ => input.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 1),
        };
        let (head, body) = match end {
            Some(end) => (&input[..end], Some(Bytes::copy_from_slice(&input[end + 1..]))),
            None => (input, None),
        };
        let lines = head.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let header = |line: &[u8]| match line.iter().position(|b| *b == b':') {
            None => (line.to_vec(), None),
            Some(at) => {
                let value = line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..]);
                (line[..at].to_vec(), Some(Bytes::copy_from_slice(value)))
            }
        };
        Self { headers: lines.map(header).collect(), body }
    }

    /// The headers that HTTP allows, and the body.
    pub fn request(&self) -> (HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value.as_deref().unwrap_or_default());
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
                let _ = headers.try_append(name, value);
            }
        }
        (headers, self.body.clone().unwrap_or_default())
    }

    /// A record as the log delivers it; the headers `@key`, `@partition`, `@offset` and `@time` are its own.
    pub fn delivered(&self) -> Delivered {
        let mut delivered =
            Delivered { partition: 3, offset: 14, time_ms: 1_700_000_000_000, record: Record::default() };
        let record = &mut delivered.record;
        let number = |value: &Option<Bytes>| std::str::from_utf8(value.as_deref()?).ok()?.parse::<i64>().ok();
        for (name, value) in &self.headers {
            match name.as_slice() {
                b"@key" => record.key.clone_from(value),
                b"@partition" => {
                    delivered.partition = number(value).and_then(|n| n.try_into().ok()).unwrap_or(0);
                }
                b"@offset" => delivered.offset = number(value).unwrap_or(0),
                b"@time" => delivered.time_ms = number(value).unwrap_or(0),
                _ => record.headers.push((String::from_utf8_lossy(name).into_owned(), value.clone())),
            }
        }
        record.value.clone_from(&self.body);
        delivered
    }
}
