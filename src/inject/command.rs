//! `outrigger inject`: files in, files out.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::documents::{inject, parse, render, Line};
use super::pod::Outcome;
use super::{InjectError, Settings};

/// The flags of `outrigger inject`.
#[derive(Debug, Clone, Args)]
pub struct InjectFlags {
    /// Kubernetes objects, YAML or JSON; `-` is standard input. May be repeated.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Write here instead of to standard output.
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What is injected (see examples/kubernetes/settings.yaml); annotations of a pod override it.
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
}

/// What is injected, from a file.
///
/// # Errors
/// It cannot be read, or says what is not known.
pub fn settings(file: Option<&Path>) -> Result<Settings, InjectError> {
    let Some(file) = file else { return Ok(Settings::default()) };
    let (name, text) = read(file)?;
    serde_yaml_ng::from_str(&text).map_err(|error| InjectError::Syntax(name, error.to_string()))
}

/// Injects the files. What was done with each object goes to `said`.
///
/// # Errors
/// Nothing is written then.
pub fn run(flags: &InjectFlags, said: &mut dyn Write) -> Result<(), InjectError> {
    let settings = settings(flags.settings.as_deref())?;
    let mut documents = Vec::new();
    for file in &flags.files {
        let (name, text) = read(file)?;
        documents.extend(parse(&name, &text)?);
    }
    let mut lines: Vec<Line> = Vec::new();
    for document in &mut documents {
        lines.extend(inject(document, &settings)?);
    }
    let text = render(&documents)?;
    let (name, written) = match &flags.output {
        Some(path) => (path.display().to_string(), std::fs::write(path, text)),
        None => ("standard output".to_owned(), std::io::stdout().write_all(text.as_bytes())),
    };
    written.map_err(|error| InjectError::File(name, error))?;
    for Line { object, outcome } in lines {
        let what = match outcome {
            Outcome::Injected => "injected",
            Outcome::Already => "has a sidecar already",
            Outcome::Skipped(reason) => reason,
        };
        // Who cannot be told does not need to be.
        let _ = writeln!(said, "{object}: {what}");
    }
    Ok(())
}

fn read(file: &Path) -> Result<(String, String), InjectError> {
    let name = file.display().to_string();
    let mut text = String::new();
    let read = match name.as_str() {
        "-" => std::io::stdin().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(file).map(|read| text = read),
    };
    read.map_err(|error| InjectError::File(name.clone(), error))?;
    Ok((name, text))
}
