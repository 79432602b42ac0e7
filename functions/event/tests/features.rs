//! CloudEvents' own scenarios for its HTTP binding, read from the project's shared data. Reported as not run if the
//! data is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../../tests/not_run.rs"]
mod not_run;

use std::path::Path;

use bytes::Bytes;
use cucumber::{World as _, gherkin::Step, given, then, when};
use event::{Event, Received};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use self::not_run::{Lacks, not_run};

#[derive(Debug, Default, cucumber::World)]
struct World {
    headers: HeaderMap,
    body: Bytes,
    received: Option<Event>,
}

#[given("HTTP Protocol Binding is supported")]
fn supported(_: &mut World) {}

#[given("an HTTP request")]
fn request(world: &mut World, step: &Step) {
    let text = step.docstring().unwrap().trim_start();
    let (head, body) = text.split_once("\n\n").unwrap();
    for line in head.lines().skip(1) {
        let (name, value) = line.split_once(':').unwrap();
        world
            .headers
            .insert(HeaderName::try_from(name.trim()).unwrap(), HeaderValue::try_from(value.trim()).unwrap());
    }
    world.body = Bytes::from(body.to_owned());
}

#[when("parsed as HTTP request")]
fn parsed(world: &mut World) {
    let mut events = Received::from_http(&world.headers, &world.body).unwrap().events;
    assert_eq!(events.len(), 1);
    world.received = events.pop();
}

#[then("the attributes are:")]
fn attributes(world: &mut World, step: &Step) {
    let event = world.received.as_ref().unwrap();
    for row in &step.table.as_ref().unwrap().rows[1..] {
        let value = match row[0].as_str() {
            "datacontenttype" => event.content_type.as_deref(),
            name => event.attribute(name),
        };
        let (is, should) = (value.unwrap().to_owned(), row[1].clone());
        let time = |text: &str| chrono::DateTime::parse_from_rfc3339(text).ok();
        assert!(is == should || (time(&is).is_some() && time(&is) == time(&should)), "{is} is not {should}");
    }
}

#[then("the data is equal to the following JSON:")]
fn data(world: &mut World, step: &Step) {
    let is: Value = serde_json::from_slice(&world.received.as_ref().unwrap().data).unwrap();
    let should: Value = serde_json::from_str(step.docstring().unwrap()).unwrap();
    assert_eq!(is, should);
}

#[tokio::test]
async fn cloud_events_own_scenarios_for_http_pass() {
    let schemas = std::env::var_os("SCHEMAS").unwrap_or_else(|| "../shared/schemas".into());
    // `SCHEMAS` is relative to the project's folder.
    let features = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(schemas)
        .join("cloudevents/features/http-protocol-binding.feature");
    if !features.exists() {
        return not_run(Lacks::Schemas, &format!("{} is not there", features.display()));
    }
    let ran = World::cucumber().fail_on_skipped().with_default_cli().run(features).await;
    let steps = cucumber::writer::Stats::<World>::passed_steps(&ran);
    assert!(
        !cucumber::writer::Stats::<World>::execution_has_failed(&ran) && steps == 20,
        "{steps} steps passed"
    );
}
