//! What is a user as the body of `POST /user` is one as the data of an event, in each mode.

use bytes::Bytes;
use domain::{LONGEST_NAME, User};
use event::{Event, Received, STRUCTURED};
use framework::user_event::{ingested, to_record, user_from_json, users_from_http};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use serde_json::value::RawValue;

use crate::{
    engine::fuzz,
    events::{all_modes, appended},
};

/// Most bytes of an error's text.
const LONGEST: usize = 2_000;

/// The user in structured mode, its JSON as it was written; `None` where that is no JSON.
fn embedded(json: &[u8]) -> Option<Result<Vec<User>, String>> {
    let json: &RawValue = serde_json::from_slice(json).ok()?;
    let event = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{json}}}"#);
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED))]);
    let body = Bytes::from(event);
    assert_eq!(Received::from_http(&headers, &body).unwrap().events.len(), 1);
    Some(users_from_http(&headers, &body).map_err(|why| why.to_string()))
}

fn check(input: &[u8]) -> String {
    let mut event = Event::new("1", "/s", "t");
    event.data = Bytes::copy_from_slice(input);
    let posted = user_from_json(input);
    for (mode, headers, body) in all_modes(&event) {
        let read = users_from_http(&headers, &body);
        match &posted {
            Ok(user) => assert!(read.unwrap().iter().all(|read| read == user), "{mode}"),
            Err(why) => assert!(read.is_err(), "{mode} accepts what {why}"),
        }
    }
    match (embedded(input), &posted) {
        (None, _) => {}
        (Some(embedded), Ok(user)) => assert_eq!(&embedded.unwrap()[..], std::slice::from_ref(user)),
        (Some(embedded), Err(why)) => assert!(embedded.is_err(), "an event accepts what {why}"),
    }
    match posted {
        Ok(user) => {
            assert!((1..=LONGEST_NAME).contains(&user.name.chars().count()));
            assert_eq!(User::from_json(&user.to_json()).unwrap(), user);
            appended(&to_record(&ingested(&user, &HeaderMap::new()).unwrap(), &user), &user);
            format!("a user of {}", "x".repeat(user.name.chars().count() / 10))
        }
        Err(why) => {
            let why = why.to_string();
            assert!(why.len() < LONGEST, "{} bytes of an error", why.len());
            why
        }
    }
}

#[test]
fn a_user_is_one_in_each_mode() {
    fuzz("user", check);
}
