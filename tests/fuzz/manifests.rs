//! Manifests are read, or refused with a line of the file.

use std::{fs, path::Path};

use chrono::DateTime;
use eventing::{delivery::Delivery, event_sources::Resources, ping};

use crate::engine::fuzz_with;

/// All manifests of the system.
fn system() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |folder: &str| {
        let mut files: Vec<_> =
            fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter()
    };
    let services = files("functions").map(|function| function.join("service.yaml"));
    let all = files("eventing").chain(services);
    let all = all.filter(|file| file.extension().is_some_and(|kind| kind == "yaml") && file.exists());
    all.map(|file| fs::read(file).unwrap()).collect()
}

fn check(input: &[u8], rest: &str) -> String {
    let text = String::from_utf8_lossy(input);
    // With the others, what it refers to is there.
    let alone = Resources::read([("input.yaml", &*text)]);
    let read = Resources::read([("input.yaml", &*text), ("rest.yaml", rest)]);
    let resources = match read {
        Ok(resources) => resources,
        Err(error) => {
            assert!(alone.is_err(), "more manifests refuse {text}: {error}");
            // YAML ends a line at more characters than most programs do; an error may stand behind the last one.
            let text = if error.file == "input.yaml" { &text } else { rest };
            let lines = text.matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() as u64;
            assert!((1..=lines + 2).contains(&error.line), "{error}, of {lines} lines");
            return error.why;
        }
    };
    let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    for source in resources.sources() {
        for retry in [1, 2, 31, 32, 33, source.delivery.retry] {
            let _ = source.delivery.delay_before(retry);
        }
    }
    let _ = (resources.dead_letter_topics(), resources.fed_functions(), Delivery::of(None));
    for ping in &resources.ping_sources {
        let zone = ping.spec.timezone.0.clone();
        if let Some(next) = ping.spec.schedule.next_after(now, &zone) {
            assert!(next > now, "a tick in the past: {next}");
        }
        let event = ping::event(&ping.metadata, &ping.spec, now);
        let _ = event.map(|event| event.to_request(ping.metadata.namespace()));
    }
    let counts = [resources.services.len(), resources.kafka_sources.len(), resources.ping_sources.len()];
    format!("read {}", counts.map(|count| "x".repeat(count.min(9))).join(" "))
}

#[test]
fn a_manifest_is_read_or_refused_with_its_line() {
    let system = system();
    let rest: Vec<_> = system.iter().map(|text| String::from_utf8(text.clone()).unwrap()).collect();
    let rest = rest.join("\n---\n");
    fuzz_with("manifest", system, None, |input| check(input, &rest));
}
