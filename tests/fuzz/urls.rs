//! A URL of a store is taken, or refused in one line that shows neither the user nor the password in it.

use std::{path::Path, time::Duration};

use framework::config::{Config, ConfigError};

use crate::{
    engine::{corpus, fuzz},
    runtime,
};

/// User and password in the URLs of the corpus.
const SECRET: &str = "Mark3r";
/// A password in lower case alone, which a key of a URL could be as well.
const PLAIN: &str = "quietsesame";
/// What is typed by mistake.
const TYPED: [&str; 14] = ["", "/", "?", "@", "&", "=", ",", ":", "%", "#", " ", "$(", ")", "\n"];

type Open = fn(&str, &Config) -> Result<(), ConfigError>;

fn log(url: &str, config: &Config) -> Result<(), ConfigError> {
    let _ = backend_log::topic(url);
    backend_log::open(&config.log_url()?).map(drop)
}

fn master(_: &str, config: &Config) -> Result<(), ConfigError> {
    backend_master::open(&config.master_url()?).map(drop)
}

fn views(_: &str, config: &Config) -> Result<(), ConfigError> {
    backend_views::open(&config.views_url()?, Duration::from_secs(60)).map(drop)
}

/// Opens the URL as a function does, whose `PASSWORD` is the secret.
fn check(key: &'static str, url: &str, secret: &'static str, open: Open) -> String {
    let value = url.to_owned();
    let get = move |name: &str| match name {
        "PASSWORD" => Some(secret.to_owned()),
        _ => (name == key).then(|| value.clone()),
    };
    let config = Config::of(get, Path::new("data")).unwrap();
    match open(url, &config) {
        Ok(()) => format!("taken {}", url.split(['=', '&']).count()),
        Err(error) => {
            let line = error.to_string();
            assert!(line.starts_with(&format!("{key}: ")) && line.len() < 1_000, "{line}");
            assert!(!line.contains(secret) && !line.contains('\n'), "{url}: {line}");
            line
        }
    }
}

fn target(name: &str, key: &'static str, open: Open) {
    let runtime = runtime();
    let _guard = runtime.enter();
    for url in corpus(name) {
        let url = String::from_utf8(url).unwrap().trim_end().replace(SECRET, PLAIN);
        for at in (0..=url.len()).filter(|at| url.is_char_boundary(*at)) {
            let (head, tail) = url.split_at(at);
            let rest = tail.get(1..).unwrap_or_default();
            for typed in TYPED {
                check(key, &format!("{head}{typed}{tail}"), PLAIN, open);
                check(key, &format!("{head}{typed}{rest}"), PLAIN, open);
            }
        }
    }
    fuzz(name, |input| check(key, String::from_utf8_lossy(input).trim_end(), SECRET, open));
}

#[test]
fn a_url_of_the_log_shows_no_secret() {
    target("log_url", "LOG_URL", log);
}

#[test]
fn a_url_of_the_master_shows_no_secret() {
    target("master_url", "MASTER_URL", master);
}

#[test]
fn a_url_of_the_views_shows_no_secret() {
    target("views_url", "VIEWS_URL", views);
}
