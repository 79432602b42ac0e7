//! Validation of events, which is the same in each mode. An error names the attribute.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use event::{BATCHED, Event, InvalidEvent, Received, STRUCTURED};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

fn read(pairs: &[(&str, &[u8])], body: &str) -> Result<Event, InvalidEvent> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    let mut received = Received::from_http(&headers, &Bytes::from(body.to_owned()))?;
    if let Some(failure) = received.failure {
        return Err(failure);
    }
    let event = received.events.remove(0);
    event.admit()?;
    Ok(event)
}

fn structured(members: &str) -> Result<Event, InvalidEvent> {
    let json = format!("{{{members}}}");
    let event = read(&[("content-type", STRUCTURED.as_bytes())], &json);
    assert_eq!(event, read(&[("content-type", BATCHED.as_bytes())], &format!("[{json}]")), "{members}");
    assert_eq!(
        event,
        read(&[("content-type", STRUCTURED.as_bytes())], &format!("\u{feff}{json}")),
        "{members}"
    );
    event
}

fn binary(more: &[(&str, &[u8])]) -> Result<Event, InvalidEvent> {
    let mut pairs: Vec<(&str, &[u8])> =
        vec![("ce-specversion", b"1.0"), ("ce-id", b"1"), ("ce-source", b"/s"), ("ce-type", b"t")];
    pairs.retain(|(name, _)| !more.iter().any(|(n, _)| n == name));
    pairs.extend(more);
    read(&pairs, "{}")
}

/// An event with one member replaced or added.
fn with(name: &str, json: &str) -> Result<Event, InvalidEvent> {
    let mut members =
        vec![("specversion", "\"1.0\""), ("id", "\"1\""), ("source", "\"/s\""), ("type", "\"t\"")];
    members.retain(|(n, _)| *n != name);
    members.push((name, json));
    structured(&members.iter().map(|(n, v)| format!("\"{n}\":{v}")).collect::<Vec<_>>().join(","))
}

#[test]
fn every_mode_refuses_the_same_values_and_names_the_attribute() {
    let long = "x".repeat(4_100);
    for (name, value) in [
        ("specversion", "0.3"),
        ("id", ""),
        ("type", ""),
        ("source", ""),
        ("source", "a b"),
        ("source", "http://"),
        ("subject", ""),
        ("subject", "a\nb"),
        ("subject", "\u{7f}"),
        ("subject", "\u{85}"),
        ("dataschema", "/relative"),
        ("dataschema", ""),
        ("time", "9999-12-31T23:59:59-01:00"),
        ("time", "0001-01-01T00:00:00+01:00"),
        ("time", "2016-12-31T23:59:60Z"),
        ("time", ""),
        ("x", long.as_str()),
        ("subject", long.as_str()),
        ("partitionkey", long.as_str()),
        ("data1_", "x"),
        ("knativeerrordata", "eA=="),
        ("knativeerrorother", "x"),
    ] {
        let fault = with(name, &serde_json::Value::from(value).to_string()).unwrap_err();
        assert_eq!(fault.attribute.as_deref(), Some(name), "{value:?}: {fault}");
        let header: String = value.bytes().map(|b| format!("%{b:02X}")).collect();
        let fault = binary(&[(&format!("ce-{name}"), header.as_bytes())]);
        // A source that is a URI only before percent-decoding is used undecoded.
        if (name, value) != ("source", "a b") && (name, value) != ("source", "http://") {
            assert_eq!(fault.unwrap_err().attribute.as_deref(), Some(name), "{value:?}");
        }
    }
}

#[test]
fn a_data_type_that_means_another_mode_or_nothing_is_refused() {
    for kind in [
        "application/cloudevents+json",
        "APPLICATION/CloudEvents+JSON; charset=utf-8",
        " application/cloudevents-batch+json",
        "application/cloudevents",
        "application/cloudevents+avro",
        "json",
        "application/",
        "/json",
        "+json",
        "application/json; x\u{1}",
        "application/jsön",
        "",
    ] {
        let fault = with("datacontenttype", &serde_json::Value::from(kind).to_string()).unwrap_err();
        assert_eq!(fault.attribute.as_deref(), Some("datacontenttype"), "{kind}");
        assert!(!fault.is_unsupported_media_type);
    }
    for kind in ["application/json", "Application/JSON; charset=\"utf-8\"", "text/plain"] {
        assert_eq!(binary(&[("content-type", kind.as_bytes())]).unwrap().content_type.as_deref(), Some(kind));
    }
    assert_eq!(binary(&[("content-type", b"")]).unwrap().content_type, None);
    assert!(binary(&[("content-type", b"application/json"), ("content-type", b"text/plain")]).is_err());
}

