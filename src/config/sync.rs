//! What [`slot`](super::slot) is synchronised with: a name of its own, so that `tests/model` can put
//! primitives in place whose every interleaving is tried.

pub(super) use arc_swap::{ArcSwapOption, Guard};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
