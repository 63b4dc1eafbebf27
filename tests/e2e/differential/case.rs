//! One case of the differential suite: what the client sends, what the origin answers, what may differ.

use super::always;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use std::fmt;
use std::sync::Arc;

/// What the client does, in order.
#[derive(Clone)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Reads one response, interim or final.
    Read,
    /// Waits until the origins have seen this many requests.
    Origin(usize),
    /// Closes the sending direction.
    Finish,
    /// Closes the connection; nothing is read any more.
    Drop,
    /// Sends these bytes through an accepted upgrade and reads as many.
    Tunnel(Vec<u8>),
}

/// How the end of the connection is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// A second request tells whether the connection is still good.
    Probe,
    /// The proxy must have been closing: wait for that.
    Close,
    /// Not looked at.
    Nothing,
}

/// How Outrigger may differ.
#[derive(Clone, Copy)]
pub enum Difference {
    /// It answers 400, closes, and the origin sees nothing (or nothing whole, see `Case::partial`).
    Refused,
    /// Its first answer has this status line; the rest is not compared.
    Status(&'static str),
    /// Lines of the observation whose key starts with one of these are not compared.
    In(&'static [&'static str]),
}

pub type Script = Arc<dyn Fn(&Message) -> Answer + Send + Sync>;

/// One case.
#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub listener: &'static str,
    pub steps: Vec<Step>,
    pub script: Script,
    /// Final responses to read.
    pub responses: usize,
    /// They answer HEAD requests.
    pub to_head: bool,
    pub after: After,
    /// Access-log lines to wait for when not one per response.
    pub lines: Option<usize>,
    /// Requests the origins must have seen at the end, when that is later than the response.
    pub mirrored: usize,
    pub difference: Option<(&'static str, Difference)>,
    /// The request goes wrong after its head: whether the origin saw that head is a race, only whether it saw a whole
    /// request counts.
    pub partial: bool,
    /// Names of headers are compared as they are spelled.
    pub spelled: bool,
}

/// A case on a listener. Without more said the origins answer `200 ok`.
pub fn case(listener: &'static str, name: &'static str) -> Case {
    Case {
        name,
        listener,
        steps: Vec::new(),
        script: Arc::new(always(Answer::ok("ok"))),
        responses: 1,
        to_head: false,
        after: After::Probe,
        lines: None,
        mirrored: 0,
        difference: None,
        partial: false,
        spelled: false,
    }
}

impl Case {
    /// Sends these bytes.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Case {
        self.steps.push(Step::Send(bytes.as_ref().to_vec()));
        self
    }

    /// Sends a GET for `target` with `Host: t.test` and these header lines, each ended by `\r\n`.
    pub fn get(self, target: &str, headers: &str) -> Case {
        self.send("GET", target, headers, "")
    }

    /// Sends a request with `Host: t.test`, these header lines and a body with its content-length if it is not empty.
    pub fn send(self, method: &str, target: &str, headers: &str, body: &str) -> Case {
        let length = match body.len() {
            0 => String::new(),
            n => format!("Content-Length: {n}\r\n"),
        };
        self.raw(format!("{method} {target} HTTP/1.1\r\nHost: t.test\r\n{headers}{length}\r\n{body}"))
    }

    /// A GET of `/` for another host.
    pub fn host(self, host: &str, target: &str) -> Case {
        self.raw(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    pub fn step(mut self, step: Step) -> Case {
        self.steps.push(step);
        self
    }

    /// What the origins answer.
    pub fn answers(mut self, answer: Answer) -> Case {
        self.script = Arc::new(always(answer));
        self
    }

    /// What the origins answer, by request.
    pub fn script(mut self, script: impl Fn(&Message) -> Answer + Send + Sync + 'static) -> Case {
        self.script = Arc::new(script);
        self
    }

    pub fn responses(mut self, n: usize) -> Case {
        self.responses = n;
        self
    }

    pub fn answers_head(mut self) -> Case {
        self.to_head = true;
        self
    }

    pub fn after(mut self, after: After) -> Case {
        self.after = after;
        self
    }

    pub fn lines(mut self, n: usize) -> Case {
        self.lines = Some(n);
        self
    }

    pub fn mirrored(mut self, n: usize) -> Case {
        self.mirrored = n;
        self
    }

    pub fn spelled(mut self) -> Case {
        self.spelled = true;
        self
    }

    pub fn partial(mut self) -> Case {
        self.partial = true;
        self
    }

    /// Outrigger's first answer is another; `id` says why in `docs/differences.md`.
    pub fn answered(mut self, id: &'static str, status: &'static str) -> Case {
        self.difference = Some((id, Difference::Status(status)));
        self
    }

    /// Outrigger refuses this with 400 and closes; `id` says why in `docs/differences.md`.
    pub fn refused(mut self, id: &'static str) -> Case {
        self.difference = Some((id, Difference::Refused));
        self
    }

    /// Outrigger may differ in these lines; `id` says why in `docs/differences.md`.
    pub fn differs(mut self, id: &'static str, keys: &'static [&'static str]) -> Case {
        self.difference = Some((id, Difference::In(keys)));
        self
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Send(bytes) => {
                    let shown = &bytes[..bytes.len().min(400)];
                    let dots = if bytes.len() > shown.len() { "..." } else { "" };
                    writeln!(f, "> {}{dots}", shown.escape_ascii())?;
                }
                Step::Read => writeln!(f, "> (reads a response)")?,
                Step::Origin(n) => writeln!(f, "> (waits until the origin has {n} requests)")?,
                Step::Finish => writeln!(f, "> (half-closes)")?,
                Step::Drop => writeln!(f, "> (closes)")?,
                Step::Tunnel(bytes) => writeln!(f, "> (through the tunnel) {}", bytes.escape_ascii())?,
            }
        }
        Ok(())
    }
}
