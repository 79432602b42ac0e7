//! CloudEvents' SDK for Python, in a process of its own, sends all three modes and reads what functions are sent.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::app::App;

/// A virtual environment with the SDK under `target/`, or why there is none.
fn python() -> Result<PathBuf, String> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cloudevents-2.2");
    let python = folder.join("bin/python");
    let has_sdk = || {
        Command::new(&python).args(["-c", "import cloudevents.v1"]).output().is_ok_and(|o| o.status.success())
    };
    if has_sdk() {
        return Ok(python);
    }
    let run = |program: &str, args: &[&str]| match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    };
    run("python3", &["-m", "venv", folder.to_str().unwrap()])?;
    run(python.to_str().unwrap(), &["-m", "pip", "install", "--quiet", "cloudevents==2.2.*"])?;
    has_sdk().then_some(python.clone()).ok_or_else(|| "the SDK cannot be imported".to_owned())
}

#[tokio::test]
async fn the_python_sdk_and_the_functions_understand_each_other() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return eprintln!("not run, there is no Python SDK of CloudEvents here: {why}"),
    };
    let mut app = App::start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients.py");
    let ran = Command::new(python).arg(script).arg(format!("http://{}", app.address)).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}{err}");
    let sent: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    app.settle().await;
    assert_eq!(app.user_count().await, sent["users"].as_u64().unwrap());
}
