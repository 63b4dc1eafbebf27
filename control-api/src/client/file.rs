//! Resources from a file (`path_config_source`): a `DiscoveryResponse` that is read again when it changes.
//!
//! In: requests, of which only what they want is looked at, and a file. Out: responses in state of the
//! world, so that everything else is as with a control plane that speaks.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::sync::mpsc;
use xxhash_rust::xxh64::xxh64;

use super::driver::{run, Events, Subscriptions, Transport};
use super::machine::Settings;
use super::sotw::StateOfTheWorld;
use super::transport::{Heard, Inbound, TransportError};
use crate::load::{load, load_binary, MAX_TEXT_BYTES};
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use crate::text::Format;
use crate::watch::DirectoryWatch;

/// A file of resources of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// A `DiscoveryResponse`: in JSON (`.json`), YAML (`.yaml`, `.yml`) or protobuf's wire form (`.pb`);
    /// what is called otherwise is JSON or YAML.
    pub path: PathBuf,
    /// The directory whose changes are looked out for; that of the file if absent. For a file behind a
    /// symbolic link that is swapped elsewhere, as in a mounted ConfigMap.
    pub watched_directory: Option<PathBuf>,
    /// The type of its resources.
    pub type_url: String,
}

/// A client of a file, which is used as one of a control plane. [`client`](super::client) says the rest.
///
/// A file that is missing or broken is [refused](super::Event::Refused), and what it held before remains.
/// Besides [`Settings::initial_fetch_timeout`] no setting matters.
pub fn file_client(
    file: File,
    mut settings: Settings,
) -> (Subscriptions, Events, impl Future<Output = ()> + Send) {
    settings.single_type = Some(file.type_url.clone());
    settings.doubt_after = None;
    settings.rate_limit = None;
    run::<StateOfTheWorld, File>(file, settings, 0)
}

impl Transport<StateOfTheWorld> for File {
    fn open(
        &self,
        _: Heard,
        requests: mpsc::Receiver<DiscoveryRequest>,
        inbound: mpsc::Sender<Inbound<DiscoveryResponse>>,
    ) -> Pin<Box<dyn Future<Output = TransportError> + Send>> {
        let file = self.clone();
        Box::pin(async move {
            // It ends when the client does.
            follow(&file, requests, inbound).await;
            TransportError::Ended { address: file.path.display().to_string() }
        })
    }

    fn address(&self) -> String {
        self.path.display().to_string()
    }
}

async fn follow(
    file: &File,
    mut requests: mpsc::Receiver<DiscoveryRequest>,
    inbound: mpsc::Sender<Inbound<DiscoveryResponse>>,
) -> Option<()> {
    let own = file.path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let directory = file.watched_directory.as_deref().unwrap_or(own);
    let mut watch = DirectoryWatch::new();
    let mut wanted: Option<Vec<String>> = None;
    // The content last told, and whether the names wanted have changed since.
    let mut told = None;
    let mut nonce = 0_u64;
    inbound.send(Inbound::Opened).await.ok()?;
    loop {
        watch.add([directory]);
        let content = read(&file.path).await;
        let hash = match &content {
            Ok(bytes) => xxh64(bytes, 0),
            Err(error) => xxh64(error.as_bytes(), 1),
        };
        // Nothing is taken before something is asked for.
        if wanted.is_some() && told != Some(hash) {
            told = Some(hash);
            let message = match content.and_then(|bytes| parse(&file.path, &bytes)) {
                Ok(mut response) => {
                    nonce += 1;
                    response.nonce = nonce.to_string();
                    Inbound::Response(response)
                }
                Err(error) => {
                    let message = format!("{}: {error}", file.path.display());
                    Inbound::Unreadable { type_url: file.type_url.clone(), message }
                }
            };
            inbound.send(message).await.ok()?;
        }
        tokio::select! {
            request = requests.recv() => {
                let names = request?.resource_names;
                if wanted.as_ref() != Some(&names) {
                    wanted = Some(names);
                    told = None;
                }
            }
            // The file is read in any case, so a hint half heard is not lost.
            () = watch.changed() => {}
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let length = tokio::fs::metadata(path).await.map_err(|error| error.to_string())?.len();
    check_length(length)?;
    tokio::fs::read(path).await.map_err(|error| error.to_string())
}

/// Reads a file of resources once.
///
/// # Errors
/// In words: it cannot be read, is too large or holds no `DiscoveryResponse`.
pub fn read_file(path: &Path) -> Result<DiscoveryResponse, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    check_length(length)?;
    parse(path, &std::fs::read(path).map_err(|error| error.to_string())?)
}

fn check_length(length: u64) -> Result<(), String> {
    if usize::try_from(length).is_ok_and(|length| length <= MAX_TEXT_BYTES) {
        Ok(())
    } else {
        Err(format!("has {length} bytes, more than the limit of {MAX_TEXT_BYTES}"))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<DiscoveryResponse, String> {
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("pb") => None,
        Some("json") => Some(Format::Json),
        Some("yaml" | "yml") => Some(Format::Yaml),
        Some("pb_text") => {
            return Err("protobuf's text form is not supported; use .pb, .json or .yaml".to_owned())
        }
        _ => Some(Format::Auto),
    };
    let loaded = match format {
        Some(format) => load::<DiscoveryResponse>(bytes, format).map(|loaded| loaded.message),
        None => load_binary::<DiscoveryResponse>(bytes, false).map(|(loaded, _)| loaded.message),
    };
    loaded.map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })
}
