//! What a listener needs before it serves, as it is asked for: route tables, scopes, and parts of it that come by
//! themselves.

use std::sync::Arc;

use super::effects::{Effects, RDS, SRDS};
use super::pieces::{PieceKey, Pieces};
use super::routes::{RouteKey, Routes};
use super::scopes::{Scopes, ScopesKey};
use super::sources::{Sources, StreamId};
use crate::config::compile::resource::Needs;
use crate::config::pieces::Piece;

/// What needs are met with.
pub(super) struct Ground<'a> {
    pub(super) scopes: &'a mut Scopes,
    pub(super) routes: &'a mut Routes,
    pub(super) pieces: &'a mut Pieces,
    pub(super) sources: &'a mut Sources,
    pub(super) effects: &'a mut Effects,
}

/// The needs of one version of a listener, from [`Wanted::ask`] to [`Wanted::release`].
#[derive(Debug, Default)]
pub(super) struct Wanted {
    tables: Vec<RouteKey>,
    lazy: Vec<RouteKey>,
    scopes: Vec<ScopesKey>,
    pieces: Vec<WantedPiece>,
}

#[derive(Debug)]
struct WantedPiece {
    key: PieceKey,
    piece: Arc<dyn Piece>,
    optional: bool,
}

impl Wanted {
    /// Asks for everything; `parent` is the stream that the listener came from.
    pub(super) fn ask(needs: &Needs, parent: Option<StreamId>, ground: &mut Ground<'_>) -> Self {
        let Ground { scopes, routes, pieces, sources, effects } = ground;
        let mut wanted = Self::default();
        for need in &needs.route_tables {
            let key = (sources.stream(&need.source.source, parent, RDS), need.name.clone());
            routes.want(&key, need, effects);
            wanted.tables.push(key);
        }
        for need in &needs.lazy_tables {
            let key = (sources.stream(&need.source.source, parent, RDS), need.name.clone());
            routes.offer(&key, need);
            wanted.lazy.push(key);
        }
        for need in &needs.scoped_routes {
            let feed = sources.stream(&need.source.source, parent, SRDS);
            let key = (feed, sources.stream(&need.tables.source, parent, RDS));
            scopes.want(key, need, routes, effects);
            wanted.scopes.push(key);
        }
        for need in &needs.pieces {
            let type_url = need.piece.type_url();
            let key = (sources.stream(&need.source.source, parent, type_url), type_url, need.name.clone());
            pieces.want(&key, need, effects);
            wanted.pieces.push(WantedPiece { key, piece: need.piece.clone(), optional: need.optional });
        }
        wanted
    }

    /// Nothing of it is needed any more. Connections that began with it keep it.
    pub(super) fn release(self, ground: &mut Ground<'_>) {
        let Ground { scopes, routes, pieces, effects, .. } = ground;
        self.tables.iter().for_each(|key| routes.release(key, effects));
        self.lazy.iter().for_each(|key| routes.withdraw(key, effects));
        self.scopes.iter().for_each(|key| scopes.release(*key, routes, effects));
        self.pieces.iter().for_each(|wanted| pieces.release(&wanted.key, &wanted.piece, effects));
    }

    /// Whether a listener with these needs may serve; one that `replaces` another may not if what it
    /// needs is said not to exist.
    pub(super) fn is_met(&self, replaces: bool, scopes: &Scopes, routes: &Routes, pieces: &Pieces) -> bool {
        self.tables.iter().all(|key| match replaces {
            true => routes.is_answered(key),
            false => routes.is_settled(key),
        }) && self.scopes.iter().all(|key| scopes.is_met(*key, replaces, routes))
            && self.pieces.iter().all(|wanted| wanted.optional || pieces.is_settled(&wanted.key))
    }
}
