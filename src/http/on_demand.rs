//! Requests whose route or cluster is not here yet: which of them wait, and for how long.
//!
//! In: a request for which nothing was found, or that is routed by scope. Out: what is found after all.
//! Meanwhile nothing of the request's body is read, and a client that goes away is noticed once its
//! request is whole.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::exchange::Exchange;
use crate::config::demand::{ClusterSource, Want, PATIENCE};
use crate::config::http::Routes;
use crate::config::route::{Route, RouteTable};
use crate::config::scopes::ScopedRoutes;
use crate::config::{RequestView, Slot};
use crate::upstream::ClusterLocal;

/// Longest authority that is asked for: that of a DNS name with a port, and a little more.
const MAX_HOST: usize = 300;

/// What is found for a request.
pub(super) enum Found {
    /// A route.
    Route(Arc<Route>),
    /// Its virtual host wants TLS: there.
    RequireTls(Vec<u8>),
    /// No route.
    Nothing,
    /// No virtual host, where a control plane may have one.
    NoHost,
    /// The client went away meanwhile.
    Gone,
}

impl Found {
    /// The route, if one was found.
    pub fn route(&self) -> Option<&Arc<Route>> {
        match self {
            Found::Route(route) => Some(route),
            _ => None,
        }
    }
}

/// Longest name of a cluster that is asked for.
const MAX_CLUSTER: usize = 1024;

/// The client went away while its request waited.
pub(super) struct Gone;

impl Exchange<'_> {
    /// The route of a request in a connection manager with scopes.
    pub(super) async fn find_scoped(&mut self, scoped: &ScopedRoutes, random: u64) -> Found {
        let Some((slot, on_demand)) = self.scope(scoped) else { return Found::Nothing };
        if on_demand
            && self.manager.on_demand.is_some()
            && slot.load().is_none()
            && Box::pin(self.await_answer(Want::Table(slot.clone()), PATIENCE)).await.is_err()
        {
            return Found::Gone;
        }
        match self.find(&slot, random) {
            Found::NoHost => Box::pin(self.find_host(&slot, random)).await,
            found => found,
        }
    }

    /// As [`Exchange::find`], in whichever table is the request's; what is on demand is not waited for.
    pub(super) fn find_now(&mut self, random: u64) -> Found {
        let manager = self.manager;
        match &manager.routes {
            Routes::Table(slot) => self.find(slot, random),
            Routes::Scoped(scoped) => match self.scope(scoped) {
                Some((slot, _)) => self.find(&slot, random),
                None => Found::Nothing,
            },
        }
    }

    /// The slot of the request's table, and whether the table is on demand.
    fn scope(&self, scoped: &ScopedRoutes) -> Option<(Arc<Slot<RouteTable>>, bool)> {
        let key = scoped.builder.key(self.request.as_ref()?)?;
        let scopes = scoped.scopes.load();
        let scope = scopes.as_ref()?.find(&key)?;
        Some((scope.routes.clone(), scope.on_demand))
    }

    /// The route of a request whose authority no virtual host serves, in a table that has more of them
    /// at a control plane.
    pub(super) async fn find_host(&mut self, slot: &Arc<Slot<RouteTable>>, random: u64) -> Found {
        let Some(request) = self.request.as_ref().filter(|_| self.manager.on_demand.is_some()) else {
            return Found::Nothing;
        };
        let Some(host) = host_name(request.authority()) else { return Found::Nothing };
        let want = Want::VirtualHost { table: slot.clone(), host };
        match self.await_answer(want, PATIENCE).await {
            Ok(()) => self.find(slot, random),
            Err(Gone) => Found::Gone,
        }
    }

    /// The cluster of this name, which is not here: asked for where the route or the filter says so.
    pub(super) async fn find_cluster(
        &mut self,
        route: &Route,
        name: Option<Box<str>>,
    ) -> Result<Option<Rc<ClusterLocal>>, Gone> {
        let (Some(name), Some(on_demand)) = (name, &self.manager.on_demand) else { return Ok(None) };
        if name.is_empty() || name.len() > MAX_CLUSTER {
            return Ok(None);
        }
        let own = route.on_demand.as_ref().filter(|own| *own.filter == *on_demand.name);
        let (from, patience) = match (own, &on_demand.clusters) {
            (Some(own), _) if own.clusters.is_some() => (ClusterSource::Route(own.clone()), own.timeout),
            (None, Some(clusters)) => (ClusterSource::Filter(clusters.clone()), clusters.timeout),
            _ => return Ok(None),
        };
        self.await_answer(Want::Cluster { from, name: name.clone() }, patience).await?;
        let slot = self.worker.clusters.find(&name);
        Ok(slot.and_then(|slot| self.worker.upstreams.cluster(&slot)))
    }

    /// Waits until it is worth while to look again, or `patience` is over.
    pub(super) async fn await_answer(&mut self, want: Want, patience: Duration) -> Result<(), Gone> {
        let manager = self.manager;
        let Some(on_demand) = &manager.on_demand else { return Ok(()) };
        let Some(answer) = on_demand.demand.ask(want) else { return Ok(()) };
        // No longer than a stream may be idle.
        let until = Instant::now() + manager.timeouts.stream_idle.map_or(patience, |idle| idle.min(patience));
        let mut answer = pin!(answer);
        let waited = poll_fn(|context| {
            if answer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let down = &mut *self.down;
            down.client.nudge(context);
            down.client.gather(context);
            if down.client.poll_gone(self.upload.is_received(), down.buffer_limit, context).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            if self.down.timer.poll(Some(until), context).is_ready() {
                on_demand.demand.stats().timeout.increment(1);
                return Poll::Ready(Ok(()));
            }
            Poll::Pending
        })
        .await;
        self.now = Instant::now();
        waited
    }
}

/// An authority as it is asked for: in lower case. `None` for what cannot be the name of a resource.
fn host_name(authority: &[u8]) -> Option<Box<str>> {
    let fits = !authority.is_empty() && authority.len() <= MAX_HOST;
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'/' && *byte != b'*';
    let text = std::str::from_utf8(authority).ok().filter(|_| fits && authority.iter().all(plain))?;
    Some(text.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_host_is_asked_for() {
        for (authority, wanted) in [
            ("Foo.Test:80", Some("foo.test:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("", None),
            ("a/b", None),
            ("*", None),
            ("*.test", None),
            ("a b", None),
            ("a\u{e9}", None),
        ] {
            assert_eq!(host_name(authority.as_bytes()).as_deref(), wanted, "{authority}");
        }
        assert!(host_name("a".repeat(MAX_HOST).as_bytes()).is_some());
        assert!(host_name("a".repeat(MAX_HOST + 1).as_bytes()).is_none());
    }
}
