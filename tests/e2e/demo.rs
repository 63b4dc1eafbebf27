//! The demonstration as a newcomer runs it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use crate::harness::{alone, DEADLINE};

/// Ends the demonstration, should the test fail first.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn demo(arguments: &[&str], directory: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.arg("demo").args(arguments).env("TMPDIR", directory).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// It scales a service and shifts a canary, loses nothing, and cleans up.
#[tokio::test]
async fn once_all_steps_and_no_request_fails() {
    let _alone = alone().await;
    let directory = tempfile::tempdir().expect("a directory");
    let output = demo(&["--once"], directory.path()).output().expect("outrigger demo");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in ["web scales from 2 to 5", "web scales from 5 to 1", "canary gets 100 %", "failed: 0\n"] {
        assert!(said.contains(line), "{line:?} is missing: {said}");
    }
    assert!(said.contains("All numbers are right"), "{said}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("it").count(), 0, "files were left behind");
}

/// Ctrl-C ends it, its sidecar and its files; a second sidecar could join until then.
#[tokio::test]
async fn an_interrupt_ends_everything() {
    let _alone = alone().await;
    let directory = tempfile::tempdir().expect("a directory");
    let child = demo(&[], directory.path()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut running = Running(child.expect("outrigger demo"));
    let stdout = running.0.stdout.take().expect("its output");
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut said = String::new();
    let mut admin = None;
    let started = Instant::now();
    // The second line of numbers: traffic flows.
    while said.matches(" requests/s, failed: 0").count() < 2 {
        assert!(started.elapsed() < DEADLINE * 3, "no traffic: {said}");
        let line = tokio::time::timeout(DEADLINE, lines.recv()).await.expect("in time").expect("a line");
        if let Some(address) = line.strip_prefix("# Admin page of the sidecar:") {
            admin = address
                .trim()
                .strip_prefix("http://")
                .map(|address| address.trim_end_matches('/').to_owned());
        }
        said += &(line + "\n");
    }
    let admin = admin.unwrap_or_else(|| panic!("no admin page: {said}"));
    let mut page = std::net::TcpStream::connect(&admin).expect("the admin port");
    std::io::Write::write_all(&mut page, b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .expect("sent");
    let mut ready = String::new();
    page.read_to_string(&mut ready).expect("an answer");
    assert!(ready.contains("LIVE"), "{ready}");

    let status = Command::new("kill").args(["-INT", &running.0.id().to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()));
    let ended = crate::harness::eventually(DEADLINE * 2, || {
        std::future::ready(matches!(running.0.try_wait(), Ok(Some(status)) if status.success()))
    });
    assert!(ended.await, "it did not end well");
    assert!(std::net::TcpStream::connect(&admin).is_err(), "the sidecar outlived the demonstration");
    assert_eq!(std::fs::read_dir(directory.path()).expect("it").count(), 0, "files were left behind");
}
