//! The processing time of a message is linear in its length, whatever its content. Measured as a ratio of CPU times, so
//! that the result does not depend on the machine's speed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use event::{BATCHED, Delivered, Event, Origin, Received, Record, STRUCTURED};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// Maximum ratio of the times for twice the input and for the input.
const LIMIT: f64 = 2.5;
/// Minimum time to compare: below it, the ratio would measure the clock's resolution.
const NOISE: Duration = Duration::from_micros(500);
const REQUIRED: &str = r#""specversion":"1.0","id":"1","source":"/s","type":"t""#;

/// CPU time of this thread, which other processes on the machine do not affect.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The shortest time of several runs.
fn best(input: &str, run: impl Fn(&str)) -> Duration {
    let time = |_| {
        let start = processor_time();
        run(input);
        processor_time() - start
    };
    (0..7).map(time).min().unwrap()
}

fn grows_linearly(what: &str, make: impl Fn(usize) -> String, run: impl Fn(&str)) {
    let (small, large) = (make(1), make(2));
    let mut ratios = Vec::new();
    // Caches and allocators may disturb one comparison, but not all of them.
    while ratios.len() < 5 && !ratios.iter().any(|ratio| *ratio <= LIMIT) {
        let (small, large) = (best(&small, &run), best(&large, &run));
        ratios.push(if large < NOISE { 0.0 } else { large.as_secs_f64() / small.as_secs_f64() });
    }
    assert!(ratios.iter().any(|ratio| *ratio <= LIMIT), "{what}: {ratios:?}");
}

fn read(kind: &'static str, body: &str) {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
    let _ = Received::from_http(&headers, &Bytes::copy_from_slice(body.as_bytes()));
}

#[test]
fn structured_and_batched_events_take_linear_time() {
    let members = |n: usize| (0..n).map(|n| format!(r#""x{n}":1"#)).collect::<Vec<_>>().join(",");
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let inputs: [(&str, &dyn Fn(usize) -> String); 6] = [
        ("members", &|k| format!("{{{REQUIRED},{}}}", members(k * 40_000))),
        ("members of the data", &|k| format!(r#"{{{REQUIRED},"data":{{{}}}}}"#, members(k * 40_000))),
        ("nesting", &|k| format!(r#"{{{REQUIRED},"data":{}}}"#, nested(k * 250_000))),
        ("escapes", &|k| format!(r#"{{{REQUIRED},"x":"{}"}}"#, r"\u00e9".repeat(k * 80_000))),
        ("an escaped name", &|k| format!(r#"{{{REQUIRED},"{}":1}}"#, r"\u00e9".repeat(k * 80_000))),
        ("Base64", &|k| format!(r#"{{{REQUIRED},"data_base64":"{}"}}"#, "AAAA".repeat(k * 120_000))),
    ];
    for (what, make) in inputs {
        grows_linearly(what, make, |body| read(STRUCTURED, body));
        grows_linearly(what, |k| format!("[{}]", make(k)), |body| read(BATCHED, body));
    }
    let items = |k: usize| format!("[{}]", vec![format!("{{{REQUIRED}}}"); k * 6_000].join(","));
    grows_linearly("items", items, |body| read(BATCHED, body));
    grows_linearly(
        "empty items",
        |k| format!("[{}]", vec!["{}"; k * 150_000].join(",")),
        |body| read(BATCHED, body),
    );
}

#[test]
fn records_take_linear_time() {
    let origin = Origin { namespace: "default", name: "log-to-count", topic: "user" };
    for (what, prefix, required) in
        [("plain", "h", &[][..]), ("binary", "ce_x", &["specversion", "id", "source", "type"])]
    {
        let run = |count: &str| {
            let headers = required.iter().map(|name| format!("ce_{name}"));
            let headers = headers.chain((0..count.len()).map(|n| format!("{prefix}{n}")));
            let headers = headers.map(|name| (name, Some(Bytes::from_static(b"1.0")))).collect();
            let record = Record { key: None, headers, value: None };
            let delivered = Delivered { partition: 0, offset: 0, time_ms: 0, record };
            let event = Event::of_record(&delivered, origin).unwrap();
            let why = event.to_request("default").unwrap_err();
            let _ = Event::undeliverable(&delivered, origin, &why);
        };
        grows_linearly(what, |k| "x".repeat(k * 20_000), run);
    }
}
