//! Events that the system creates itself, made with the CloudEvents SDK's builder.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use cloudevents::{Data, EventBuilder, EventBuilderV10, event::AttributeValue};

use crate::{Event, InvalidEvent};

impl TryFrom<EventBuilderV10> for Event {
    type Error = InvalidEvent;

    /// Builds the event. An error names what is missing or wrong.
    fn try_from(builder: EventBuilderV10) -> Result<Self, InvalidEvent> {
        builder.build().map(Self::from).map_err(|why| InvalidEvent::message(why.to_string()))
    }
}

impl From<cloudevents::Event> for Event {
    /// Keeps all attributes, extensions in the order of their names. JSON data is written without white space.
    fn from(event: cloudevents::Event) -> Self {
        let mut converted = Self::default();
        let mut extensions: Vec<_> = event.iter_extensions().collect();
        extensions.sort_unstable_by_key(|(name, _)| *name);
        let extensions = extensions.into_iter().map(|(name, value)| (name, AttributeValue::from(value)));
        for (name, value) in event.iter_attributes().chain(extensions) {
            let value = match value {
                AttributeValue::Time(time) => printed(time),
                other => other.to_string(),
            };
            match name {
                "datacontenttype" => converted.content_type = Some(value),
                // The SDK lets an extension have the name of an attribute, which counts.
                name if converted.attribute(name).is_some() => {}
                name => converted.attributes.push((name.to_owned(), value)),
            }
        }
        converted.data = match event.data() {
            Some(Data::Binary(bytes)) => Bytes::from(bytes.clone()),
            Some(Data::String(text)) => Bytes::from(text.clone()),
            Some(Data::Json(json)) => Bytes::from(json.to_string()),
            None => Bytes::new(),
        };
        converted
    }
}

/// With milliseconds, as everywhere here, unless that would lose something.
fn printed(time: &DateTime<Utc>) -> String {
    let format = match time.timestamp_subsec_nanos() % 1_000_000 {
        0 => SecondsFormat::Millis,
        _ => SecondsFormat::AutoSi,
    };
    time.to_rfc3339_opts(format, true)
}
