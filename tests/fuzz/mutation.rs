//! Makes a new input of known ones: flips, cuts, splices, repeats, and puts in what parsers stumble over.

use std::ops::Range;

use rand::{RngExt, rngs::StdRng};

/// Most bytes of an input.
const MAX: usize = 1024 * 1024;
/// Usually not more than these, so that many inputs are tried.
const COMMON: usize = 4 * 1024;

/// What parsers of these formats give a meaning.
const TOKENS: [&str; 72] = [
    "\"",
    "\\",
    "\\ud800",
    "\\u0000",
    "\\u00e9",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "2147483648",
    "18446744073709551616",
    "0.1",
    "\u{feff}",
    "\0",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    " ",
    "\u{85}",
    "é",
    "日本",
    "😀",
    "\u{202e}",
    "%",
    "%00",
    "%0A",
    "%C3%A9",
    "%FF",
    "%25",
    "%22",
    "+",
    "&",
    "=",
    ";",
    "?",
    "#",
    "/",
    "//",
    "@",
    "ce-",
    "ce_",
    "ce-id: ",
    "ce-specversion: 1.0\n",
    "content-type: ",
    "application/json",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "text/plain",
    "data_base64",
    "datacontenttype",
    "partitionkey",
    "knativeerrordata",
    "recordtruncated",
    "traceparent: 00-1-2-03\n",
    "x-topic: user\n",
    "---\n",
    "- ",
    "  ",
    "'",
    "|\n",
    "&a ",
    "*a",
    "!!binary ",
    "9999-12-31T23:59:59-01:00",
    "$serde_json::private::RawValue",
];

/// A new input of those in the pool.
pub fn mutate(pool: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let pick = |random: &mut StdRng| pool[random.random_range(0..pool.len())].as_slice();
    let mut input = pick(random).to_vec();
    for _ in 0..1 << random.random_range(0..4) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..12) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            2 if at < input.len() => input[at] = random.random(),
            3 | 4 => insert(&mut input, at, TOKENS[random.random_range(0..TOKENS.len())].as_bytes()),
            5 => drop(input.drain(range(input.len(), random))),
            6 => input.truncate(at),
            7 => {
                let other = pick(random);
                insert(&mut input, at, &other[range(other.len(), random)]);
            }
            8 => {
                // The beginning of one, the end of another.
                let other = pick(random);
                input.truncate(at);
                input.extend(&other[random.random_range(0..=other.len())..]);
            }
            9 => {
                let piece = input[range(input.len(), random)].to_vec();
                insert(&mut input, at, &piece);
            }
            10 => {
                let most = if random.random_ratio(1, 1_000) { MAX } else { COMMON };
                let piece = input[range(input.len(), random)].to_vec();
                let times = random.random_range(0..=most / piece.len().max(1));
                insert(&mut input, at, &piece.repeat(times));
            }
            _ => lines(&mut input, pick(random), random),
        }
    }
    input.truncate(MAX);
    input
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

/// A part of something of that length, mostly a short one.
fn range(length: usize, random: &mut StdRng) -> Range<usize> {
    let start = random.random_range(0..=length);
    let most = if random.random_bool(0.8) { 16.min(length - start) } else { length - start };
    start..start + random.random_range(0..=most)
}

/// Takes a line out, doubles it, or takes one of another input.
fn lines(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    let mut lines: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let others: Vec<&[u8]> = other.split(|b| *b == b'\n').collect();
    let (from, to) = (random.random_range(0..lines.len()), random.random_range(0..lines.len()));
    match random.random_range(0..4) {
        0 => drop(lines.remove(from)),
        1 => lines.insert(to, lines[from].clone()),
        2 => lines.swap(from, to),
        _ => lines.insert(to, others[random.random_range(0..others.len())].to_vec()),
    }
    *input = lines.join(&b'\n');
}
