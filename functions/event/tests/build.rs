//! Every event that the SDK's builder makes converts to the same event of this crate.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use event::{Event, EventBuilder, EventBuilderV10};
use proptest::{collection::btree_map, option, prelude::*};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_event_of_the_builder_keeps_all_attributes(
        (id, kind, source) in (any::<String>(), any::<String>(), "[ -~]{1,20}"),
        subject in option::of(any::<String>()),
        (seconds, nanoseconds) in (-62_135_596_800_i64..253_402_300_800, 0..1_000_000_000_u32),
        extensions in btree_map("x[a-z0-9]{0,19}", any::<String>(), 0..20),
        content_type in "[a-z]{1,9}/[a-z]{1,9}",
        data in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let time: DateTime<Utc> = DateTime::from_timestamp(seconds, nanoseconds).unwrap();
        let mut builder = EventBuilderV10::new().id(&id).ty(&kind).source(&source).time(time);
        let mut expected = BTreeMap::from([
            ("specversion".to_owned(), "1.0".to_owned()),
            ("id".to_owned(), id),
            ("type".to_owned(), kind),
            ("source".to_owned(), source),
        ]);
        if let Some(subject) = subject {
            builder = builder.subject(&subject);
            expected.insert("subject".to_owned(), subject);
        }
        for (name, value) in extensions {
            builder = builder.extension(&name, value.as_str());
            expected.insert(name, value);
        }
        let event = Event::try_from(builder.data(&content_type, data.clone())).unwrap();
        let told = DateTime::parse_from_rfc3339(event.attribute("time").unwrap()).unwrap();
        prop_assert_eq!(told, time);
        let count = event.attributes.len();
        let mut attributes: BTreeMap<_, _> = event.attributes.into_iter().collect();
        prop_assert_eq!(count, attributes.len(), "each name once");
        attributes.remove("time");
        prop_assert_eq!(attributes, expected);
        prop_assert_eq!((event.content_type, event.data.to_vec()), (Some(content_type), data));
    }
}

#[test]
fn what_is_missing_is_an_error() {
    let builder = EventBuilderV10::new().id("1").ty("t");
    assert!(Event::try_from(builder).unwrap_err().to_string().contains("source"));
}
