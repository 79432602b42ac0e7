//! CloudEvents over HTTP as other clients send them, in all three modes, and the errors of invalid ones.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use domain::User;
use event::{BATCHED, STRUCTURED};
use framework::{
    error::Error,
    user_event::{admitted_from_http, from_http, ingested, to_record, user, user_from_json, users_from_http},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const ID: &str = "fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        headers.append(name, value);
    }
    headers
}

fn binary(more: &[(&str, &str)]) -> HeaderMap {
    let mut pairs = vec![("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    pairs.retain(|(name, _)| !more.iter().any(|(n, _)| n == name));
    pairs.extend(more.iter().filter(|(_, value)| *value != "-"));
    headers(&pairs)
}

fn json_user(name: &str) -> String {
    format!(r#"{{"id":"{ID}","name":"{name}"}}"#)
}

fn structured(members: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{members}}}"#)
}

fn read(headers: &HeaderMap, body: &str) -> Result<Vec<User>, Error> {
    let body = Bytes::from(body.to_owned());
    let users = users_from_http(headers, &body);
    // `ingest` must not acknowledge what a function would reject.
    assert!(users.is_ok() || admitted_from_http(headers, &body).is_err());
    users
}

fn detail(headers: &HeaderMap, body: &str, status: u16) -> String {
    let error = read(headers, body).unwrap_err();
    assert_eq!(error.status(), StatusCode::from_u16(status).unwrap(), "{error}");
    error.to_string()
}

#[test]
fn the_three_modes_carry_the_same_user() {
    let user = json_user("Zoë 😀");
    let one = structured(&format!(r#","datacontenttype":"application/json","data":{user}"#));
    let base64 = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &user);
    let encoded = structured(&format!(r#","data_base64":"{base64}""#));
    for (headers, body) in [
        (binary(&[("content-type", "application/json")]), user.clone()),
        (binary(&[]), user.clone()),
        (headers(&[("content-type", STRUCTURED)]), one.clone()),
        (headers(&[("content-type", "Application/CloudEvents+JSON; charset=utf-8")]), encoded),
        (headers(&[("content-type", BATCHED)]), format!("[{one}]")),
    ] {
        assert_eq!(read(&headers, &body).unwrap()[0].name, "Zoë 😀", "{body}");
    }
}

#[test]
fn the_log_keeps_an_events_attributes_and_its_trace() {
    let sent = binary(&[
        ("ce-time", "2018-04-05T03:56:24Z"),
        ("ce-subject", "Zo%C3%AB"),
        ("ce-myextension", "7"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]);
    let body = Bytes::from(json_user("a"));
    let event = from_http(&sent, &body).unwrap().remove(0);
    let record = to_record(&event, &user(&event).unwrap());
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("ce_source", "/s"),
        ("ce_type", "t"),
        ("ce_subject", "Zoë"),
        ("ce_myextension", "7"),
        ("ce_partitionkey", ID),
        ("ce_traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(record.header(name).map(|v| &v[..]), Some(value.as_bytes()), "{name}");
    }
    assert!(record.header("ce_time").unwrap().starts_with(b"2018-04-05T03:56:24"));
    assert_eq!(record.key.as_deref(), Some(ID.as_bytes()));
    assert_eq!(record.value.unwrap(), body);
}

#[test]
fn a_plain_user_becomes_an_event_with_the_promised_attributes() {
    let user = User::from_json(json_user("a").as_bytes()).unwrap();
    let record = to_record(&ingested(&user, &HeaderMap::new()).unwrap(), &user);
    let header = |name: &str| String::from_utf8(record.header(name).unwrap().to_vec()).unwrap();
    assert_eq!(header("ce_type"), "dev.lambda-architecture.user.ingested");
    assert_eq!(header("ce_source"), "/ingest");
    assert_eq!((header("ce_subject"), header("ce_partitionkey")), (ID.to_owned(), ID.to_owned()));
    assert_eq!(uuid::Uuid::parse_str(&header("ce_id")).unwrap().get_version_num(), 7);
    assert!(chrono::DateTime::parse_from_rfc3339(&header("ce_time")).is_ok());
    assert_eq!(record.headers.iter().filter(|(name, _)| name == "ce_partitionkey").count(), 1);
}

#[test]
fn what_is_wrong_with_a_binary_event_is_named() {
    let user = json_user("a");
    for (more, status, word) in [
        ([("ce-id", "-")], 400, "id"),
        ([("ce-source", "-")], 400, "source"),
        ([("ce-type", "-")], 400, "type"),
        ([("ce-id", "")], 400, "`id`"),
        ([("ce-specversion", "-")], 400, "ce-specversion"),
        ([("ce-specversion", "0.3")], 400, "ce-specversion"),
        ([("ce-specversion", "2.0")], 400, "ce-specversion"),
        ([("ce-time", "yesterday")], 400, "CloudEvent"),
        ([("ce-my_extension", "1")], 400, "my_extension"),
        ([("content-type", "text/plain")], 415, "text/plain"),
        ([("content-type", "application/xml")], 415, "application/xml"),
    ] {
        let fault = detail(&binary(&more), &user, status);
        assert!(fault.contains(word), "{more:?}: {fault}");
    }
    let twice = headers(&[
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-id", "2"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
    ]);
    assert!(detail(&twice, &user, 400).contains("ce-id"));
}

#[test]
fn what_is_wrong_with_a_structured_event_is_named() {
    let user = json_user("a");
    for (body, word) in [
        ("{".to_owned(), "JSON"),
        ("7".to_owned(), "JSON"),
        ("[]".to_owned(), "JSON"),
        (structured(&format!(r#","data":{user},"data_base64":"e30=""#)), "data_base64"),
        (structured(r#","data_base64":"%""#), "data_base64"),
        (structured(r#","data_base64":7"#), "data_base64"),
        (structured(&format!(r#","data":{user},"data":{user}"#)), "`data`"),
        (structured(&format!(r#","id":"2","data":{user}"#)), "`id`"),
        (structured(&format!(r#","My-Ext":"2","data":{user}"#)), "My-Ext"),
        (structured(&format!(r#","ext":{{"a":1}},"data":{user}"#)), "CloudEvent"),
        (structured(""), "no data"),
        (structured(r#","data":null"#), "no data"),
        (structured(r#","data":{"id":"1"}"#), "name"),
        (structured(&format!(r#","data":{user}"#)).replace("1.0", "0.3"), "specversion"),
        (structured(&format!(r#","data":{user}"#)).replace(r#""type":"t","#, ""), "type"),
    ] {
        let fault = detail(&headers(&[("content-type", STRUCTURED)]), &body, 400);
        assert!(fault.contains(word), "{body}: {fault}");
    }
    let xml = structured(&format!(r#","datacontenttype":"text/xml","data":{user}"#));
    assert!(detail(&headers(&[("content-type", STRUCTURED)]), &xml, 415).contains("text/xml"));
}

#[test]
fn a_batch_is_refused_whole_and_names_the_first_bad_index() {
    let good = structured(&format!(r#","data":{}"#, json_user("a")));
    let bad = structured(&format!(r#","data":{}"#, json_user("")));
    let batch = headers(&[("content-type", BATCHED)]);
    assert!(detail(&batch, &format!("[{good},{bad},{bad}]"), 400).contains("event 1 "));
    assert!(detail(&batch, &format!("[{good},7]"), 400).contains("event 1 "));
    assert!(detail(&batch, &good, 400).contains("array"));
    assert!(read(&batch, "[]").unwrap().is_empty());
}

#[test]
fn what_is_no_cloud_event_is_told_apart() {
    let user = json_user("a");
    for (kind, status) in [
        ("application/json", 400),
        ("application/cloudevents+xml", 415),
        ("application/cloudevents+avro", 415),
        ("text/plain", 415),
        ("multipart/form-data", 415),
    ] {
        detail(&headers(&[("content-type", kind)]), &user, status);
    }
    assert!(detail(&HeaderMap::new(), &user, 400).contains("ce-specversion"));
}

#[test]
fn a_batch_names_the_first_fault_whether_of_an_event_or_of_its_user() {
    let good = structured(&format!(r#","data":{}"#, json_user("a")));
    let bad_user = structured(&format!(r#","data":{}"#, json_user("")));
    let bad_event = structured(r#","subject":"""#);
    let batch = headers(&[("content-type", BATCHED)]);
    assert!(detail(&batch, &format!("[{good},{bad_user},{bad_event}]"), 400).contains("event 1 "));
    assert!(detail(&batch, &format!("[{good},{bad_event},{bad_user}]"), 400).contains("event 1 "));
    assert!(detail(&batch, &format!("[{bad_user},{bad_event}]"), 400).contains("event 0 "));
    assert!(detail(&batch, &format!("[{bad_event}]"), 400).contains("event 0 "));
}

#[test]
fn a_user_is_an_object_with_or_without_a_byte_order_mark() {
    let array = format!(r#"["{ID}","a"]"#);
    for body in
        [array.clone(), format!("\u{feff}{array}"), format!(" {array}"), format!("[{}]", json_user("a"))]
    {
        assert!(detail(&binary(&[]), &body, 400).contains("JSON"), "{body}");
        assert!(user_from_json(body.as_bytes()).is_err());
    }
    let with_mark = format!("\u{feff}{}", json_user("a"));
    assert_eq!(user_from_json(with_mark.as_bytes()).unwrap().name, "a");
    assert_eq!(read(&binary(&[]), &with_mark).unwrap()[0].name, "a");
    for name in [r"\ud800", r"\udc00\ud800", r"a\ud83d"] {
        assert!(user_from_json(json_user(name).as_bytes()).is_err(), "{name}");
    }
}
