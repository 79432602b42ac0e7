//! All terminal output. Text from events and responses may hold control sequences that clear the screen, forge lines or
//! reverse the text direction, so everything is escaped here.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write as _},
};

use serde_json::Value;

/// Prints one line to standard output. Errors are ignored: a closed terminal must not stop the system.
pub(crate) fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{}", escape(line));
}

/// Prints lines of text, each indented, so that none can be mistaken for the program's own output.
pub(crate) fn print_indented(text: &str) {
    text.split('\n').for_each(|line| print(&format!("  {}", line.strip_suffix('\r').unwrap_or(line))));
}

/// Writes a JSON document on one line.
pub(crate) fn print_json(value: &Value) {
    let _ = writeln!(io::stdout(), "{}", json(value));
}

/// Writes one line to standard error.
pub(crate) fn print_error(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape(line));
}

/// Replaces each character that a terminal would obey or hide by an escape like `\u{1b}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { escaped.extend(c.escape_unicode()) } else { escaped.push(c) }
    }
    escaped.into()
}

/// A JSON document with such characters escaped as in JSON; they occur only in strings.
pub(crate) fn json(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(is_unsafe) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Controls (C0, DEL, C1), marks that change the direction of writing, and characters without a width.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some of each kind: C0, DEL, C1, bidirectional, of no width, beyond 16 bits.
    const UNSAFE: [char; 14] = [
        '\u{1b}',
        '\n',
        '\r',
        '\0',
        '\u{7f}',
        '\u{9b}',
        '\u{85}',
        '\u{202e}',
        '\u{2066}',
        '\u{2069}',
        '\u{200b}',
        '\u{feff}',
        '\u{2028}',
        '\u{e0041}',
    ];

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_all_else_is_kept() {
        for c in UNSAFE {
            let code = format!("\\u{{{:x}}}", u32::from(c));
            assert_eq!(escape(&format!("a{c}b")), format!("a{code}b"));
        }
        for kept in ["user1", "Zoë", "山田 太郎", "שלום", "😀", "a\\u{1b}"] {
            assert_eq!(escape(kept), kept);
        }
    }

    #[test]
    fn json_is_safe_to_show_and_says_the_same() {
        let value = serde_json::json!({ "name": UNSAFE.iter().collect::<String>(), "other": "Zoë" });
        let text = json(&value);
        assert!(!text.contains(is_unsafe) && text.contains("\\u009b") && text.contains("Zoë"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
