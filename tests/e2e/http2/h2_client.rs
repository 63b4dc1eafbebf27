//! The `h2` package for Python as client: an implementation of its own, that checks what it is sent
//! (`h2_client.py` says what it does).

use super::frames::bootstrap;
use crate::differential::bootstrap::origins;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::Proxy;
use crate::peers::may_be_missing;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A Python that has `h2`: `OUTRIGGER_H2_PYTHON`, else the one that `tests/run` installed.
fn python() -> Option<PathBuf> {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/h2/bin/python");
    let python = std::env::var_os("OUTRIGGER_H2_PYTHON").map_or_else(installed, PathBuf::from);
    python.is_file().then_some(python)
}

#[tokio::test]
async fn python_h2_is_satisfied() {
    let Some(python) = python() else {
        assert!(may_be_missing(), "h2 for Python is missing: run tests/run, which installs it");
        return;
    };
    let origin = Origin::start().await;
    origin.answer(|request| match request.target() {
        "/large" => {
            let size = 1 << 20;
            Answer::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).flood(size)
        }
        "/chunked" => Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .piece("6\r\n world\r\n0\r\n\r\n"),
        "/empty" => Answer::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "/echo" => Answer::ok(request.header("x-echo").unwrap_or("nothing")),
        _ => Answer::ok("ok"),
    });
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/http2/h2_client.py");
    for listener in ["main", "auto"] {
        let run = tokio::process::Command::new(&python)
            .arg(&script)
            .arg(proxy.port(listener).to_string())
            .kill_on_drop(true)
            .output();
        let output =
            tokio::time::timeout(Duration::from_secs(60), run).await.expect("it ends").expect("it runs");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{listener}:\n{said}");
        let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
        assert!(passed >= 14, "only {passed} checks:\n{said}");
    }
    // The bodies of its uploads arrived whole.
    let uploads: Vec<_> = origin.take().into_iter().filter(|message| message.target() == "/upload").collect();
    assert!(uploads.len() >= 2, "{} uploads", uploads.len());
    for upload in uploads {
        assert!(upload.complete, "{}", upload.start_line);
        assert_eq!(upload.body.len(), 300_000);
        assert!(upload.body.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i % 251));
    }
}
