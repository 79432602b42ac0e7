//! The domain's only entity: a user with an id and a name.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Maximum number of Unicode characters (scalar values) of a name.
pub const LONGEST_NAME: usize = 255;
/// Maximum length of the JSON reader's message; the rest would only repeat the input.
const LONGEST_FAULT: usize = 300;

/// A valid user: `{"id": <UUID>, "name": <1 to 255 characters, none of them a control character>}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Identity; lower-case and hyphenated in JSON.
    pub id: Uuid,
    /// Kept exactly as received.
    pub name: String,
}

/// The JSON before validation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: String,
    name: String,
}

/// A user cannot be read; says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUser(String);

impl InvalidUser {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl User {
    /// Parses a user from a JSON object.
    ///
    /// # Errors
    /// The bytes are not such an object, or a member of it is missing, unknown or invalid.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidUser> {
        let fault = |why: &str| {
            let why: String = why.chars().take(LONGEST_FAULT).collect();
            InvalidUser::new(format!(
                "the user must be JSON like {{\"id\": \"<UUID>\", \"name\": \"<text>\"}}: {why}"
            ))
        };
        // Serde would also accept an array of the fields.
        if json.trim_ascii_start().first() == Some(&b'[') {
            return Err(fault("an array is no object"));
        }
        let raw: Raw = serde_json::from_slice(json).map_err(|e| fault(&e.to_string()))?;
        let id =
            Uuid::parse_str(&raw.id).map_err(|e| InvalidUser::new(format!("`id` must be a UUID: {e}")))?;
        check_name(&raw.name)?;
        Ok(Self { id, name: raw.name })
    }

    /// The user as JSON bytes, the form in which it travels and is stored.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising a UUID and a string cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn check_name(name: &str) -> Result<(), InvalidUser> {
    if name.is_empty() {
        return Err(InvalidUser::new("`name` must not be empty"));
    }
    let length = name.chars().count();
    if length > LONGEST_NAME {
        return Err(InvalidUser::new(format!(
            "`name` must have at most {LONGEST_NAME} characters, it has {length}"
        )));
    }
    if let Some(at) = name.chars().position(char::is_control) {
        return Err(InvalidUser::new(format!(
            "`name` must have no control characters, the one at character {} is",
            at + 1
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad";

    fn parse(json: &str) -> Result<User, InvalidUser> {
        User::from_json(json.as_bytes())
    }

    #[test]
    fn any_uuid_form_comes_out_hyphenated_and_lower_case() {
        for form in [
            ID.to_owned(),
            ID.to_uppercase(),
            ID.replace('-', ""),
            format!("{{{ID}}}"),
            format!("urn:uuid:{ID}"),
        ] {
            let user = parse(&format!(r#"{{"id":"{form}","name":"a"}}"#)).unwrap();
            assert_eq!(user.to_json(), format!(r#"{{"id":"{ID}","name":"a"}}"#).into_bytes());
        }
    }

    #[test]
    fn name_length_counts_characters_not_bytes() {
        let name = "😀".repeat(LONGEST_NAME);
        assert_eq!(parse(&format!(r#"{{"id":"{ID}","name":"{name}"}}"#)).unwrap().name, name);
        assert!(parse(&format!(r#"{{"id":"{ID}","name":"{name}x"}}"#)).is_err());
    }

    #[test]
    fn each_fault_is_named_in_the_rejection() {
        for (json, word) in [
            (r#"{"name":"a"}"#.to_owned(), "`id`"),
            (format!(r#"{{"id":"{ID}"}}"#), "`name`"),
            (format!(r#"{{"id":"{ID}","name":"a","age":3}}"#), "`age`"),
            (format!(r#"{{"id":"{ID}","name":"a","name":"b"}}"#), "`name`"),
            (format!(r#"{{"id":"{ID}","name":""}}"#), "empty"),
            (format!(r#"{{"id":"{ID}","name":"a\u0000"}}"#), "control"),
            (format!(r#"{{"id":"{ID}","name":"\ud800"}}"#), "JSON"),
            (r#"{"id":"x","name":"a"}"#.to_owned(), "`id`"),
            ("[".repeat(5000), "JSON"),
        ] {
            let fault = parse(&json).unwrap_err().to_string();
            assert!(fault.contains(word), "{fault}");
        }
    }
}
