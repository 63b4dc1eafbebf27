//! The last good configuration on disk (`--state-dir`): a sidecar that starts while its control plane
//! is down serves from it.
//!
//! In: the resources in force. Out: one file, written aside and moved into place, with a checksum and
//! the node that it is for. A file that is damaged, of another node or of another form is refused with
//! its reason, and the sidecar starts without it. The form: a line of text that names it; then
//! length-delimited messages, a `Node` with id and cluster and `DeltaDiscoveryResponse`s of some hundred
//! resources each; at last the checksum of these messages (XXH64, little-endian).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3::Node;
use outrigger_control_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, Resource as PbResource,
};
use outrigger_control_api::pb::google::protobuf::Any;
use prost::Message;
use xxhash_rust::xxh64::{xxh64, Xxh64};

/// The form that is written and read.
const FORM: &[u8] = b"outrigger last good configuration 1\n";
const NAME: &str = "last-good.xds";
/// Larger files are refused: far more than any mesh's configuration.
const MAX_BYTES: u64 = 1 << 30;
/// Resources in one message: what is encoded at one time.
const CHUNK: usize = 256;

/// Why the file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LastGoodError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path} has {size} bytes, more than {MAX_BYTES}")]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{path} is not a last good configuration of this version")]
    Foreign { path: PathBuf },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} belongs to node {found:?}, this is {own:?}")]
    OtherNode { path: PathBuf, found: String, own: String },
}

/// Resources of one type from one stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    /// Which stream, see [`Origin::label`](super::sources::Origin::label).
    pub(super) origin: String,
    pub(super) type_url: String,
    /// The version of the whole.
    pub(super) version: String,
    pub(super) resources: Vec<Kept>,
}

/// One resource.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) body: Arc<[u8]>,
}

/// Writes what is in force.
pub(super) fn write(directory: &Path, node: &Node, groups: &[Group]) -> Result<(), LastGoodError> {
    let path = directory.join(NAME);
    let aside = directory.join(format!("{NAME}.{}", std::process::id()));
    let written = (|| {
        fs::create_dir_all(directory)?;
        let mut file = BufWriter::new(File::create(&aside)?);
        file.write_all(FORM)?;
        let mut checksum = Xxh64::new(0);
        let mut put = |bytes: &[u8]| {
            checksum.update(bytes);
            file.write_all(bytes)
        };
        put(&own(node).encode_length_delimited_to_vec())?;
        for group in groups {
            // A group without resources is worth its version.
            let chunks = group.resources.chunks(CHUNK).chain(group.resources.is_empty().then_some(&[][..]));
            for chunk in chunks {
                put(&message(group, chunk).encode_length_delimited_to_vec())?;
            }
        }
        file.write_all(&checksum.digest().to_le_bytes())?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&aside, &path)?;
        // The directory's entry is what makes the rename last.
        File::open(directory)?.sync_all()
    })();
    written.map_err(|error| {
        // What was written aside is of no use.
        let _ = fs::remove_file(&aside);
        LastGoodError::Io { path, error }
    })
}

