//! What a process that is leaving is told.

use std::time::Duration;

use nix::sys::signal::Signal as Number;
use tokio::signal::unix::Signal;

use super::upgrade::minder::Charge;
use crate::telemetry::access_log;

/// How often is looked whether the successor is still there.
const LOOK: Duration = Duration::from_millis(250);

/// Signals to a process that is leaving.
#[derive(Debug)]
pub struct Signals {
    /// SIGTERM.
    pub terminate: Signal,
    /// SIGINT.
    pub interrupt: Signal,
    /// SIGUSR1: log files are opened anew.
    pub reopen: Signal,
}

impl Signals {
    /// Returns when the process is not to wait any longer: it was told again, or its successor is gone and whoever
    /// started it has to know. With a successor, that one is told everything.
    pub async fn end(&mut self, mut charge: Option<&mut Charge>) {
        let mut told = false;
        loop {
            let number = tokio::select! {
                _ = self.terminate.recv() => Number::SIGTERM,
                _ = self.interrupt.recv() => Number::SIGINT,
                _ = self.reopen.recv() => Number::SIGUSR1,
                () = tokio::time::sleep(LOOK) => {
                    match charge.as_mut().and_then(|charge| charge.ended()) {
                        // Ended as it should, it has not taken anything from us.
                        None | Some(0) => continue,
                        Some(_) => return,
                    }
                }
            };
            if number == Number::SIGUSR1 {
                access_log::reopen_all();
            } else if charge.is_none() || std::mem::replace(&mut told, true) {
                // The first one was what began the drain, or is for the successor.
                if let Some(charge) = &mut charge {
                    charge.pass_on(number);
                }
                return;
            }
            if let Some(charge) = &mut charge {
                charge.pass_on(number);
            }
        }
    }
}