#[test]
fn an_extension_in_json_is_text_an_integer_or_a_boolean() {
    for (json, value) in
        [("true", "true"), ("-7", "-7"), ("2147483647", "2147483647"), ("\"\"", ""), ("\" \\u00e9\"", " é")]
    {
        assert_eq!(with("ext", json).unwrap().attribute("ext"), Some(value), "{json}");
    }
    assert_eq!(with("ext", "null").unwrap().attribute("ext"), None);
    for json in
        ["2147483648", "-2147483649", "1.5", "1e3", "{}", "[]", "[\"a\"]", r#""\ud800""#, r#""\udc00\ud800""#]
    {
        assert_eq!(with("ext", json).unwrap_err().attribute.as_deref(), Some("ext"), "{json}");
    }
    for name in ["id", "source", "type", "specversion", "subject", "time", "dataschema", "datacontenttype"] {
        assert_eq!(with(name, "7").unwrap_err().attribute.as_deref(), Some(name));
        assert_eq!(with(name, "true").unwrap_err().attribute.as_deref(), Some(name));
    }
    for name in ["id", "source", "type", "specversion"] {
        assert_eq!(with(name, "null").unwrap_err().attribute.as_deref(), Some(name));
    }
}

#[test]
fn names_and_numbers_of_attributes_are_bounded() {
    let extensions = |n: usize| (0..n).map(|n| format!(r#","x{n}":"1""#)).collect::<String>();
    let required = r#""specversion":"1.0","id":"1","source":"/s","type":"t""#;
    assert!(structured(&format!("{required}{}", extensions(32))).is_ok());
    for count in [33, 60, 92, 24_600] {
        let fault = structured(&format!("{required}{}", extensions(count))).unwrap_err();
        assert!(fault.why.contains("at most"), "{fault}");
        let names: Vec<_> = (0..count.min(500)).map(|n| format!("ce-x{n}")).collect();
        let headers: Vec<_> = names.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
        assert!(binary(&headers).unwrap_err().attribute.is_some());
    }
    for name in ["Ext", "my-ext", "my_ext", "é", "", "a\\u0000"] {
        assert!(with(name, "\"1\"").unwrap_err().attribute.is_some(), "{name}");
    }
    assert!(with(&"x".repeat(64), "1").is_ok());
    let fault = with(&"x".repeat(100_000), "1").unwrap_err();
    assert!(fault.why.len() < 1_000, "an error does not repeat what was sent");
    let data = binary(&[("ce-data", b"x")]).unwrap_err();
    assert_eq!(data.attribute.as_deref(), Some("data"));
}

#[test]
fn headers_are_decoded_as_their_senders_mean_them() {
    for (name, header, value) in [
        ("source", &b"/sensors/%C3%A9"[..], "/sensors/é"),
        ("dataschema", b"https%3A//h/s", "https://h/s"),
        ("time", b"2018-04-05T03%3A56%3A24Z", "2018-04-05T03:56:24Z"),
        ("subject", b"\"a \\\"b\\\" %25\"", "a \"b\" %"),
        ("subject", b"%20x%20", " x "),
        ("subject", "Zoë".as_bytes(), "Zoë"),
    ] {
        let event = binary(&[(&format!("ce-{name}"), header)]).unwrap();
        assert_eq!(event.attribute(name), Some(value));
    }
    for header in [&b"%FF"[..], b"\xff", b"%ED%A0%80"] {
        assert_eq!(binary(&[("ce-subject", header)]).unwrap_err().attribute.as_deref(), Some("subject"));
    }
    let twice = binary(&[("ce-x", b"1"), ("ce-x", b"1")]).unwrap_err();
    assert_eq!(twice.attribute.as_deref(), Some("x"));
}

#[test]
fn an_sdk_reads_what_is_written_here() {
    let mut event = Event::new("Zoë 100%", "/s", "t");
    event.set("time", "2018-04-05T03:56:24Z");
    event.set("ext", "a b");
    event.content_type = Some("application/json".to_owned());
    event.data = Bytes::from_static(b"{\"a\":1}");
    use cloudevents::AttributesReader as _;
    let read: cloudevents::Event = serde_json::from_value(event.to_structured()).unwrap();
    assert_eq!((read.id(), read.extension("ext").unwrap().to_string()), ("Zoë 100%", "a b".to_owned()));
    let request = event.to_request("default").unwrap();
    let read = cloudevents::binding::http::to_event(request.headers(), request.body().to_vec()).unwrap();
    assert_eq!((read.ty(), read.datacontenttype()), ("t", Some("application/json")));
    let (headers, body) = (request.headers(), request.body());
    assert!(headers.contains_key(CONTENT_TYPE) && !body.is_empty());
}

#[test]
fn a_trace_goes_along_where_a_header_can_hold_it() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let event = binary(&[("traceparent", trace.as_bytes()), ("tracestate", &[b'x'; 513])]).unwrap();
    assert_eq!((event.attribute("traceparent"), event.attribute("tracestate")), (Some(trace), None));
    assert_eq!(binary(&[("traceparent", b"a\tb")]).unwrap().attribute("traceparent"), None);
    let full = [("ce-x", &[b'x'; 4_000][..]), ("tracestate", &[b'x'; 500])];
    assert_eq!(binary(&full).unwrap().attribute("tracestate"), None, "what others add refuses no event");
    let names: Vec<_> = (0..32).map(|n| format!("ce-x{n}")).collect();
    let mut full: Vec<_> = names.iter().map(|name| (name.as_str(), &b"v"[..])).collect();
    full.push(("traceparent", trace.as_bytes()));
    assert_eq!(
        binary(&full).unwrap().attribute("traceparent"),
        None,
        "nor does it as one extension too many"
    );
}