fn message(group: &Group, chunk: &[Kept]) -> DeltaDiscoveryResponse {
    let resource = |kept: &Kept| PbResource {
        name: kept.name.to_string(),
        version: kept.version.to_string(),
        resource: Some(Any { type_url: group.type_url.clone(), value: kept.body.to_vec() }),
        ..PbResource::default()
    };
    DeltaDiscoveryResponse {
        system_version_info: group.version.clone(),
        resources: chunk.iter().map(resource).collect(),
        type_url: group.type_url.clone(),
        nonce: group.origin.clone(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// What was written last; `None` where nothing was.
pub(super) fn read(directory: &Path, node: &Node) -> Result<Option<Vec<Group>>, LastGoodError> {
    let path = directory.join(NAME);
    let size = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LastGoodError::Io { path, error }),
    };
    if size > MAX_BYTES {
        return Err(LastGoodError::TooLarge { path, size });
    }
    let file = match fs::read(&path) {
        Ok(file) => file,
        Err(error) => return Err(LastGoodError::Io { path, error }),
    };
    let damaged = |reason: &dyn std::fmt::Display| LastGoodError::Damaged {
        path: path.clone(),
        reason: reason.to_string(),
    };
    let Some(rest) = file.strip_prefix(FORM) else { return Err(LastGoodError::Foreign { path }) };
    let Some((mut content, checksum)) = rest.split_last_chunk() else {
        return Err(damaged(&"it ends before its checksum"));
    };
    if xxh64(content, 0) != u64::from_le_bytes(*checksum) {
        return Err(damaged(&"its checksum is wrong"));
    }
    let found = Node::decode_length_delimited(&mut content).map_err(|error| damaged(&error))?;
    if found != own(node) {
        let text = |node: &Node| format!("{} of {}", node.id, node.cluster);
        return Err(LastGoodError::OtherNode { found: text(&found), own: text(&own(node)), path });
    }
    let mut groups: Vec<Group> = Vec::new();
    while !content.is_empty() {
        let response =
            DeltaDiscoveryResponse::decode_length_delimited(&mut content).map_err(|error| damaged(&error))?;
        let resources = response.resources.into_iter().map(|resource| Kept {
            name: resource.name.into(),
            version: resource.version.into(),
            body: Arc::from(&*resource.resource.unwrap_or_default().value),
        });
        match groups.last_mut() {
            Some(last) if last.origin == response.nonce && last.type_url == response.type_url => {
                last.resources.extend(resources);
            }
            _ => groups.push(Group {
                origin: response.nonce,
                type_url: response.type_url,
                version: response.system_version_info,
                resources: resources.collect(),
            }),
        }
    }
    Ok(Some(groups))
}

/// What has to be the same for a file to be ours.
fn own(node: &Node) -> Node {
    Node { id: node.id.clone(), cluster: node.cluster.clone(), ..Node::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        Node { id: id.to_owned(), cluster: "shop".to_owned(), ..Node::default() }
    }

    fn groups() -> Vec<Group> {
        let resource =
            |name: &str| Kept { name: name.into(), version: "7".into(), body: Arc::from(name.as_bytes()) };
        vec![Group {
            origin: "ads".to_owned(),
            type_url: super::super::effects::CDS.to_owned(),
            version: "7".to_owned(),
            // More than go into one message.
            resources: (0..CHUNK * 2 + 1).map(|number| resource(&number.to_string())).collect(),
        }]
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("made/on/demand");
        assert_eq!(read(&state, &node("n")).expect("nothing there"), None);
        write(&state, &node("n"), &groups()).expect("written");
        assert_eq!(read(&state, &node("n")).expect("read"), Some(groups()));
        assert_eq!(fs::read_dir(&state).expect("listed").count(), 1, "nothing is left aside");
    }

    #[test]
    fn what_is_not_ours_or_damaged_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), &node("n"), &groups()).expect("written");
        let refused = |node: &Node| read(directory.path(), node).expect_err("refused").to_string();
        assert!(refused(&node("m")).ends_with("belongs to node \"n of shop\", this is \"m of shop\""));
        let path = directory.path().join(NAME);
        let good = fs::read(&path).expect("there");
        for cut in [FORM.len() + 3, good.len() - 9] {
            fs::write(&path, &good[..cut]).expect("cut short");
            assert!(refused(&node("n")).contains("is damaged: "));
        }
        for position in (FORM.len()..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[position] ^= 0x10;
            fs::write(&path, &bad).expect("damaged");
            assert!(refused(&node("n")).contains("its checksum is wrong"), "at {position}");
        }
        fs::write(&path, "something else\n").expect("replaced");
        assert!(refused(&node("n")).ends_with("is not a last good configuration of this version"));
    }
}
