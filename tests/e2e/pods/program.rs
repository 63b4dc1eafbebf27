//! Real programs in pods.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::mesh::Pod;
use crate::harness::DEADLINE;
use crate::peers::find;

/// A server program in a pod; killed when dropped.
pub struct Program(Child);

impl Program {
    /// Starts it, and waits until something listens on `port` of its pod.
    pub fn start(pod: &Pod, mut command: Command, port: u16) -> Program {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let program = Program(child.expect("a program"));
        let end = Instant::now() + DEADLINE * 3;
        while pod.connect(std::net::SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
            assert!(Instant::now() < end, "nothing listens on {port}");
            std::thread::sleep(Duration::from_millis(10));
        }
        program
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program that lies somewhere in the path, to be run in a pod.
pub fn program(pod: &Pod, name: &str) -> Command {
    pod.program(false, &find(name).expect(name).display().to_string())
}

/// What it says to this input, until its end.
pub fn said(mut command: Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a client");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("sent");
    let output = child.wait_with_output().expect("the client's end");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}
