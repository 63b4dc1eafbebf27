//! Where a running process is asked to be replaced: a Unix socket of its owner's.
//!
//! A question is one line of JSON, [`Question`], and so is the answer, [`Answer`]. Only the user that the process runs
//! as, and root, are listened to.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

/// Longest question, in bytes.
const MOST: u64 = 16 << 10;
/// How long it may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// The binary to start.
    pub to: PathBuf,
    /// How long it may take to become ready, in seconds.
    pub timeout_s: u64,
}

/// What comes of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// This process serves now.
    Pid(u32),
    /// Everything is as before.
    Error(String),
}

/// A question and who waits for the answer.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub question: Question,
    /// Who asks.
    pub answer: oneshot::Sender<Answer>,
}

/// Passes questions on until `stop` is true.
pub async fn serve(listener: UnixListener, asks: mpsc::Sender<Ask>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, asks.clone()))),
            // Out of descriptors, most likely.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn converse(mut stream: UnixStream, asks: mpsc::Sender<Ask>) {
    let mut line = Vec::new();
    let mut limited = BufReader::new((&mut stream).take(MOST));
    let read = tokio::time::timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await;
    let (Ok(Ok(_)), Ok(peer)) = (read, stream.peer_cred()) else { return };
    let own = rustix::process::geteuid().as_raw();
    let answer = match peer.uid() {
        user if user == own || user == 0 => ask(&line, &asks).await,
        user => {
            tracing::warn!("user {user} asked for an upgrade and is not listened to");
            Answer::Error(format!("only user {own} and root may ask"))
        }
    };
    let Ok(mut line) = serde_json::to_vec(&answer) else { return };
    line.push(b'\n');
    // Who asked may have gone.
    let _ = stream.write_all(&line).await;
}

async fn ask(line: &[u8], asks: &mpsc::Sender<Ask>) -> Answer {
    let question = match serde_json::from_slice(line) {
        Ok(question) => question,
        Err(error) => return Answer::Error(format!("the question is not understood: {error}")),
    };
    let (answer, answered) = oneshot::channel();
    // Nobody is there to answer once the process is ending.
    let _ = asks.send(Ask { question, answer }).await;
    answered.await.unwrap_or_else(|_| Answer::Error("the process is ending".to_owned()))
}
