//! Where resources come from, as small numbers: equal sources are one stream.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::discovery::{ApiSource, Source};

/// One stream of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StreamId(pub(super) u32);

/// What is at the other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// The aggregated stream of the bootstrap's `ads_config`.
    Ads,
    /// A stream of one type.
    Own { source: Arc<ApiSource>, type_url: &'static str },
    /// A file with resources of one type.
    Path { path: PathBuf, watched_directory: Option<PathBuf>, type_url: &'static str },
}

impl Origin {
    /// The same for the same stream in another run; `None` for files, which need not be kept.
    pub(super) fn label(&self) -> Option<String> {
        match self {
            Origin::Ads => Some("ads".to_owned()),
            Origin::Own { source, type_url } => {
                let targets: Vec<_> = source.targets.iter().map(|target| &*target.name).collect();
                Some(format!("{}: {type_url}", targets.join(", ")))
            }
            Origin::Path { .. } => None,
        }
    }
}

/// All streams that something refers to.
#[derive(Debug, Default)]
pub(super) struct Sources {
    origins: Vec<Origin>,
    by_origin: HashMap<Origin, StreamId>,
}

impl Sources {
    /// The stream that brings resources of `type_url` from `source`; `parent` is the stream that
    /// brought what refers to them.
    pub(super) fn stream(
        &mut self,
        source: &Source,
        parent: Option<StreamId>,
        type_url: &'static str,
    ) -> StreamId {
        let origin = match source {
            Source::Ads => Origin::Ads,
            Source::Own(source) => Origin::Own { source: source.clone(), type_url },
            Source::Path { path, watched_directory } => {
                let (path, watched_directory) = (path.clone(), watched_directory.clone());
                Origin::Path { path, watched_directory, type_url }
            }
            Source::SameAsParent => match parent.and_then(|parent| self.origin(parent)) {
                Some(Origin::Own { source, .. }) => Origin::Own { source: source.clone(), type_url },
                Some(Origin::Path { path, watched_directory, .. }) => {
                    let (path, watched_directory) = (path.clone(), watched_directory.clone());
                    Origin::Path { path, watched_directory, type_url }
                }
                Some(Origin::Ads) | None => Origin::Ads,
            },
        };
        self.intern(origin)
    }

    pub(super) fn intern(&mut self, origin: Origin) -> StreamId {
        if let Some(stream) = self.by_origin.get(&origin) {
            return *stream;
        }
        // There are far fewer sources than 2^32.
        let stream = StreamId(self.origins.len() as u32);
        self.origins.push(origin.clone());
        self.by_origin.insert(origin, stream);
        stream
    }

    /// The stream that a label names, if anything refers to it.
    pub(super) fn labelled(&self, label: &str) -> Option<StreamId> {
        let index = self.origins.iter().position(|origin| origin.label().as_deref() == Some(label))?;
        Some(StreamId(index as u32))
    }

    pub(super) fn origin(&self, stream: StreamId) -> Option<&Origin> {
        self.origins.get(stream.0 as usize)
    }
}
