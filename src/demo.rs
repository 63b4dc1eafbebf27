//! The demonstration: `outrigger demo`.

use std::process::ExitCode;

/// Runs the demonstration with these arguments.
pub fn main(_args: Vec<String>) -> ExitCode {
    eprintln!("the demonstration is not part of this build");
    ExitCode::FAILURE
}
