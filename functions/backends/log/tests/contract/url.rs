//! Errors about invalid URLs name the fault and reveal no secret.

use backend_log::{open, topic};

const SECRET: &str = "hunter";

#[test]
fn a_wrong_url_says_what_is_wrong_with_it_and_no_secret() {
    for (url, said) in [
        ("kafka://", "must be like kafka://"),
        ("kafka://127.0.0.1:9092", "must be like kafka://"),
        ("kafka:///user", "host:port"),
        ("kafka://localhost/user", "host:port"),
        ("kafka://localhost:9092,/user", "host:port"),
        ("kafka://localhost:99999/user", "host:port"),
        ("kafka://me:hunter2@localhost:9092/user", "sasl.password"),
        ("kafka://localhost:9092/", "the topic"),
        ("kafka://localhost:9092/user/hunter2", "the topic"),
        ("kafka://localhost:9092/user?sasl.password", "no `=value`"),
        ("kafka://localhost:9092/user?sasl.pasword=hunter2", "`sasl.pasword` is no key"),
        // The `=` is missing, and the password contains one.
        ("kafka://localhost:9092/user?sasl.passwordhunter=", "a key behind the `?` is no key"),
        ("kafka://localhost:9092/user?linger.ms=hunter2", "`linger.ms`"),
        ("kafka://localhost:9092/user?linger.ms=1&linger.ms=2", "more than once"),
        ("kafka://localhost:9092/user?security.protocol=tls", "`security.protocol`"),
        ("kafka://localhost:9092/user?sasl.password=hunter2%00", "zero byte"),
        ("kafka://localhost:9092/user?sasl.password=hunter2&ssl.key.pem=%ff", "not UTF-8"),
        ("kafka://localhost:9092/user?log_cb=hunter2", "`log_cb`"),
        ("kafka://localhost:9092/user?acks=1", "`acks` is set here already"),
        ("kafka://localhost:9092/user?enable.idempotence=false", "`enable.idempotence` is set"),
        ("kafka://localhost:9092/user?group.id=hunter2", "`group.id` is set"),
        ("kafka://localhost:9092/user?enable.auto.commit=true", "`enable.auto.commit` is set"),
        ("kafka://localhost:9092/user?isolation.level=read_uncommitted", "`isolation.level` is set"),
        ("kafka://localhost:9092/user?bootstrap.servers=b:1", "`bootstrap.servers` is set"),
    ] {
        let error = open(url).err().unwrap_or_else(|| panic!("{url} is taken"));
        let line = error.to_string();
        assert!(line.starts_with("LOG_URL: ") && line.contains(said), "{url}: {line}");
        // librdkafka's message about a key that holds no secret may show its value.
        assert!(!line.contains(SECRET) || url.contains("linger.ms"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn keys_of_either_side_are_taken_and_the_topic_is_known() {
    for url in [
        "kafka://localhost:9092/people",
        "kafka://a:1,b:2/people?",
        "kafka://[::1]:9092/people?security.protocol=sasl_ssl&sasl.mechanism=SCRAM-SHA-512\
         &sasl.username=me&sasl.password=a%26b%3Dc+%2F&ssl.ca.location=/ca.pem",
        "kafka://a:1/people?session.timeout.ms=6000&fetch.wait.max.ms=10",
        "kafka://a:1/people?queue.buffering.max.ms=5&compression.type=zstd&delivery.timeout.ms=1000",
    ] {
        assert!(open(url).is_ok(), "{url}: {:?}", open(url).err());
        assert_eq!(topic(url), "people");
    }
    assert_eq!(topic("sqlite:data/log.db"), "user");
}

#[test]
fn a_url_that_is_mistyped_anywhere_never_shows_its_password() {
    let good = "kafka://localhost:9092/user?security.protocol=sasl_ssl&sasl.username=me&sasl.password=Mark3r";
    let wrong = "kafka://me:Mark3r@localhost:9092/user?linger.ms=5&x=Mark3r";
    for url in [good, wrong] {
        for at in 0..=url.len() {
            let (head, tail) = url.split_at(at);
            let rest = tail.get(1..).unwrap_or_default();
            for typed in [
                "",
                "/",
                "?",
                "@",
                "&",
                "=",
                ",",
                ":",
                "%",
                "#",
                " ",
                "&Mark3r",
                "?Mark3r=1&",
                "&Mark3r=Mark3r&",
            ] {
                for url in [format!("{head}{typed}{tail}"), format!("{head}{typed}{rest}")] {
                    if let Err(error) = open(&url) {
                        assert!(!error.to_string().contains("Mark3r"), "{url}: {error}");
                    }
                }
            }
        }
    }
}
